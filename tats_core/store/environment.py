"""The environment of a run: versions, machine, command, and how the code differs from its commit.

It is saved beside the run's record, for its page and for the tracking server.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tats_core import __version__
from tats_core.addresses import masked
from tats_core.files import write_json, write_text
from tats_core.machine import available_cpus
from tats_core.store.layout import ENVIRONMENT
from tats_core.store.run import RunRecord

PATCH = "changes.patch"

_PACKAGES = ("torch", "timm", "ray", "mlflow", "pydantic", "numpy", "av", "decord")
# They change how a run behaves.
_VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "RAY_ADDRESS", "TATS_DATA", "TATS_HOME")
_PATCH_BYTES = 1 << 20

_CHECKOUT = Path(__file__).resolve().parents[2]


def save(record: RunRecord) -> None:
    """Write the environment, and how the checkout differs from its commit, into the run's folder."""
    write_json(record.folder / ENVIRONMENT, describe())
    patch = changes()
    if patch:
        write_text(record.folder / PATCH, patch)


def describe() -> dict[str, str]:
    """Return versions, machine and command, by name; none of the packages is imported for it."""
    program, words = Path(sys.argv[0]).name, sys.argv[1:]  # __main__.py: `python -m tats_core`
    files = Path("/proc/driver/nvidia/gpus").glob("*/information")
    gpus = [model for file in files for model in _values(file, "Model")]
    described = {
        "tats": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "machine": platform.machine(),
        "processor": "".join(_values(Path("/proc/cpuinfo"), "model name")[:1]) or platform.processor(),
        "CPUs": str(available_cpus()),
        "GPUs": ", ".join(gpus) or "none",
        "command": shlex.join(["tats" if program == "__main__.py" else program, *_without_hooks(words)]),
    }
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            described[name] = importlib.metadata.version(name)
    described |= {name: masked(os.environ[name]) for name in _VARIABLES if name in os.environ}
    return described | {"git": "changed since its commit"} if changes() else described


def _without_hooks(words: Sequence[str]) -> list[str]:
    """Return a command line without the value of `--notify`: often it holds the secret address of a chat."""
    return [
        "--notify=..." if word.startswith("--notify=") else "..." if before == "--notify" else masked(word)
        for before, word in zip(["", *words], words, strict=False)
    ]


def git_commit() -> str | None:
    """Return the commit of the checkout that this code runs from, or None if it runs from elsewhere."""
    return _git("rev-parse", "--verify", "--quiet", "HEAD").strip() or None


@functools.cache
def changes() -> str:
    """Return how the checkout differs from its commit, as a patch of at most 1 MiB."""
    patch = _git("diff", "HEAD")
    if len(patch) <= _PATCH_BYTES:
        return patch
    return patch[:_PATCH_BYTES] + "\n(cut here: the difference is larger than 1 MiB)\n"


def _git(*words: str) -> str:
    if not (_CHECKOUT / ".git").exists():
        return ""
    command = ["git", "-C", str(_CHECKOUT), *words]
    try:
        git = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except FileNotFoundError:  # git is not installed
        return ""
    return git.stdout if git.returncode == 0 else ""


def _values(file: Path, key: str) -> list[str]:
    """Return the values of the lines `key: value` of a file of the kernel; none where it does not exist."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [line.partition(":")[2].strip() for line in lines if line.startswith(key)]

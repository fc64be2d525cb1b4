"""`tats doctor`: checks that this machine has what TATS needs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import typer

from tats_core.addresses import masked
from tats_core.cli.options import DEFAULT_HOME, Home, many
from tats_core.errors import TatsError
from tats_core.machine import available_cpus
from tats_core.registry import plugins

_LOW_DISK_GB = 2.0
_WORDS = {True: "ok", False: "MISSING", None: "DAMAGED"}


@dataclass(frozen=True)
class Check:
    """One line of the report; `ok` is None for a fault that blocks nothing."""

    name: str
    ok: bool | None
    text: str
    advice: str = ""


def doctor(home: Home = DEFAULT_HOME) -> None:
    """Check that this machine has what TATS needs.

    Checks Python, torch, device, video readers, Ray, MLflow and the project folder; the exit code is 1 if
    anything is missing.
    """
    missing = 0
    for check in checks(home):
        missing += check.ok is False
        typer.echo(f"{_WORDS[check.ok]:<7}  {check.name:<9}  {check.text}")
        if check.advice:
            typer.echo(f"{'':18}  {check.advice}")
    if missing:
        typer.echo(f"tats: {many(missing, 'requirement')} {'are' if missing > 1 else 'is'} missing", err=True)
        raise typer.Exit(1)


def checks(home: Path) -> Iterator[Check]:
    """Run the checks in order; each imports only what it checks."""
    yield Check("Python", True, f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for name, check in (
        ("torch", _torch),
        ("device", _device),
        ("readers", _readers),
        ("Ray", _ray),
        ("MLflow", lambda: Check("MLflow", True, importlib.metadata.version("mlflow"))),
    ):
        yield _guarded(name, check)
    yield store(home)
    yield from damaged_runs(home)
    yield from _broken_plugins()
    yield _data_sets()


def store(home: Path) -> Check:
    """Check that files can be created in the project folder, or in the folder that will contain it."""
    folder = next(folder for folder in (home, *home.parents) if folder.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".tats-doctor-"):
            pass
        free = shutil.disk_usage(folder).free / 1e9
    except OSError as error:
        advice = "make it writable, or give another folder with --home or TATS_HOME"
        return Check("store", False, f"{home} cannot be written ({error.strerror})", advice)
    low = f"checkpoints and videos of the demo need {_LOW_DISK_GB:.0f} GB free"
    return Check("store", True, f"{home} is writable, {free:.0f} GB free", "" if free > _LOW_DISK_GB else low)


def damaged_runs(home: Path) -> Iterator[Check]:
    """Report the records that cannot be read; other runs do without them."""
    from tats_core.store import history

    corrupt: list[str] = []
    for _ in history.records(home, corrupt=corrupt):
        pass
    for sentence in corrupt:
        yield Check("runs", None, sentence, "restore the file, or remove the folder of the run")


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    """Report a package that is not installed or does not load as a failed check."""
    try:
        return check()
    except (ImportError, importlib.metadata.PackageNotFoundError, OSError) as error:
        advice = "install again: pip install -c requirements.lock -e ."
        return Check(name, False, f"does not load ({error})", advice)


def _torch() -> Check:
    import torch

    return Check("torch", True, f"{torch.__version__}, {torch.get_num_threads()} threads")


def _device() -> Check:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return Check("device", True, ", ".join(names))
    return Check("device", True, "CPU (no CUDA device)")


def _readers() -> Check:
    """Write a small video, of a kind that every reader decodes, and compare what each reads."""
    import av
    import numpy as np

    from tats_core.data import readers
    from tats_core.data.readers import decord

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "doctor.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=8, width=32, height=32, pix_fmt="yuv420p")
            for grey in range(4):
                frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 60 * grey, np.uint8), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        try:
            frames_THWC = readers.read_all(path)
            of_decord = readers.read_all(path, "decord") if decord.is_installed() else None
        except TatsError as error:
            return Check("readers", False, str(error), "install av and decord again")
    if len(frames_THWC) != 4:
        return Check("readers", False, f"PyAV read {len(frames_THWC)} of 4 frames", "install av again")
    if of_decord is None:
        return Check("readers", True, f"PyAV {av.__version__}, no decord (reader: decord is not available)")
    if not np.array_equal(of_decord, frames_THWC):
        return Check("readers", False, "decord gives other pixels than PyAV", "use reader: auto")
    version = importlib.metadata.version("decord")
    return Check("readers", True, f"PyAV {av.__version__}, decord {version}")


def _ray() -> Check:
    version = importlib.metadata.version("ray")
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        local = f"a local cluster with {available_cpus()} CPUs is started when needed"
        return Check("Ray", True, f"{version}, {local}")
    from tats_core.launch import ray_train

    try:
        cpus, gpus = ray_train.capacity()
    except TatsError as error:
        return Check("Ray", False, f"{version}, but {error}")
    return Check("Ray", True, f"{version}, the cluster at {masked(address)} has {cpus} CPUs and {gpus} GPUs")


def _broken_plugins() -> Iterator[Check]:
    for package, point in plugins():
        try:
            point.load()
        except Exception as error:  # noqa: BLE001 - somebody else's module may raise anything
            problem = f"{package.name}: {point.group} '{point.name}' cannot be imported ({error})"
            yield Check("plugins", None, problem, "repair or uninstall it")


def _data_sets() -> Check:
    """Report the folders of the real data sets; the demo needs none of them, so none is missing."""
    from tats_core.data import benchmarks

    located = []
    for name in benchmarks.BENCHMARKS:
        with suppress(TatsError):
            located.append(f"{name} in {benchmarks.locate(name)}")
    none = "no real data set is configured (TATS_DATA); `tats run pipeline demo` needs none"
    return Check("data", True, "; ".join(located) or none)

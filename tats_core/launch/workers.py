"""What a worker does, whatever launched it, and the files in which it and the driver record the outcome.

Modules that import torch are imported inside the functions that run in a worker.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from tats_core import errors
from tats_core.errors import StageError, Stopped, TatsError
from tats_core.files import write_json
from tats_core.store.layout import CHECKPOINTS, EVENTS

if TYPE_CHECKING:
    from tats_core.training.world import World

LOG = "log"
"""Folder in a stage's work folder: the output of each worker, and how the training ended."""


@dataclass(frozen=True)
class Training:
    """A function to call in each of some workers: `function(job, world, events, store)`."""

    entry: str
    """`"module:function"`."""
    job: Mapping[str, Any]
    """Plain values for the function; they travel to the workers."""
    workers: int
    name: str
    """Within the stage: it resumes from the newest checkpoint of this name."""
    out: Path
    """The stage's work folder, shared by all machines: events, under `log/` the output of each worker, under
    `checkpoints/` the checkpoints."""
    stop: threading.Event
    """When set, the workers save a checkpoint after their next step and exit."""
    gpu: bool = False
    max_failures: int = 2
    """How often dead workers are replaced before the stage fails."""
    fewer: Sequence[int] = ()
    """Smaller numbers of workers, for when there is no room for all. When there is more room, as many as
    then fit restart from the next checkpoint."""

    @property
    def task(self) -> Task:
        """What each worker is told."""
        checkpoints = self.out / CHECKPOINTS / self.name
        return {
            "entry": self.entry,
            "job": dict(self.job),
            "out": str(self.out),
            "checkpoints": str(checkpoints),
        }


class Task(TypedDict):
    """A worker's task. It travels to the worker's machine, so it holds plain values only."""

    entry: str
    job: dict[str, Any]
    out: str
    checkpoints: str


class Failure(TypedDict):
    """How a worker failed; `type` names a `TatsError`, None any other exception."""

    type: str | None
    text: str


class Outcomes:
    """Files in the stage's folder, which driver and workers share even on different machines."""

    def __init__(self, out: Path) -> None:
        self.folder = out / LOG
        self.please_stop = self.folder / "please-stop"
        self.stopped = self.folder / "stopped"

    def clear(self) -> None:
        """Delete the outcome of an earlier attempt."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in (self.please_stop, self.stopped, *self.failures()):
            path.unlink(missing_ok=True)

    def failures(self) -> list[Path]:
        """Return the files of the workers that recorded a permanent error."""
        return sorted(self.folder.glob("failure-*.json"))

    def record_failure(self, rank: int, error: Exception) -> None:
        """Record an error that a restart would only repeat."""
        name = type(error).__name__ if isinstance(error, TatsError) else None
        failure = Failure(type=name, text=str(error) if name else f"{type(error).__name__}: {error}")
        write_json(self.folder / f"failure-{rank}.json", failure)

    def check(self) -> None:
        """Raise what a worker recorded, or Stopped where a worker stopped on request.

        Raises:
            TatsError: a worker raised it.
            StageError: a worker raised something else; names the folder of its traceback.
        """
        for path in self.failures():
            failure: Failure = json.loads(path.read_text(encoding="utf-8"))
            if failure["type"]:
                raise getattr(errors, failure["type"])(failure["text"])
            raise StageError(f"{failure['text']}; the traceback is in {self.folder}")
        if self.stopped.exists():
            raise Stopped


def work(
    task: Task, make_world: Callable[[], World], rank: int, permanent: tuple[type[Exception], ...]
) -> None:
    """Do the task as worker `rank`; the output of this process goes to `log/worker-<rank>.log`.

    Args:
        make_world: called once the output is redirected, since it imports torch.
        permanent: errors that a restart would only repeat; they are recorded.

    Raises:
        Exception: the task raised it; only Stopped is recorded instead.
    """
    out = Path(task["out"])
    outcomes = Outcomes(out)
    _redirect_output(outcomes.folder / f"worker-{rank}.log")
    try:
        _run(task, make_world(), outcomes, rank)
    except Stopped:
        if rank == 0:
            outcomes.stopped.touch()
    except Exception as error:
        traceback.print_exc()
        if isinstance(error, permanent):
            outcomes.record_failure(rank, error)
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _run(task: Task, world: World, outcomes: Outcomes, rank: int) -> None:
    from tats_core.training.checkpoint import CheckpointStore
    from tats_core.training.events import EventLog

    events = EventLog(Path(task["out"]) / EVENTS if rank == 0 else None)
    module, _, function = task["entry"].partition(":")
    with _only_process(outcomes.folder / f"worker-{rank}.lock"):
        stop = outcomes.please_stop.exists
        store = CheckpointStore(Path(task["checkpoints"]), world, stop=stop, say=events.note)
        getattr(importlib.import_module(module), function)(task["job"], world, events, store)
        store.wait()


@contextmanager
def _only_process(lock: Path) -> Iterator[None]:
    """Wait until this rank's process of an earlier attempt has ended.

    When the driver is killed, that process may survive for a moment and would write to the same files.
    """
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting until this worker's process of an earlier attempt has ended", flush=True)  # noqa: T201
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _redirect_output(path: Path) -> None:
    # The file descriptors, not sys.stderr: FFmpeg and torch print past Python.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)

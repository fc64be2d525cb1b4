"""What a worker does, whoever started it, and the files by which driver and workers say how it ends.

Modules that import torch are imported inside the functions that run in a worker.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from tats_core import errors
from tats_core.errors import StageError, Stopped, TatsError
from tats_core.files import write_json
from tats_core.store.layout import CHECKPOINTS, EVENTS

if TYPE_CHECKING:
    from tats_core.training.world import World

LOG = "log"
"""Folder in a stage's work folder: what each worker prints, and how the training ends."""


class Task(TypedDict):
    """What a worker is given. It travels to the worker's machine, so it holds plain values only."""

    entry: str
    """`"module:function"`; the function is called with (job, world, events, store)."""
    job: dict[str, Any]
    out: str
    checkpoints: str


class Failure(TypedDict):
    """How a worker failed; `type` names a `TatsError`, None any other exception."""

    type: str | None
    text: str


def task_of(entry: str, job: Mapping[str, Any], out: Path, name: str) -> Task:
    """Return the task of the training `name` of the stage that works in `out`."""
    return {"entry": entry, "job": dict(job), "out": str(out), "checkpoints": str(out / CHECKPOINTS / name)}


class Outcomes:
    """Files in the stage's folder, which driver and workers share even where they share no machine."""

    def __init__(self, out: Path) -> None:
        self.folder = out / LOG
        self.please_stop = self.folder / "please-stop"
        self.stopped = self.folder / "stopped"

    def clear(self) -> None:
        """Forget how an earlier attempt ended."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in (self.please_stop, self.stopped, *self.failures()):
            path.unlink(missing_ok=True)

    def failures(self) -> list[Path]:
        """Return the files of the workers that failed for good."""
        return sorted(self.folder.glob("failure-*.json"))

    def record_failure(self, rank: int, error: Exception) -> None:
        """Write down an error that would come again after a restart."""
        known = type(error).__name__ if isinstance(error, TatsError) else None
        failure = Failure(type=known, text=str(error) if known else f"{type(error).__name__}: {error}")
        write_json(self.folder / f"failure-{rank}.json", failure)

    def check(self) -> None:
        """Raise what a worker recorded, or Stopped where one stopped because it was asked to.

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
    task: Task, make_world: Callable[[], World], rank: int, certain: tuple[type[Exception], ...]
) -> None:
    """Do the task as worker `rank`; all that this process prints goes to `log/worker-<rank>.log`.

    Args:
        make_world: called once the output is redirected, since it imports torch.
        certain: errors that would come again after a restart; they are recorded.

    Raises:
        Exception: what the task raised, save Stopped, which is recorded.
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
        if isinstance(error, certain):
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

    After a kill of the driver it may live on for a moment, and would write into the same files.
    """
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waits until this worker's process of an earlier attempt has ended", flush=True)  # noqa: T201
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _redirect_output(path: Path) -> None:
    # The file descriptors, not sys.stderr: FFmpeg and torch print past Python.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)

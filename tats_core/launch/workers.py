"""The work of a worker, however it was launched, and the files that record its outcome for the driver.

Modules that import torch are imported inside the functions that run in a worker.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from tats_core import errors
from tats_core.addresses import masked
from tats_core.errors import PREEMPTED, Preempted, StageError, Stopped, TatsError
from tats_core.files import write_json
from tats_core.store.layout import CHECKPOINTS, EVENTS

if TYPE_CHECKING:
    from tats_core.stages.base import ParallelWork
    from tats_core.training.events import EventLog
    from tats_core.training.world import World

LOG = "log"
"""Folder in a stage's work folder: the output of each worker, and how the training ended."""


class Task(TypedDict):
    """A worker's task. It travels to the worker's machine, so it holds plain values only."""

    entry: str
    """`"module:function"`; the function is called with (job, world, events, store)."""
    job: dict[str, Any]
    out: str
    checkpoints: str
    dies: bool
    """See `ParallelWork`."""


def task_of(work: ParallelWork, out: Path, name: str) -> Task:
    """Return the task of the training `name` of the stage that works in `out`."""
    return {
        "entry": work.entry,
        "job": dict(work.job),
        "out": str(out),
        "checkpoints": str(out / CHECKPOINTS / name),
        "dies": work.dies,
    }


_sigterm = threading.Event()


def expect_preemption() -> None:
    """Make SIGTERM (the machine will be taken away) save a checkpoint; call it in the main thread."""
    signal.signal(signal.SIGTERM, lambda number, frame: _sigterm.set())


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
        text = str(error) if name else f"{type(error).__name__}: {error}"
        write_json(self.folder / f"failure-{rank}.json", {"type": name, "text": masked(text)})

    def check(self) -> None:
        """Raise what a worker recorded, or Stopped where a worker stopped on request.

        Raises:
            TatsError: a worker raised it.
            StageError: a worker raised something else; names the folder of its traceback.
        """
        for path in self.failures():
            failure = json.loads(path.read_text(encoding="utf-8"))
            if failure["type"]:
                raise getattr(errors, failure["type"])(failure["text"])
            raise StageError(f"{failure['text']}; the traceback is in {self.folder}")
        if self.stopped.exists():
            raise Stopped


def work(
    task: Task,
    make_world: Callable[[], World],
    rank: int,
    permanent: tuple[type[Exception], ...],
    preempted: Callable[[], bool] = lambda: False,
) -> None:
    """Do the task as worker `rank`; the output of this process goes to `log/worker-<rank>.log`.

    Args:
        make_world: called once the output is redirected, since it imports torch.
        permanent: errors that a restart would only repeat; they are recorded.
        preempted: whether the launcher knows that this worker's machine will be taken away, as SIGTERM says.

    Raises:
        Preempted: the machine of a worker is taken away, and a checkpoint is saved.
        Exception: the task raised it; only Stopped is recorded instead.
    """
    out = Path(task["out"])
    outcomes = Outcomes(out)
    _redirect_output(outcomes.folder / f"worker-{rank}.log")
    try:
        _run(task, make_world(), outcomes, rank, lambda: _sigterm.is_set() or preempted())
    except Stopped:
        if not outcomes.please_stop.exists():
            print("the machine of a worker is taken away; a checkpoint is saved", flush=True)  # noqa: T201
            raise Preempted(PREEMPTED) from None
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


def _run(task: Task, world: World, outcomes: Outcomes, rank: int, preempted: Callable[[], bool]) -> None:
    from tats_core.training.checkpoint import CheckpointStore
    from tats_core.training.events import EventLog

    events = EventLog(Path(task["out"]) / EVENTS if rank == 0 else None)
    module, _, function = task["entry"].partition(":")
    with _only_process(outcomes.folder / f"worker-{rank}.lock"):
        store = CheckpointStore(
            Path(task["checkpoints"]),
            world,
            stop=lambda: preempted() or outcomes.please_stop.exists(),
            say=events.note,
        )
        if task["dies"] and rank == 0:
            _die_after_checkpoint(store.folder, outcomes.folder / "died", events)
        getattr(importlib.import_module(module), function)(task["job"], world, events, store)
        store.wait()


def _die_after_checkpoint(checkpoints: Path, died: Path, events: EventLog) -> None:
    """Kill this process once, as the system would, as soon as it has saved a checkpoint."""
    if died.exists():
        return

    def watch() -> None:
        while not any(not path.suffix for path in checkpoints.glob("step-*")):
            time.sleep(0.02)
        died.touch()
        events.note(f"rehearsal: process {os.getpid()} is killed, to see the training resume")
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="die-after-checkpoint", daemon=True).start()


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

"""A training with one CPU worker, in a process of its own, without a cluster's help.

The worker is forked from a server that has torch imported already, so that it starts in no time, and what it
takes of memory is its own and not that of the trial before it.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from tats_core import errors
from tats_core.errors import StageError, Stopped, TatsError
from tats_core.files import write_json
from tats_core.store.layout import CHECKPOINTS

_PRELOADED = ["tats_core.stages.pretrain", "tats_core.stages.finetune"]
_STOPPED = 75  # exit code of a worker that left because it was asked to
_LOOK_SECONDS = 0.1


def prepare() -> ForkServerContext:
    """Start the server; a second call does nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def fit(
    entry: str,
    job: Mapping[str, Any],
    *,
    workers: int,
    gpu: bool,
    name: str,
    out: Path,
    max_failures: int,
    stop: threading.Event,
) -> None:
    """Call `function(job, world, events, store)` in one process and wait for it; see `ray_train.fit`.

    Raises:
        TatsError: what the worker raised.
        StageError: it died more than `max_failures` times, or raised what would come again.
        Stopped: `stop` was set.
    """
    assert workers == 1, "more workers than one need Ray Train"
    assert not gpu, "a GPU is Ray's to give"
    out = out.absolute()
    failure = out / "log" / "failure-0.json"
    failure.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(max_failures + 1):
        failure.unlink(missing_ok=True)
        code = _attempt(entry, dict(job), out, name, stop)
        if code == 0:
            return
        if code == _STOPPED:
            raise Stopped
        _raise(failure)
    log = out / "log" / "worker-0.log"
    raise StageError(
        f"its worker died {max_failures + 1} times ({_cause(code)}); what it printed is in {log}"
    )


def _attempt(entry: str, job: dict[str, Any], out: Path, name: str, stop: threading.Event) -> int:
    context = prepare()
    asked = context.Event()
    worker = context.Process(target=_work, args=(entry, job, str(out), name, asked))
    worker.start()
    while not wait([worker.sentinel], _LOOK_SECONDS):
        if stop.is_set() and not asked.is_set():
            asked.set()
    worker.join()
    code = worker.exitcode
    worker.close()
    assert code is not None
    return code


def _raise(failure: Path) -> None:
    if not failure.exists():
        return  # it was killed
    told = json.loads(failure.read_text(encoding="utf-8"))
    if told["type"]:
        raise getattr(errors, told["type"])(told["text"])
    raise StageError(f"{told['text']}; the traceback is in {failure.parent}")


def _cause(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


# --- in the worker -----------------------------------------------------------------------------------


def _work(entry: str, job: dict[str, Any], out: str, name: str, asked: Any) -> None:
    import torch

    from tats_core.machine import keep_freed_memory
    from tats_core.training.checkpoint import FolderStore
    from tats_core.training.events import EventLog
    from tats_core.training.world import World

    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the parent decides
    folder = Path(out)
    _print_into(folder / "log" / "worker-0.log")
    torch.set_num_threads(1)
    keep_freed_memory()
    events = EventLog(folder / "events.jsonl")
    code = 0
    with (folder / "log" / "worker-0.lock").open("w") as lock:
        fcntl.flock(
            lock, fcntl.LOCK_EX
        )  # an earlier one may live on for a moment after its parent was killed
        try:
            store = FolderStore(folder / CHECKPOINTS / name, World(), stop=asked.is_set, say=events.note)
            module, _, function = entry.partition(":")
            getattr(importlib.import_module(module), function)(job, World(), events, store)
            store.wait()
        except Stopped:
            code = _STOPPED
        except Exception as error:  # noqa: BLE001, it is raised by the parent
            traceback.print_exc()
            known = type(error).__name__ if isinstance(error, TatsError) else None
            text = str(error) if known else f"{type(error).__name__}: {error}"
            write_json(folder / "log" / "failure-0.json", {"type": known, "text": text})
            code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _print_into(path: Path) -> None:
    # The file descriptors, not sys.stderr: FFmpeg and torch print past Python.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)

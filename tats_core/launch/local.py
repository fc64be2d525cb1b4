"""Training with one CPU worker, in a process of its own, without a cluster.

The worker is forked from a server that has already imported torch: it starts at once, and does not inherit
the memory of the trial before it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import TYPE_CHECKING

from tats_core.errors import Preempted, StageError, Stopped
from tats_core.launch import workers as launched
from tats_core.launch.workers import Outcomes, Task
from tats_core.machine import end_with_parent, keep_freed_memory

if TYPE_CHECKING:
    from tats_core.stages.base import ParallelWork
    from tats_core.training.world import World

_PRELOADED = [
    "tats_core.stages.pretrain",
    "tats_core.stages.finetune",
    "timm.models.vision_transformer",
    "timm.data.mixup",
    "matplotlib",
]
_POLL_SECONDS = 0.1
_PREEMPTED = 75  # exit code: "try again later" of sysexits.h


def prepare() -> ForkServerContext:
    """Start the server; a second call does nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def fit(work: ParallelWork, name: str, out: Path, stop: threading.Event) -> None:
    """Do the work of one worker in a process and wait for it; see `ray_train.fit`.

    Raises:
        TatsError: the worker raised it.
        StageError: the worker died more than `max_failures` times, or got SIGTERM more than `max_preemptions`
            times, or raised another error.
        Stopped: `stop` was set.
    """
    assert work.workers == 1, "several workers need Ray Train"
    assert not work.gpu, "only Ray assigns GPUs"
    out = out.absolute()
    outcomes = Outcomes(out)
    failures = preemptions = 0
    while failures <= work.max_failures and preemptions <= work.max_preemptions:
        outcomes.clear()
        code = _attempt(launched.task_of(work, out, name), outcomes, stop)
        outcomes.check()
        if code == 0:
            return
        if code == _PREEMPTED and stop.is_set():
            raise Stopped
        failures += code != _PREEMPTED
        preemptions += code == _PREEMPTED
    cause = signal.strsignal(-code) if code < 0 else f"exit code {code}"
    how = f"died {failures} times ({cause})" if code != _PREEMPTED else f"got SIGTERM {preemptions} times"
    log = outcomes.folder / "worker-0.log"
    raise StageError(f"its worker {how}; what it printed is in {log}")


def _attempt(task: Task, outcomes: Outcomes, stop: threading.Event) -> int:
    worker = prepare().Process(target=_work, args=(task,))
    worker.start()
    while not wait([worker.sentinel], _POLL_SECONDS):
        if stop.is_set():
            outcomes.please_stop.touch()
    worker.join()
    code = worker.exitcode
    worker.close()
    assert code is not None
    return code


def _work(task: Task) -> None:
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent decides
    launched.expect_preemption()
    try:
        launched.work(task, _world, 0, permanent=(Exception,))
    except Preempted:
        os._exit(_PREEMPTED)
    except Exception:  # noqa: BLE001, the parent raises what was recorded
        os._exit(1)
    os._exit(0)


def _world() -> World:
    import torch

    from tats_core.training.world import World

    torch.set_num_threads(1)
    keep_freed_memory()
    return World()

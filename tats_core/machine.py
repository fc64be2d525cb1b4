"""The CPUs, the memory and the processes of this machine."""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import os
import sys
import threading


def available_cpus() -> int:
    """Return the number of CPUs that this process may use; a container or a batch system may limit it."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS has no affinity


def available_gpus() -> int:
    """Return the number of GPUs that this process may use, as torch counts them."""
    import torch  # slow, and needed by few callers

    return torch.cuda.device_count()


def end_with_parent(*_: object) -> None:
    """End this process, which `multiprocessing` started, when the process that started it ends.

    Whatever kills that process, this one would otherwise wait for it for ever: a process of a fork server is
    no child of it for the kernel, and the server may be dead before this one begins.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "this process was not started by multiprocessing"

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, name="end-with-parent", daemon=True).start()


def end_after(seconds: float) -> None:
    """End this process once it has computed for `seconds` more, whatever library it is in by then.

    Only where `multiprocessing` started it and the system has such limits; a later call replaces the limit.
    """
    if multiprocessing.parent_process() is None or os.name != "posix":
        return
    import resource

    wanted = {resource.RLIMIT_CPU: math.ceil(sum(os.times()[:2]) + seconds), resource.RLIMIT_CORE: 0}
    for kind, limit in wanted.items():
        _, most = resource.getrlimit(kind)
        resource.setrlimit(kind, (limit if most == resource.RLIM_INFINITY else min(limit, most), most))


def keep_freed_memory() -> bool:
    """Let the C allocator hold freed memory for the next step of training; return whether it can.

    glibc returns large blocks to the system at once and asks for them again a moment later, so that each
    step faults its activations in page by page, and threads (backward has its own) do not share what they
    freed. A training step frees exactly what the next one asks for. Other C libraries are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    tune = getattr(ctypes.CDLL(None), "mallopt", None)
    if tune is None:  # musl
        return False
    trim_threshold, mmap_threshold, arena_max = -1, -3, -8  # malloc.h: M_TRIM_THRESHOLD and so on
    settings = {arena_max: 1, mmap_threshold: 1 << 30, trim_threshold: 2**31 - 1}
    return all(tune(name, value) == 1 for name, value in settings.items())

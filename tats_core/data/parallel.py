"""Pieces of work on all CPUs of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Final, TypeVar

from tats_core.errors import StageError
from tats_core.machine import available_cpus, end_with_parent

Item = TypeVar("Item")
Result = TypeVar("Result")

CHUNK: Final = 16
"""Items of a piece: fewer are not worth a process."""


def in_pieces(
    work: Callable[[Sequence[Item]], Result], items: Sequence[Item], workers: int | None = None
) -> Iterator[tuple[Sequence[Item], Result]]:
    """Yield each piece of `items` with `work(piece)` as it is done, in any order.

    Args:
        workers: processes, by default as many as CPUs; 1 works in this process, as it does for few items.

    Raises:
        StageError: a process was ended from outside.
    """
    if workers is None:
        workers = available_cpus()
    if workers == 1 or len(items) <= CHUNK:
        for item in items:
            yield [item], work([item])
        return
    pieces = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
    # Not forked from here: the caller may be one of several threads, whose locks a fork would copy.
    context = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker) as pool:
        futures = {pool.submit(work, piece): piece for piece in pieces}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise StageError(
                "one of its processes was ended from outside, perhaps for want of memory, or by a file on "
                "which a decoder crashes; run again"
            ) from error
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _begin_worker() -> None:
    # Ctrl-C is for the parent, which ends the pool; else each worker would print a traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()

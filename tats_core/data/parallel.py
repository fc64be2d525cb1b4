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
    work: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int | None = None,
    lost: Callable[[Item], Result] | None = None,
    chunk: int = CHUNK,
) -> Iterator[tuple[Sequence[Item], Sequence[Result]]]:
    """Yield each piece of `items` with the results of `work(item)` as it is done, in any order.

    Args:
        workers: processes, by default as many as CPUs; 1 works in this process, as it does for few items.
        lost: gives the result of an item that ends its process, such as a file on which a decoder crashes.
            With it, few items are done in processes too, and on one CPU in one, unless `workers` is 1.
        chunk: items of a piece.

    Raises:
        StageError: a process was ended from outside, and there is no `lost`.
    """
    processes = available_cpus() if workers is None else workers
    if workers == 1 or (lost is None and (processes == 1 or len(items) <= chunk)):
        for item in items:
            yield [item], [work(item)]
        return
    left = {start: items[start : start + chunk] for start in range(0, len(items), chunk)}
    while left:
        with _pool(processes) as pool:
            futures = {pool.submit(_results, work, piece): start for start, piece in left.items()}
            try:
                for future in as_completed(futures):
                    results = future.result()
                    yield left.pop(futures[future]), results
                continue
            except BrokenProcessPool as error:
                if lost is None:
                    raise StageError(
                        "one of its processes was ended from outside, perhaps for want of memory; run again"
                    ) from error
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        # The pieces that were being worked on are the first of those that are left.
        assert lost is not None
        suspects = [item for start in [*left][:processes] for item in left.pop(start)]
        yield from _one_by_one(work, suspects, lost)


def _results(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [work(item) for item in items]


def _one_by_one(
    work: Callable[[Item], Result], items: list[Item], lost: Callable[[Item], Result]
) -> Iterator[tuple[Sequence[Item], Sequence[Result]]]:
    """Yield each item with its result, done in a process beside this one that may end."""
    while items:
        with _pool(1) as pool:
            try:
                while items:
                    result = pool.submit(work, items[0]).result()
                    yield [items.pop(0)], [result]
            except BrokenProcessPool:
                item = items.pop(0)
                yield [item], [lost(item)]


def _pool(workers: int) -> ProcessPoolExecutor:
    # Not forked from here: the caller may be one of several threads, whose locks a fork would copy.
    context = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker)


def _begin_worker() -> None:
    # Ctrl-C is for the parent, which ends the pool; else each worker would print a traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()

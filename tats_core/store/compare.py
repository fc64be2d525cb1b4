"""The differences between runs: configuration, code, data, and results.

Each difference holds one value for each run, in the order of the runs; None where a run has none. What
cannot be read counts as absent: `tats show` names the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from tats_core.errors import SpecError, StoreError, did_you_mean
from tats_core.report.metrics import RESULTS, Metric, declared
from tats_core.specs import flatten
from tats_core.store import lineage
from tats_core.store.lineage import Number
from tats_core.store.run import Points, Run, Stage

Value = TypeVar("Value")


@dataclass(frozen=True)
class Difference:
    """`name` is dotted by stage (`pretrain.sampler.mask_ratio`)."""

    name: str
    values: tuple[object, ...]


@dataclass(frozen=True)
class Measured:
    """A number of one run; `difference` is to the first run's, in points, with its 95% interval.

    The interval is Newcombe's: made of the two numbers' own (Wilson) intervals, for independent samples.
    Two runs are tested on the same clips, so the true interval is somewhat narrower.
    """

    value: float
    low: float | None = None
    high: float | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None


@dataclass(frozen=True)
class Result:
    """One number of the final tables, by its name in them."""

    name: str
    runs: tuple[Measured | None, ...]


def configuration(runs: Sequence[Run]) -> list[Difference]:
    """Return the keys that differ; a key that differs alike in all instances of a stage, once for the stage.

    Raises:
        StoreError: a run's configurations cannot be read.
    """
    for run in runs:
        if not run.configs:
            raise StoreError(f"the configurations of the run {run.record.id} were not saved with it")
    configs = [{name: flatten(config["all"]) for name, config in run.configs.items()} for run in runs]
    base = {name: stage.record.stage for run in runs for name, stage in run.stages.items()}
    by_key: dict[tuple[str, str], dict[str, tuple[object, ...]]] = {}
    missing = []
    for name in _union(configs):
        of_runs = [config[name] for config in configs if name in config]
        if len(of_runs) < len(runs):
            missing.append(Difference(name, tuple("there" if name in config else None for config in configs)))
            continue
        for key in _union(of_runs):
            values = tuple(config.get(key) for config in of_runs)
            by_key.setdefault((base[name], key), {})[name] = values
    keys = []
    for (stage, key), instances in by_key.items():
        if len(set(map(repr, instances.values()))) == 1:
            keys.append(Difference(f"{stage}.{key}", next(iter(instances.values()))))
        else:
            keys += [Difference(f"{name}.{key}", values) for name, values in instances.items()]
    return [*missing, *_differing(keys)]


def code(runs: Sequence[Run]) -> list[Difference]:
    """Return commits and modules that differ; a module counts where all runs have a stage made with it."""
    commits = Difference("commit", tuple(run.record.git_commit for run in runs))
    made: list[dict[str, str]] = [{} for _ in runs]
    for run, digests in zip(runs, made, strict=True):
        for stage in run.stages.values():
            digests |= _readable(partial(_code, stage)) or {}
    common = sorted(set.intersection(*map(set, made)))
    modules = [Difference(module, tuple(digests[module] for digests in made)) for module in common]
    return _differing([commits, *modules])


def data(runs: Sequence[Run]) -> list[Difference]:
    """Return the data stages whose outputs differ, by digest."""
    differences = []
    for name in _union(run.stages for run in runs):
        stages = [run.stages.get(name) for run in runs]
        if any(stage and stage.record.kind == "data" for stage in stages):
            digests = tuple(_readable(partial(_digest, stage)) for stage in stages)
            if len(set(digests) - {None}) > 1:
                differences.append(Difference(name, digests))
    return differences


def results(runs: Sequence[Run], metric: str | None = None) -> list[Result]:
    """Return the numbers of the runs' tables side by side; a run without a table has none.

    Args:
        metric: this number of each row (`top1`); None: the table's columns and the policy's motion lift.

    Raises:
        SpecError: no run has such a number; names the nearest.
    """
    tables = [_readable(partial(lineage.numbers, run)) or {} for run in runs]
    shown = {*RESULTS, *_union(_readable(partial(_declared, run)) or {} for run in runs)}
    names = [name for name in _union(tables) if _is_wanted(name, metric, shown)]
    if metric is not None and not names and any(tables):
        known = {name.rsplit("/", 1)[1] for table in tables for name in table}
        raise SpecError(f"--metric {metric}: the tables have no such number{did_you_mean(metric, known)}")
    return [Result(name, _side_by_side([table.get(name) for table in tables])) for name in names]


def curves(runs: Sequence[Run], metric: str) -> dict[str, list[Points | None]]:
    """Return stage → one curve for each run of `metric`, for the stages that have it in any run.

    Raises:
        SpecError: no stage of any run has such a curve; names the nearest.
    """
    of_stage = {
        name: [run.stages[name].curves if name in run.stages else {} for run in runs]
        for name in _union(run.stages for run in runs)
    }
    measured = {
        name: [curves.get(metric) for curves in of_runs]
        for name, of_runs in of_stage.items()
        if any(metric in curves for curves in of_runs)
    }
    if not measured:
        known = {name for of_runs in of_stage.values() for curves in of_runs for name in curves}
        raise SpecError(
            f"--metric {metric}: no stage of these runs has such a curve{did_you_mean(metric, known)}"
        )
    return measured


def difference(first: Number, other: Number) -> tuple[float, float | None, float | None]:
    """Return other − first with the ends of its 95% interval (Newcombe 1998, method 10)."""
    moved = other.value - first.value
    if first.low is None or first.high is None or other.low is None or other.high is None:
        return moved, None, None
    low = moved - math.hypot(other.value - other.low, first.high - first.value)
    high = moved + math.hypot(other.high - other.value, first.value - first.low)
    return moved, low, high


def _side_by_side(numbers: Sequence[Number | None]) -> tuple[Measured | None, ...]:
    first, *others = numbers
    measured = [None if first is None else Measured(first.value, first.low, first.high)]
    for number in others:
        if number is None:
            measured.append(None)
        else:
            moved = difference(first, number) if first else ()
            measured.append(Measured(number.value, number.low, number.high, *moved))
    return tuple(measured)


def _is_wanted(name: str, metric: str | None, shown: Set[str]) -> bool:
    last = name.rsplit("/", 1)[1]
    if metric is not None:
        return last == metric
    if name.startswith("policy/"):
        return last in ("motion_lift", "entropy_share")
    return last in shown


def _declared(run: Run) -> dict[str, Metric]:
    return declared(run.results or {})


def _code(stage: Stage) -> dict[str, str]:
    return stage.origin.components["code"] if stage.record.done and stage.origin else {}


def _digest(stage: Stage | None) -> str | None:
    return stage.digest if stage else None


def _readable(read: Callable[[], Value]) -> Value | None:
    try:
        return read()
    except StoreError:
        return None


def _union(mappings: Iterable[Iterable[str]]) -> list[str]:
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def _differing(differences: Sequence[Difference]) -> list[Difference]:
    return [entry for entry in differences if any(value != entry.values[0] for value in entry.values[1:])]

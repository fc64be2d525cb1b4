"""What differs between runs: configuration, code, data, and results.

Each difference holds one value a run, in the order of the runs; None where a run has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tats_core.errors import SpecError, StoreError, did_you_mean
from tats_core.report.metrics import RESULTS
from tats_core.store import lineage, logs
from tats_core.store.lineage import Number
from tats_core.store.outputs import StageStore
from tats_core.store.run import RunRecord
from tats_core.training.events import read_events

Kept = TypeVar("Kept")


@dataclass(frozen=True)
class Difference:
    """`name` is dotted by stage (`pretrain.sampler.mask_ratio`)."""

    name: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Measured:
    """A number of one run; `difference` is to the first run's, in points, with its 95% interval.

    The interval is Newcombe's: made of the two numbers' own (Wilson) intervals, for independent samples.
    Two runs are tested on the same clips, so the true one is rather narrower.
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


def configuration(records: Sequence[RunRecord]) -> list[Difference]:
    """Return the keys that differ. What is alike in all instances of a stage is said once, for the stage.

    Raises:
        StoreError: a run's configurations cannot be read.
    """
    found = [
        {name: lineage.settings(one["all"]) for name, one in record.configs().items()} for record in records
    ]
    instances = _ordered(found)
    base = {name: stage.stage for record in records for name, stage in record.stages.items()}
    differing: dict[tuple[str, str], dict[str, tuple[Any, ...]]] = {}
    for name in instances:
        there = [one.get(name) for one in found]
        if None in there:
            continue  # said below, once
        for key in _ordered([one for one in there if one is not None]):
            values = tuple(one.get(key) for one in there if one is not None)
            differing.setdefault((base[name], key), {})[name] = values
    said = []
    for (stage, key), each in differing.items():
        if len(set(map(repr, each.values()))) == 1:
            said.append(Difference(f"{stage}.{key}", next(iter(each.values()))))
        else:
            said += [Difference(f"{name}.{key}", values) for name, values in each.items()]
    return [*_stages(found, instances), *(one for one in said if not _alike(one.values))]


def code(records: Sequence[RunRecord]) -> list[Difference]:
    """Return commits and modules that differ; a module counts where the stages that it made are done."""
    commits = Difference("commit", tuple(record.git_commit for record in records))
    made: list[dict[str, str]] = []
    for record in records:
        made.append({})
        for stage in record.stages.values():
            components = _components(record, stage.name)
            for module, digest in (components or {}).get("code", {}).items():
                made[-1][module] = digest
    modules = [
        Difference(module, tuple(one.get(module) for one in made))
        for module in sorted(_ordered(made))
        if all(module in one for one in made)
    ]
    return [one for one in (commits, *modules) if not _alike(one.values)]


def data(records: Sequence[RunRecord]) -> list[Difference]:
    """Return the data stages whose outputs differ, by digest."""
    names = [
        name for name in _ordered([one.stages for one in records])
        if any(name in one.stages and one.stages[name].kind == "data" for one in records)
    ]  # fmt: skip
    found = [Difference(name, tuple(_output(record, name) for record in records)) for name in names]
    return [one for one in found if not _alike([value for value in one.values if value is not None])]


def results(records: Sequence[RunRecord], metric: str | None = None) -> list[Result]:
    """Return the numbers of the runs' tables side by side; a run without a table has none.

    Args:
        metric: this one of each row (`top1`); None: the table's columns and the policy's motion lift.

    Raises:
        SpecError: no run has such a number; names the nearest.
    """
    tables = [_table(record) for record in records]
    names = [name for name in _ordered(tables) if _wanted(name, metric)]
    if metric is not None and not names and any(tables):
        known = {name.rsplit("/", 1)[1] for table in tables for name in table}
        raise SpecError(f"--metric {metric}: the tables have no such number{did_you_mean(metric, known)}")
    return [Result(name, _side_by_side([table.get(name) for table in tables])) for name in names]


def curves(records: Sequence[RunRecord], metric: str) -> dict[str, list[dict[int, float] | None]]:
    """Return stage → one curve a run (step → value) of `metric`, for the stages that any run has it of.

    Raises:
        SpecError: no stage of any run has such a curve; names the nearest.
    """
    known: set[str] = set()
    found: dict[str, list[dict[int, float] | None]] = {}
    for name in _ordered([record.stages for record in records]):
        each = [_curves(record, name) for record in records]
        known.update(*each)
        if any(metric in one for one in each):
            found[name] = [one.get(metric) for one in each]
    if not found:
        raise SpecError(
            f"--metric {metric}: no stage of these runs has such a curve{did_you_mean(metric, known)}"
        )
    return found


def difference(first: Number, other: Number) -> tuple[float, float | None, float | None]:
    """Return other − first with the ends of its 95% interval (Newcombe 1998, method 10)."""
    moved = other.value - first.value
    if first.low is None or first.high is None or other.low is None or other.high is None:
        return moved, None, None
    low = moved - math.hypot(other.value - other.low, first.high - first.value)
    high = moved + math.hypot(other.high - other.value, first.value - first.low)
    return moved, low, high


def _side_by_side(found: Sequence[Number | None]) -> tuple[Measured | None, ...]:
    first = found[0]
    shown: list[Measured | None] = []
    for place, one in enumerate(found):
        if one is None:
            shown.append(None)
        elif place == 0 or first is None:
            shown.append(Measured(one.value, one.low, one.high))
        else:
            shown.append(Measured(one.value, one.low, one.high, *difference(first, one)))
    return tuple(shown)


def _wanted(name: str, metric: str | None) -> bool:
    last = name.rsplit("/", 1)[1]
    if metric is not None:
        return last == metric
    if name.startswith("policy/"):
        return last in ("motion_lift", "entropy_share")
    return last in RESULTS


def _table(record: RunRecord) -> dict[str, Number]:
    try:
        return lineage.numbers(record)
    except StoreError:
        return {}  # the comparison shows dashes; the run's state tells why


def _stages(found: Sequence[Mapping[str, Any]], instances: Sequence[str]) -> list[Difference]:
    there = [Difference(name, tuple("there" if name in one else None for one in found)) for name in instances]
    return [one for one in there if not _alike(one.values)]


def _curves(record: RunRecord, name: str) -> dict[str, dict[int, float]]:
    stage = record.stages.get(name)
    place = logs.folder(record, stage) if stage else None
    if place is None:
        return {}
    found: dict[str, dict[int, float]] = {}
    for _, event in read_events(place / "events.jsonl"):
        if event["kind"] == "metrics":
            for metric, value in event["values"].items():
                found.setdefault(metric, {})[event["step"]] = value  # after a resume, the later one
    return found


def _components(record: RunRecord, name: str) -> Mapping[str, Any] | None:
    origin = _kept(record, name, lambda store, folder: store.origin(folder))
    return origin["components"] if origin else None


def _output(record: RunRecord, name: str) -> str | None:
    stage = record.stages.get(name)
    if stage is not None and stage.digest is not None:
        return stage.digest
    return _kept(record, name, lambda store, folder: store.output_digest(folder))


def _kept(record: RunRecord, name: str, read: Callable[[StageStore, Path], Kept]) -> Kept | None:
    stage = record.stages.get(name)
    if stage is None or not stage.done or stage.folder is None:
        return None
    try:
        return read(StageStore(Path(record.home)), Path(stage.folder))
    except (OSError, ValueError, KeyError):
        return None  # it was removed; `tats show` says so


def _ordered(each: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for one in each for key in one))


def _alike(values: Sequence[Any]) -> bool:
    return all(value == values[0] for value in values[1:])

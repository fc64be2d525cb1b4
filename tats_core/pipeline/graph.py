"""Builds the graph of a pipeline: expands matrices, checks configurations, draws edges.

A stage becomes one *instance* for each row of its axes. Its axes are its own matrix and those of the
stages it needs, joined: rows must agree where two share an axis. So `evaluate`, without a matrix, follows
`finetune`'s. A kind that gathers (the report) has no axes and takes every instance.

An instance waits for the instances it reads: those of the kinds that its configuration names, among all
ancestors, that agree with its axes. A fine-tuning from scratch therefore does not wait for a pre-training
that stands between it and the data.
"""

from __future__ import annotations

import graphlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from tats_core import specs
from tats_core.errors import SpecError, did_you_mean
from tats_core.pipeline.spec import Pipeline, Scalar, Stage, label
from tats_core.specs import StrictModel
from tats_core.stages import KINDS
from tats_core.stages.base import StageKind

Row = dict[str, Scalar]
Kind = StageKind[Any]


@dataclass(frozen=True)
class Instance:
    """A stage as it runs; `needs` names the instances whose outputs it reads, in plan order."""

    name: str
    stage: str
    kind: Kind
    config: StrictModel
    axes: Mapping[str, str]
    needs: tuple[str, ...]
    retries: int


@dataclass(frozen=True)
class Graph:
    """All instances by name, each after what it needs."""

    instances: Mapping[str, Instance]

    def select(self, names: Iterable[str], option: str) -> set[str]:
        """Return the instances meant by `names`: a stage's (all of its matrix) or an instance's name.

        Raises:
            SpecError: no stage has such a name.
        """
        chosen: set[str] = set()
        for name in names:
            matches = {full for full, instance in self.instances.items() if name in (instance.stage, full)}
            if not matches:
                valid = {instance.stage for instance in self.instances.values()} | set(self.instances)
                raise SpecError(f"--{option} {name}: no stage named '{name}'{did_you_mean(name, valid)}")
            chosen |= matches
        return chosen

    def followers(self, names: Iterable[str]) -> set[str]:
        """Return `names` and the instances that read an output of theirs, directly or not."""
        reached = set(names)
        for instance in self.instances.values():
            if reached.intersection(instance.needs):
                reached.add(instance.name)
        return reached


def build(pipeline: Pipeline) -> Graph:
    """Expand and check a pipeline.

    Raises:
        SpecError: an unknown kind, need or key, a cycle, a default that no stage takes, or a missing need;
            names file, key and the nearest valid name.
    """
    order, kinds = _order(pipeline), _kinds(pipeline)
    rows: dict[str, list[Row]] = {}
    instances: dict[str, Instance] = {}
    ancestors: dict[str, list[str]] = {}
    for name in order:
        stage, kind = pipeline.stages[name], kinds[name]
        above = {need for direct in stage.needs for need in (direct, *ancestors[direct])}
        ancestors[name] = [earlier for earlier in order if earlier in above]
        rows[name] = _rows(pipeline, stage, kind, rows)
        for row in rows[name]:
            instance = _instance(pipeline, stage, kind, row, ancestors[name], instances)
            instances[instance.name] = instance
    narrowed = {}
    for name, instance in instances.items():
        readers = [other.config for other in instances.values() if name in other.needs]
        config = instance.kind.narrowed(instance.config, readers)
        if pipeline.rehearsal is not None:
            config = pipeline.rehearsal.with_data(config)
        narrowed[name] = replace(instance, config=config)
    return Graph(narrowed)


def _order(pipeline: Pipeline) -> list[str]:
    for stage in pipeline.stages.values():
        for need in stage.needs:
            if need not in pipeline.stages:
                near = did_you_mean(need, pipeline.stages)
                raise SpecError(f"{pipeline.where}: {stage.name}.needs: no stage named '{need}'{near}")
    sorter = graphlib.TopologicalSorter({name: stage.needs for name, stage in pipeline.stages.items()})
    try:
        return list(sorter.static_order())
    except graphlib.CycleError as error:
        cycle = " → ".join(reversed(error.args[1]))
        raise SpecError(f"{pipeline.where}: the stages need each other in a circle: {cycle}") from error


def _kinds(pipeline: Pipeline) -> dict[str, Kind]:
    for name, stage in pipeline.stages.items():
        if stage.kind not in KINDS:
            near = did_you_mean(stage.kind, KINDS)
            raise SpecError(f"{pipeline.where}: {name}.kind: no stage kind named '{stage.kind}'{near}")
    kinds = {name: KINDS[stage.kind] for name, stage in pipeline.stages.items()}
    fields = {field for kind in kinds.values() for field in kind.Config.model_fields}
    for key in pipeline.defaults:
        if key not in fields:
            near = did_you_mean(key, fields)
            raise SpecError(f"{pipeline.where}: defaults has '{key}', which no stage takes{near}")
    return kinds


def _rows(pipeline: Pipeline, stage: Stage, kind: Kind, rows: Mapping[str, list[Row]]) -> list[Row]:
    joined: list[Row] = [{}]
    tables = [] if kind.gathers else [rows[need] for need in stage.needs]
    matrix = [dict(zip(stage.matrix, values, strict=True)) for values in product(*stage.matrix.values())]
    for table in [*tables, matrix]:
        joined = [left | right for left in joined for right in table if _agree(left, right)]
    if not joined:
        raise SpecError(
            f"{pipeline.where}: {stage.name} has nothing to run: its matrix and those of what it needs "
            f"({', '.join(stage.needs)}) have no values in common"
        )
    return joined


def _agree(left: Mapping[str, object], right: Mapping[str, object]) -> bool:
    return all(left[axis] == right[axis] for axis in left.keys() & right.keys())


def _instance(
    pipeline: Pipeline,
    stage: Stage,
    kind: Kind,
    row: Row,
    ancestors: list[str],
    instances: Mapping[str, Instance],
) -> Instance:
    axes = {axis: label(value) for axis, value in row.items()}
    name = stage.name + (f"[{','.join(axes.values())}]" if axes else "")
    inherited = {axis for need in instances.values() if need.stage in stage.needs for axis in need.axes}
    config = _config(pipeline, stage, kind, row, inherited)
    if pipeline.rehearsal is not None:
        first = all(other.kind is not kind for other in instances.values())
        config = pipeline.rehearsal.scaled(config, first=first)
    reads = kind.reads(config)
    candidates: list[tuple[Instance, bool]] = []
    for other in instances.values():
        if other.stage not in ancestors or not _agree(axes, other.axes):
            continue
        direct = other.stage in stage.needs and (kind.any_kind or other.kind.any_kind)
        tabled = kind.gathers and other.kind.tabled(other.config)
        if direct or tabled or other.kind.name in reads:
            serves = direct or kind.gathers or other.kind.serves(other.config, config)
            candidates.append((other, serves))
    counts = Counter(other.kind.name for other, _ in candidates)
    # A single stage is no choice; it is read as it is.
    needs = [other for other, serves in candidates if serves or counts[other.kind.name] == 1]
    unfit = [other for other, serves in candidates if not serves]
    if not kind.gathers:
        # What a stage names itself counts before what its needs need: another fold's data, another model.
        named = {need.kind.name for need in needs if need.stage in stage.needs}
        needs = [need for need in needs if need.stage in stage.needs or need.kind.name not in named]
    _check_reads(f"{pipeline.where}: {stage.name}.needs", kind, reads, needs, unfit)
    return Instance(name, stage.name, kind, config, axes, tuple(need.name for need in needs), stage.retries)


def _check_reads(
    key: str, kind: Kind, reads: tuple[str, ...], needs: list[Instance], unfit: list[Instance]
) -> None:
    if kind.gathers:
        if reads and not needs:
            raise SpecError(f"{key}: leads to no stage of kind {' or '.join(reads)}, which it gathers")
        return
    for read in reads:
        names = [need.name for need in needs if need.kind.name == read]
        if not names:
            others = [other.name for other in unfit if other.kind.name == read]
            lacking = f"; '{others[0]}' does not provide what it needs" if others else ""
            raise SpecError(f"{key}: leads to no stage of kind '{read}', whose output it reads{lacking}")
        if len(names) > 1:
            raise SpecError(f"{key}: leads to more than one stage of kind '{read}': {', '.join(names)}")


def _config(pipeline: Pipeline, stage: Stage, kind: Kind, row: Row, inherited: set[str]) -> StrictModel:
    fields = kind.Config.model_fields
    raw: dict[str, object] = {key: value for key, value in pipeline.defaults.items() if key in fields}
    raw |= {axis: value for axis, value in row.items() if axis in fields and axis in kind.follows}
    # A default `model: vit_micro` is refined, not replaced, by a stage's `model: {depth: 4}`.
    for key, value in raw.items():
        if isinstance(value, str) and isinstance(stage.config.get(key), Mapping):
            raw[key] = {"preset": value}
    raw = specs.merge(raw, stage.config)
    for axis in specs.kinds_first(stage.matrix):
        if axis in inherited and axis not in fields:
            continue  # the matrix only selects instances of what the stage needs
        raw = specs.override(raw, axis.split("."), row[axis])
    config: StrictModel = specs.validate(kind.Config, raw, pipeline.where, prefix=stage.name)
    return config

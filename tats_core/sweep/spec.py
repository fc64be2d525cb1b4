"""A sweep as people write it: one YAML file over a pipeline, and all checks that can be made before a start.

::

    name: mask_ratio                        # must equal the file's name
    title: one sentence
    pipeline: demo                          # of the menu; only the stages that the metrics need are run
    set: {pretrain.epochs: 5}               # what is changed in it for all trials
    space:
      pretrain.sampler.kind: [random, tats]
      pretrain.sampler.mask_ratio: [0.9, 0.95]
      pretrain.sampler.ppo.clip: {uniform: [0.1, 0.3]}
    where: {pretrain.sampler.ppo.*: {pretrain.sampler.kind: tats}}
    seeds: {keys: [pretrain.seed], values: [0, 1, 2]}
    metrics:
      - {name: probe.linear_top1, mode: max, title: probe top-1}
    baseline: {pretrain.sampler.kind: random}

A *point* is one choice of values; a *trial* is a point with one seed.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field

from tats_core import specs
from tats_core.errors import SpecError, StoreError, did_you_mean
from tats_core.pipeline import graph as graphs
from tats_core.pipeline import spec as pipelines
from tats_core.pipeline.graph import Graph
from tats_core.pipeline.spec import Pipeline, Scalar
from tats_core.report.units import short_keys, value_text
from tats_core.specs import StrictModel
from tats_core.stages import KINDS
from tats_core.sweep.space import Constraint, Point, Range, Space

STEP_SECONDS = "step_seconds"
"""Beside what a stage that trains reports: the median over its epochs of the seconds of one step."""

_CHECKED_POINTS = 200


def _allowed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


class Seeds(StrictModel):
    """The same point again with other random numbers."""

    keys: tuple[str, ...] = Field((), description="dotted keys that get the seed")
    values: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)


class Metric(StrictModel):
    """A number that the trials are compared by; of a stage with a matrix, the mean over its instances."""

    name: str = Field(description="STAGE.NUMBER, of the stage's result.json")
    mode: Literal["max", "min"] | None = Field(None, description="which is better; null: it is only shown")
    title: str = Field("", description="as in the table; by default the name")
    objective: bool = Field(False, description="searched for; by default the first metric with a mode is")
    digits: int = Field(1, ge=0, le=6)

    @property
    def shown(self) -> str:
        """The heading of its column."""
        return self.title or self.name


class Searcher(StrictModel):
    """Which points are tried."""

    kind: Literal["grid", "random", "optuna", "pbt"] = "grid"
    seed: int = Field(0, ge=0, description="of all but the grid")
    every: int | None = Field(None, ge=1, description="of pbt: epochs of a generation")


class Scheduler(StrictModel):
    """When a trial is stopped early; the epochs of all its training stages are counted."""

    kind: Literal["none", "asha"] = "none"
    metric: str | None = Field(None, description="STAGE.NUMBER of the curves")
    mode: Literal["max", "min"] = "max"
    grace: int = Field(1, ge=1, description="epochs that every trial gets")
    reduction: float = Field(3, gt=1, description="of so many trials one goes on at each rung")


class _File(StrictModel):
    """The top level of the YAML file."""

    name: str | None = None
    title: str = ""
    pipeline: str
    set: dict[str, Any] = Field(default_factory=dict)
    space: dict[str, Annotated[tuple[Scalar | None, ...], Field(min_length=1)] | Range]
    where: dict[str, dict[str, Annotated[tuple[Scalar | None, ...], BeforeValidator(_allowed)]]] = Field(
        default_factory=dict
    )
    constraints: tuple[str, ...] = ()
    seeds: Seeds = Seeds()
    metrics: Annotated[tuple[Metric, ...], Field(min_length=1)]
    searcher: Searcher = Searcher()
    scheduler: Scheduler = Scheduler()
    baseline: dict[str, Scalar | None] = Field(default_factory=dict)
    samples: int | None = Field(None, ge=1, description="points that are drawn")
    max_concurrent: int | None = Field(None, ge=1, description="trials at a time; null: as many as fit")


@dataclass(frozen=True)
class Trial:
    """One run of the pipeline. `id` follows from the sweep's name and the values alone."""

    id: str
    point: Point
    seed: int | None
    overrides: Mapping[str, Any]


@dataclass(frozen=True)
class Breed:
    """What a population trains, and in how many generations."""

    stage: str
    epochs: int
    every: int

    @property
    def generations(self) -> int:
        """The last one may be shorter."""
        return -(-self.epochs // self.every)


@dataclass(frozen=True)
class Sweep:
    """A sweep whose file and overrides were read and checked."""

    name: str
    title: str
    where: str
    pipeline: str
    fixed: Mapping[str, Any]
    space: Space
    seeds: Seeds
    metrics: tuple[Metric, ...]
    searcher: Searcher
    scheduler: Scheduler
    baseline: Point
    samples: int | None
    max_concurrent: int | None
    overrides: tuple[str, ...] = ()
    raw: Mapping[str, Any] = field(default_factory=dict)
    """The file with all overrides in it."""

    @property
    def objectives(self) -> tuple[Metric, ...]:
        """What is searched for, the one that decides about the best first."""
        chosen = tuple(one for one in self.metrics if one.objective)
        return chosen or tuple(one for one in self.metrics if one.mode)[:1]

    def identity(self) -> dict[str, Any]:
        """Return what makes two sweeps the same one, as plain values: what may not change at a resume."""
        values = {
            key: one.model_dump(by_alias=True, exclude_none=True) if isinstance(one, Range) else list(one)
            for key, one in self.space.values.items()
        }
        where = {pattern: {k: list(v) for k, v in one.items()} for pattern, one in self.space.where.items()}
        return {
            "pipeline": self.pipeline,
            "set": dict(self.fixed),
            "space": values,
            "where": where,
            "constraints": [one.text for one in self.space.constraints],
            "seeds": self.seeds.model_dump(mode="json"),
            "metrics": [one.model_dump(mode="json", exclude={"title", "digits"}) for one in self.metrics],
            "searcher": self.searcher.model_dump(mode="json", exclude_none=True),
            "scheduler": self.scheduler.model_dump(mode="json"),
            "samples": self.samples,
        }

    # --- trials ----------------------------------------------------------------------------------------

    def trials_of(self, point: Mapping[str, Any]) -> list[Trial]:
        """Return the trials of a point, one a seed."""
        if not self.seeds.keys:
            return [self._trial(point, None)]
        return [self._trial(point, seed) for seed in self.seeds.values]

    def _trial(self, point: Mapping[str, Any], seed: int | None) -> Trial:
        seeded = {} if seed is None else dict.fromkeys(self.seeds.keys, seed)
        overrides = {**self.settings(point), **seeded}
        named = json.dumps([self.name, overrides], sort_keys=True)
        return Trial(hashlib.sha256(named.encode()).hexdigest()[:10], shown(point), seed, overrides)

    def settings(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a point sets in the pipeline: its values, or the schedule of a population's member."""
        schedule = f"{self.breed.stage}.schedule" if self.searcher.kind == "pbt" else ""
        if schedule not in point:
            return dict(point)
        until = f"{self.breed.stage}.until"
        early = {until: point[until]} if point[until] < self.breed.epochs else {}
        return early | {schedule: point[schedule]}

    @cached_property
    def breed(self) -> Breed:
        """Of population-based training: the stage whose settings are searched while it trains."""
        stage = next(iter(self.space.values)).partition(".")[0]
        (config, *_) = [
            one.config for one in graphs.build(self.load({})).instances.values() if one.stage == stage
        ]
        return Breed(stage, config.model_dump()["epochs"], self.searcher.every or 1)

    def points(self) -> list[Point]:
        """Return the points known before a start: all of a grid, those drawn at random, else none."""
        if self.searcher.kind == "grid":
            return list(self.space.grid())[: self.samples]
        if self.searcher.kind == "random":
            chance = random.Random(self.searcher.seed)
            assert self.samples is not None
            return [self.space.draw(chance) for _ in range(self.samples)]
        return []

    @property
    def count(self) -> int:
        """How many trials there will be; fewer where Optuna finds no other point in the space."""
        if self.searcher.kind in ("grid", "random"):
            points = len(self.points())
        else:
            points = (self.samples or 0) * (self.breed.generations if self.searcher.kind == "pbt" else 1)
        return points * (len(self.seeds.values) if self.seeds.keys else 1)

    @property
    def keys(self) -> list[str]:
        """The keys of the points as tables show them."""
        until = [f"{self.breed.stage}.until"] if self.searcher.kind == "pbt" else []
        return [*until, *self.space.values]

    def label(self, trial: Trial) -> str:
        """Return a trial's values in few words: `mask_ratio=0.9 kind=tats seed=1`."""
        names = short_keys(self.keys)
        values = [f"{names[key]}={value_text(value)}" for key, value in trial.point.items()]
        return " ".join([*values, *([] if trial.seed is None else [f"seed={trial.seed}"])])

    # --- the pipeline of a trial -----------------------------------------------------------------------

    def load(self, overrides: Mapping[str, Any]) -> Pipeline:
        """Return the part of the pipeline that a trial runs, under the sweep's name.

        Raises:
            SpecError: an override does not fit the pipeline.
        """
        whole = pipelines.load(self.pipeline, as_sets({**self.fixed, **overrides}))
        kept = _needed(whole, [one.name.partition(".")[0] for one in self.metrics])
        stages = {name: stage for name, stage in whole.stages.items() if name in kept}
        fields = {
            field
            for stage in stages.values()
            if stage.kind in KINDS
            for field in KINDS[stage.kind].Config.model_fields
        }
        defaults = {key: value for key, value in whole.defaults.items() if key in fields}
        return replace(whole, name=self.name, title=self.title, stages=stages, defaults=defaults, notify=())

    @cached_property
    def common(self) -> frozenset[str]:
        """The stages that no trial changes: they run once, before the first trial."""
        base = self.load({})
        keys = [*self.space.values, *(self.seeds.keys)]
        changed = {key.partition(".")[0] for key in keys}
        if "defaults" in changed:
            return frozenset()
        touched = {name for name in base.stages if changed & {name, *_needed(base, [name])}}
        return frozenset(base.stages) - touched

    def work(self, graph: Graph) -> frozenset[str]:
        """Return a mark for each piece of work of a trial; two trials that share one make the same output."""
        marks: dict[str, str] = {}
        for one in graph.instances.values():
            config = specs.identity(one.config)
            content = [one.kind.name, config, sorted(marks[need] for need in one.needs)]
            marks[one.name] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return frozenset(marks[one.name] for one in graph.instances.values() if one.stage not in self.common)


def load(
    name: str, sets: Sequence[str] = (), *, samples: int | None = None, max_concurrent: int | None = None
) -> Sweep:
    """Read sweep `name` (or a path that ends in `.yaml`) with overrides on top, and check all of it.

    Args:
        sets: `stage.key=value` changes the pipeline for all trials, `KEY=value` the sweep itself
            (`seeds.values=[0]`, `space.pretrain.sampler.mask_ratio=[0.9]`).

    Raises:
        SpecError: something in the file, an override or the space is not valid; names file and key.
    """
    path = specs.find("sweeps", name)
    where = pipelines.shown(path)
    raw = _overridden(specs.read(path), sets)
    given = {"samples": samples, "max_concurrent": max_concurrent}
    raw |= {key: value for key, value in given.items() if value is not None}
    _check_lists(raw, where)
    sweep = _made(raw, path.stem, where, tuple(sets))
    if raw.get("name") not in (None, path.stem):
        raise SpecError(f"{where}: name is '{raw['name']}', but the file's name calls it '{path.stem}'")
    if path.stem in specs.names("pipelines"):
        raise SpecError(f"{where}: there is a pipeline of the same name; rename one of the two")
    _check(sweep)
    return sweep


def save(sweep: Sweep, folder: Path) -> None:
    """Write the sweep with its overrides into the folder of its run, as a file that `tats sweep` accepts."""
    head = f"# The sweep {sweep.name} as it was run\n"
    body = yaml.safe_dump(dict(sweep.raw), sort_keys=False, allow_unicode=True, width=110)
    (folder / f"{sweep.name}.yaml").write_text(head + body, encoding="utf-8")


def as_run(folder: Path) -> Sweep:
    """Return what `save` wrote. It is not checked again: the pipeline may have changed since.

    Raises:
        StoreError: it is not there.
        SpecError: it is no sweep.
    """
    name = folder.name.rsplit("-", 3)[0]
    path = folder / f"{name}.yaml"
    if not path.exists():
        raise StoreError(f"{path}: is not there; what the sweep was is not known")
    return _made(specs.read(path), name, str(path), ())


def _made(raw: Mapping[str, Any], name: str, where: str, overrides: tuple[str, ...]) -> Sweep:
    file = specs.validate(_File, raw, where)
    return Sweep(
        name=name,
        title=file.title,
        where=where,
        pipeline=file.pipeline,
        fixed=file.set,
        space=_space(file, where),
        seeds=file.seeds,
        metrics=file.metrics,
        searcher=file.searcher,
        scheduler=file.scheduler,
        baseline=file.baseline,
        samples=file.samples,
        max_concurrent=file.max_concurrent,
        overrides=overrides,
        raw=raw,
    )


def _overridden(raw: dict[str, Any], sets: Sequence[str]) -> dict[str, Any]:
    """Return the file with overrides on top; those of the pipeline's keys stand under `set`."""
    for text in sets:
        path, value = specs.parse_override(text)
        if path[0] not in _File.model_fields:
            path = ["set", *path]
        if path[0] in ("space", "set", "baseline") and len(path) > 1:
            path = [path[0], ".".join(path[1:])]  # keys there are dotted themselves
        raw = specs.override(raw, path, value)
    return raw


def _check_lists(raw: Mapping[str, Any], where: str) -> None:
    """Say in our own words what the types of the space cannot."""
    space = raw.get("space")
    if not isinstance(space, Mapping) or not space:
        raise SpecError(f"{where}: space is empty; give at least one key of the pipeline with its values")
    for key, values in space.items():
        if not isinstance(values, list | Mapping):
            raise SpecError(f"{where}: space.{key} must be a list of values or a range, not {values!r}")
        if values == []:
            raise SpecError(f"{where}: space.{key} has no values; give at least one, or leave the key out")
        if isinstance(values, list) and len({json.dumps(one) for one in values}) < len(values):
            raise SpecError(f"{where}: space.{key} has the same value twice")


def _space(file: _File, where: str) -> Space:
    for pattern, condition in file.where.items():
        for key in condition:
            if key not in file.space:
                near = did_you_mean(key, file.space)
                raise SpecError(f"{where}: where.{pattern}: no key '{key}' in the space{near}")
    constraints = []
    for text in file.constraints:
        try:
            constraints.append(Constraint.parse(text, list(file.space)))
        except SpecError as error:
            raise SpecError(f"{where}: constraints: {error}") from error
    return Space(dict(file.space), dict(file.where), tuple(constraints))


def _check(sweep: Sweep) -> None:
    where, space = sweep.where, sweep.space
    for key in sweep.fixed:
        if key in space.values:
            raise SpecError(f"{where}: {key} is both set and searched; narrow it with --set space.{key}=[…]")
    for key in sweep.seeds.keys:
        if key in space.values:
            raise SpecError(f"{where}: {key} is both a seed and searched; leave it out of one of the two")
    if len(set(sweep.seeds.values)) < len(sweep.seeds.values):
        raise SpecError(f"{where}: seeds.values has the same seed twice")
    drawn = [key for key, values in space.values.items() if isinstance(values, Range) and not values.choice]
    if sweep.searcher.kind == "grid" and drawn:
        raise SpecError(f"{where}: space.{drawn[0]} is a range, which a grid cannot hold; give a list")
    if sweep.searcher.kind != "grid" and sweep.samples is None:
        raise SpecError(f"{where}: samples is missing: how many points shall '{sweep.searcher.kind}' try?")
    if not sweep.objectives:
        raise SpecError(f"{where}: metrics: none has a mode (max or min), so no trial would be the best one")
    for one in sweep.objectives:
        if one.mode is None:
            raise SpecError(f"{where}: metrics: the objective {one.name} has no mode; say max or min")
    _check_baseline(sweep)
    _check_base(sweep)
    _check_population(sweep)
    _check_graphs(sweep)
    _check_metrics(sweep)


def _check_baseline(sweep: Sweep) -> None:
    for key, value in sweep.baseline.items():
        if key not in sweep.space.values:
            near = did_you_mean(key, sweep.space.values)
            raise SpecError(f"{sweep.where}: baseline: no key '{key}' in the space{near}")
        values = sweep.space.values[key]
        if not isinstance(values, Range) and value not in values:
            shown = ", ".join(map(str, values))
            raise SpecError(f"{sweep.where}: baseline.{key}: {value!r} is none of its values ({shown})")


def _check_base(sweep: Sweep) -> None:
    """Build the pipeline that all trials start from, and find the stages of the metrics in it."""
    try:
        graphs.build(pipelines.load(sweep.pipeline, as_sets(sweep.fixed)))
    except SpecError as error:
        raise SpecError(f"{sweep.where}: {error}") from error
    stages = pipelines.load(sweep.pipeline).stages
    for metric in sweep.metrics:
        stage = metric.name.partition(".")[0]
        if stage not in stages:
            near = did_you_mean(stage, stages)
            raise SpecError(f"{sweep.where}: metrics: {metric.name}: no stage named '{stage}'{near}")


def _check_graphs(sweep: Sweep) -> None:
    """Build the pipeline of every point (of drawn ones, those that hold the ends of each range)."""
    points = list(sweep.space.corners())
    points += sweep.points()[:_CHECKED_POINTS]
    if not points:
        raise SpecError(f"{sweep.where}: the constraints leave no point to try; loosen them")
    seen: set[str] = set()
    for point in points:
        trial = sweep.trials_of(point)[0]
        if trial.id not in seen:
            seen.add(trial.id)
            _check_trial(sweep, trial)


def _check_trial(sweep: Sweep, trial: Trial) -> None:
    try:
        graphs.build(sweep.load(trial.overrides))
    except SpecError as error:
        for key, value in trial.overrides.items():
            try:
                graphs.build(sweep.load({key: value}))
            except SpecError as alone:
                place = "space" if key in sweep.space.values else "seeds.keys"
                raise SpecError(f"{sweep.where}: {place}.{key} = {value!r}: {alone}") from alone
        shown = ", ".join(f"{key}={value}" for key, value in trial.point.items())
        raise SpecError(f"{sweep.where}: together, {shown}: {error}") from error


def _check_metrics(sweep: Sweep) -> None:
    names = [one.name for one in sweep.metrics]
    for name in names:
        if names.count(name) > 1:
            raise SpecError(f"{sweep.where}: metrics: {name} is given twice")
    stages = sweep.load({}).stages
    for name in names:
        stage, _, number = name.partition(".")
        kind = KINDS[stages[stage].kind]
        there = kind.reports if not kind.curves or kind.reports is None else kind.reports | {STEP_SECONDS}
        if there is not None and number not in there:
            exists = f" ({stage} reports {', '.join(sorted(there))})" if there else ""
            near = did_you_mean(number, there) if there else ""
            near = near if near.startswith("; did") else ""
            raise SpecError(f"{sweep.where}: metrics: no stage reports {name}{near}{exists}")
    scheduler = sweep.scheduler
    if scheduler.kind == "none":
        return
    told = (scheduler.metric or "").partition(".")[0]
    if told in stages and KINDS[stages[told].kind].reports is None:
        return  # only a run can tell what a program of someone else's says
    curves = {f"{name}.{curve}" for name, stage in stages.items() for curve in KINDS[stage.kind].curves}
    if scheduler.metric not in curves:
        near = did_you_mean(scheduler.metric or "", curves)
        raise SpecError(
            f"{sweep.where}: scheduler.metric: no stage tells {scheduler.metric} while it runs{near}"
        )


def _check_population(sweep: Sweep) -> None:
    where, searcher = f"{sweep.where}: searcher", sweep.searcher
    if searcher.kind != "pbt":
        if searcher.every is not None:
            raise SpecError(f"{where}.every is of pbt alone, not of {searcher.kind}; leave it out")
        return
    stage = next(iter(sweep.space.values)).partition(".")[0]
    stages = sweep.load({}).stages
    if stage not in stages or "schedule" not in KINDS[stages[stage].kind].Config.model_fields:
        trained = [name for name, one in stages.items() if "schedule" in KINDS[one.kind].Config.model_fields]
        near = did_you_mean(stage, trained)
        raise SpecError(f"{where}: pbt needs a pre-training that a metric is of, and '{stage}' is none{near}")
    for key in sweep.space.values:
        if not (key.startswith(f"{stage}.sampler.ppo.") or key == f"{stage}.sampler_lr"):
            raise SpecError(
                f"{where}: pbt changes {stage}.sampler.ppo.* and {stage}.sampler_lr while {stage} trains, "
                f"not {key}; fix it with set, or use optuna"
            )
    if searcher.every is None:
        raise SpecError(f"{where}.every is missing: after how many epochs shall members be compared?")
    if sweep.breed.generations < 2:
        raise SpecError(
            f"{where}.every is {searcher.every}, but {stage} has only {sweep.breed.epochs} epochs"
        )
    if (sweep.samples or 0) < 2:
        raise SpecError(
            f"{sweep.where}: samples is the size of the population, which needs 2 members or more"
        )
    for key, given in (
        ("seeds.keys", sweep.seeds.keys), ("baseline", sweep.baseline),
        ("scheduler", sweep.scheduler.kind != "none"), ("a second objective", sweep.objectives[1:]),
        *((key, key in sweep.fixed) for key in (f"{stage}.schedule", f"{stage}.until")),
    ):  # fmt: skip
        if given:
            raise SpecError(f"{where}: pbt leaves no room for {key}; leave it out")


def shown(point: Mapping[str, Any]) -> Point:
    """Return the values of a point that a table shows: all but the history of a population's member."""
    return {key: value for key, value in point.items() if not isinstance(value, list)}


def _needed(pipeline: Pipeline, names: Iterable[str]) -> set[str]:
    """Return `names` and all stages that they need, however indirectly."""
    found: set[str] = set()
    waiting = [name for name in names if name in pipeline.stages]
    while waiting:
        name = waiting.pop()
        if name not in found and name in pipeline.stages:
            found.add(name)
            waiting += pipeline.stages[name].needs
    return found


def as_sets(overrides: Mapping[str, Any]) -> list[str]:
    """Return overrides as `--set` options of `tats run pipeline`."""

    def written(value: Any) -> str:
        # Not JSON: YAML takes its 5e-05 for a word.
        text: str = yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=math.inf)
        return text.strip()[1:-1]

    return [f"{key}={written(value)}" for key, value in overrides.items()]


def differences(old: Any, new: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield `(key, was, is)` for everything in which two identities differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from differences(old.get(key), new.get(key), f"{place}.{key}" if place else str(key))
    elif old != new:
        yield place, old, new

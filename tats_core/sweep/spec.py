"""A sweep as its YAML file describes it, and all checks before the start.

`sweeps/README.md` describes the file. A *point* is one choice of values; a *trial* is a point with one seed.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import yaml
from pydantic import BeforeValidator, Field, PrivateAttr

from tats_core import specs
from tats_core.errors import SpecError, StoreError, did_you_mean
from tats_core.files import write_text
from tats_core.pipeline import graph as graphs
from tats_core.pipeline import spec as pipelines
from tats_core.pipeline.graph import Graph
from tats_core.pipeline.spec import Pipeline, Scalar
from tats_core.report.metrics import Metric as Column
from tats_core.report.units import short_keys, value_text
from tats_core.specs import NotIdentity, StrictModel
from tats_core.stages import KINDS
from tats_core.sweep.space import Constraint, Point, Range, Space

if TYPE_CHECKING:
    from tats_core.pipeline.rehearse import Rehearsal

STEP_SECONDS = "step_seconds"
"""Beside what a stage that trains reports: the median over its epochs of the seconds of one step."""

_CHECKED_POINTS = 200


Values = Annotated[tuple[Scalar | None, ...], Field(min_length=1)]
OneOrMore = Annotated[Values, BeforeValidator(lambda value: value if isinstance(value, list) else [value])]


class Seeds(StrictModel):
    """The same point with several random seeds."""

    keys: tuple[str, ...] = Field((), description="dotted keys that get the seed")
    values: tuple[int, ...] = Field((0,), min_length=1, description="the seeds, a trial each")


class Metric(StrictModel):
    """A number that the trials are compared by; of a stage with a matrix, the mean over its instances."""

    name: str = Field(description="STAGE.NUMBER of the stage's result.json, or STAGE.step_seconds")
    mode: Literal["max", "min"] | None = Field(
        None, description="which is better; null: the metric is only in the table"
    )
    title: Annotated[str, NotIdentity] = Field(
        "", description="its heading in the table; by default the name"
    )
    objective: bool = Field(False, description="is optimised; by default the first metric with a mode")
    digits: Annotated[int, NotIdentity] = Field(1, ge=0, le=6, description="decimals in the table")

    @property
    def column(self) -> Column:
        """The metric as tables and charts take it."""
        better: Literal["more", "less", ""] = "more" if self.mode == "max" else "less" if self.mode else ""
        return Column(self.name, self.title or self.name, self.digits, better=better)


class Search(StrictModel):
    """Which points are tried: all of a grid, random ones, or those that Optuna proposes in turn."""

    kind: Literal["grid", "random", "optuna"] = Field("grid", description="how points are chosen")
    seed: int = Field(0, ge=0, description="of all but the grid")


class Pbt(StrictModel):
    """Population-based training: `samples` members, compared after every `every` epochs."""

    kind: Literal["pbt"] = Field(description="how points are chosen")
    seed: int = Field(0, ge=0, description="of all but the grid")
    every: int = Field(ge=1, description="epochs of a generation")


class NoScheduler(StrictModel):
    """Every trial runs to its end."""

    kind: Literal["none"] = Field("none", description="whether trials are stopped early")
    metric: ClassVar[str | None] = None


class Asha(StrictModel):
    """Trials that lag behind are stopped early; the epochs of all their training stages are counted."""

    kind: Literal["asha"] = Field(description="whether trials are stopped early")
    metric: str = Field(description="STAGE.NUMBER of the curves")
    mode: Literal["max", "min"] = Field("max", description="which is better")
    grace: int = Field(1, ge=1, description="epochs that every trial gets")
    reduction: float = Field(3, gt=1, description="at each rung, one trial in so many continues")


@dataclass(frozen=True)
class Trial:
    """One run of the pipeline. `id` follows from the sweep's name and the values alone."""

    id: str
    point: Point
    seed: int | None
    overrides: Mapping[str, Any]


@dataclass(frozen=True)
class Population:
    """What population-based training trains, and in how many generations."""

    stage: str
    epochs: int
    every: int

    @property
    def generations(self) -> int:
        """How many generations there are; the last may be shorter."""
        return -(-self.epochs // self.every)


class Sweep(StrictModel):
    """A sweep whose file and overrides are read and checked; the fields are the top level of the file."""

    name: Annotated[str, NotIdentity] = Field(description="that of the file, without .yaml")
    title: Annotated[str, NotIdentity] = Field("", description="one line for `tats list`")
    pipeline: str = Field(description="its name; only the stages that the metrics need are run")
    fixed: dict[str, Any] = Field(
        default_factory=dict, alias="set", description="STAGE.KEY → value, changed for all trials"
    )
    choices: dict[str, Values | Range] = Field(
        alias="space",
        description="STAGE.KEY → list of the values that are tried, or `{uniform: [a, b]}`, "
        "`{loguniform: [a, b]}`, `{int: [a, b]}`, `{choice: [a, b]}`",
    )
    conditions: dict[str, dict[str, OneOrMore]] = Field(
        default_factory=dict,
        alias="where",
        description="keys (`*` stands for any end) that apply only beside these values of other keys",
    )
    constraints: tuple[str, ...] = Field(
        (), description="comparisons that must hold: `a.b <= a.c`, `a.b != 3`"
    )
    seeds: Seeds = Field(Seeds(), description="each point is run once a seed; tables show mean ± interval")
    metrics: tuple[Metric, ...] = Field(
        min_length=1,
        description="what is compared; the first objective, or else the first with a mode, "
        "decides which point is best",
    )
    searcher: Search | Pbt = Field(Search(), discriminator="kind", description="which points are tried")
    scheduler: NoScheduler | Asha = Field(
        NoScheduler(), discriminator="kind", description="which trials are stopped before their end"
    )
    baseline: Annotated[dict[str, Scalar | None], NotIdentity] = Field(
        default_factory=dict,
        description="values; each point is compared, seed by seed, with the one that has these instead",
    )
    samples: int | None = Field(None, ge=1, description="points that are tried; of pbt, the members")
    max_concurrent: Annotated[int | None, NotIdentity] = Field(
        None, ge=1, description="trials at a time; null: as many as fit"
    )

    _source: str = PrivateAttr("")
    _overrides: tuple[str, ...] = PrivateAttr(())
    _rehearsal: Rehearsal | None = PrivateAttr(None)

    @property
    def source(self) -> str:
        """How the file is named in messages."""
        return self._source

    @property
    def rehearsal(self) -> Rehearsal | None:
        """How the trials are scaled down; None for real ones."""
        return self._rehearsal

    @property
    def overrides(self) -> tuple[str, ...]:
        """The `--set` options on top of the file."""
        return self._overrides

    @cached_property
    def space(self) -> Space:
        """The keys with their values, and which combinations are tried."""
        keys = list(self.choices)
        constraints = tuple(Constraint.parse(text, keys) for text in self.constraints)
        values = {key: Range.of(values) for key, values in self.choices.items()}
        return Space(values, self.conditions, constraints)

    @property
    def objectives(self) -> tuple[Metric, ...]:
        """The metrics that are optimised."""
        chosen = tuple(metric for metric in self.metrics if metric.objective)
        return chosen or tuple(metric for metric in self.metrics if metric.mode)[:1]

    @property
    def objective(self) -> Metric:
        """The metric that decides which point is best."""
        return self.objectives[0]

    @property
    def all_seeds(self) -> tuple[int | None, ...]:
        """The seeds of each point; None alone where no key gets a seed."""
        return self.seeds.values if self.seeds.keys else (None,)

    def identity(self) -> dict[str, Any]:
        """Return, as plain values, what may not change at a resume."""
        return specs.settings(self)

    # --- trials ----------------------------------------------------------------------------------------

    def trials_of(self, point: Mapping[str, Any]) -> list[Trial]:
        """Return the trials of a point, one a seed."""
        trials = []
        for seed in self.all_seeds:
            seeded = {} if seed is None else dict.fromkeys(self.seeds.keys, seed)
            overrides = {**self.settings(point), **seeded}
            trials.append(Trial(_digest([self.name, overrides])[:10], plain(point), seed, overrides))
        return trials

    def settings(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a point sets in the pipeline: its values, or the schedule of a population's member."""
        schedule = f"{self.population.stage}.schedule" if isinstance(self.searcher, Pbt) else ""
        if schedule not in point:
            return dict(point)
        until = f"{self.population.stage}.until"
        early = {until: point[until]} if point[until] < self.population.epochs else {}
        return early | {schedule: point[schedule]}

    @cached_property
    def population(self) -> Population:
        """The stage whose settings population-based training changes while it trains, and its generations."""
        assert isinstance(self.searcher, Pbt)
        stage = next(iter(self.choices)).partition(".")[0]
        # The epochs of the recipe, in a rehearsal too: it scales `until`, which they make.
        instances = graphs.build(replace(self.load({}), rehearsal=None)).instances.values()
        (config, *_) = [instance.config for instance in instances if instance.stage == stage]
        return Population(stage, config.model_dump()["epochs"], self.searcher.every)

    def points(self) -> list[Point]:
        """Return the points known before the start: all of a grid, random ones, else []."""
        if self.searcher.kind == "grid":
            return list(self.space.grid())[: self.samples]
        rng = random.Random(self.searcher.seed)
        drawn = self.samples or 0 if self.searcher.kind == "random" else 0
        return [self.space.draw(rng) for _ in range(drawn)]

    def examples(self) -> list[Point]:
        """Return points to check: those known before the start, or the corners of the space."""
        return self.points() or list(self.space.corners())

    @property
    def count(self) -> int:
        """How many trials there will be at most: Optuna may exhaust the space before."""
        points = len(self.points()) or self.samples or 0
        if isinstance(self.searcher, Pbt):
            points *= self.population.generations
        return points * len(self.all_seeds)

    @property
    def keys(self) -> list[str]:
        """The keys of a point that a table shows."""
        until = [f"{self.population.stage}.until"] if isinstance(self.searcher, Pbt) else []
        return [*until, *self.choices]

    def label(self, point: Mapping[str, Any], seed: int | None = None) -> str:
        """Return a short name for a point, or for a trial of it: `mask_ratio=0.9 kind=tats seed=1`."""
        names = short_keys(self.keys)
        words = [f"{names[key]}={value_text(value)}" for key, value in point.items()]
        return " ".join(words if seed is None else [*words, f"seed={seed}"])

    # --- the pipeline of a trial -----------------------------------------------------------------------

    def values(self, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the sweep sets for all trials, then `overrides`, in the order in which they apply."""
        common = specs.kinds_first(key for key in self.fixed if key not in overrides)
        return {key: self.fixed[key] for key in common} | {
            key: overrides[key] for key in specs.kinds_first(overrides)
        }

    def complete_pipeline(self, overrides: Mapping[str, Any]) -> Pipeline:
        """Return the pipeline with what the sweep sets for all trials, and `overrides`.

        Raises:
            SpecError: an override does not fit the pipeline.
        """
        sets = [
            f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in self.values(overrides).items()
        ]
        return pipelines.load(self.pipeline, sets, self.rehearsal)

    def load(self, overrides: Mapping[str, Any]) -> Pipeline:
        """Return the part of the pipeline that a trial runs, under the sweep's name.

        Raises:
            SpecError: an override does not fit the pipeline.
        """
        pipeline = self.complete_pipeline(overrides)
        needed = _with_needs(pipeline, [metric.name.partition(".")[0] for metric in self.metrics])
        stages = {name: stage for name, stage in pipeline.stages.items() if name in needed}
        kinds = [KINDS[stage.kind] for stage in stages.values() if stage.kind in KINDS]
        fields = {field for kind in kinds for field in kind.Config.model_fields}
        defaults = {key: value for key, value in pipeline.defaults.items() if key in fields}
        return replace(
            pipeline, name=self.name, title=self.title, stages=stages, defaults=defaults, notify=()
        )

    @cached_property
    def common(self) -> frozenset[str]:
        """The stages that no trial changes; they run once, before the first trial."""
        base = self.load({})
        changed = {key.partition(".")[0] for key in (*self.choices, *self.seeds.keys)}
        if "defaults" in changed:
            return frozenset()
        return frozenset(name for name in base.stages if not changed & _with_needs(base, [name]))

    def work(self, graph: Graph) -> frozenset[str]:
        """Return a digest for each output that a trial makes; equal digests mean the same output."""
        digests: dict[str, str] = {}
        for instance in graph.instances.values():
            config = specs.identity(instance.config)
            needs = sorted(digests[need] for need in instance.needs)
            digests[instance.name] = _digest([instance.kind.name, config, needs])
        return frozenset(
            digests[name] for name, instance in graph.instances.items() if instance.stage not in self.common
        )


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
    source = pipelines.display_path(path)
    raw = _override(specs.read(path), sets)
    options = {"samples": samples, "max_concurrent": max_concurrent}
    raw |= {key: value for key, value in options.items() if value is not None}
    _refuse(source, _file_problems(raw, path.stem))
    sweep = _sweep(raw, path.stem, source, tuple(sets))
    _refuse(source, chain.from_iterable(problems(sweep) for problems in _CHECKS))
    return sweep


def rehearsed(sweep: Sweep, rehearsal: Rehearsal) -> Sweep:
    """Return the sweep of tiny trials: one worker each, half the clips; ASHA begins after an epoch."""
    rehearsal = replace(rehearsal, cpus=1, gpus=min(1, rehearsal.gpus), clips=rehearsal.clips // 2)
    if isinstance(sweep.searcher, Pbt):
        rehearsal = replace(rehearsal, epochs=sweep.population.generations)
    title = f"{specs.NO_RESULT}. {sweep.title}"
    changes: dict[str, Any] = {"name": sweep.name + specs.REHEARSAL, "title": title}
    if isinstance(sweep.scheduler, Asha):
        changes["scheduler"] = sweep.scheduler.model_copy(update={"grace": 1})
    copy = sweep.model_copy(update=changes)
    copy._source, copy._overrides, copy._rehearsal = sweep.source, sweep.overrides, rehearsal
    return copy


def save(sweep: Sweep, folder: Path) -> None:
    """Write the sweep with its overrides into its run's folder, as a file that `tats sweep` accepts."""
    values = sweep.model_dump(mode="json", by_alias=True, exclude_unset=True)
    body = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110)
    write_text(folder / f"{sweep.name}.yaml", f"# The sweep {sweep.name} as it was run\n{body}")


def as_run(folder: Path) -> Sweep:
    """Return the sweep that `save` wrote, unchecked: the pipeline may have changed since.

    Raises:
        StoreError: there is no such file.
        SpecError: it is no sweep.
    """
    name = folder.name.rsplit("-", 3)[0]
    path = folder / f"{name}.yaml"
    if not path.exists():
        raise StoreError(f"{path}: does not exist, so the sweep cannot be read")
    return _sweep(specs.read(path), name, str(path), ())


def _sweep(raw: Mapping[str, Any], name: str, source: str, overrides: tuple[str, ...]) -> Sweep:
    sweep = specs.validate(Sweep, {**raw, "name": name}, source)
    sweep._source, sweep._overrides = source, overrides
    return sweep


def _keys() -> list[str]:
    return [field.alias or name for name, field in Sweep.model_fields.items()]


def _override(raw: dict[str, Any], sets: Sequence[str]) -> dict[str, Any]:
    """Return the file with overrides on top; those of the pipeline go under `set`."""
    for text in sets:
        path, value = specs.parse_override(text)
        if path[0] not in _keys():
            path = ["set", *path]
        if path[0] in ("space", "set", "baseline") and len(path) > 1:
            path = [path[0], ".".join(path[1:])]  # the keys below are dotted names
        raw = specs.override(raw, path, value)
    return raw


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def plain(point: Mapping[str, Any]) -> Point:
    """Return a point without the history of a population's member."""
    return {key: value for key, value in point.items() if not isinstance(value, list)}


def schedule_entry(stage: str, epoch: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entry of a pre-training's schedule that changes the keys of `settings`."""
    entry: dict[str, Any] = {"epoch": epoch}
    for key, value in settings.items():
        entry = specs.override(entry, key.removeprefix(f"{stage}.").split("."), value)
    return entry


def _with_needs(pipeline: Pipeline, names: Iterable[str]) -> set[str]:
    """Return `names` and all stages that they need, directly or not."""
    reached: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in reached and name in pipeline.stages:
            reached.add(name)
            waiting += pipeline.stages[name].needs
    return reached


# --- checks: each yields problems, of which the first is raised -------------------------------------------


def _refuse(source: str, problems: Iterable[str]) -> None:
    for problem in problems:
        raise SpecError(f"{source}: {problem}")


def _file_problems(raw: Mapping[str, Any], name: str) -> Iterator[str]:
    """Problems of the space for which the type check has no plain sentence, and of the name."""
    space = raw.get("space")
    if not isinstance(space, Mapping) or not space:
        yield "space is empty; give at least one key of the pipeline with its values"
        return
    for key, values in space.items():
        if not isinstance(values, list | Mapping):
            yield f"space.{key} must be a list of values or a range, not {values!r}"
        if values == []:
            yield f"space.{key} has no values; give at least one, or leave the key out"
        if isinstance(values, list) and len(set(map(json.dumps, values))) < len(values):
            yield f"space.{key} has the same value twice"
    if raw.get("name") not in (None, name):
        yield f"name is '{raw['name']}', but the file's name calls it '{name}'"
    if name in specs.names("pipelines"):
        yield "there is a pipeline of the same name; rename one of the two"


def _space_problems(sweep: Sweep) -> Iterator[str]:
    for pattern, condition in sweep.conditions.items():
        for key in condition:
            if key not in sweep.choices:
                yield f"where.{pattern}: no key '{key}' in the space{did_you_mean(key, sweep.choices)}"
    for text in sweep.constraints:
        try:
            Constraint.parse(text, list(sweep.choices))
        except SpecError as error:
            yield f"constraints: {error}"
    for key, values in sweep.choices.items():
        if key in sweep.fixed:
            yield f"{key} is both set and searched; narrow it with --set space.{key}=[…]"
        if key in sweep.seeds.keys:
            yield f"{key} is both a seed and searched; leave it out of one of the two"
        if sweep.searcher.kind == "grid" and Range.of(values).ends:
            yield f"space.{key} is a range, which a grid cannot hold; give a list"
    for key, value in sweep.baseline.items():
        if key not in sweep.choices:
            yield f"baseline: no key '{key}' in the space{did_you_mean(key, sweep.choices)}"
        listed = Range.of(sweep.choices[key]).choice
        if listed is not None and value not in listed:
            yield f"baseline.{key}: {value!r} is none of its values ({', '.join(map(str, listed))})"


def _search_problems(sweep: Sweep) -> Iterator[str]:
    if len(set(sweep.seeds.values)) < len(sweep.seeds.values):
        yield "seeds.values has the same seed twice"
    if sweep.searcher.kind != "grid" and sweep.samples is None:
        yield f"samples is missing: how many points shall '{sweep.searcher.kind}' try?"
    if not sweep.objectives:
        yield "metrics: none has a mode (max or min), so no trial would be the best one"
    for metric in sweep.objectives:
        if metric.mode is None:
            yield f"metrics: the objective {metric.name} has no mode; say max or min"


def _pipeline_problems(sweep: Sweep) -> Iterator[str]:
    """Build what a trial runs, without its values; each metric must name a stage of the pipeline."""
    try:
        names = [*pipelines.load(sweep.pipeline).stages, "defaults", *_keys()]
        for key in sweep.fixed:
            head = key.partition(".")[0]
            if head not in names:
                yield f"{key}: no stage and no key of a sweep is named '{head}'{did_you_mean(head, names)}"
        pipeline = sweep.complete_pipeline({})
    except SpecError as error:
        yield str(error)
        return
    for metric in sweep.metrics:
        stage = metric.name.partition(".")[0]
        if stage not in pipeline.stages:
            near = did_you_mean(stage, pipeline.stages)
            yield f"metrics: {metric.name}: no stage named '{stage}'{near}"
    # A stage that no trial runs may lack what the sweep leaves out of its input.
    if problem := _graph_error(sweep, {}):
        yield str(problem)


def _population_problems(sweep: Sweep) -> Iterator[str]:
    if not isinstance(sweep.searcher, Pbt):
        return
    stage = next(iter(sweep.choices)).partition(".")[0]
    stages = sweep.load({}).stages
    trained = [name for name, entry in stages.items() if "schedule" in KINDS[entry.kind].Config.model_fields]
    if stage not in trained:
        near = did_you_mean(stage, trained)
        yield f"searcher: pbt needs a pre-training that a metric is of, and '{stage}' is none{near}"
    for key, values in sweep.space.values.items():
        entry = schedule_entry(stage, 0, {key: values.examples[0]})
        if error := _graph_error(sweep, {f"{stage}.schedule": [entry]}):
            yield (
                f"searcher: pbt cannot change {key} while {stage} trains; fix it with set, or use optuna "
                f"({error})"
            )
    if sweep.population.generations < 2:
        epochs = sweep.population.epochs
        yield f"searcher.every is {sweep.searcher.every}, but {stage} has only {epochs} epochs"
    if (sweep.samples or 0) < 2:
        yield "samples is the size of the population, which needs 2 members or more"
    for key, given in (
        ("seeds.keys", sweep.seeds.keys), ("baseline", sweep.baseline),
        ("scheduler", sweep.scheduler.kind != "none"), ("a second objective", sweep.objectives[1:]),
        *((key, key in sweep.fixed) for key in (f"{stage}.schedule", f"{stage}.until")),
    ):  # fmt: skip
        if given:
            yield f"searcher: pbt leaves no room for {key}; leave it out"


def _graph_problems(sweep: Sweep) -> Iterator[str]:
    """Build the pipeline of every point, at most `_CHECKED_POINTS`, and of the corners of the space."""
    points = [*sweep.space.corners(), *sweep.points()[:_CHECKED_POINTS]]
    if not points:
        yield "the constraints leave no point to try; loosen them"
    for trial in {trial.id: trial for point in points for trial in sweep.trials_of(point)[:1]}.values():
        error = _graph_error(sweep, trial.overrides)
        if error is None:
            continue
        for key, value in trial.overrides.items():
            single = _graph_error(sweep, {key: value})
            if single is not None:
                yield f"{'space' if key in sweep.choices else 'seeds.keys'}.{key} = {value!r}: {single}"
        yield f"together, {', '.join(f'{key}={value}' for key, value in trial.point.items())}: {error}"


def _graph_error(sweep: Sweep, overrides: Mapping[str, Any]) -> SpecError | None:
    try:
        graphs.build(sweep.load(overrides))
    except SpecError as error:
        return error
    return None


def _metric_problems(sweep: Sweep) -> Iterator[str]:
    names = [metric.name for metric in sweep.metrics]
    yield from (f"metrics: {name} is given twice" for name in names if names.count(name) > 1)
    kinds = {name: KINDS[stage.kind] for name, stage in sweep.load({}).stages.items()}
    for name in names:
        stage, _, number = name.partition(".")
        reports = kinds[stage].reports
        if reports is None:
            continue  # a command's program reports what it likes
        if kinds[stage].curves:
            reports |= {STEP_SECONDS}
        if number not in reports:
            near = did_you_mean(number, reports) if reports else ""
            near = near if near.startswith("; did") else ""
            exists = f" ({stage} reports {', '.join(sorted(reports))})" if reports else ""
            yield f"metrics: no stage reports {name}{near}{exists}"
    if isinstance(sweep.scheduler, Asha):
        metric = sweep.scheduler.metric
        stage = metric.partition(".")[0]
        curves = {f"{name}.{curve}" for name, kind in kinds.items() for curve in kind.curves}
        if metric not in curves and not (stage in kinds and kinds[stage].reports is None):
            near = did_you_mean(metric, curves)
            yield f"scheduler.metric: no stage reports {metric} while it runs{near}"


_CHECKS = (
    _space_problems, _search_problems, _pipeline_problems, _population_problems, _graph_problems,
    _metric_problems,
)  # fmt: skip

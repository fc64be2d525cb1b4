"""The charts of a sweep, and the reason for each that is not drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tats_core.files import write_bytes
from tats_core.report import charts
from tats_core.report.charts import Curve, Key
from tats_core.report.metrics import Metric
from tats_core.report.sweeps import Row
from tats_core.report.units import DASH, short_keys
from tats_core.store.layout import RUN
from tats_core.store.run import Points, Run
from tats_core.sweep.space import Range
from tats_core.sweep.summary import Summary
from tats_core.sweep.trial import TrialResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER: Final = "plots"

_TRIALS_A_KEY = 8  # fewer say nothing about which key matters
_PANELS = 6  # of learning curves


@dataclass(frozen=True)
class Plot:
    """A chart: its file's name, what it shows, and the figure."""

    name: str
    caption: str
    figure: Figure


class Missing(Exception):  # noqa: N818 (it is not an error)
    """Why a chart is not drawn."""


@dataclass(frozen=True)
class Outcome:
    """What a sweep has measured so far, as its charts need it."""

    summary: Summary
    folder: Path
    rows: Sequence[Row]
    """Those that have any value."""
    metrics: Sequence[Metric]
    """Those that any point has."""
    keys: Sequence[Key]
    """Those that have more than one value."""
    x: Key | None
    """The first key whose listed values are all numbers."""
    series: Key
    """The first key whose listed values are not, if each can have a style; otherwise `ALL`."""


def of(summary: Summary, folder: Path) -> tuple[list[Plot], list[str]]:
    """Return the charts of what a sweep has measured so far, and a sentence for each that is not drawn."""
    choices, rows = summary.sweep.choices, summary.rows
    keys = [
        Key(name, title, Range.of(choices[name]).choice or ())
        for name, title in short_keys(list(choices)).items()
        if len({repr(row.point[name]) for row in rows if name in row.point}) > 1
    ]
    listed = [key for key in keys if key.values]
    numeric = [key for key in listed if charts.are_numbers(key.values)]
    words = [key for key in listed if key not in numeric]
    measured = {name for row in rows for name in row.values}
    outcome = Outcome(
        summary,
        folder,
        [row for row in rows if row.values],
        [metric for metric in summary.metrics if metric.key in measured],
        keys,
        x=numeric[0] if numeric else None,
        series=words[0] if words and len(words[0].values) <= charts.SERIES else charts.ALL,
    )
    plots, missing = [], []
    for draw in (_against, _learning, _parallel, _importance, _pareto):
        try:
            plots += draw(outcome)
        except Missing as why:
            missing.append(str(why))
    return plots, missing


def write(plots: Sequence[Plot], folder: Path) -> None:
    """Write charts as PNG files below a sweep's folder, in the light colours."""
    for plot in plots:
        write_bytes(folder / FOLDER / f"{plot.name}.png", charts.png(plot.figure))


def _against(outcome: Outcome) -> list[Plot]:
    x, series, metrics = outcome.x, outcome.series, outcome.metrics
    if x is None or not metrics:
        raise Missing("Metrics against a key: no key of the grid has several numbers as its values.")
    points = {(row.point.get(x.name), row.point.get(series.name)) for row in outcome.rows}
    if len(points) < len(outcome.rows):
        drawn = f"{x.title} and {series.title}" if series.title else x.title
        raise Missing(f"Metrics against {x.title}: points differ in more than {drawn}.")
    by = f", by {series.title}" if series.title else ""
    caption = f"Each metric against {x.title}{by}: mean over seeds with its 95% interval (Student's t)."
    return [Plot("metrics", caption, charts.against(outcome.rows, x, series, metrics))]


def _learning(outcome: Outcome) -> list[Plot]:
    summary, series = outcome.summary, outcome.series
    panels: dict[str, list[Curve]] = {}
    for trial in summary.trials:
        for name, points in _curves(outcome.folder / "trials" / trial.id).items():
            if len(points) > 1:
                panels.setdefault(name, []).append(Curve.of(trial.point.get(series.name), points))
    names = [summary.sweep.scheduler.metric, *(name for name in panels if name.endswith(".loss"))]
    names += [metric.key for metric in summary.metrics]
    drawn = {name: panels[name] for name in names if name in panels}
    if not drawn:
        raise Missing("Learning curves: no trial logged a metric more than once.")
    drawn = {name: drawn[name] for name in list(drawn)[:_PANELS]}
    caption = f"Learning curves of the trials{f', by {series.title}' if series.title else ''}."
    return [Plot("curves", caption, charts.learning(drawn, series.values))]


def _curves(folder: Path) -> dict[str, Points]:
    """Return `stage.metric` → curve of the trial in `folder`."""
    if not (folder / RUN).exists():
        return {}
    points: dict[str, Points] = {}
    for stage in Run.open(folder).stages.values():
        for metric, curve in stage.curves.items():
            points.setdefault(f"{stage.record.stage}.{metric}", {}).update(curve)
    return points


def _parallel(outcome: Outcome) -> list[Plot]:
    metrics, best = outcome.metrics, outcome.summary.objective
    measured = [row for row in outcome.rows if all(metric.key in row.values for metric in metrics)]
    if len(outcome.keys) < 2 or len(measured) < 3 or best not in metrics:
        raise Missing("Parallel coordinates: they need two keys and three measured points.")
    caption = (
        f"Each line is one point (mean over seeds), coloured by {best.title}; {DASH}: the key means"
        " nothing there."
    )
    return [Plot("parallel", caption, charts.parallel(measured, outcome.keys, metrics, best))]


def _importance(outcome: Outcome) -> list[Plot]:
    sweep, best = outcome.summary.sweep, outcome.summary.objective
    if sweep.searcher.kind == "pbt":
        raise Missing("Importance of the keys: a population changes them while it trains.")
    done = [
        trial for trial in outcome.summary.trials if trial.status == "finished" and best.key in trial.metrics
    ]
    common = {key.name: key.title for key in outcome.keys if all(key.name in trial.point for trial in done)}
    needed = _TRIALS_A_KEY * len(common)
    if len(common) < 2:
        raise Missing("Importance of the keys: fewer than two keys mean something at every point.")
    if len(done) < needed:
        raise Missing(
            f"Importance of the keys: {len(done)} finished trials say too little about {len(common)} keys"
            f" (asked for here: {needed})."
        )
    shares = importance({key: sweep.space.values[key] for key in common}, done, best)
    if not shares:
        raise Missing(f"Importance of the keys: {best.title} is the same in all trials.")
    others = ", ".join(key.title for key in outcome.keys if key.name not in common)
    rest = f" Left out, as they mean something only at some points: {others}." if others else ""
    caption = (
        f"Each key's share of the variance of {best.title} that the keys explain (fANOVA over {len(done)}"
        f" trials; the shares add up to 100%, without the variance over seeds).{rest}"
    )
    return [Plot("importance", caption, charts.importance({common[key]: shares[key] for key in shares}))]


def importance(space: Mapping[str, Range], trials: Sequence[TrialResult], metric: Metric) -> dict[str, float]:
    """Return each key's share of the variance that all of them explain (fANOVA), none where there is none."""
    import optuna
    from optuna.distributions import CategoricalDistribution, IntDistribution
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    from tats_core.sweep import search

    measured = [trial.metrics[metric.key] for trial in trials]
    if len(set(measured)) == 1:
        return {}
    study = optuna.create_study(direction="minimize" if metric.better == "less" else "maximize")
    distributions = {key: search.distribution(values) for key, values in space.items()}
    # A choice is encoded by its index, a single feature whose values the forest can split anywhere. Optuna's
    # encoding, a feature for each value, takes minutes for fifty values.
    choices = {
        key: distribution.choices
        for key, distribution in distributions.items()
        if isinstance(distribution, CategoricalDistribution)
    }
    distributions |= {key: IntDistribution(0, len(values) - 1) for key, values in choices.items()}
    for trial, value in zip(trials, measured, strict=True):
        params = {
            key: choices[key].index(trial.point[key]) if key in choices else trial.point[key] for key in space
        }
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=value))
    return get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))


def _pareto(outcome: Outcome) -> list[Plot]:
    judged = [metric for metric in outcome.metrics if metric.better]
    if len(judged) < 2:
        return []
    first, second = judged[:2]
    caption = (
        f"{first.title} against {second.title}: filled points are the Pareto front, which no other beats in"
        " both; bars are 95% intervals over seeds."
    )
    return [Plot("pareto", caption, charts.pareto(outcome.rows, first, second, outcome.series))]

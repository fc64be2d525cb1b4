"""Which charts a sweep has, and what is drawn in them; of those that it has not, why."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tats_core.report import sweep_figures as figures
from tats_core.report.sweep_figures import Curve, Look, Named, Series
from tats_core.report.sweeps import Row, short
from tats_core.report.tables import DASH
from tats_core.store import logs
from tats_core.store.run import RunRecord
from tats_core.sweep.space import Range
from tats_core.sweep.spec import Sweep
from tats_core.sweep.trial import TrialResult
from tats_core.training.events import read_events

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER: Final = "plots"

_TRIALS_A_KEY = 8  # fewer say nothing about which key matters
_PANELS = 6  # of learning curves


@dataclass(frozen=True)
class Plot:
    """A chart: its file's name, what it shows, and how it is drawn."""

    name: str
    caption: str
    draw: Callable[[Look], Figure]

    def png(self, *, dark: bool = False) -> bytes:
        """Return it as a picture of 256 colours, a third of the size."""
        from PIL import Image

        drawn, out = io.BytesIO(), io.BytesIO()
        self.draw(Look(dark=dark)).savefig(drawn, format="png")
        with Image.open(drawn) as picture:
            few = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        few.save(out, "PNG", dpi=(figures.DPI, figures.DPI))
        return out.getvalue()


@dataclass(frozen=True)
class Plots:
    """The charts of a sweep, and a sentence for each that it has not."""

    there: list[Plot]
    missing: list[str]

    def write(self, folder: Path) -> None:
        """Write all as PNG files below a sweep's folder, in the light colours."""
        place = folder / FOLDER
        place.mkdir(exist_ok=True)
        for one in self.there:
            beside = place / f"{one.name}.png.tmp"
            beside.write_bytes(one.png())
            beside.replace(place / f"{one.name}.png")


def of(sweep: Sweep, folder: Path, rows: Sequence[Row], trials: Sequence[TrialResult]) -> Plots:
    """Return the charts of what a sweep has found so far."""
    plots = Plots([], [])
    known = [row for row in rows if row.values]
    keys = _varied(sweep, rows)
    _against(sweep, keys, known, plots)
    _learning(sweep, keys, folder, trials, plots)
    _parallel(sweep, keys, known, plots)
    _importance(sweep, keys, trials, plots)
    _pareto(sweep, keys, known, plots)
    return plots


def _varied(sweep: Sweep, rows: Sequence[Row]) -> list[Named]:
    """Return the keys of the space that have more than one value."""
    names = short(list(sweep.space.values))
    many = [key for key in names if len({repr(row.point[key]) for row in rows if key in row.point}) > 1]
    return [Named(key, names[key]) for key in many]


def _first(sweep: Sweep, keys: Sequence[Named], *, numeric: bool) -> Named | None:
    for key in keys:
        values = sweep.space.values[key.key]
        if isinstance(values, Range):
            continue
        if all(isinstance(one, int | float) and not isinstance(one, bool) for one in values) is numeric:
            return key
    return None


def _series(sweep: Sweep, keys: Sequence[Named]) -> Series | None:
    """Return the first key whose values are words, where each can have a style of its own."""
    found = _first(sweep, keys, numeric=False)
    values = sweep.space.values[found.key] if found else ()
    if found is None or isinstance(values, Range) or len(values) > figures.STYLES:
        return None
    return Series(found.key, found.title, tuple(values))


def _metrics(sweep: Sweep, rows: Sequence[Row]) -> list[Named]:
    return [
        Named(one.name, one.shown, one.mode)
        for one in sweep.metrics
        if any(one.name in row.values for row in rows)
    ]


def _objective(sweep: Sweep) -> Named:
    one = sweep.objectives[0]
    return Named(one.name, one.shown, one.mode)


def _against(sweep: Sweep, keys: Sequence[Named], rows: Sequence[Row], plots: Plots) -> None:
    x, series = _first(sweep, keys, numeric=True), _series(sweep, keys)
    metrics = _metrics(sweep, rows)
    if x is None or not metrics:
        plots.missing.append("Metrics against a key: no key of the grid has several numbers as its values.")
        return
    places = [(row.point.get(x.key), row.point.get(series.key) if series else None) for row in rows]
    if len(set(places)) < len(places):
        drawn = f"{x.title} and {series.title}" if series else x.title
        plots.missing.append(f"Metrics against {x.title}: points differ in more than {drawn}.")
        return
    beside = f", by {series.title}" if series else ""
    caption = f"Each metric against {x.title}{beside}: mean over seeds with its 95% interval (Student's t)."
    plots.there.append(Plot("metrics", caption, lambda look: figures.against(rows, x, series, metrics, look)))


def _learning(
    sweep: Sweep, keys: Sequence[Named], folder: Path, trials: Sequence[TrialResult], plots: Plots
) -> None:
    series = _series(sweep, keys)
    panels: dict[str, list[Curve]] = {}
    for trial in trials:
        for name, points in curves(folder / "trials" / trial.id).items():
            if len(points) > 1:
                value = trial.point.get(series.key) if series else None
                panels.setdefault(name, []).append(Curve(value, list(points), list(points.values())))
    numbers = [sweep.scheduler.metric, *(name for name in panels if name.endswith(".loss"))]
    numbers += [one.name for one in sweep.metrics]
    shown = [name for name in dict.fromkeys(numbers) if name in panels][:_PANELS]
    if not shown:
        plots.missing.append("Learning curves: no trial told of a number more than once.")
        return
    drawn = {name: panels[name] for name in shown}
    caption = f"Learning curves of the trials{f', by {series.title}' if series else ''}."
    plots.there.append(Plot("curves", caption, lambda look: figures.learning(drawn, series, look)))


def curves(folder: Path) -> dict[str, dict[int, float]]:
    """Return `stage.number` → step → value, of what the stages of a trial told that are not the sweep's own.

    Args:
        folder: the trial's, `runs/<sweep's run>/trials/<id>`.
    """
    if not (folder / "run.json").exists():
        return {}
    record = RunRecord.load(folder)
    found: dict[str, dict[int, float]] = {}
    for stage in record.stages.values():
        place = logs.folder(record, stage)
        for _, event in read_events(place / "events.jsonl") if place else ():
            if event["kind"] == "metrics":
                for key, value in event["values"].items():
                    found.setdefault(f"{stage.stage}.{key}", {})[event["step"]] = value
    return found


def _parallel(sweep: Sweep, keys: Sequence[Named], rows: Sequence[Row], plots: Plots) -> None:
    best = _objective(sweep)
    metrics = _metrics(sweep, rows)
    measured = [row for row in rows if all(one.key in row.values for one in metrics)]
    if len(keys) < 2 or len(measured) < 3 or best.key not in [one.key for one in metrics]:
        plots.missing.append("Parallel coordinates: they need two keys and three measured points.")
        return
    caption = (
        f"Each line is one point (mean over seeds), coloured by {best.title}; {DASH}: the key means"
        " nothing there."
    )
    plots.there.append(
        Plot("parallel", caption, lambda look: figures.parallel(rows, keys, metrics, best, look))
    )


def _importance(sweep: Sweep, keys: Sequence[Named], trials: Sequence[TrialResult], plots: Plots) -> None:
    if sweep.searcher.kind == "pbt":
        plots.missing.append("Importance of the keys: a population changes them while it trains.")
        return
    best = _objective(sweep)
    done = [one for one in trials if one.status == "finished" and best.key in one.metrics]
    common = [key for key in keys if all(key.key in one.point for one in done)]
    needed = _TRIALS_A_KEY * len(common)
    if len(common) < 2:
        plots.missing.append("Importance of the keys: fewer than two keys mean something at every point.")
        return
    if len(done) < needed:
        plots.missing.append(
            f"Importance of the keys: {len(done)} finished trials say too little about {len(common)} keys"
            f" (asked for here: {needed})."
        )
        return
    found = importance({key.key: sweep.space.values[key.key] for key in common}, done, best)
    if not found:
        plots.missing.append(f"Importance of the keys: {best.title} is the same in all trials.")
        return
    titles = {key.key: key.title for key in common}
    shares = {titles[key]: share for key, share in found.items()}
    others = [key.title for key in keys if key not in common]
    rest = f" Left out, as they mean something only at some points: {', '.join(others)}." if others else ""
    caption = (
        f"How much of the variance of {best.title} that the keys explain is each one's (fANOVA over"
        f" {len(done)} trials; its shares add up to 100%, whatever seeds do beside).{rest}"
    )
    plots.there.append(Plot("importance", caption, lambda look: figures.importance(shares, look)))


def importance(space: Mapping[str, Any], trials: Sequence[TrialResult], metric: Named) -> dict[str, float]:
    """Return each key's share of the variance that all of them explain (fANOVA), none where there is none."""
    import optuna
    from optuna.distributions import CategoricalDistribution, IntDistribution
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    from tats_core.sweep import search

    values = [one.metrics[metric.key] for one in trials]
    if len(set(values)) == 1:
        return {}
    study = optuna.create_study(direction="minimize" if metric.mode == "min" else "maximize")
    distributions = {key: search.distribution(one) for key, one in space.items()}
    # A choice among values by its place: one feature of the forest, which can part any of the places. A
    # feature for each value, as Optuna takes them, costs minutes where there are fifty.
    choices = {
        key: one.choices for key, one in distributions.items() if isinstance(one, CategoricalDistribution)
    }
    distributions |= {key: IntDistribution(0, len(among) - 1) for key, among in choices.items()}
    for one, value in zip(trials, values, strict=True):
        params = {
            key: choices[key].index(one.point[key]) if key in choices else one.point[key] for key in space
        }
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=value))
    return get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))


def _pareto(sweep: Sweep, keys: Sequence[Named], rows: Sequence[Row], plots: Plots) -> None:
    judged = [one for one in _metrics(sweep, rows) if one.mode]
    if len(judged) < 2:
        return
    first, second = judged[:2]
    series = _series(sweep, keys)
    caption = (
        f"{first.title} against {second.title}: filled points are the Pareto front, which no other beats in"
        " both; bars are 95% intervals over seeds."
    )
    plots.there.append(
        Plot("pareto", caption, lambda look: figures.pareto(rows, first, second, series, look))
    )

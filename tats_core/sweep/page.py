"""The page of a sweep: its table, its charts, all its trials, and what it was.

Everything is read from the sweep's folder, so that the page can be made anew at any time.
"""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from tats_core import __version__
from tats_core.files import write_text
from tats_core.report import charts, page, sweeps
from tats_core.report.table import Table
from tats_core.report.units import duration, moment, short_keys, value_text
from tats_core.specs import REHEARSAL
from tats_core.store.run import Run, RunRecord
from tats_core.store.run_page import surroundings
from tats_core.sweep import plots
from tats_core.sweep.plots import Plot
from tats_core.sweep.space import values_text
from tats_core.sweep.spec import Sweep, as_run
from tats_core.sweep.summary import BEST, ROWS, Summary, busy_of, results

FILE: Final = "report.html"

_KEYS_IN_A_TILE = 3


def read(folder: Path) -> Summary:
    """Return the summary of what the sweep in `folder` has measured so far.

    Raises:
        StoreError: one of its files cannot be read.
    """
    return Summary.of(as_run(folder), results(folder), busy_of(folder))


def write(summary: Summary, folder: Path) -> None:
    """Write the charts, and the page whole or not at all, into the sweep's folder."""
    drawn, missing = plots.of(summary, folder)
    plots.write(drawn, folder)
    write_text(folder / FILE, _render(summary, folder, drawn, missing))


def build(folder: Path) -> str:
    """Return the page as one string."""
    summary = read(folder)
    return _render(summary, folder, *plots.of(summary, folder))


def _render(summary: Summary, folder: Path, drawn: Sequence[Plot], missing: Sequence[str]) -> str:
    sweep, rows, run = summary.sweep, summary.rows[:ROWS], Run.open(folder)
    failed = sum(count for _, count in summary.causes)
    best = folder / BEST
    return page.render(
        "sweep.html.j2",
        title=sweep.name,
        lead=sweep.title or f"A sweep of the pipeline {sweep.pipeline}",
        error=f"{failed} of {len(summary.trials)} trials failed; causes are listed below." if failed else "",
        tiles=_tiles(summary, run.record),
        best_text=summary.best_text,
        results=sweeps.table(rows, summary.metrics, summary.objective, summary.best),
        note=f"The first {len(rows)} of {len(summary.rows)} points; results.csv has all."
        if len(summary.rows) > len(rows)
        else "",
        several=any(row.seeds > 1 for row in summary.rows),
        gains=sweeps.gains(summary.rows, summary.metrics) if any(row.gains for row in summary.rows) else None,
        baseline=_equations(sweep.baseline),
        charts=[(plot.name, plot.caption, charts.svg(plot.figure, plot.caption)) for plot in drawn],
        missing=missing,
        causes=summary.causes,
        trials=_trials(summary),
        space=[(key, values_text(values)) for key, values in sweep.space.values.items()],
        fixed=list(_fixed(sweep)),
        best_command=f"tats run pipeline {shlex.quote(str(best))}",
        best_pipeline=best.read_text(encoding="utf-8") if best.exists() else "",
        again=_again(sweep.name, folder),
        **surroundings(run, "sweep", sweep.name, sweep_file=run.record.source, pipeline=sweep.pipeline),
        foot=f"Run {folder.name}. Written by tats {__version__} at {moment(time.time())}.",
    )


def _again(name: str, folder: Path) -> str:
    if name.endswith(REHEARSAL):
        return shlex.join(["tats", "sweep", name.removesuffix(REHEARSAL), "--rehearse"])
    return shlex.join(["tats", "sweep", str(folder / f"{name}.yaml")])


def _tiles(summary: Summary, record: RunRecord) -> Iterator[tuple[str, object, str]]:
    metric = summary.objective
    for top in summary.best[:1]:
        names = short_keys(summary.sweep.keys)
        chosen = ", ".join(f"{names[key]} {value_text(value)}" for key, value in top.point.items())
        remark = f"with {chosen}" if len(top.point) <= _KEYS_IN_A_TILE else "see below"
        if len(summary.best) > 1:
            remark = f"shared by {len(summary.best)} points"
        yield f"best {metric.title}", top.values[metric.key].text(metric.digits), remark
    counts = Counter(trial.status for trial in summary.trials)
    yield "trials", len(summary.trials), ", ".join(f"{count} {status}" for status, count in counts.items())
    if summary.epochs and summary.epochs[0] < summary.epochs[1]:
        used, complete = summary.epochs
        yield "epochs", used, f"{100 * used / complete:.0f}% of the {complete} of complete trials"
    if summary.busy:
        yield "in training steps", f"{100 * summary.busy:.0f}%", "of the time after Ray's start"
    yield "took", duration((record.finished or time.time()) - record.started), moment(record.started)


def _trials(summary: Summary) -> Table:
    keys = summary.sweep.keys
    rows = [
        [
            page.code(trial.id),
            *(value_text(trial.point.get(key)) for key in keys),
            trial.seed,
            page.status(trial.status, "stopped" if trial.status == "stopped early" else None),
            trial.epochs,
            *(
                f"{trial.metrics[metric.key]:.{metric.digits}f}" if metric.key in trial.metrics else None
                for metric in summary.metrics
            ),
        ]
        for trial in summary.trials
    ]
    headings = ["trial", *short_keys(keys).values(), "seed", "status", "epochs"]
    headings += [metric.title for metric in summary.metrics]
    return Table.of(headings, rows, labels=len(keys) + 3)


def _fixed(sweep: Sweep) -> Iterator[tuple[str, object]]:
    for pattern, condition in sweep.space.where.items():
        yield f"{pattern}, only where", _equations({key: list(values) for key, values in condition.items()})
    for constraint in sweep.space.constraints:
        yield "constraint", constraint.text
    if sweep.seeds.keys:
        yield "seeds", f"{', '.join(map(str, sweep.seeds.values))} for {', '.join(sweep.seeds.keys)}"
    yield "searcher", _equations(sweep.searcher.model_dump(mode="json", exclude_none=True))
    yield "scheduler", _equations(sweep.scheduler.model_dump(mode="json", exclude_none=True))
    for key, value in sweep.fixed.items():
        yield f"set for all: {key}", value


def _equations(values: Mapping[str, object]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in values.items())

"""The page of a sweep: its table, its charts, all its trials, and what it was.

Everything is read from the sweep's folder, so that the page can be made anew at any time.
"""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tats_core import __version__
from tats_core.report import page
from tats_core.report import sweep_figures as figures
from tats_core.report import sweeps as tables
from tats_core.report.page import Html, Section
from tats_core.report.tables import DASH
from tats_core.report.units import duration, moment
from tats_core.store import environment
from tats_core.store.run import RunRecord
from tats_core.sweep import plots, summary
from tats_core.sweep.plots import Plots
from tats_core.sweep.space import Range
from tats_core.sweep.spec import Sweep, as_run
from tats_core.sweep.summary import Summary
from tats_core.sweep.trial import TrialResult, results

FILE: Final = "report.html"

_TRIALS_OPEN = 40
_KEYS_IN_A_TILE = 3


def read(folder: Path) -> Summary:
    """Return what the sweep in `folder` has come to so far.

    Raises:
        StoreError: one of its files cannot be understood.
    """
    return Summary.of(as_run(folder), results(folder), summary.busy_of(folder))


def write(found: Summary, folder: Path) -> None:
    """Write the charts, and the page whole or not at all, into the sweep's folder."""
    charts = plots.of(found.sweep, folder, found.rows, found.trials)
    charts.write(folder)
    beside = folder / f"{FILE}.tmp"
    beside.write_text(_built(found, folder, charts), encoding="utf-8")
    beside.replace(folder / FILE)


def build(folder: Path) -> str:
    """Return the page as one string."""
    found = read(folder)
    return _built(found, folder, plots.of(found.sweep, folder, found.rows, found.trials))


def _built(found: Summary, folder: Path, charts: Plots) -> str:
    record = RunRecord.load(folder)
    sections = [
        _results(found),
        _charts(charts),
        _trials(found),
        _space(found.sweep),
        _best(folder),
        _environment(found, record, folder),
    ]
    head = [page.tiles(_tiles(found, record))]
    failed = sum(count for _, count in found.causes)
    if failed:
        head.insert(0, page.alert(f"{failed} of {len(found.trials)} trials failed; why stands below."))
    return page.page(
        found.sweep.name,
        [one for one in sections if one is not None],
        subtitle=found.sweep.title or f"A sweep of the pipeline {found.sweep.pipeline}",
        head=head,
        foot=f"Run {folder.name}. Written by tats {__version__} at {moment(time.time())}.",
    )


def _tiles(found: Summary, record: RunRecord) -> list[tuple[str, Any, str]]:
    top, objective = found.best, found.sweep.objectives[0]
    tiles: list[tuple[str, Any, str]] = []
    if top is not None:
        names = tables.short(found.sweep.keys)
        chosen = ", ".join(f"{names[key]} {tables.value_text(one)}" for key, one in top.point.items())
        few = len(top.point) <= _KEYS_IN_A_TILE
        value = top.values[objective.name].text(objective.digits)
        tiles.append((f"best {objective.shown}", value, f"with {chosen}" if few else "see below"))
    counts = Counter(one.status for one in found.trials)
    said = ", ".join(f"{count} {status}" for status, count in counts.items())
    tiles.append(("trials", len(found.trials), said))
    if found.epochs and found.epochs[0] < found.epochs[1]:
        used, whole = found.epochs
        tiles.append(("epochs", used, f"{100 * used / whole:.0f}% of the {whole} of whole trials"))
    if found.busy:
        tiles.append(("in training steps", f"{100 * found.busy:.0f}%", "of the time after Ray's start"))
    took = duration((record.finished or time.time()) - record.started)
    return [*tiles, ("took", took, moment(record.started))]


def _results(found: Summary) -> Section:
    top, several = found.best_text, any(row.seeds > 1 for row in found.rows)
    meaning = "Means over the seeds, ± half their 95% interval (Student's t)." if several else "One seed."
    parts = [page.paragraph(f"{top[:1].upper()}{top[1:]}.")] if top else []
    parts += [_table(found), page.paragraph(meaning)]
    if any(row.gains for row in found.rows):
        base = ", ".join(f"{key} = {value}" for key, value in found.sweep.baseline.items())
        parts.append(
            page.paragraph(
                f"Baseline: the point that has {base} instead of its own. Differences are taken seed by seed;"
                " where the interval of one holds 0, it is not a finding."
            )
        )
        parts.append(page.collapsible("Differences to the baseline in all metrics", _gains(found)))
    return page.section("Results", *parts)


def _table(found: Summary) -> Html:
    rows = found.rows[: summary.ROWS]
    more = len(found.rows) - len(rows)
    head, *lines = tables.cells(rows, found.columns, found.sweep.objectives[0].name)
    best = next((place for place, row in enumerate(rows) if row == found.best), None)
    marked = [
        [Html(f"<b>{page.text(cell)}</b>") for cell in line] if place == best else line
        for place, line in enumerate(lines)
    ]
    note = f"The first {len(rows)} of {len(found.rows)} points; results.csv has all." if more else ""
    return page.table(head, marked, words=len(tables.keys_of(rows)), caption=note)


def _gains(found: Summary) -> Html:
    keys = tables.keys_of(found.rows)
    names = tables.short(keys)
    lines = [
        [
            *(tables.value_text(row.point.get(key)) for key in keys),
            *(
                row.gains[key].text(digits, "+") if key in row.gains else DASH
                for key, _, digits in found.columns
            ),
        ]
        for row in found.rows
        if row.gains
    ]
    head = [*(names[key] for key in keys), *(title for _, title, _ in found.columns)]
    return page.table(head, lines, words=len(keys))


def _charts(charts: Plots) -> Section | None:
    parts = []
    for one in charts.there:
        light, dark = one.png(), one.png(dark=True)
        # At the size of print: 96 pixels of a page are an inch.
        width, height = (round(side * 96 / figures.DPI) for side in page.size_of_png(light))
        shown = page.picture(light, one.caption, (width, height), dark=dark)
        parts.append(page.figure(page.scroll(shown, one.name), one.caption))
    parts += [page.paragraph(words) for words in charts.missing]
    return page.section("Charts", *parts) if parts else None


def _trials(found: Summary) -> Section:
    parts = [page.alert(f"{count} × {cause}") for cause, count in found.causes]
    keys = found.sweep.keys
    names = tables.short(keys)
    lines = [
        [
            Html(f"<code>{one.id}</code>"),
            *(tables.value_text(one.point.get(key)) for key in keys),
            DASH if one.seed is None else one.seed,
            _status(one),
            one.epochs,
            *(
                f"{one.metrics[key]:.{digits}f}" if key in one.metrics else DASH
                for key, _, digits in found.columns
            ),
        ]
        for one in found.trials
    ]
    head = ["trial", *(names[key] for key in keys), "seed", "status", "epochs"]
    listed = page.table([*head, *(title for _, title, _ in found.columns)], lines, words=len(keys) + 3)
    opened = len(lines) <= _TRIALS_OPEN
    parts.append(page.collapsible(f"All {len(lines)} trials", listed, opened=opened))
    return page.section("Trials", *parts)


def _status(one: TrialResult) -> Html:
    look = {"stopped early": "stopped"}.get(one.status, one.status)
    return Html(f'<span class="status {look}">{page.text(one.status)}</span>')


def _space(sweep: Sweep) -> Section:
    pairs: list[tuple[str, Any]] = [(key, _values(one)) for key, one in sweep.space.values.items()]
    parts = [page.key_values(pairs)]
    rest: list[tuple[str, Any]] = [
        (f"{pattern}, only where", _equal({key: list(one) for key, one in condition.items()}))
        for pattern, condition in sweep.space.where.items()
    ]
    rest += [("constraint", one.text) for one in sweep.space.constraints]
    if sweep.seeds.keys:
        seeds = ", ".join(map(str, sweep.seeds.values))
        rest.append(("seeds", f"{seeds} for {', '.join(sweep.seeds.keys)}"))
    rest.append(("searcher", _equal(sweep.searcher.model_dump(mode="json", exclude_none=True))))
    rest.append(("scheduler", _equal(sweep.scheduler.model_dump(mode="json", exclude_none=True))))
    rest += [(f"set for all: {key}", value) for key, value in sweep.fixed.items()]
    more = page.collapsible("Everything else that was fixed", page.key_values(rest))
    return page.section("Space", *parts, more)


def _values(values: Any) -> str:
    if not isinstance(values, Range):
        return ", ".join(map(tables.value_text, values))
    ((kind, ends),) = values.model_dump(by_alias=True, exclude_none=True).items()
    if kind == "choice":
        return ", ".join(map(tables.value_text, ends))
    return f"{ends[0]:g} to {ends[1]:g} ({kind})"


def _equal(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in values.items())


def _best(folder: Path) -> Section | None:
    path = folder / summary.BEST
    if not path.exists():
        return None
    text = path.read_text(encoding="utf-8")
    return page.section(
        "The best as a pipeline",
        page.code(f"tats run pipeline {shlex.quote(str(path))}"),
        page.collapsible(summary.BEST, page.code(text)),
    )


def _environment(found: Summary, record: RunRecord, folder: Path) -> Section:
    known = environment.load(record)
    words = ["tats", "sweep", found.sweep.name]
    words += [part for one in record.overrides for part in ("--set", one)]
    command = known.pop("command", shlex.join(words))
    as_it_was = f"tats sweep {shlex.quote(str(folder / f'{found.sweep.name}.yaml'))}"
    pairs: list[tuple[str, Any]] = [
        ("run", record.id),
        ("sweep file", record.source),
        ("pipeline", found.sweep.pipeline),
        ("started", moment(record.started)),
        ("ended", moment(record.finished) if record.finished else DASH),
        ("git commit", record.git_commit or "not run from a checkout"),
        ("MLflow run", record.tracking_run or DASH),
        *known.items(),
    ]
    return page.section(
        "Environment",
        page.paragraph("The command that started this sweep, and the same again whatever its file says now:"),
        page.code(f"{command}\n{as_it_was}"),
        page.key_values(pairs),
    )

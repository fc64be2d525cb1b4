"""`tats compare`."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tats_core.cli.options import DEFAULT_HOME, Home, complete_run, write_file
from tats_core.errors import SpecError

if TYPE_CHECKING:
    from tats_core.store.compare import Difference, Measured, Result
    from tats_core.store.run import RunRecord

SCHEMA = 1

_MOST = 5  # what a terminal of 120 columns holds, and a reader
_CURVE = "loss"


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN RUN...", help="Two to five runs; the first is the base.", autocompletion=complete_run
        ),
    ],
    metric: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="This number of the tables (top1), or the curve to plot (loss)."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw a curve of the runs over their steps.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Say what differs between runs: configuration, code, data, and what came out.

    Differences are to the first run, in points, with a 95% interval where clips were counted.
    """
    from tats_core.store import compare, history

    records = [history.find(run, home.expanduser().absolute()) for run in runs]
    _check(records)
    drawn = None if plot is None else _draw(records, metric or _CURVE, plot)
    # With --plot, --metric names a curve, which need not be a number of the tables.
    found = compare.results(records, None if plot else metric)
    parts = {
        "configuration": compare.configuration(records),
        "code": compare.code(records),
        "data": compare.data(records),
    }
    if as_json:
        typer.echo(json.dumps(_as_json(records, parts, found, drawn), indent=2))
        return
    _print(records, parts, found)
    if drawn:
        typer.echo(f"\n{drawn}: {metric or _CURVE} over the steps of each stage")


def _check(records: Sequence[RunRecord]) -> None:
    ids = [record.id for record in records]
    if len(ids) < 2:
        raise SpecError(f"only one run is named ({ids[0]}); name the one to compare it with, see tats runs")
    if len(ids) > _MOST:
        raise SpecError(f"{len(ids)} runs are named; {_MOST} at a time can be compared")
    for one in ids:
        if ids.count(one) > 1:
            raise SpecError(f"the run {one} is named twice; name another one to compare it with")


def _draw(records: Sequence[RunRecord], metric: str, path: Path) -> str:
    from tats_core.report import charts
    from tats_core.report.charts import Curve
    from tats_core.store import compare

    path = path.expanduser().absolute()
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise SpecError(f"--plot {path.name}: must end in .png, .svg or .pdf")
    found = compare.curves(records, metric)
    names = [f"{letter}  {record.id}" for letter, record in zip("ABCDE", records, strict=False)]
    drawn = io.BytesIO()
    panels: dict[str, list[Curve]] = {stage: [] for stage in found}
    for stage, curves in found.items():
        for name, curve in zip(names, curves, strict=True):
            steps = sorted(curve or {})
            panels[stage].append(Curve(name, steps, [(curve or {})[step] for step in steps]))
    figure = charts.learning(panels, names, ylabel=metric, stacked=True)
    figure.savefig(drawn, format=path.suffix[1:])
    write_file(path, drawn.getvalue(), option="--plot")
    return str(path)


def _as_json(
    records: Sequence[RunRecord],
    parts: dict[str, list[Difference]],
    found: Sequence[Result],
    drawn: str | None,
) -> dict[str, Any]:
    from dataclasses import asdict

    from tats_core.cli.runs import describe

    return {
        "schema": SCHEMA,
        "runs": [describe(record) for record in records],
        **{name: [asdict(one) for one in differing] for name, differing in parts.items()},
        "results": [asdict(one) for one in found],
        "plot": drawn,
    }


def _print(records: Sequence[RunRecord], parts: dict[str, list[Difference]], found: Sequence[Result]) -> None:
    from tats_core.cli import shown

    letters = list("ABCDE"[: len(records)])
    rows = [
        [letter, shown.plain(one.id), shown.state(one.state), shown.plain(" ".join(one.overrides))]
        for letter, one in zip(letters, records, strict=True)
    ]
    shown.table(("", "run", "state", "set by hand"), rows, fold=("set by hand",))
    for title, differing in parts.items():
        typer.echo("")
        if not differing:
            shown.say(f"[bold]{title.capitalize()}[/] is the same")
            continue
        shown.say(f"[bold]{title.capitalize()} that differs[/]")
        rows = [[shown.plain(one.name), *(_value(title, value) for value in one.values)] for one in differing]
        shown.table((title, *letters), rows, fold=letters)
    typer.echo("")
    if not found:
        typer.echo("None of these runs has a table of results.")
        return
    shown.say("[bold]Results[/] (with a sign the difference to A; below, the 95% intervals of both)")
    shown.table(("number", *letters), [_cells(one) for one in found], fold=letters)


def _value(title: str, value: Any) -> str:
    from tats_core.cli import shown

    if value is None:
        return f"[dim]{shown.DASH}[/]"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return shown.plain(text if title == "configuration" else text[:12])


def _cells(result: Result) -> list[str]:
    from tats_core.cli import shown

    return [shown.plain(result.name), *(_measured(one, result.name) for one in result.runs)]


def _measured(one: Measured | None, name: str) -> str:
    from tats_core.cli import shown

    if one is None:
        return f"[dim]{shown.DASH}[/]"
    digits = 2 if name.startswith("policy/") else 1
    lines = [f"{one.value:.{digits}f}"]
    if one.difference is not None:
        lines[0] += f"  [dim]{one.difference:+.{digits}f}[/]"
    if one.low is not None and one.high is not None:
        lines.append(f"[dim]{one.low:.1f}–{one.high:.1f}[/]")
    if one.difference_low is not None and one.difference_high is not None:
        sure = one.difference_low > 0 or one.difference_high < 0
        ends = f"{one.difference_low:+.1f} to {one.difference_high:+.1f}"
        lines.append(f"[bold]{ends}[/]" if sure else f"[dim]{ends}[/]")
    return "\n".join(lines)

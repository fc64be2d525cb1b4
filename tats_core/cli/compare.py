"""`tats compare`."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tats_core.addresses import masked
from tats_core.cli import printing
from tats_core.cli.options import DEFAULT_HOME, AsJson, Home, complete_run, write_file
from tats_core.errors import SpecError
from tats_core.report.units import DASH

if TYPE_CHECKING:
    from rich.text import Text

    from tats_core.store.compare import Difference, Measured, Result
    from tats_core.store.run import Run

SCHEMA = 1

_LETTERS = "ABCDE"  # five runs fit into a terminal of 120 columns
_CURVE = "loss"


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN",
            help="Two to five runs (as in tats runs); the others are compared with the first.",
            autocompletion=complete_run,
        ),
    ],
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="Only this number of the tables (top1); with --plot, the curve to draw (loss).",
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw a curve of each run over its steps.")
    ] = None,
    as_json: AsJson = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Print how runs differ in configuration, code, data and results.

    Results are compared with the first run: the difference in points, with a 95% interval for accuracies.
    """
    from tats_core.store import compare, history
    from tats_core.store.run import Run

    opened = [Run(history.find(run, home)) for run in runs]
    _check(opened)
    drawn = None if plot is None else _draw(opened, metric or _CURVE, plot)
    # With --plot, --metric names a curve, which the tables may not have.
    results = compare.results(opened, None if plot else metric)
    parts = {
        "configuration": compare.configuration(opened),
        "code": compare.code(opened),
        "data": compare.data(opened),
    }
    if as_json:
        _print_json(opened, parts, results, drawn)
        return
    _print(opened, parts, results)
    if drawn:
        typer.echo(f"\n{drawn}: {metric or _CURVE} over the steps of each stage")


def _check(runs: Sequence[Run]) -> None:
    ids = [run.record.id for run in runs]
    if len(ids) < 2:
        raise SpecError(
            f"only one run is named ({ids[0]}); name a second run to compare it with, see tats runs"
        )
    if len(ids) > len(_LETTERS):
        raise SpecError(f"{len(ids)} runs are named; at most {len(_LETTERS)} can be compared")
    for run_id in ids:
        if ids.count(run_id) > 1:
            raise SpecError(f"the run {run_id} is named twice; name another run to compare it with")


def _draw(runs: Sequence[Run], metric: str, path: Path) -> str:
    from tats_core.report import charts
    from tats_core.report.charts import Curve
    from tats_core.store import compare

    path = path.expanduser().absolute()
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise SpecError(f"--plot {path.name}: must end in .png, .svg or .pdf")
    names = [f"{letter}  {run.record.id}" for letter, run in zip(_LETTERS, runs, strict=False)]
    picture = io.BytesIO()
    panels = {
        stage: [Curve.of(name, points or {}) for name, points in zip(names, curves, strict=True)]
        for stage, curves in compare.curves(runs, metric).items()
    }
    figure = charts.learning(panels, names, ylabel=metric, stacked=True)
    charts.write(figure, picture, path.suffix[1:])
    write_file(path, picture.getvalue(), option="--plot")
    return str(path)


def _print_json(
    runs: Sequence[Run], parts: dict[str, list[Difference]], results: Sequence[Result], drawn: str | None
) -> None:
    from tats_core.cli.runs import overview

    comparison = {
        "schema": SCHEMA,
        "runs": [asdict(overview(run)) for run in runs],
        **{name: [asdict(difference) for difference in part] for name, part in parts.items()},
        "results": [asdict(result) for result in results],
        "plot": drawn,
    }
    typer.echo(json.dumps(comparison, indent=2))


def _print(runs: Sequence[Run], parts: dict[str, list[Difference]], results: Sequence[Result]) -> None:
    letters = list(_LETTERS[: len(runs)])
    rows: list[list[str | Text]] = [
        [letter, run.record.id, printing.state(run.record.state), masked(" ".join(run.record.overrides))]
        for letter, run in zip(letters, runs, strict=True)
    ]
    printing.table(("", "run", "state", "set by hand"), rows, fold=("set by hand",))
    for title, part in parts.items():
        typer.echo("")
        if not part:
            printing.line((title.capitalize(), "bold"), " is the same")
            continue
        printing.line((f"Differences in {title}", "bold"))
        rows = [[entry.name, *(_value(title, value) for value in entry.values)] for entry in part]
        printing.table((title, *letters), rows, fold=letters)
    typer.echo("")
    if not results:
        typer.echo("None of these runs has a table of results.")
        return
    explanation = " (with a sign: the difference to A; below: the 95% intervals of both)"
    printing.line(("Results", "bold"), explanation)
    rows = [[result.name, *(_measured(number, result.name) for number in result.runs)] for result in results]
    printing.table(("number", *letters), rows, fold=letters)


def _value(title: str, value: object) -> Text:
    from rich.text import Text

    if value is None:
        return Text(DASH, "dim")
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = masked(text)
    return Text(text if title == "configuration" else text[:12])


def _measured(number: Measured | None, name: str) -> Text:
    from rich.text import Text

    if number is None:
        return Text(DASH, "dim")
    digits = 2 if name.startswith("policy/") else 1
    cell = Text(f"{number.value:.{digits}f}")
    if number.difference is not None:
        cell.append(f"  {number.difference:+.{digits}f}", "dim")
    if number.low is not None and number.high is not None:
        cell.append(f"\n{number.low:.1f}–{number.high:.1f}", "dim")
    if number.difference_low is not None and number.difference_high is not None:
        significant = number.difference_low > 0 or number.difference_high < 0
        ends = f"\n{number.difference_low:+.1f} to {number.difference_high:+.1f}"
        cell.append(ends, "bold" if significant else "dim")
    return cell

"""`tats report`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tats_core.cli.options import DEFAULT_HOME, Home, complete_pipeline, write_file
from tats_core.errors import RunError, SpecError

if TYPE_CHECKING:
    from tats_core.store.run import Results, RunRecord


class ReportFormat(StrEnum):
    """The formats of a report."""

    md = "md"
    csv = "csv"
    latex = "latex"
    html = "html"
    json = "json"


def report(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="A pipeline (its newest finished run), a sweep, or a run's id (or its beginning) or folder.",
            autocompletion=complete_pipeline,
        ),
    ],
    form: Annotated[
        ReportFormat,
        typer.Option(
            "--format", help="html: a page with curves, pictures and stages; the others: the table."
        ),
    ] = ReportFormat.md,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write to this file instead of standard output.")
    ] = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Write results as Markdown, CSV, LaTeX, HTML or JSON."""
    from tats_core.cli.sweep_tables import sweep_folder
    from tats_core.store import history

    home = home.expanduser().absolute()
    sweep = sweep_folder(run, home)
    record = history.find_finished(str(sweep or run), home)
    if form is ReportFormat.html and out is None and sys.stdout.isatty():
        raise SpecError("a page cannot be shown in a terminal; give a file with --out FILE.html")
    text = _run_text(record, form) if sweep is None else _sweep_text(sweep, form)
    if out is None:
        typer.echo(text, nl=False)
        return
    write_file(out.expanduser().absolute(), text, option="--out")
    typer.echo(f"{out}: the results of {record.id}, as {form.value}")


def _run_text(record: RunRecord, form: ReportFormat) -> str:
    if form is ReportFormat.html:
        from tats_core.store import run_page

        return run_page.build(record)
    from tats_core.report import results as tables
    from tats_core.store.run import Run

    table = Run(record).results
    if table is None:
        raise RunError(f"the run {record.id} has no finished report stage, so there is no table to write")
    writers: dict[ReportFormat, Callable[[Results], str]] = {
        ReportFormat.md: tables.markdown,
        ReportFormat.csv: tables.csv,
        ReportFormat.latex: tables.latex,
        ReportFormat.json: lambda results: json.dumps({"run": record.id, **results}, indent=2) + "\n",
    }
    return writers[form](table)


def _sweep_text(folder: Path, form: ReportFormat) -> str:
    from tats_core.sweep import page

    if form is ReportFormat.html:
        return page.build(folder)
    summary = page.read(folder)
    writers: dict[ReportFormat, Callable[[], str]] = {
        ReportFormat.md: summary.markdown,
        ReportFormat.csv: summary.csv,
        ReportFormat.latex: summary.latex,
        ReportFormat.json: lambda: json.dumps({"run": folder.name, **summary.values()}, indent=2) + "\n",
    }
    return writers[form]()

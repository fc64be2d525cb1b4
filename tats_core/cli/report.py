"""`tats report`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tats_core.cli.options import DEFAULT_HOME, Home, complete_pipeline, write_file
from tats_core.cli.results import sweep_folder, table_of
from tats_core.errors import SpecError

if TYPE_CHECKING:
    from tats_core.store.run import RunRecord


Format = Literal["md", "csv", "latex", "html", "json"]


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
        Format,
        typer.Option(
            "--format", help="html: a page with curves, pictures and stages; the others: the table."
        ),
    ] = "md",
    out: Annotated[
        Path | None, typer.Option("--out", help="Write to this file instead of standard output.")
    ] = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Write results as Markdown, CSV, LaTeX, HTML or JSON."""
    from tats_core.store import history

    sweep = sweep_folder(run, home)
    record = history.find_finished(str(sweep or run), home)
    if form == "html" and out is None and sys.stdout.isatty():
        raise SpecError("a page cannot be shown in a terminal; give a file with --out FILE.html")
    text = _run_text(record, form) if sweep is None else _sweep_text(sweep, form)
    if out is None:
        typer.echo(text, nl=False)
        return
    write_file(out.expanduser().absolute(), text, option="--out")
    typer.echo(f"{out}: the results of {record.id}, as {form}")


def _run_text(record: RunRecord, form: Format) -> str:
    if form == "html":
        from tats_core.store import run_page

        return run_page.build(record)
    from tats_core.report import results as tables

    table = table_of(record)
    if form == "json":
        return json.dumps({"run": record.id, **table}, indent=2) + "\n"
    writers = {"md": tables.markdown, "csv": tables.csv, "latex": tables.latex}
    return writers[form](table)


def _sweep_text(folder: Path, form: Format) -> str:
    from tats_core.sweep import page

    if form == "html":
        return page.build(folder)
    summary = page.read(folder)
    if form == "json":
        return json.dumps({"run": folder.name, **summary.values()}, indent=2) + "\n"
    return {"md": summary.markdown, "csv": summary.csv, "latex": summary.latex}[form]()

"""`tats list` and `tats results`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tats_core.cli.options import DEFAULT_HOME, Home, complete_pipeline
from tats_core.cli.sweep_tables import print_sweep, sweep_folder
from tats_core.errors import RunError, SpecError, StoreError

if TYPE_CHECKING:
    from tats_core.store.run import RunRecord


def list_pipelines() -> None:
    """List the pipelines and sweeps that are known here."""
    from tats_core import specs

    known, sweeps = specs.names("pipelines"), specs.names("sweeps")
    width = max(map(len, [*known, *sweeps]), default=0)
    wrong: list[str] = []  # one file that cannot be read hides no other
    for title, menu in (("", known), ("\nSweeps (tats sweep NAME)", sweeps)):
        if title and menu:
            typer.echo(title)
        for name, path in menu.items():
            try:
                typer.echo(f"{name:<{width}}  {specs.read(path).get('title', '')}".rstrip())
            except SpecError as error:
                typer.echo(name)
                wrong.append(str(error))
    if not known:
        places = " and ".join(label for label, _ in specs.folders("pipelines"))
        typer.echo(f"no pipeline here (looked in {places})")
    if wrong:
        raise SpecError("\n".join(wrong))


def results(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="A pipeline (its newest finished run), a sweep, or a run's id or its beginning.",
            autocompletion=complete_pipeline,
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Print the table of a run, or of the newest run of a sweep."""
    from tats_core.store import history

    home = home.expanduser().absolute()
    sweep = sweep_folder(run, home)
    if sweep is not None:
        print_sweep(sweep, as_json)
        return
    record = history.find_finished(run, home)
    found = read_results(record)
    if found is None:
        raise RunError(f"the run {record.id} has no finished report stage, so there is no table to print")
    if as_json:
        typer.echo(json.dumps({"run": record.id, **found}, indent=2))
    else:
        print_results(found)


def read_results(record: RunRecord) -> dict[str, Any] | None:
    """Return the `results.json` of the run's report stage, or None if it has none.

    Raises:
        StoreError: the report stage is there but its file cannot be read.
    """
    folders = record.outputs("report")
    if not folders:
        return None
    path: Path = folders[-1] / "results.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read ({error}); run the pipeline again") from error
    return found


def print_results(found: dict[str, Any]) -> None:
    """Print the table and what each number means."""
    from tats_core.report import results as tables

    typer.echo(tables.text(found))
    typer.echo("\nWhat each number means")
    typer.echo(tables.legend())

"""`tats list` and `tats results`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from tats_core.cli.options import DEFAULT_HOME, AsJson, Home, complete_pipeline
from tats_core.cli.sweep_tables import print_sweep, sweep_folder
from tats_core.errors import RunError, SpecError

if TYPE_CHECKING:
    from tats_core.store.run import Results


def list_pipelines() -> None:
    """List the pipelines and sweeps that can be run by name."""
    from tats_core import specs

    pipelines, sweeps = specs.names("pipelines"), specs.names("sweeps")
    width = max(map(len, [*pipelines, *sweeps]), default=0)
    errors: list[str] = []  # an unreadable file must not hide the others
    for title, menu in (("", pipelines), ("\nSweeps (tats sweep NAME)", sweeps)):
        if title and menu:
            typer.echo(title)
        for name, path in menu.items():
            try:
                typer.echo(f"{name:<{width}}  {specs.read(path).get('title', '')}".rstrip())
            except SpecError as error:
                typer.echo(name)
                errors.append(str(error))
    if not pipelines:
        folders = " and ".join(label for label, _ in specs.folders("pipelines"))
        typer.echo(f"no pipeline found in {folders}")
    if errors:
        raise SpecError("\n".join(errors))


def results(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="A pipeline (its newest finished run), a sweep, or a run's id or the beginning of it.",
            autocompletion=complete_pipeline,
        ),
    ],
    as_json: AsJson = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Print the table of results of a run or a sweep."""
    from tats_core.store import history
    from tats_core.store.run import Run

    home = home.expanduser().absolute()
    sweep = sweep_folder(run, home)
    if sweep is not None:
        print_sweep(sweep, as_json)
        return
    record = history.find_finished(run, home)
    table = Run(record).results
    if table is None:
        raise RunError(f"the run {record.id} has no finished report stage, so there is no table to print")
    if as_json:
        typer.echo(json.dumps({"run": record.id, **table}, indent=2))
    else:
        print_results(table)


def print_results(table: Results) -> None:
    """Print the table and the meaning of each number."""
    from tats_core.report import results as tables

    typer.echo(tables.text(table))
    typer.echo("\nWhat each number means")
    typer.echo(tables.legend())

"""`tats list` and `tats results`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tats_core.cli.options import DEFAULT_HOME, AsJson, Home, command_line, complete_pipeline
from tats_core.errors import RunError, SpecError, StoreError

if TYPE_CHECKING:
    from tats_core.store.run import Results, RunRecord


def list_pipelines() -> None:
    """List the pipelines and sweeps that can be run by name, and the plugins that are installed."""
    from tats_core import specs
    from tats_core.registry import plugins

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
    packages: dict[str, list[str]] = {}
    for package, point in plugins():
        member = f"{point.group.removeprefix('tats.')}: {point.name}"
        packages.setdefault(f"{package.name} {package.version}", []).append(member)
    if packages:
        typer.echo("\nPlugins")
    for name, members in packages.items():
        typer.echo(f"{name}  {', '.join(sorted(members))}")
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

    sweep = sweep_folder(run, home)
    if sweep is not None:
        _print_sweep(sweep, as_json)
        return
    record = history.find_finished(run, home)
    table = table_of(record)
    if as_json:
        typer.echo(json.dumps({"run": record.id, **table}, indent=2))
    else:
        print_results(table)


def table_of(record: RunRecord) -> Results:
    """Return the table of a run; raises a RunError where it has none."""
    from tats_core.store.run import Run

    table = Run(record).results
    if table is None:
        raise RunError(f"the run {record.id} has no finished report stage, so it has no table")
    return table


def print_results(table: Results) -> None:
    """Print the table and the meaning of each number."""
    from tats_core.report import results as tables

    typer.echo(tables.text(table))
    typer.echo("\nWhat each number means")
    typer.echo(tables.legend(table))


def sweep_folder(run: str, home: Path) -> Path | None:
    """Return the folder of the sweep run that `run` names: a sweep (its newest run), or a run's id or folder.

    Raises:
        StoreError: there is a sweep of this name, but it has not run.
    """
    from tats_core import specs
    from tats_core.sweep import trial

    for folder in (Path(run).expanduser().absolute(), home / "runs" / run):
        if (folder / "sweep.json").is_file():
            return folder
    name = Path(run).stem if run.endswith((".yaml", ".yml")) else run
    newest = trial.newest(home, name)
    if newest is None and name in specs.names("sweeps"):
        raise StoreError(f"no sweep '{name}' in {home}; run it with: {command_line(['sweep', run], home)}")
    return newest


def _print_sweep(folder: Path, as_json: bool) -> None:
    from tats_core.sweep import page

    summary = page.read(folder)
    if not summary.trials:
        raise RunError(f"no trial of {folder.name} has ended yet, so there is no table to print")
    if as_json:
        typer.echo(json.dumps(summary.values(), indent=2))
    else:
        typer.echo(f"{summary.text()}\n")
        print_files(folder)


def print_files(folder: Path) -> None:
    """Print where the page and the best pipeline of a sweep are."""
    from tats_core.sweep import page, summary

    for title, name in (("charts and all trials", page.FILE), ("the best as a pipeline", summary.BEST)):
        if (folder / name).exists():
            typer.echo(f"{title:<23}  {folder / name}")

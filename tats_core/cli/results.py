"""`tats list` and `tats results`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tats_core.cli.options import DEFAULT_HOME, Home, PipelineName, command_line
from tats_core.cli.sweep import print_sweep, sweep_folder
from tats_core.errors import RunError, StoreError

if TYPE_CHECKING:
    from tats_core.pipeline.records import RunRecord


def list_pipelines() -> None:
    """List the pipelines and sweeps that are known here."""
    from tats_core import specs

    known, sweeps = specs.names("pipelines"), specs.names("sweeps")
    width = max(map(len, [*known, *sweeps]), default=0)
    for name, path in known.items():
        typer.echo(f"{name:<{width}}  {specs.read(path).get('title', '')}".rstrip())
    if sweeps:
        typer.echo("\nSweeps (tats sweep NAME)")
    for name, path in sweeps.items():
        typer.echo(f"{name:<{width}}  {specs.read(path).get('title', '')}".rstrip())
    if not known:
        places = " and ".join(label for label, _ in specs.folders("pipelines"))
        typer.echo(f"no pipeline here (looked in {places})")


def results(
    pipeline: PipelineName,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Print the table of the newest finished run of a pipeline, or of the newest run of a sweep."""
    from tats_core import specs
    from tats_core.pipeline import runner

    home = home.expanduser().absolute()
    sweep = sweep_folder(pipeline, home)
    if sweep is not None:
        print_sweep(sweep, as_json)
        return
    name = specs.find("pipelines", pipeline).stem
    record = runner.newest_finished(home, name)
    if record is None:
        again = command_line(["run", "pipeline", pipeline], home)
        raise RunError(f"no finished run of '{name}' in {home}; make one with: {again}")
    found = read_results(record)
    if found is None:
        raise RunError(f"the run {record.id} of '{name}' has no report stage, so there is no table to print")
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
    from tats_core.report import tables

    typer.echo(tables.text(found))
    typer.echo("\nWhat each number means")
    typer.echo(tables.legend())

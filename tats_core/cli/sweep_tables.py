"""The table of a sweep, for `tats sweep` and `tats results`."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from tats_core.cli.options import command_line
from tats_core.errors import RunError, StoreError


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


def print_sweep(folder: Path, as_json: bool) -> None:
    """Print the table of a sweep's run, and where its page is.

    Raises:
        RunError: none of its trials has ended.
    """
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

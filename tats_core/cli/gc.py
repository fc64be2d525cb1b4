"""`tats gc`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tats_core.cli import printing
from tats_core.cli.options import DEFAULT_HOME, Home, many
from tats_core.errors import StoreError
from tats_core.report.units import duration, size

if TYPE_CHECKING:
    from tats_core.store.gc import Findings


def gc(
    apply: Annotated[bool, typer.Option("--apply", help="Delete; without it nothing is deleted.")] = False,
    keep: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Keep only the newest N runs of each pipeline (default: all)."),
    ] = None,
    older_than: Annotated[
        float | None,
        typer.Option(min=0, metavar="DAYS", help="Delete only what is older than this many days."),
    ] = None,
    ignore_aliases: Annotated[
        bool,
        typer.Option("--ignore-aliases", help="Do not spare models that have an alias in MLflow's registry."),
    ] = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """List or delete folders that no run needs.

    Without --keep and --older-than all runs stay, and only what no run uses is deleted. The newest finished
    run of each pipeline always stays.
    """
    from tats_core.store.gc import Policy, collect, find
    from tats_core.store.journal import pending

    if not home.is_dir():
        raise StoreError(f"{home}: there is no project folder, so there is nothing to delete")
    policy = Policy(keep, older_than)
    aliased = set() if ignore_aliases else _aliased(home)
    findings = collect(home, policy, aliased) if apply else find(home, policy, aliased)
    _print(findings, home, apply)
    for sentence in findings.corrupt:
        typer.echo(
            f"Damaged: {sentence}; the run stays, with what may be its own, until you remove its folder"
        )
    unsent = len(pending(home))
    if unsent:
        typer.echo(
            f"Not yet sent to MLflow: {many(unsent, 'run')}; their folders stay until `tats sync` sends them"
        )


def _aliased(home: Path) -> set[Path]:
    from tats_core import tracking

    try:
        return tracking.aliased(home)
    except StoreError as error:
        raise StoreError(f"{error}; nothing is deleted, try again later or give --ignore-aliases") from error


def _print(findings: Findings, home: Path, applied: bool) -> None:
    stays = f"{many(findings.kept_runs, 'run')} and the {size(findings.kept_bytes)} they use stay"
    if not findings.waste:
        typer.echo(f"Nothing to delete; {stays}.")
        return
    now = time.time()
    rows = [
        [size(waste.size), duration(now - waste.changed), str(waste.path.relative_to(home)), waste.why]
        for waste in findings.waste
    ]
    printing.table(("size", "age", "folder", "why"), rows, right=("size", "age"), fold=("folder", "why"))
    what = "deleted" if applied else "can be deleted (nothing was deleted; --apply does it)"
    typer.echo(f"{size(findings.size)} in {many(len(findings.waste), 'folder')} {what}; {stays}.")

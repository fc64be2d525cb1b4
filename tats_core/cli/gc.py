"""`tats gc`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tats_core.cli.options import DEFAULT_HOME, Home, many
from tats_core.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tats_core.store.gc import Findings

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def gc(
    apply: Annotated[bool, typer.Option("--apply", help="Delete; without it nothing is.")] = False,
    keep: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Keep the newest N runs of each pipeline; without it all."),
    ] = None,
    older_than: Annotated[
        float | None, typer.Option(min=0, metavar="DAYS", help="Keep whatever is younger.")
    ] = None,
    ignore_aliases: Annotated[
        bool, typer.Option("--ignore-aliases", help="Do not ask MLflow which models have an alias.")
    ] = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Show what takes space and can go: what no kept run uses. The newest whole run is always kept."""
    from tats_core.store.gc import Policy, collect, find
    from tats_core.store.journal import pending

    home = home.expanduser().absolute()
    if not home.is_dir():
        raise StoreError(f"{home}: there is no project folder, so there is nothing to collect")
    policy = Policy(keep, older_than)
    aliased = {} if ignore_aliases else _aliased(home)
    found = collect(home, policy, aliased) if apply else find(home, policy, aliased)
    _print(found, home, apply)
    unsent = len(pending(home))
    if unsent:
        typer.echo(f"MLflow was not told of {many(unsent, 'run')} yet; they stay until then (tats sync)")


def _aliased(home: Path) -> Mapping[Path, str]:
    from tats_core import tracking

    try:
        return tracking.aliased(home)
    except StoreError as error:
        raise StoreError(f"{error}; nothing is deleted, try again later or give --ignore-aliases") from error


def _print(found: Findings, home: Path, applied: bool) -> None:
    stays = f"{many(found.kept_runs, 'run')} and {size(found.kept_bytes)} of what they use stay"
    if not found.waste:
        typer.echo(f"Nothing can go; {stays}.")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("size", "age"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("folder", overflow="fold")
    table.add_column("why")
    now = time.time()
    for one in found.waste:
        place = str(one.path.relative_to(home))
        table.add_row(size(one.size), _age(now - one.changed), place, one.why)
    Console(highlight=False).print(table)
    done = "gone" if applied else "can go (nothing was deleted; --apply does it)"
    typer.echo(f"{size(found.size)} in {many(len(found.waste), 'folder')} {done}; {stays}.")


def size(count: int) -> str:
    """Return a number of bytes for a reader: `12 B`, `3.4 GiB`."""
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f} {_UNITS[unit]}" if unit else f"{count} B"


def _age(seconds: float) -> str:
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return "now"

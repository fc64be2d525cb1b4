"""How the commands that look at runs print: tables, times, states. Plain where nobody reads a terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tats_core.cli.options import command_line
from tats_core.cli.progress import duration

if TYPE_CHECKING:
    from tats_core.store.run import RunRecord, StageRecord

DASH: Final = "–"

_STYLES: Final = {
    "running": "cyan",
    "finished": "green",
    "cached": "dim",
    "failed": "red",
    "died": "bold red",
    "stopped": "yellow",
    "waiting": "dim",
    "skipped": "dim",
}


def console() -> Console:
    """Return a console on standard output; a pipe or a file gets plain text that is not cut to a width."""
    there = Console(highlight=False)
    return there if there.is_terminal else Console(highlight=False, width=10_000)


def state(word: str) -> str:
    """Return a run's or a stage's state as markup."""
    style = _STYLES.get(word)
    said = "reused" if word == "cached" else word
    return f"[{style}]{said}[/]" if style else said


def stage_state(record: RunRecord, stage: StageRecord) -> str:
    """Return a stage's status; a stage that was at work when its run's process ended has died with it."""
    return "died" if stage.status == "running" and record.state == "died" else stage.status


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[str] = (),
    fold: Sequence[str] = (),
) -> None:
    """Print rows of markup under their columns.

    Args:
        right: columns of numbers.
        fold: columns that take several lines where the terminal is narrow.
    """
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        made.add_column(
            column,
            justify="right" if column in right else "left",
            no_wrap=column not in fold,
            overflow="fold" if column in fold else "ellipsis",
        )
    for row in rows:
        made.add_row(*row)
    out = console()
    with out.capture() as captured:
        out.print(made)
    for line in captured.get().splitlines():
        typer.echo(line.rstrip())


def say(markup: str) -> None:
    """Print one line of markup, however long."""
    console().print(markup, soft_wrap=True)


def plain(text: object) -> str:
    """Return `text` with nothing in it taken for markup."""
    return escape(str(text))


def age(seconds: float) -> str:
    """Return how long ago, for a reader: `8s`, `4m12s`, `3h05m`, `12d`."""
    return duration(max(0.0, seconds)) if seconds < 2 * 86400 else f"{seconds / 86400:.0f}d"


def clock(seconds: float | None) -> str:
    """Return a time of day with its date: `2026-11-25 10:52:55`."""
    return DASH if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def again(record: RunRecord) -> str:
    """Return the line that runs this again, or goes on with it: what is done is reused."""
    from tats_core import specs

    name = record.pipeline if record.pipeline in specs.names("pipelines") else record.source
    words = ["run", "pipeline", name]
    words += [word for text in record.overrides for word in ("--set", text)]
    words += [word for stage in record.only for word in ("--only", stage)]
    return command_line(words, Path(record.home))

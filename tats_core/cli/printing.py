"""How commands print: tables, progress, states. Plain text where standard output is no terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from tats_core.cli.options import command_line, repeated
from tats_core.report.metrics import METRICS
from tats_core.report.units import duration

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from tats_core.store.run import RunRecord
    from tats_core.training.events import Event

_STYLES: Final = {
    "running": "cyan",
    "finished": "green",
    "cached": "dim",
    "failed": "red",
    "lost": "bold red",
    "stopped": "yellow",
    "waiting": "dim",
    "skipped": "dim",
}


def console() -> Console:
    """Return a console on standard output; a pipe or a file gets plain text that is not cut to a width."""
    from rich.console import Console  # here: `tats --help` does without it

    terminal = Console(highlight=False)
    return terminal if terminal.is_terminal else Console(highlight=False, width=10_000)


def state(word: str) -> Text:
    """Return the state of a run or a stage in its colour."""
    from rich.text import Text

    return Text("reused" if word == "cached" else word, _STYLES.get(word, ""))


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    right: Sequence[str] = (),
    fold: Sequence[str] = (),
) -> None:
    """Print rows under their columns.

    Args:
        right: columns of numbers.
        fold: columns that take several lines where the terminal is narrow.
    """
    from rich.table import Table
    from rich.text import Text

    rendered = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        rendered.add_column(
            column,
            justify="right" if column in right else "left",
            no_wrap=column not in fold,
            overflow="fold" if column in fold else "ellipsis",
        )
    for row in rows:
        rendered.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    out = console()
    with out.capture() as captured:
        out.print(rendered)
    for line in captured.get().splitlines():
        typer.echo(line.rstrip())


def line(*parts: str | Text | tuple[str, str]) -> None:
    """Print one line, however long; a part is a text, or a text and its style."""
    from rich.text import Text

    console().print(Text.assemble(*parts), soft_wrap=True)


def params(values: Mapping[str, object]) -> str:
    """Return what a stage's configuration came down to, as one line.

    `visible_tokens` and `tokens` become "51 visible of 512 tokens"; every other value follows its name.
    """
    rest = dict(values)
    parts = []
    if "visible_tokens" in rest and "tokens" in rest:
        parts.append(f"{rest.pop('visible_tokens')} visible of {rest.pop('tokens')} tokens")
    for key, value in rest.items():
        form = ".3g" if isinstance(value, float) else "," if isinstance(value, int) else ""
        parts.append(f"{key.replace('_', ' ')} {value:{form}}")
    return ", ".join(parts)


def numbers(values: Mapping[str, float]) -> str:
    """Return the numbers of a progress event, three digits each."""
    titles = {key: METRICS[key].title if key in METRICS else key.replace("_", " ") for key in values}
    return "  ".join(f"{titles[key]} {value:.3g}" for key, value in values.items())


def epoch(event: Event) -> list[str]:
    """Return the epoch of a progress event, if its stage has several."""
    return [f"epoch {event['epoch']}/{event['epochs']}"] if event["epochs"] > 1 else []


def progress(event: Event, left: float | None = None) -> str:
    """Return a progress event as one line: epoch, step, numbers and, where it is known, the time left."""
    parts = [*epoch(event), f"step {event['step']}/{event['steps']}"]
    if event["shown"]:
        parts.append(numbers(event["shown"]))
    if left is not None:
        parts.append(f"about {duration(left)} left")
    return ", ".join(parts)


def resume_command(record: RunRecord) -> str:
    """Return the command that resumes a run or repeats it: finished stages are reused."""
    from tats_core import specs

    name = record.pipeline.removesuffix(specs.REHEARSAL)
    name = name if name in specs.names("pipelines") else record.source
    words = [*repeated("--set", record.overrides), *repeated("--only", record.only)]
    home = Path(record.home)
    if record.pipeline.endswith(specs.REHEARSAL):
        words, home = [*words, "--rehearse"], home.parent
    return command_line(["run", "pipeline", name, *words], home)

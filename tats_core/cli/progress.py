"""How a run shows itself: a live display in a terminal, plain lines anywhere else, JSON for scripts.

Each is a `Display` (see `tats_core.pipeline.observers`), so the runner knows none.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from tats_core.pipeline.observers import Display

if TYPE_CHECKING:
    from pathlib import Path

    from tats_core.pipeline.plan import Plan
    from tats_core.store.run import RunRecord, StageRecord

JSON_SCHEMA = 1  # raised when a key of docs/json.md goes or changes its meaning; keys may be added

# Names of the numbers in a progress event as a reader wants them.
_SHORT = {"motion_lift": "motion lift", "entropy_share": "entropy", "learning_rate": "lr"}


def _epoch(event: Mapping[str, Any]) -> list[str]:
    # What passes once over its work, such as the data stage, has no epochs worth telling.
    return [f"epoch {event['epoch']}/{event['epochs']}"] if event["epochs"] > 1 else []


class Remaining:
    """Estimates how long a stage still takes, from the steps seen since it (re)started."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def seconds(self, event: Mapping[str, Any]) -> float | None:
        """Return the estimate in seconds; None until two different steps were seen.

        Steps done before a resume are not counted as work of this run, so the first event only sets
        the start.
        """
        now, step = float(event["time"]), int(event["step"])
        if self._first is None or now < self._first[0]:  # the machine's clock may be set back
            self._first = (now, step)
            return None
        start, first_step = self._first
        if step <= first_step:
            return None
        return (now - start) / (step - first_step) * max(0, int(event["steps"]) - step)


def duration(seconds: float) -> str:
    """Return `seconds` for a reader: `8s`, `4m12s`, `3h05m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def header(plan: Plan, record: RunRecord) -> list[str]:
    """Return the lines that open a run."""
    title = f": {plan.title}" if plan.title else ""
    counts = f"{len(plan.items)} stages: {plan.count('run')} to run, {plan.count('reuse')} reused"
    skipped = plan.count("skip")
    return [
        f"{plan.pipeline}{title}",
        f"run {record.id} in {record.home}, {counts}" + (f", {skipped} left out" if skipped else ""),
    ]


def describe(values: Mapping[str, Any]) -> str:
    """Return what a stage's configuration came down to, as one line.

    `visible_tokens` and `tokens` become "51 visible of 512 tokens"; every other value is shown by its name.
    """
    rest = dict(values)
    parts = []
    if "visible_tokens" in rest and "tokens" in rest:
        parts.append(f"{rest.pop('visible_tokens')} visible of {rest.pop('tokens')} tokens")
    for key, value in rest.items():
        shown = (
            f"{value:.3g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
        )
        parts.append(f"{key.replace('_', ' ')} {shown}")
    return ", ".join(parts)


def numbers(shown: Mapping[str, float]) -> str:
    """Return the few numbers of a progress event, three digits each."""
    return "  ".join(f"{_SHORT.get(key, key.replace('_', ' '))} {value:.3g}" for key, value in shown.items())


class PlainUI(Display):
    """One line a happening, and at most one line a stage every `every` seconds of progress."""

    def __init__(
        self,
        write: Callable[[str], None] | None = None,
        *,
        every: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write = write or typer.echo
        self._every = every
        self._clock = clock
        self._said: dict[str, float] = {}
        self._remaining: dict[str, Remaining] = {}

    def started(self, plan: Plan, record: RunRecord) -> None:
        """Print the header."""
        for line in header(plan, record):
            self._write(line)

    def stage_started(self, stage: StageRecord, folders: tuple[Path, ...]) -> None:
        """Say that the stage begins."""
        self._remaining[stage.name] = Remaining()
        self._said.pop(stage.name, None)
        self._write(f"{stage.name}: started")

    def params(self, name: str, values: Mapping[str, Any]) -> None:
        """Print what the configuration came down to."""
        self._write(f"{name}: {describe(values)}")

    def progress(self, name: str, event: Mapping[str, Any]) -> None:
        """Print step, epoch, numbers and what is left, if it is time for a line."""
        left = self._remaining.setdefault(name, Remaining()).seconds(event)
        now = self._clock()
        if now - self._said.get(name, -self._every) < self._every:
            return
        self._said[name] = now
        parts = [*_epoch(event), f"step {event['step']}/{event['steps']}"]
        if event["shown"]:
            parts.append(numbers(event["shown"]))
        if left is not None:
            parts.append(f"about {duration(left)} left")
        self._write(f"{name}: {', '.join(parts)}")

    def note(self, name: str, text: str) -> None:
        """Print the sentence."""
        self._write(f"{name}: {text}" if name else text)

    def stage_finished(self, name: str, seconds: float, cached: bool) -> None:
        """Say that the stage's output is there."""
        self._write(f"{name}: {'reused' if cached else f'finished in {duration(seconds)}'}")

    def stage_failed(self, name: str, error: str) -> None:
        """Say that the stage failed, and why."""
        self._write(f"{name}: failed: {error}")

    def finished(self, record: RunRecord) -> None:
        """Say how the run ended."""
        self._write(ending(record))

    def close(self) -> None:
        """Nothing is open."""


class LiveUI(Display):
    """A bar for every running stage at the bottom of the terminal, finished stages above."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=18),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[status]}", markup=False),
            console=self._console,
            transient=True,
            refresh_per_second=4,
        )
        self._tasks: dict[str, TaskID] = {}
        self._remaining: dict[str, Remaining] = {}

    def started(self, plan: Plan, record: RunRecord) -> None:
        """Print the header and open the display."""
        first, *rest = header(plan, record)
        self._print(f"[bold]{escape(first)}[/bold]")
        for line in rest:
            self._print(f"[dim]{escape(line)}[/dim]")
        self._progress.start()

    def stage_started(self, stage: StageRecord, folders: tuple[Path, ...]) -> None:
        """Add a bar, or set the stage's bar back."""
        self._close_bar(stage.name)
        self._remaining[stage.name] = Remaining()
        self._tasks[stage.name] = self._progress.add_task(escape(stage.name), total=None, status="starting")

    def params(self, name: str, values: Mapping[str, Any]) -> None:
        """Print what the configuration came down to."""
        self._print(f"[dim]  {escape(name)}: {escape(describe(values))}[/dim]")

    def progress(self, name: str, event: Mapping[str, Any]) -> None:
        """Move the stage's bar."""
        left = self._remaining.setdefault(name, Remaining()).seconds(event)
        parts = _epoch(event)
        if left is not None:
            parts.append(f"{duration(left)} left")
        if event["shown"]:
            parts.append(numbers(event["shown"]))
        if name in self._tasks:
            self._progress.update(
                self._tasks[name], completed=event["step"], total=event["steps"], status="  ".join(parts)
            )

    def note(self, name: str, text: str) -> None:
        """Print the sentence above the bars."""
        self._print(escape(f"  {name}: {text}" if name else f"  {text}"))

    def stage_finished(self, name: str, seconds: float, cached: bool) -> None:
        """Replace the bar by a line."""
        self._close_bar(name)
        mark, what = ("[dim]=", "reused[/dim]") if cached else ("[green]✓[/green]", duration(seconds))
        self._print(f"{mark} {escape(name)}  {what}")

    def stage_failed(self, name: str, error: str) -> None:
        """Replace the bar by the reason."""
        self._close_bar(name)
        self._print(f"[red]✗ {escape(name)}[/red]  {escape(error)}")

    def finished(self, record: RunRecord) -> None:
        """Close the display and say how the run ended."""
        self.close()
        self._print(escape(ending(record)))

    def close(self) -> None:
        """Give the terminal back; safe to call twice."""
        self._progress.stop()

    def _print(self, markup: str) -> None:
        self._console.print(markup, soft_wrap=True)

    def _close_bar(self, name: str) -> None:
        task = self._tasks.pop(name, None)
        if task is not None:
            self._progress.remove_task(task)


class JsonUI(Display):
    """One JSON object a line, as docs/json.md describes them.

    Args:
        resume: the command that goes on with the run, should it not finish.
        write: takes a line; by default it goes to standard output at once.
    """

    def __init__(self, resume: str, write: Callable[[str], None] | None = None) -> None:
        self._resume = resume
        self._write = write or (lambda line: print(line, flush=True))  # noqa: T201 (typer.echo may colour)
        self._record: RunRecord | None = None

    def plan(self, plan: Plan) -> None:
        """Print the plan alone, or as the first line of a run."""
        self._print("plan", {key: value for key, value in plan.to_json().items() if key != "schema"})

    def started(self, plan: Plan, record: RunRecord) -> None:
        """Print the plan, then the run."""
        self._record = record
        self.plan(plan)
        names = {"run": record.id, "pipeline": record.pipeline, "home": record.home}
        self._print("run_started", names | {"folder": str(record.folder), "pid": record.pid})

    def stage_started(self, stage: StageRecord, folders: tuple[Path, ...]) -> None:
        """Print which attempt begins."""
        self._print("stage_started", {"stage": stage.name, "attempt": stage.attempts, "key": stage.key})

    def params(self, name: str, values: Mapping[str, Any]) -> None:
        """Print what the configuration came down to."""
        self._print("params", {"stage": name, "values": dict(values)})

    def progress(self, name: str, event: Mapping[str, Any]) -> None:
        """Print every step that the stage tells of."""
        keys = ("step", "steps", "epoch", "epochs", "shown")
        self._print("progress", {"stage": name, **{key: event[key] for key in keys}})

    def note(self, name: str, text: str) -> None:
        """Print the sentence; the stage is null where it is about the whole run."""
        self._print("note", {"stage": name or None, "text": text})

    def stage_finished(self, name: str, seconds: float, cached: bool) -> None:
        """Print where the output is."""
        stage = self._stage(name)
        about = {"stage": name, "cached": cached, "seconds": seconds}
        self._print("stage_finished", about | {"folder": stage.folder, "key": stage.key})

    def stage_failed(self, name: str, error: str) -> None:
        """Print the reason."""
        self._print("stage_failed", {"stage": name, "error": error})

    def finished(self, record: RunRecord) -> None:
        """Print how the run ended, its results, or the command that goes on with it."""
        from tats_core.cli.results import read_results

        done = record.status == "finished"
        ended = {
            "run": record.id,
            "status": record.status,
            "error": record.error,
            "seconds": (record.finished or record.started) - record.started,
            "stages": {name: stage.status for name, stage in record.stages.items()},
            "results": read_results(record) if done else None,
            "resume": None if done else self._resume,
        }
        self._print("run_finished", ended)

    def error(self, message: str) -> None:
        """Print why nothing could start."""
        self._print("error", {"message": message})

    def close(self) -> None:
        """Nothing is open."""

    def _stage(self, name: str) -> StageRecord:
        assert self._record is not None
        return self._record.stages[name]

    def _print(self, event: str, values: Mapping[str, Any]) -> None:
        line = {"schema": JSON_SCHEMA, "event": event, "time": time.time(), **values}
        self._write(json.dumps(line))


def ending(record: RunRecord) -> str:
    """Return the line that closes a run."""
    took = duration((record.finished or record.started) - record.started)
    done = sum(stage.done for stage in record.stages.values())
    return f"{record.pipeline} {record.status} after {took}: {done} of {len(record.stages)} stages are done"


def for_terminal() -> PlainUI | LiveUI:
    """Return the display that fits where standard output goes."""
    return LiveUI() if sys.stdout.isatty() else PlainUI()

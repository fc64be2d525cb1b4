"""The displays of a run: bars in a terminal, plain lines anywhere else, JSON for scripts.

Each is a `Display` (see `tats_core.pipeline.observers`), so the runner knows none.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from tats_core.cli import printing
from tats_core.pipeline.observers import Display
from tats_core.report.units import duration

if TYPE_CHECKING:
    from pathlib import Path

    from tats_core.pipeline.plan import Plan
    from tats_core.store.run import RunRecord, StageRecord
    from tats_core.training.events import Event

JSON_SCHEMA = 1  # raised when a key of docs/json.md goes or changes its meaning; keys may be added


class Remaining:
    """Estimates how long a stage still takes, from its steps since it started or resumed."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def seconds(self, event: Event) -> float | None:
        """Return the estimate in seconds; None before the second step.

        The first event only sets the start: steps before a resume took no time of this run.
        """
        now, step = float(event["time"]), int(event["step"])
        if self._first is None or now < self._first[0]:  # the machine's clock may be set back
            self._first = (now, step)
            return None
        start, first_step = self._first
        if step <= first_step:
            return None
        return (now - start) / (step - first_step) * max(0, int(event["steps"]) - step)


class PlainUI(Display):
    """Prints a line for each change of a stage, and its progress at most every `every` seconds."""

    def __init__(
        self,
        write: Callable[[str], None] = typer.echo,
        *,
        every: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write = write
        self._every = every
        self._clock = clock
        self._printed: dict[str, float] = {}
        self._remaining: defaultdict[str, Remaining] = defaultdict(Remaining)

    def started(self, plan: Plan, record: RunRecord) -> None:
        self._line(plan.pipeline + (f": {plan.title}" if plan.title else ""), "bold")
        counts = f"{len(plan.items)} stages: {plan.count('run')} to run, {plan.count('reuse')} reused"
        skipped = f", {plan.count('skip')} left out" if plan.count("skip") else ""
        self._line(f"run {record.id} in {record.home}, {counts}{skipped}", "dim")

    def stage_started(self, stage: StageRecord, folders: tuple[Path, ...]) -> None:
        self._remaining[stage.name] = Remaining()
        self._printed.pop(stage.name, None)
        self._line(f"{stage.name}: started")

    def params(self, name: str, values: Mapping[str, object]) -> None:
        self._line(f"{name}: {printing.params(values)}", "dim")

    def progress(self, name: str, event: Event) -> None:
        left = self._remaining[name].seconds(event)
        now = self._clock()
        if now - self._printed.get(name, -self._every) < self._every:
            return
        self._printed[name] = now
        self._line(f"{name}: {printing.progress(event, left)}")

    def note(self, name: str, text: str) -> None:
        """Print the sentence."""
        self._line(f"{name}: {text}" if name else text)

    def stage_finished(self, name: str, seconds: float, cached: bool) -> None:
        self._line(f"{name}: {'reused' if cached else f'finished in {duration(seconds)}'}")

    def stage_failed(self, name: str, error: str) -> None:
        self._line(f"{name}: failed: {error}")

    def finished(self, record: RunRecord) -> None:
        took = duration((record.finished or record.started) - record.started)
        done = sum(stage.done for stage in record.stages.values())
        counts = f"{done} of {len(record.stages)} stages are done"
        self._line(f"{record.pipeline} {record.status} after {took}: {counts}")

    def close(self) -> None:
        """Nothing is open."""

    def _line(self, text: str, style: str = "") -> None:
        self._write(text)


class LiveUI(PlainUI):
    """Shows a bar for every running stage at the bottom of the terminal, and the lines above."""

    def __init__(self, console: Console | None = None) -> None:
        super().__init__()
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

    def started(self, plan: Plan, record: RunRecord) -> None:
        super().started(plan, record)
        self._progress.start()

    def stage_started(self, stage: StageRecord, folders: tuple[Path, ...]) -> None:
        self._close_bar(stage.name)
        self._remaining[stage.name] = Remaining()
        self._tasks[stage.name] = self._progress.add_task(escape(stage.name), total=None, status="starting")

    def progress(self, name: str, event: Event) -> None:
        left = self._remaining[name].seconds(event)
        parts = printing.epoch(event)
        if left is not None:
            parts.append(f"{duration(left)} left")
        if event["shown"]:
            parts.append(printing.numbers(event["shown"]))
        if name in self._tasks:
            self._progress.update(
                self._tasks[name], completed=event["step"], total=event["steps"], status="  ".join(parts)
            )

    def stage_finished(self, name: str, seconds: float, cached: bool) -> None:
        self._close_bar(name)
        if cached:
            self._line(f"= {name}  reused", "dim")
        else:
            self._line(f"✓ {name}  {duration(seconds)}", "green")

    def stage_failed(self, name: str, error: str) -> None:
        self._close_bar(name)
        self._line(f"✗ {name}  {error}", "red")

    def finished(self, record: RunRecord) -> None:
        self.close()
        super().finished(record)

    def close(self) -> None:
        self._progress.stop()

    def _line(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style), soft_wrap=True)

    def _close_bar(self, name: str) -> None:
        task = self._tasks.pop(name, None)
        if task is not None:
            self._progress.remove_task(task)


class JsonUI(Display):
    """Prints a JSON object for each event, as docs/json.md describes them.

    Args:
        resume: the command that resumes the run, should it not finish.
    """

    def __init__(self, resume: str) -> None:
        self._resume = resume
        self._record: RunRecord | None = None

    def plan(self, plan: Plan) -> None:
        """Print the plan alone, or as the first line of a run."""
        print_event("plan", **{key: value for key, value in plan.to_json().items() if key != "schema"})

    def started(self, plan: Plan, record: RunRecord) -> None:
        self._record = record
        self.plan(plan)
        names = {"run": record.id, "pipeline": record.pipeline, "home": record.home}
        print_event("run_started", **names, folder=str(record.folder), pid=record.pid)

    def stage_started(self, stage: StageRecord, folders: tuple[Path, ...]) -> None:
        print_event("stage_started", stage=stage.name, attempt=stage.attempts, key=stage.key)

    def params(self, name: str, values: Mapping[str, object]) -> None:
        print_event("params", stage=name, values=dict(values))

    def progress(self, name: str, event: Event) -> None:
        keys = ("step", "steps", "epoch", "epochs", "shown")
        print_event("progress", stage=name, **{key: event[key] for key in keys})

    def note(self, name: str, text: str) -> None:
        """Print the sentence; the stage is null where it is about the whole run."""
        print_event("note", stage=name or None, text=text)

    def stage_finished(self, name: str, seconds: float, cached: bool) -> None:
        assert self._record is not None
        stage = self._record.stages[name]
        output = {"folder": stage.folder, "key": stage.key}
        print_event("stage_finished", stage=name, cached=cached, seconds=seconds, **output)

    def stage_failed(self, name: str, error: str) -> None:
        print_event("stage_failed", stage=name, error=error)

    def finished(self, record: RunRecord) -> None:
        from tats_core.store.run import Run

        done = record.status == "finished"
        print_event(
            "run_finished",
            run=record.id,
            status=record.status,
            error=record.error,
            seconds=(record.finished or record.started) - record.started,
            stages={name: stage.status for name, stage in record.stages.items()},
            results=Run(record).results if done else None,
            resume=None if done else self._resume,
        )

    def close(self) -> None:
        """Nothing is open."""


def print_event(event: str, **values: object) -> None:
    """Print one line of `--json`."""
    line = {"schema": JSON_SCHEMA, "event": event, "time": time.time(), **values}
    print(json.dumps(line), flush=True)  # noqa: T201 (typer.echo may colour)


def for_terminal() -> PlainUI:
    """Return the display for standard output: a terminal, or a file or pipe."""
    return LiveUI() if sys.stdout.isatty() else PlainUI()

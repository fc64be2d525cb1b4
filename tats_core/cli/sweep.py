"""`tats sweep`."""

from __future__ import annotations

import json
import signal
import sys
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tats_core.cli.options import (
    DEFAULT_HOME,
    INTERRUPTED,
    Home,
    Rehearse,
    SweepName,
    command_line,
    rehearsals,
    repeated,
)
from tats_core.cli.results import print_files
from tats_core.errors import DataError, ResourceError, RunError, SpecError
from tats_core.report.units import duration

if TYPE_CHECKING:
    from tats_core.sweep.engine import Outcome
    from tats_core.sweep.progress import Progress, SweepUI
    from tats_core.sweep.spec import Sweep

_EVERY_SECONDS = 10.0


def sweep(
    name: SweepName,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change STAGE.KEY for all trials, or a key of the sweep; repeatable.",
        ),
    ] = None,
    show_plan: Annotated[
        bool, typer.Option("--plan", help="Print what would be tried, and run nothing.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the newest run of this sweep.")] = False,
    resume_or_start: Annotated[
        bool,
        typer.Option(
            "--continue", help="Resume the newest run if it is of this same sweep, else start a new one."
        ),
    ] = False,
    samples: Annotated[int | None, typer.Option(min=1, help="How many points to try.")] = None,
    max_concurrent: Annotated[
        int | None, typer.Option(min=1, help="How many trials run at a time, at most.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
    rehearse: Rehearse = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Run a pipeline with different values and compare results.

    Each choice of values is a point; a point with one seed is a trial. Trials run side by side.
    """
    from tats_core.cli import progress
    from tats_core.sweep import engine, spec

    loaded = spec.load(name, sets or [], samples=samples, max_concurrent=max_concurrent)
    words = ["sweep", name, *repeated("--set", sets)]
    for option, value in (("--samples", samples), ("--max-concurrent", max_concurrent)):
        words += [option, str(value)] if value is not None else []
    rehearsing = [*words, "--rehearse"]
    again = command_line([*(rehearsing if rehearse else words), "--resume"], home)
    hint = command_line(rehearsing, home)
    recipe = loaded
    if rehearse:
        home, loaded = rehearsals(home), engine.rehearsed(recipe)
    if show_plan:
        typer.echo(_plan(loaded, as_json))
        return
    ui: SweepUI = LiveUI() if sys.stdout.isatty() else PlainUI()
    if as_json:
        ui = PlainUI(write=lambda line: None)
    resume = resume or (resume_or_start and _can_resume(loaded, home))
    stages = progress.for_terminal()
    try:
        with _stopped_by_sigterm():
            outcome = engine.run(loaded, home, resume=resume, ui=ui, stage_ui=None if as_json else stages)
    except (DataError, ResourceError) as error:
        if rehearse:
            raise
        raise type(error)(f"{error}\nto see it work here: {hint}") from error
    finally:
        stages.close()
    _conclude(loaded, outcome, again, home, as_json)
    if rehearse and not as_json:
        _print_exercised(outcome, recipe)


def _can_resume(sweep: Sweep, home: Path) -> bool:
    """Return whether the newest run is of this same sweep and has trials left to run."""
    from tats_core.store.run import RunRecord
    from tats_core.sweep import engine, trial

    folder = trial.newest(home, sweep.name)
    if folder is None:
        return False
    try:
        engine.check_same(sweep, folder)
    except SpecError:
        return False
    # Where all trials failed, none is left to resume: a new run tries them again.
    return not (folder / "run.json").exists() or RunRecord.load(folder).status != "failed"


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Handle SIGTERM, by which a cluster stops a job, like Ctrl-C."""

    def handle(number: int, frame: types.FrameType | None) -> None:
        signal.alarm(0)  # set by Ray's handler, it would abort the process while the trials are stopped
        ctrl_c = signal.getsignal(signal.SIGINT)
        assert callable(ctrl_c)
        ctrl_c(signal.SIGINT, frame)

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _plan(sweep: Sweep, as_json: bool) -> str:
    from tats_core.sweep import engine
    from tats_core.sweep.space import values_text

    slots, refusal = None, []
    try:
        slots, _ = engine.slots(sweep)
    except ResourceError as error:
        refusal = [f"  cannot start here: {error}"]
    points = sweep.points()
    if as_json:
        described = {"sweep": sweep.name, "trials": sweep.count, "at_a_time": slots, "points": points}
        return json.dumps({**described, **sweep.identity()}, indent=2)
    width = f", {slots} at a time" if slots else ""
    lines = [f"{sweep.name}: {sweep.count} trials of '{sweep.pipeline}'{width}"]
    if sweep.common:
        lines.append(f"  once, before all: {', '.join(sorted(sweep.common))}")
    for number, point in enumerate(points, 1):
        lines.append(f"  {number:>3}  " + "  ".join(f"{key}={value}" for key, value in point.items()))
    if not points:
        how = "points, each proposed by Optuna when its turn comes"
        if every := getattr(sweep.searcher, "every", None):
            how = f"members, trained in generations of {every} epochs, each from the previous"
        lines.append(f"  {sweep.samples} {how}, among")
        lines += [f"       {key}: {values_text(values)}" for key, values in sweep.choices.items()]
        for pattern, condition in sweep.conditions.items():
            words = " and ".join(f"{key} = {values_text(values)}" for key, values in condition.items())
            lines.append(f"       {pattern} only where {words}")
    if sweep.seeds.keys:
        lines.append(f"  each with {', '.join(sweep.seeds.keys)} = {', '.join(map(str, sweep.seeds.values))}")
    return "\n".join([*lines, *refusal])


def _conclude(sweep: Sweep, outcome: Outcome, again: str, home: Path, as_json: bool) -> None:
    summary = outcome.summary
    if as_json:
        typer.echo(json.dumps({**summary.values(), "stopped": outcome.stopped}, indent=2))
    elif not outcome.stopped:
        if outcome.before == len(summary.trials):
            typer.echo(
                f"all {outcome.before} trials of {sweep.name} had ended before; nothing was left to do"
            )
        typer.echo(f"\n{summary.text()}\n")
        print_files(outcome.folder)
        typer.echo(f"this table again         {command_line(['results', sweep.name], home)}")
    if outcome.stopped:
        typer.echo(f"Stopped; finished work is saved. Resume with: {again}", err=as_json)
        raise typer.Exit(INTERRUPTED)
    for cause, count in summary.causes:
        typer.echo(f"{count} of {len(summary.trials)} trials failed: {cause}", err=True)
    if summary.causes and sum(count for _, count in summary.causes) == len(summary.trials):
        raise RunError(
            f"all trials of {sweep.name} failed; try again with: {again.removesuffix(' --resume')}"
        )


def _print_exercised(outcome: Outcome, recipe: Sweep) -> None:
    """Print what the rehearsal of a sweep has shown to work, by its first trial."""
    from tats_core.pipeline import exercised, graph
    from tats_core.store.run import Run
    from tats_core.sweep.trial import FIRST

    first = Run.open(outcome.folder / "trials" / (outcome.folder / FIRST).read_text())
    typer.echo("\nWhat the rehearsal exercised, by its first trial")
    table = exercised.table(first, graph.build(recipe.load({})), Run.open(outcome.folder).record)
    typer.echo(table.text())


def _headline(progress: Progress) -> str:
    counts = f"{len(progress.ended)} of {progress.total} trials, {len(progress.running)} running"
    left = progress.remaining()
    about = "" if left is None else f"about {duration(left)} left"
    return ", ".join(filter(None, (counts, progress.best, about)))


class PlainUI:
    """Prints a line whenever a trial has ended, and every ten seconds."""

    def __init__(self, write: Callable[[str], None] = typer.echo) -> None:
        self.write = write

    def started(self, sweep: Sweep, progress: Progress) -> None:
        self.ended, self.printed = len(progress.ended), time.monotonic()
        self.write(f"{sweep.name}: {progress.total} trials, {progress.slots} at a time")
        if progress.before:
            self.write(f"{progress.before} of them had ended before")

    def changed(self, progress: Progress) -> None:
        if len(progress.ended) == self.ended and time.monotonic() - self.printed < _EVERY_SECONDS:
            return
        self.ended, self.printed = len(progress.ended), time.monotonic()
        self.write(_headline(progress))

    def close(self) -> None:
        """Nothing is open."""


class LiveUI:
    """Draws a table of the running trials in place."""

    def __init__(self) -> None:
        from rich.live import Live

        self.live = Live(refresh_per_second=4, transient=True)

    def started(self, sweep: Sweep, progress: Progress) -> None:
        self.sweep = sweep
        self.changed(progress)
        self.live.start()

    def changed(self, progress: Progress) -> None:
        from rich.table import Table
        from rich.text import Text

        # As Text: in a plain string, rich would read a value in brackets as a style.
        table = Table(title=Text(_headline(progress)), title_justify="left")
        for heading in ("trial", "values", "epoch"):
            table.add_column(heading)
        for name, trial in progress.running.items():
            label = self.sweep.label(trial.point, trial.seed)
            table.add_row(name, Text(label), f"{progress.rows.get(name, {}).get('epoch', 0):.0f}")
        self.live.update(table)

    def close(self) -> None:
        self.live.stop()

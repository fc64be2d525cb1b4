"""`tats sweep`, and the sweep's half of `tats results`."""

from __future__ import annotations

import json
import signal
import sys
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tats_core.cli import printing
from tats_core.cli.options import DEFAULT_HOME, Home, SweepName, command_line
from tats_core.errors import ResourceError, RunError, SpecError, StoreError

if TYPE_CHECKING:
    from rich.live import Live

    from tats_core.sweep.engine import Outcome, Progress
    from tats_core.sweep.spec import Sweep

_STOPPED = 130
_EVERY_SECONDS = 10.0


def sweep(
    name: SweepName,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a stage's key or the sweep's; repeatable."),
    ] = None,
    show_plan: Annotated[bool, typer.Option("--plan", help="Say what would be tried, then stop.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the newest run of it.")] = False,
    go_on: Annotated[
        bool,
        typer.Option(
            "--continue", help="Go on with the newest run if it is the same sweep, else start anew."
        ),
    ] = False,
    samples: Annotated[int | None, typer.Option(min=1, help="How many points are tried.")] = None,
    max_concurrent: Annotated[int | None, typer.Option(min=1, help="Trials at a time, at most.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Run a pipeline many times with different values, side by side, and compare what came out."""
    from tats_core.sweep import engine, spec

    home = home.expanduser().absolute()
    loaded = spec.load(name, sets or [], samples=samples, max_concurrent=max_concurrent)
    if show_plan:
        typer.echo(_plan(loaded, as_json))
        return
    ui = _Quiet() if as_json else _Live() if sys.stdout.isatty() else _Plain()
    from tats_core.cli import progress

    resume = resume or (go_on and _was_begun(loaded, home))
    stages = progress.for_terminal()
    try:
        with _stopped_by_sigterm():
            outcome = engine.run(loaded, home, resume=resume, ui=ui, stage_ui=None if as_json else stages)
    finally:
        stages.close()
    words = ["sweep", name, *(word for text in sets or [] for word in ("--set", text))]
    for option, value in (("--samples", samples), ("--max-concurrent", max_concurrent)):
        words += [option, str(value)] if value is not None else []
    _conclude(loaded, outcome, command_line([*words, "--resume"], home), home, as_json)


def _was_begun(sweep: Sweep, home: Path) -> bool:
    """Tell whether the newest run is of this very sweep, and can still come to something."""
    from tats_core.store.run import RunRecord
    from tats_core.sweep import engine, trial

    folder = trial.newest(home, sweep.name)
    if folder is None:
        return False
    try:
        engine.check_same(sweep, folder)
    except SpecError:
        return False
    # Where all trials failed, none is left to go on with: they are tried anew.
    return not (folder / "run.json").exists() or RunRecord.load(folder).status != "failed"


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Do at SIGTERM, by which a cluster's job is stopped, what is done at Ctrl-C."""

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

    slots: int | None = None
    short = ""
    try:
        slots, _ = engine.slots(sweep)
    except ResourceError as error:
        short = str(error)
    points = sweep.points()
    if as_json:
        described = {"sweep": sweep.name, "trials": sweep.count, "at_a_time": slots, "points": points}
        return json.dumps({**described, **sweep.identity()}, indent=2)
    width = f", {slots} at a time" if slots else ""
    lines = [f"{sweep.name}: {sweep.count} trials of '{sweep.pipeline}'{width}"]
    if sweep.common:
        lines.append(f"  once, before all: {', '.join(sorted(sweep.common))}")
    for place, point in enumerate(points, 1):
        lines.append(f"  {place:>3}  " + "  ".join(f"{key}={value}" for key, value in point.items()))
    if not points:
        breed = (
            f"{sweep.searcher.every} epochs after {sweep.searcher.every}, each generation from the one before"
        )
        how = breed if sweep.searcher.kind == "pbt" else "each found by Optuna when its turn comes"
        what = "members" if sweep.searcher.kind == "pbt" else "points"
        lines.append(f"  {sweep.samples} {what}, {how}, among")
        known = sweep.identity()
        lines += [f"       {key}: {_among(values)}" for key, values in known["space"].items()]
        for pattern, beside in known["where"].items():
            shown = " and ".join(f"{key} = {_among(values)}" for key, values in beside.items())
            lines.append(f"       {pattern} only where {shown}")
    if sweep.seeds.keys:
        lines.append(f"  each with {', '.join(sweep.seeds.keys)} = {', '.join(map(str, sweep.seeds.values))}")
    return "\n".join([*lines, *([f"  cannot start here: {short}"] if short else [])])


def _among(values: Any) -> str:
    """Return the values of a key of the space for a line: `1, 2, 4` or `uniform 0.1 … 0.3`."""
    if isinstance(values, list):
        return ", ".join(json.dumps(one).strip('"') for one in values)
    ((kind, ends),) = values.items()
    return _among(ends) if kind == "choice" else f"{kind} {ends[0]:g} … {ends[1]:g}"


def _conclude(sweep: Sweep, outcome: Outcome, again: str, home: Path, as_json: bool) -> None:
    found = outcome.summary
    if as_json:
        typer.echo(json.dumps({**found.values(), "stopped": outcome.stopped}, indent=2))
    elif not outcome.stopped:
        if outcome.before == len(outcome.trials):
            typer.echo(
                f"all {outcome.before} trials of {sweep.name} had ended before; nothing was left to do"
            )
        typer.echo("")
        typer.echo(found.text())
        typer.echo("")
        _say_where(outcome.folder)
        typer.echo(f"this table again         {command_line(['results', sweep.name], home)}")
    if outcome.stopped:
        typer.echo(f"Stopped; what is done is kept. Go on with: {again}", err=as_json)
        raise typer.Exit(_STOPPED)
    for cause, count in found.causes:
        typer.echo(f"{count} of {len(found.trials)} trials failed: {cause}", err=True)
    if found.causes and sum(count for _, count in found.causes) == len(found.trials):
        raise RunError(
            f"all trials of {sweep.name} failed; try again with: {again.removesuffix(' --resume')}"
        )


def _say_where(folder: Path) -> None:
    from tats_core.sweep import page, summary

    for words, name in (("charts and all trials", page.FILE), ("the best as a pipeline", summary.BEST)):
        if (folder / name).exists():
            typer.echo(f"{words:<23}  {folder / name}")


def sweep_folder(run: str, home: Path) -> Path | None:
    """Return the folder of the sweep that `run` names (its newest run, or by a run's id or folder).

    Raises:
        StoreError: a sweep is called so, and has not run.
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
    """Print the table of a sweep, as it was run, and where its page is.

    Raises:
        RunError: none of its trials has ended.
    """
    from tats_core.sweep import page

    found = page.read(folder)
    if not found.trials:
        raise RunError(f"no trial of {folder.name} has ended yet, so there is no table to print")
    if as_json:
        typer.echo(json.dumps(found.values(), indent=2))
        return
    typer.echo(found.text())
    typer.echo("")
    _say_where(folder)


class _Quiet:
    """Says nothing."""

    def started(self, sweep: Sweep, progress: Progress) -> None:
        """Say nothing."""

    def changed(self, progress: Progress) -> None:
        """Say nothing."""

    def close(self) -> None:
        """Nothing is open."""


def _headline(progress: Progress, objective: Any) -> str:
    parts = [f"{len(progress.ended)} of {progress.total} trials, {len(progress.running)} running"]
    known = [one.metrics[objective.name] for one in progress.ended.values() if objective.name in one.metrics]
    if known:
        top = max(known) if objective.mode == "max" else min(known)
        parts.append(f"best {objective.shown} {top:.{objective.digits}f}")
    left = progress.remaining()
    if left is not None:
        parts.append(f"about {printing.duration(left)} left")
    return ", ".join(parts)


class _Plain:
    """A line whenever a trial has ended, and one every ten seconds."""

    def started(self, sweep: Sweep, progress: Progress) -> None:
        """Say what begins."""
        self.sweep, self.ended, self.said = sweep, len(progress.ended), time.monotonic()
        typer.echo(f"{sweep.name}: {progress.total} trials, {progress.slots} at a time")
        if progress.before:
            typer.echo(f"{progress.before} of them had ended before")

    def changed(self, progress: Progress) -> None:
        """Say how far it is."""
        if len(progress.ended) == self.ended and time.monotonic() - self.said < _EVERY_SECONDS:
            return
        self.ended, self.said = len(progress.ended), time.monotonic()
        typer.echo(_headline(progress, self.sweep.objectives[0]))

    def close(self) -> None:
        """Nothing is open."""


class _Live:
    """A table of the running trials that is drawn in place."""

    def __init__(self) -> None:
        self.live: Live | None = None

    def started(self, sweep: Sweep, progress: Progress) -> None:
        """Open the display."""
        from rich.live import Live

        self.sweep = sweep
        self.live = Live(self._table(progress), refresh_per_second=4, transient=True)
        self.live.start()

    def changed(self, progress: Progress) -> None:
        """Draw anew."""
        if self.live is not None:
            self.live.update(self._table(progress))

    def close(self) -> None:
        """Give the terminal back."""
        if self.live is not None:
            self.live.stop()

    def _table(self, progress: Progress) -> Any:
        from rich.table import Table

        table = Table(title=_headline(progress, self.sweep.objectives[0]), title_justify="left")
        for heading in ("trial", "values", "epoch"):
            table.add_column(heading)
        for name, trial in progress.running.items():
            table.add_row(name, self.sweep.label(trial), f"{progress.rows.get(name, {}).get('epoch', 0):.0f}")
        return table

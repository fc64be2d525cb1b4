"""`tats runs`."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated

import typer

from tats_core.cli import printing
from tats_core.cli.options import DEFAULT_HOME, AsJson, Home, command_line, complete_pipeline
from tats_core.errors import SpecError, StoreError
from tats_core.report.units import DASH, duration

if TYPE_CHECKING:
    from rich.text import Text

    from tats_core.store.run import Run, RunState, Stage

SCHEMA = 1
_WATCH_SECONDS = 2.0
_SPEED = ("clips_per_second", "data_wait_share")


@dataclass(frozen=True)
class RunningStage:
    """A running stage; `eta` is the estimated seconds until its end, None while there is no estimate."""

    stage: str
    step: int | None = None
    steps: int | None = None
    eta: float | None = None
    shown: dict[str, float] = field(default_factory=dict)
    """The newest numbers of its progress: loss, clips a second, share of the time spent waiting for data."""


@dataclass(frozen=True)
class Best:
    """The headline of a run's table: `top1` or `motion_lift`."""

    metric: str
    value: float


@dataclass(frozen=True)
class Overview:
    """One run as `--json` prints it. Times are seconds since the epoch; `seconds` and `eta` are durations."""

    id: str
    pipeline: str
    title: str
    state: RunState
    done: int
    stages: int
    running: list[RunningStage]
    failed: list[str]
    eta: float | None
    started: float
    finished: float | None
    seconds: float
    best: Best | None
    error: str | None


def runs(
    pipeline: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Only the runs of this pipeline.", autocompletion=complete_pipeline
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many to list, newest first.")] = 20,
    everything: Annotated[bool, typer.Option("--all", help="List all runs.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="List again every two seconds while any runs.")
    ] = False,
    as_json: AsJson = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """List runs, newest first, with their progress and best result.

    A run is running; waiting (no stage is at work: another run makes what it needs); lost (its process was
    killed, or has shown no sign of life for most of a minute); finished, failed or stopped.

    ETA is the time until the stages that run now are done. Best is the mean top-1 accuracy over the
    benchmarks, of pre-trained or from-scratch models, whichever is higher; the motion lift where no accuracy
    was measured.
    """
    if watch and as_json:
        raise SpecError("--watch redraws a list for people; leave out --json, or call it again and again")
    while any(_list(pipeline, limit, everything=everything, as_json=as_json, home=home)) and watch:
        time.sleep(_WATCH_SECONDS)
        printing.console().clear()


def _list(pipeline: str | None, limit: int, *, everything: bool, as_json: bool, home: Path) -> list[bool]:
    """Print the list; return for each run whether it is still under way."""
    from tats_core.store import history
    from tats_core.store.run import Run

    wanted = None if pipeline is None else history.check_pipeline(pipeline, home)
    corrupt: list[str] = []  # an unreadable record must not hide the other runs
    records = history.records(home, wanted, corrupt)
    # Records are read lazily: only the runs that are listed are opened.
    rows = [overview(Run(record)) for record in (records if everything else itertools.islice(records, limit))]
    total = len(history.ids(home, wanted))
    if as_json:
        listed = [asdict(row) for row in rows]
        typer.echo(
            json.dumps({"schema": SCHEMA, "home": str(home), "total": total, "runs": listed}, indent=2)
        )
    elif rows or not corrupt:
        _print(rows, total - len(corrupt), wanted, home)
    if corrupt:
        raise StoreError("\n".join(corrupt))
    return [row.state in ("running", "waiting") for row in rows]


def overview(run: Run) -> Overview:
    """Return a run's progress and best result."""
    record, state = run.record, run.record.state
    running = [_running(stage) for stage in run.stages.values() if stage.record.status == "running"]
    etas = [stage.eta for stage in running if stage.eta is not None]
    ended = record.finished if state != "lost" else _last_written(run)
    return Overview(
        id=record.id,
        pipeline=record.pipeline,
        title=record.title,
        state=state,
        done=sum(stage.done for stage in record.stages.values()),
        stages=len(record.stages),
        running=running,
        failed=[stage.name for stage in record.stages.values() if stage.status == "failed"],
        eta=max(etas) if etas and state == "running" else None,
        started=record.started,
        finished=record.finished,
        seconds=(ended or time.time()) - record.started,
        best=best(run),
        error=record.error,
    )


def best(run: Run) -> Best | None:
    """Return the headline of the run's table, or None where it has none."""
    try:
        table = run.results
    except StoreError:
        return None  # the table was removed; `tats show` reports it
    if table is None:
        return None
    by_init: dict[str, list[float]] = {}
    for row in table["rows"]:
        top1 = row.get("top1")
        if isinstance(top1, int | float):
            by_init.setdefault(str(row["init"]), []).append(top1)
    if by_init:
        return Best("top1", max(fmean(values) for values in by_init.values()))
    lift = table.get("policy", {}).get("motion_lift")
    return Best("motion_lift", lift) if isinstance(lift, int | float) else None


def _running(stage: Stage) -> RunningStage:
    from tats_core.cli.progress import Remaining
    from tats_core.store import logs

    remaining, left, newest = Remaining(), None, None
    for newest in logs.recent_progress(stage):
        left = remaining.seconds(newest)
    if newest is None:
        return RunningStage(stage.record.name)
    if left is not None:
        left = max(0.0, left - (time.time() - newest["time"]))
    return RunningStage(stage.record.name, newest["step"], newest["steps"], left, newest["shown"])


def _last_written(run: Run) -> float:
    """Return when a lost run, or a stage of it, last wrote something."""
    paths = [run.record.folder / "run.json"]
    for stage in run.stages.values():
        if stage.record.status == "running" and stage.folder is not None:
            paths += [stage.folder / "events.jsonl", *stage.folder.glob("log/*")]
    return max(path.stat().st_mtime for path in paths if path.exists())


def _print(rows: Sequence[Overview], total: int, pipeline: str | None, home: Path) -> None:
    if not rows:
        start = command_line(["run", "pipeline", pipeline or "demo"], home)
        of_pipeline = f" of '{pipeline}'" if pipeline else ""
        typer.echo(f"no run{of_pipeline} in {home} yet; start one with: {start}")
        return
    printing.table(
        ("run", "state", "stages", "at", "ETA", "age", "took", "best"),
        [_cells(row, time.time()) for row in rows],
        right=("stages", "ETA", "age", "took"),
        fold=("at",),
    )
    if total > len(rows):
        typer.echo(f"\n{len(rows)} of {total} runs; list more with --limit N or --all")


def _cells(row: Overview, now: float) -> list[str | Text]:
    at = [_progress(stage) for stage in row.running] or row.failed[:2]
    return [
        row.id,
        printing.state(row.state),
        f"{row.done}/{row.stages}",
        ", ".join(at) or DASH,
        DASH if row.eta is None else duration(row.eta),
        duration(now - row.started),
        duration(row.seconds),
        DASH if row.best is None else _headline(row.best),
    ]


def _progress(stage: RunningStage) -> str:
    share = f" {100 * (stage.step or 0) // stage.steps}%" if stage.steps else ""
    speed = printing.numbers({key: value for key, value in stage.shown.items() if key in _SPEED})
    return f"{stage.stage}{share}" + (f"  {speed}" if speed else "")


def _headline(result: Best) -> str:
    return f"{result.value:.1f} top-1" if result.metric == "top1" else f"{result.value:.2f} lift"

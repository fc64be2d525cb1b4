"""`tats logs`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from tats_core.cli import printing
from tats_core.cli.options import DEFAULT_HOME, AnyRun, Home, complete_stage
from tats_core.cli.submit import ClusterAddress, print_logs
from tats_core.errors import SpecError, did_you_mean
from tats_core.report.units import duration

if TYPE_CHECKING:
    from tats_core.store.logs import LogEntry, StageLog
    from tats_core.store.run import Run, StageRecord

_TICK = 0.5  # seconds between two reads of the log


def logs(
    run: AnyRun,
    stage: Annotated[
        str | None,
        typer.Argument(
            metavar="STAGE",
            help="One stage (finetune[ssv2,scratch]), or all stages of a matrix (finetune).",
            autocompletion=complete_stage,
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print what comes until the run ends.")
    ] = False,
    worker: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Only the output of worker process N, from 0.")
    ] = None,
    tail: Annotated[int | None, typer.Option(min=0, metavar="N", help="Only the last N lines.")] = None,
    address: ClusterAddress = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Print a run's notes, progress and worker output."""
    if address is not None:
        if stage is not None or worker is not None or tail is not None:
            raise SpecError("--address: a job has a single output; leave out STAGE, --worker and --tail")
        print_logs(address, run, follow)
        return
    from tats_core.store import history
    from tats_core.store.logs import StageLog
    from tats_core.store.run import Run

    opened = Run(history.find(run, home))
    names = _chosen(opened, stage)
    if worker is not None and not follow:
        _check_worker(opened, names, worker)
    stage_logs = {name: StageLog(name, worker) for name in names}
    printed: dict[str, str] = {}
    while True:
        running = opened.record.is_under_way
        lines: Iterable[str] = _new_lines(opened, stage_logs, running, printed if worker is None else None)
        if tail is not None:
            lines, tail = deque(lines, maxlen=tail), None
        for line in lines:
            typer.echo(line)
        if not (follow and running):
            break
        time.sleep(_TICK)
        opened = Run.open(opened.record.folder)
    if follow:
        typer.echo(f"{opened.record.id} {opened.record.state}")


def _chosen(run: Run, stage: str | None) -> list[str]:
    stages = run.record.stages.values()
    names = [record.name for record in stages if stage in (None, record.name, record.stage)]
    if not names:
        near = did_you_mean(str(stage), {name for record in stages for name in (record.name, record.stage)})
        raise SpecError(f"the run {run.record.id} has no stage named '{stage}'{near}")
    return names


def _check_worker(run: Run, names: list[str], worker: int) -> None:
    from tats_core.store import logs

    known = sorted({number for name in names for number in logs.workers(run.stages[name])})
    if worker not in known:
        hint = f"it has {', '.join(map(str, known))}" if known else "no worker printed anything"
        raise SpecError(f"--worker {worker}: {run.record.id} has no output of this worker; {hint}")


def _new_lines(
    run: Run, stage_logs: Mapping[str, StageLog], running: bool, printed: dict[str, str] | None
) -> Iterator[str]:
    """Yield the lines since the last call, in the order in which the stages started.

    Args:
        printed: stage → the status printed last; None where statuses are not printed.
    """
    record = run.record
    stages = [record.stages[name] for name in stage_logs]
    for stage in sorted(stages, key=lambda stage: stage.started or record.started):
        if printed is not None:
            yield from _started(stage, printed)
        for entry in stage_logs[stage.name].read(run):
            yield from _line(entry)
        if printed is not None:
            yield from _ended(stage, printed, running)


def _started(stage: StageRecord, printed: dict[str, str]) -> Iterator[str]:
    if stage.name in printed or stage.status in ("waiting", "skipped"):
        return
    printed[stage.name] = "running"
    if stage.status == "cached":
        yield _at(None, stage.name, f"reused; this is the log of the run that made {stage.folder}")
    else:
        yield _at(stage.started, stage.name, f"started: {stage.reason}" if stage.reason else "started")


def _ended(stage: StageRecord, printed: dict[str, str], running: bool) -> Iterator[str]:
    if stage.status == "running" and not running:
        yield _at(None, stage.name, "lost")
    if stage.status in ("running", "waiting", "skipped", printed.get(stage.name)):
        return
    printed[stage.name] = stage.status
    if stage.status != "cached":
        why = f": {stage.error}" if stage.error else ""
        yield _at(stage.finished, stage.name, f"{stage.status} after {duration(stage.seconds)}{why}")


def _line(entry: LogEntry) -> Iterator[str]:
    event = entry.event
    if event is None:
        yield f"{entry.stage}  {entry.source} | {entry.line}"
    elif event["kind"] == "note":
        yield _at(event["time"], entry.stage, event["text"])
    elif event["kind"] == "params":
        yield _at(event["time"], entry.stage, printing.params(event["values"]))
    elif event["kind"] == "progress":
        yield _at(event["time"], entry.stage, printing.progress(event))


def _at(seconds: float | None, stage: str, text: str) -> str:
    when = "        " if seconds is None else time.strftime("%H:%M:%S", time.localtime(seconds))
    return f"{when}  {stage}  {text}"

"""`tats stop`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from tats_core.cli import printing
from tats_core.cli.options import DEFAULT_HOME, INTERRUPTED, AnyRun, Home
from tats_core.cli.submit import ClusterAddress, stop_job
from tats_core.errors import SpecError
from tats_core.report.units import duration

if TYPE_CHECKING:
    from tats_core.store.run import RunRecord

_TICK = 0.25  # seconds


def stop(
    run: AnyRun,
    now: Annotated[bool, typer.Option("--now", help="Stop at once, without a checkpoint.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the run has stopped.")] = True,
    address: ClusterAddress = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Stop a run at its next checkpoint.

    This works from any terminal or machine that shares the project folder. Finished stages and checkpoints
    stay, and the command that resumes the run is printed.
    """
    if address is not None:
        if now:
            raise SpecError("--address: a job stops at its next checkpoints; leave out --now")
        stop_job(address, run, wait)
        return
    from tats_core.store import history

    record = history.find(run, home)
    if not record.is_under_way:
        typer.echo(_not_running(record))
        return
    record.ask_to_stop(now=now)
    running = [stage.name for stage in record.stages.values() if stage.status == "running"]
    stages = f" ({', '.join(running)})" if running else ""
    typer.echo(f"{record.id} is asked to stop {'at once' if now else 'at its next checkpoints'}{stages}")
    if not wait:
        typer.echo(f"Resume later with: {printing.resume_command(record)}")
        return
    try:
        while record.is_alive():
            time.sleep(_TICK)
    except KeyboardInterrupt:
        typer.echo(f"The run is still stopping. Resume later with: {printing.resume_command(record)}")
        raise typer.Exit(INTERRUPTED) from None
    typer.echo(_stopped(type(record).load(record.folder)))


def _stopped(record: RunRecord) -> str:
    if record.state == "finished":
        return f"{record.id} finished before it could be stopped; there is nothing to resume"
    how = "was lost" if record.state == "lost" else f"has {record.state}"
    return f"{record.id} {how}; finished work is saved. Resume with: {printing.resume_command(record)}"


def _not_running(record: RunRecord) -> str:
    ended = f" {duration(time.time() - record.finished)} ago" if record.finished else ""
    how = "it was lost" if record.state == "lost" else f"it {record.state}"
    resume = "" if record.state == "finished" else f"; resume with: {printing.resume_command(record)}"
    return f"{record.id} is not running: {how}{ended}{resume}"

"""`tats stop`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from tats_core.cli.options import DEFAULT_HOME, AnyRun, Home
from tats_core.cli.submit import ClusterAddress, stop_job
from tats_core.errors import SpecError

if TYPE_CHECKING:
    from tats_core.store.run import RunRecord

_TICK = 0.25
_INTERRUPTED = 130


def stop(
    run: AnyRun,
    now: Annotated[bool, typer.Option("--now", help="At once, without waiting for checkpoints.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it has stopped.")] = True,
    address: ClusterAddress = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Stop a run at its next checkpoints, from any terminal or machine that shares the project folder.

    What is done is kept, and the line that goes on with it is printed.
    """
    if address is not None:
        if now:
            raise SpecError("--address: a job stops at its next checkpoints; leave out --now")
        stop_job(address, run, wait)
        return
    from tats_core.cli import shown
    from tats_core.store import history

    record = history.find(run, home.expanduser().absolute())
    if record.state != "running":
        typer.echo(_not_running(record))
        return
    record.ask_to_stop(now=now)
    at = [stage.name for stage in record.stages.values() if stage.status == "running"]
    where = f" ({', '.join(at)})" if at else ""
    typer.echo(f"{record.id} is asked to stop {'at once' if now else 'at its next checkpoints'}{where}")
    if not wait:
        typer.echo(f"Go on later with: {shown.again(record)}")
        return
    try:
        ended = _until_it_ends(record)
    except KeyboardInterrupt:
        typer.echo(f"It goes on stopping. Go on later with: {shown.again(record)}")
        raise typer.Exit(_INTERRUPTED) from None
    typer.echo(_ended(ended))


def _until_it_ends(record: RunRecord) -> RunRecord:
    from tats_core.store.run import RunRecord

    while record.is_alive():
        time.sleep(_TICK)
    return RunRecord.load(record.folder)


def _ended(record: RunRecord) -> str:
    from tats_core.cli import shown

    if record.state == "finished":
        return f"{record.id} finished before it could be stopped; there is nothing to go on with"
    how = "died" if record.state == "died" else f"has {record.state}"
    return f"{record.id} {how}; what is done is kept. Go on with: {shown.again(record)}"


def _not_running(record: RunRecord) -> str:
    from tats_core.cli import shown

    ended = f" {shown.age(time.time() - record.finished)} ago" if record.finished else ""
    goes_on = "" if record.state == "finished" else f"; go on with: {shown.again(record)}"
    return f"{record.id} does not run: it {record.state}{ended}{goes_on}"

"""`tats logs`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from tats_core.cli.options import DEFAULT_HOME, AnyRun, Home, complete_stage
from tats_core.cli.submit import ClusterAddress, print_logs
from tats_core.errors import SpecError, did_you_mean

if TYPE_CHECKING:
    from tats_core.store.logs import Said, StageVoice
    from tats_core.store.run import RunRecord, StageRecord

_TICK = 0.5  # seconds between two looks at what is new
_INTERRUPTED = 130


def logs(
    run: AnyRun,
    stage: Annotated[
        str | None,
        typer.Argument(
            metavar="STAGE",
            help="One stage (finetune[ssv2,scratch]), or all instances of one (finetune).",
            autocompletion=complete_stage,
        ),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")] = False,
    worker: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Only what this worker printed.")
    ] = None,
    tail: Annotated[int | None, typer.Option(min=0, metavar="N", help="Only the last N lines.")] = None,
    address: ClusterAddress = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Print what the stages of a run say: notes, progress, and what their workers print."""
    if address is not None:
        if stage is not None or worker is not None or tail is not None:
            raise SpecError("--address: a job has a single output; leave out STAGE, --worker and --tail")
        print_logs(address, run, follow)
        return
    from tats_core.store import history

    record = history.find(run, home.expanduser().absolute())
    chosen = _chosen(record, stage)
    if worker is not None and not follow:
        _check_worker(record, chosen, worker)
    teller = _Teller(record, chosen, worker)
    lines: Iterable[str] = teller.new()
    for line in lines if tail is None else deque(lines, maxlen=tail):
        typer.echo(line)
    if not follow:
        return
    try:
        while teller.running:
            time.sleep(_TICK)
            teller.look()
            for line in teller.new():
                typer.echo(line)
    except KeyboardInterrupt:
        raise typer.Exit(_INTERRUPTED) from None
    typer.echo(f"{record.id} {teller.record.state}")


def _chosen(record: RunRecord, stage: str | None) -> list[str]:
    names = [one.name for one in record.stages.values() if stage in (None, one.name, one.stage)]
    if not names:
        near = did_you_mean(
            str(stage), {name for one in record.stages.values() for name in (one.name, one.stage)}
        )
        raise SpecError(f"the run {record.id} has no stage named '{stage}'{near}")
    return names


def _check_worker(record: RunRecord, names: list[str], worker: int) -> None:
    from tats_core.store import logs

    there = sorted({number for name in names for number in logs.workers(record, name)})
    if worker not in there:
        known = f"there are {', '.join(map(str, there))}" if there else "no worker printed anything"
        raise SpecError(f"--worker {worker}: {record.id} has no output of such a worker; {known}")


class _Teller:
    """Turns what is new into lines, in the order in which the stages began."""

    def __init__(self, record: RunRecord, names: list[str], worker: int | None) -> None:
        from tats_core.store.logs import StageVoice

        self.record = record
        self.running = record.state == "running"
        self._voices: dict[str, StageVoice] = {name: StageVoice(name, worker) for name in names}
        self._told: dict[str, str] = {}
        self._quiet = worker is not None

    def look(self) -> None:
        """Read the record again."""
        from tats_core.store.run import RunRecord

        self.record = RunRecord.load(self.record.folder)
        self.running = self.record.state == "running"

    def new(self) -> Iterator[str]:
        """Yield the lines since the last call."""
        stages = [self.record.stages[name] for name in self._voices]
        for stage in sorted(stages, key=lambda one: one.started or self.record.started):
            if not self._quiet:
                yield from self._begun(stage)
            for said in self._voices[stage.name].read(self.record):
                yield from _line(said)
            if not self._quiet:
                yield from self._ended(stage)

    def _begun(self, stage: StageRecord) -> Iterator[str]:
        if stage.name in self._told or stage.status in ("waiting", "skipped"):
            return
        self._told[stage.name] = "running"
        if stage.status == "cached":
            yield _at(None, stage.name, f"reused; this is what was said when {stage.folder} was made")
        else:
            yield _at(stage.started, stage.name, f"started: {stage.reason}" if stage.reason else "started")

    def _ended(self, stage: StageRecord) -> Iterator[str]:
        from tats_core.cli.progress import duration

        if stage.status == "running":
            if not self.running:
                yield _at(None, stage.name, "died")
            return
        if self._told.get(stage.name) == stage.status or stage.status in ("waiting", "skipped"):
            return
        self._told[stage.name] = stage.status
        if stage.status == "cached":
            return
        why = f": {stage.error}" if stage.error else ""
        yield _at(stage.finished, stage.name, f"{stage.status} after {duration(stage.seconds)}{why}")


def _line(said: Said) -> Iterator[str]:
    from tats_core.cli import progress

    event = said.event
    if event is None:
        yield f"{said.stage}  {said.source} | {said.line}"
    elif event["kind"] == "note":
        yield _at(event["time"], said.stage, event["text"])
    elif event["kind"] == "params":
        yield _at(event["time"], said.stage, progress.describe(event["values"]))
    elif event["kind"] == "progress":
        parts = [f"epoch {event['epoch']}/{event['epochs']}"] if event["epochs"] > 1 else []
        parts.append(f"step {event['step']}/{event['steps']}")
        if event["shown"]:
            parts.append(progress.numbers(event["shown"]))
        yield _at(event["time"], said.stage, ", ".join(parts))


def _at(seconds: float | None, stage: str, text: str) -> str:
    when = "        " if seconds is None else time.strftime("%H:%M:%S", time.localtime(seconds))
    return f"{when}  {stage}  {text}"

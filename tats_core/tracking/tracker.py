"""The runner's side: writes what happens into the journal, and a thread of its own sends it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from tats_core.addresses import masked, masked_values
from tats_core.store.journal import TRACKED, Spool, pending
from tats_core.store.run import RunRecord, StageConfig, StageRecord
from tats_core.tracking.sender import Sender, remember
from tats_core.tracking.server import AwayError, RefusedError, first_line, tracking_uri
from tats_core.training.events import Event, Events

_POLL_SECONDS = 0.5  # between two readings of the journal
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 30.0  # seconds between two tries while the server is away
_GRACE_SECONDS = 5.0  # the end of a run waits so long for a server that is away
_BUSY_SECONDS = 60.0  # and for one that only takes long to answer, or a local database
_SYSTEM_SECONDS = 10.0


class Tracker:
    """Logs one run. Only `deliver` waits for the server, while it makes progress.

    `configs` holds the configuration of each stage before the stage begins.
    """

    def __init__(self, home: Path, record: RunRecord) -> None:
        self._home = home.absolute()
        self._record = record
        self._uri = tracking_uri(home)
        record.tracking_uri = masked(self._uri)
        self._spool = Spool(self._home, record.id)
        self._spool.begin()
        self._writing = threading.Lock()
        self._closing = threading.Event()
        self._give_up = threading.Event()
        self._done = threading.Event()
        self._last_answer = time.monotonic()
        self._sender: Sender | None = None
        self._away, self._refused = "", ""
        self._rejected: list[str] = []
        self._links: dict[tuple[str, int], str] = {}  # (stage, inode of its event file) → link
        self._begun: set[str] = set()
        self.configs: dict[str, StageConfig] = {}
        self._threads = [
            threading.Thread(target=self._send, name="tracking", daemon=True),
            threading.Thread(target=self._watch_system, name="system metrics", daemon=True),
        ]

    def begin(self, resolved: Mapping[str, object]) -> None:
        """The run begins; `resolved` is the pipeline with all its stages' configurations."""
        record = self._record
        self._write(
            "run",
            pipeline=record.pipeline,
            title=record.title,
            overrides=masked_values(record.overrides),
            git_commit=record.git_commit,
            resolved=masked_values(resolved),
        )
        for thread in self._threads:
            thread.start()

    def stage_started(self, stage: StageRecord, folders: tuple[Path, ...]) -> None:
        """A stage begins, or begins again; its files are in the first of `folders` that exists."""
        self._begun.add(stage.name)
        config = self.configs[stage.name]
        inputs = [self._record.stages[need] for need in stage.needs]
        self._write(
            "stage",
            stage=asdict(stage),
            pipeline=self._record.pipeline,
            git_commit=self._record.git_commit,
            config=masked_values(config["all"]),
            settings=masked_values(config["set"]),
            folders=[str(folder) for folder in folders],
            data=[str(path) for path in _manifests(inputs, config["all"].get("benchmark"))],
            inputs={need.name: need.digest or "" for need in inputs},
        )

    def events(self, stage: str, events: Events) -> None:
        """A stage wrote something into its event file."""
        link = self._link(stage, events.file)
        if link:
            self._write("events", stage=stage, file=link, start=events.start, end=events.end)
            return
        for event in events.all:
            self.event(stage, event)

    def _link(self, stage: str, file: Path) -> str | None:
        """Return the spool's name of an event file; None where it cannot have one."""
        try:
            key = stage, file.stat().st_ino
        except FileNotFoundError:
            return None  # the commit is renaming the folder
        if key not in self._links:
            name = f"events-{len(self._links)}.jsonl"
            if not self._spool.link(file, name):
                return None
            self._links[key] = name
        return self._links[key]

    def event(self, stage: str, event: Event) -> None:
        """An event that is in no event file: of a sweep, whose stages are trials."""
        if event["kind"] in TRACKED:
            self._write("event", stage=stage, event=event)

    def stage_ended(self, stage: StageRecord, source: tuple[str, str] | None = None) -> None:
        """A stage ended, or is reused; `source` is the run and the stage that made a reused output."""
        if stage.name not in self._begun and stage.folder:
            self.stage_started(stage, (Path(stage.folder),))  # a reused stage begins and ends here
        self._write(
            "stage_end",
            stage=stage.name,
            status=stage.status,
            folder=stage.folder,
            error=stage.error,
            source=source,
        )

    def run_ended(self, record: RunRecord) -> None:
        """The run ended; nothing comes after it."""
        self._closing.set()
        reused = all(stage.status in ("cached", "skipped") for stage in record.stages.values())
        self._write("run_end", status=record.status, reused=reused)

    def deliver(self) -> None:
        """Wait until all is sent, and record what could not be sent."""
        self._last_answer = time.monotonic()
        local = self._uri.startswith("sqlite:")
        while not self._done.wait(0.05):
            grace = _GRACE_SECONDS if self._away and not local else _BUSY_SECONDS
            sender = self._sender
            answered = max(self._last_answer, sender.last_answer if sender else 0.0)
            if time.monotonic() - answered > grace:
                break
        self._give_up.set()
        remember(self._record, self._spool.sent().runs)
        faults = list(dict.fromkeys(self._rejected))
        waiting = self._spool.waiting
        if waiting:
            why = self._refused or self._away or "it does not answer"
            later = "`tats sync` sends them, and so does the next run"
            if self._refused:
                later = f"once that is mended, {later}"
            where = self._record.tracking_uri
            faults.append(f"{waiting} entries could not be sent to {where} ({why}) and wait on disk; {later}")
        self._record.tracking_error = "; ".join(faults) or None

    def _write(self, kind: str, **fields: object) -> None:
        with self._writing:
            if kind == "system" and self._closing.is_set():
                return  # nothing is sent after the end of the run
            self._spool.append({"time": time.time(), "kind": kind, **fields})

    # --- the threads ---------------------------------------------------------------------------------

    def _send(self) -> None:
        try:
            while not self._give_up.is_set():
                with self._spool.alone() as acquired:
                    if acquired:
                        self._send_until_ended()
                        return
                # A `tats sync`, or another run, is sending this journal.
                self._give_up.wait(_POLL_SECONDS)
        except RefusedError as error:
            self._refused = masked(str(error))
        except Exception as error:  # a fault of tracking must not end hours of training
            self._away = first_line(error)
            logging.getLogger(__name__).debug("tracking ended", exc_info=True)
        finally:
            self._done.set()

    def _send_until_ended(self) -> None:
        sender: Sender | None = None
        wait = _FIRST_WAIT
        left_over = True
        while not self._give_up.is_set():
            try:
                if sender is None:
                    sender = Sender(self._spool, self._uri, self._rejected.append)
                    self._sender = sender
                sender.send()
                self._last_answer, self._away, wait = time.monotonic(), "", _FIRST_WAIT
                remember(self._record, sender.sent.runs)
            except AwayError as error:
                # How much of the last batch arrived is not known: a new sender asks.
                sender, self._away = None, str(error)
                self._give_up.wait(min(wait, _LONGEST_WAIT))
                wait *= 2
                continue
            if left_over:
                left_over = False
                sync(self._home, but=self._record.id)
            if sender.sent.ended:
                return
            self._closing.wait(_POLL_SECONDS)

    def _watch_system(self) -> None:
        """Log system metrics under MLflow's own names, every ten seconds."""
        import psutil

        psutil.cpu_percent()  # the first call has nothing to compare with
        step = 0
        while not self._closing.wait(_SYSTEM_SECONDS if step else 1.0):
            memory = psutil.virtual_memory()
            try:
                disk = psutil.disk_usage(str(self._home))
            except OSError:
                return  # the project folder is gone: the run itself ends over it
            values = {
                "system/cpu_utilization_percentage": psutil.cpu_percent(),
                "system/system_memory_usage_megabytes": memory.used / 1e6,
                "system/system_memory_usage_percentage": memory.percent,
                "system/disk_available_megabytes": disk.free / 1e6,
                "system/disk_usage_percentage": disk.percent,
            }
            self._write("system", values=values, step=step)
            step += 1


def _manifests(inputs: Iterable[StageRecord], benchmark: str | None) -> list[Path]:
    """Return the manifests of the videos that a stage reads from its `inputs`."""
    return [
        path
        for need in inputs
        if need.kind == "data" and need.folder
        for path in sorted(Path(need.folder).glob("*.json"))
        if path.name.endswith((".train.json", ".test.json"))
        and (benchmark is None or path.name.startswith(f"{benchmark}."))
    ]


def sync(
    home: Path, *, but: str | None = None, log: Callable[[str], None] = lambda text: None
) -> list[Exception]:
    """Send what earlier runs left, the oldest first; return the error of each run that could not be sent.

    Args:
        but: a run that sends its own journal.
        log: takes a sentence about each run that was sent or cannot be sent, and each refused entry.
    """
    errors: list[Exception] = []
    home = home.absolute()
    for spool in pending(home):
        if spool.run == but:
            continue
        with spool.alone() as acquired:
            if not acquired:
                continue  # its own process, or another `tats sync`, is sending it
            try:
                _send_left(spool, log)
            except Exception as error:  # noqa: BLE001 (whatever is wrong with a run, the others are still sent)
                errors.append(error)
                log(f"{spool.run}: {masked(str(error))}")
    return errors


def _send_left(spool: Spool, log: Callable[[str], None]) -> None:
    record = RunRecord.load(spool.home / "runs" / spool.run)
    alive = record.is_alive()
    here = tracking_uri(spool.home)
    # A record has no password; the environment has it, where it names the same server.
    uri = here if record.tracking_uri in (None, masked(here)) else str(record.tracking_uri)
    sender = Sender(spool, uri, log)
    sender.send()
    sender.flush()
    if not sender.sent.ended:
        if alive:
            return
        sender.end_killed()
    remember(record, sender.sent.runs)
    record.tracking_error = None
    record.save()
    log(f"{spool.run}: sent")

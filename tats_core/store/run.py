"""A pipeline run on disk: its record, which the engine writes, and the reader of everything in it.

The record is `TATS_HOME/runs/<run id>/run.json`, replaced whole at every change, so that a reader (or the
next run after a power cut) never sees half of it. `Run.open(folder)` reads a run: its record, the
configurations, the environment, the table of results and, of each stage, what its output holds.
"""

from __future__ import annotations

import fcntl
import os
import platform
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NotRequired, TypeVar

from pydantic import ConfigDict, JsonValue
from typing_extensions import TypedDict

from tats_core.errors import StoreError
from tats_core.files import read_json, read_json_if_there, write_json
from tats_core.store.layout import CONFIG, ENVIRONMENT, EVENTS, KEY, MANIFEST, RESULT, RESULTS, RUN
from tats_core.store.outputs import Manifest, Origin, StageStore
from tats_core.training.events import Event, read_events

StageStatus = Literal["waiting", "running", "finished", "cached", "failed", "stopped", "skipped"]
RunStatus = Literal["running", "finished", "failed", "stopped"]
RunState = Literal["running", "waiting", "finished", "failed", "stopped", "lost"]
Form = TypeVar("Form")

SCHEMA = 1

# Beside `run.json`: the file that the run's process locks and touches, and the two that ask it to stop.
_ALIVE, _PLEASE_STOP, _STOP_NOW = "alive.lock", "please-stop", "stop-now"
_BEAT = 10.0  # seconds between two touches
_SILENT = 45.0  # seconds after which a run that does not touch the file is lost


@dataclass
class StageRecord:
    """One stage of one run. Times are seconds since the epoch; `seconds` is this run's share of the work."""

    name: str
    stage: str
    kind: str
    axes: dict[str, str]
    needs: list[str]
    status: StageStatus = "waiting"
    reason: str = ""
    key: str | None = None
    folder: str | None = None
    attempts: int = 0
    started: float | None = None
    finished: float | None = None
    seconds: float = 0.0
    error: str | None = None
    tracking_run: str | None = None
    digest: str | None = None
    """The output's, when this run made or reused it."""
    said_from: int = 0
    """Bytes of the stage's event file that earlier runs had written when this run began to work on it."""
    said_to: int | None = None
    """Where this run's events end in that file; None while the stage runs, or where it did no work."""

    @property
    def done(self) -> bool:
        """True where the stage's output can be used."""
        return self.status in ("finished", "cached")


class StageConfig(TypedDict):
    """A stage's configuration: all of it, and the keys that the pipeline sets."""

    all: dict[str, Any]
    set: dict[str, Any]


@dataclass
class RunRecord:
    """One run of one pipeline. `status` is "failed" if any stage failed, "stopped" after Ctrl-C."""

    id: str
    pipeline: str
    title: str
    source: str
    home: str
    status: RunStatus
    started: float
    stages: dict[str, StageRecord]
    finished: float | None = None
    overrides: list[str] = field(default_factory=list)
    only: list[str] = field(default_factory=list)
    error: str | None = None
    refused: bool = False
    """Whether it failed over what it was given (videos, weights, a configuration) and nothing else."""
    git_commit: str | None = None
    tracking_uri: str | None = None
    tracking_run: str | None = None
    tracking_error: str | None = None
    pid: int = 0
    schema: int = SCHEMA

    @property
    def folder(self) -> Path:
        """The folder of this record."""
        return Path(self.home) / "runs" / self.id

    @property
    def complete(self) -> bool:
        """True where the run finished with all its stages."""
        return self.status == "finished" and all(stage.done for stage in self.stages.values())

    @property
    def state(self) -> RunState:
        """`status`, but of a run that the record calls "running": "waiting" while no stage is at work, "lost"
        where no process runs it, or none has shown a sign of life for most of a minute.
        """
        if self.status != "running":
            return self.status
        if self.is_alive() and self._is_heard():
            at_work = any(stage.status == "running" for stage in self.stages.values())
            return "running" if at_work else "waiting"
        # The run may have ended after this record was read.
        status = RunRecord.load(self.folder).status
        return "lost" if status == "running" else status

    @property
    def is_under_way(self) -> bool:
        """True where a process runs it, as far as can be seen."""
        return self.state in ("running", "waiting")

    def is_alive(self) -> bool:
        """Return whether a process may run this run, on any machine that shares the project folder."""
        try:
            with (self.folder / _ALIVE).open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                machine = file.read()
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return False
        # Some network storage shows the locks of other machines to nobody.
        return machine != platform.node() and self._is_heard()

    def _is_heard(self) -> bool:
        try:
            return time.time() - (self.folder / _ALIVE).stat().st_mtime < _SILENT
        except FileNotFoundError:
            return False

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Hold the run's lock, which the kernel releases when this process ends, and show signs of life."""
        self.folder.mkdir(parents=True, exist_ok=True)
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(_BEAT):
                with suppress(OSError):  # the next write of the record reports it
                    os.utime(path)

        path = self.folder / _ALIVE
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(platform.node())
            file.flush()
            beating = threading.Thread(target=beat, name="signs of life", daemon=True)
            beating.start()
            try:
                yield
            finally:
                ended.set()
                beating.join(_BEAT)
                with suppress(OSError):
                    os.utime(path, (0, 0))  # also where locks are not seen, it has ended now

    def ask_to_stop(self, *, now: bool = False) -> None:
        """Ask the run's process to stop at the next checkpoints (Ctrl-C once), or `now` (twice)."""
        path = self.folder / (_STOP_NOW if now else _PLEASE_STOP)
        try:
            path.touch()
        except OSError as error:
            raise StoreError(f"{path}: cannot be written ({error.strerror})") from error

    def asked_to_stop(self) -> Literal["stop", "now"] | None:
        """Return how `ask_to_stop` was called, or None if it was not."""
        if (self.folder / _STOP_NOW).exists():
            return "now"
        return "stop" if (self.folder / _PLEASE_STOP).exists() else None

    def outputs(self, kind: str) -> list[Path]:
        """Return the output folders of the finished or reused stages of `kind`, in plan order."""
        return [
            Path(stage.folder)
            for stage in self.stages.values()
            if stage.kind == kind and stage.done and stage.folder
        ]

    def save_configs(self, configs: Mapping[str, StageConfig]) -> None:
        """Write the stages' configurations, by stage."""
        write_json(self.folder / CONFIG, configs)

    def save(self) -> None:
        """Write `run.json` whole."""
        write_json(self.folder / RUN, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> RunRecord:
        """Read the record in `folder`.

        Raises:
            StoreError: it does not exist, or is not the record of a run.
        """
        return read_json(folder / RUN, cls, "the record of a run")


# --- the reader ------------------------------------------------------------------------------------------

Row = dict[str, JsonValue]
"""Metric, or name of an axis → value."""

Points = dict[int, float]
"""A curve: step → value."""


class Source(TypedDict):
    """Where a number of the table comes from: a stage, and a file in its output."""

    stage: str
    file: str


class Results(TypedDict):
    """The `results.json` of a report stage; other keys are passed on as they are.

    `sources` is parallel to `rows`, `policy_sources` to `policies`; runs of older versions have neither.
    """

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    pipeline: NotRequired[str]
    rows: list[Row]
    policy: NotRequired[Row]
    policies: NotRequired[list[Row]]
    sources: NotRequired[list[dict[str, Source]]]
    policy_sources: NotRequired[list[dict[str, Source]]]


@dataclass(frozen=True)
class WrittenFile:
    """A picture or table that a stage wrote at a step; `key` names its subject, the same at every step."""

    step: int
    key: str
    path: Path


class Stage:
    """One stage of a run with what its folder holds; each file is read when it is asked for, and once.

    What does not exist is None or empty; a corrupt file is a StoreError.
    """

    def __init__(self, record: StageRecord, store: StageStore) -> None:
        self.record = record
        self.store = store

    @property
    def folder(self) -> Path | None:
        """Its output, or its work folder while it is at work; None before it has begun. It may be gone."""
        if self.record.done and self.record.folder:
            return Path(self.record.folder)
        if self.record.key is None:
            return None
        return self.store.current(self.store.folder(self.record.kind, self.record.key))

    @cached_property
    def manifest(self) -> Manifest | None:
        """The files of its output, with their digests."""
        return self._read(MANIFEST, Manifest, "the manifest of an output")

    @cached_property
    def origin(self) -> Origin | None:
        """The run that made its output, and the key that it has."""
        return self._read(KEY, Origin, "the key of an output")

    @cached_property
    def result(self) -> Row | None:
        """The metrics that it measured, with their labels (`result.json`)."""
        return self._read(RESULT, Row, "the result of a stage")

    @property
    def digest(self) -> str | None:
        """The digest of its output as this run left it, or as it is now where the run did not record it."""
        if self.record.digest is not None:
            return self.record.digest
        return self.manifest.digest if self.record.done and self.manifest else None

    @cached_property
    def curves(self) -> dict[str, Points]:
        """Metric → curve over the optimiser steps; a repeated step has its later value."""
        curves: dict[str, Points] = {}
        for event in self._of("metrics"):
            for metric, value in event["values"].items():
                curves.setdefault(metric, {})[event["step"]] = value
        return curves

    @cached_property
    def files(self) -> list[WrittenFile]:
        """The pictures and tables in its folder, in the order in which it wrote them."""
        folder, events = self.folder or Path(), self._of("file")
        return [WrittenFile(event["step"], event["key"], folder / event["path"]) for event in events]

    @property
    def params(self) -> dict[str, Any]:
        """What its configuration came down to: global batch, learning rate, workers, device."""
        return {key: value for event in self._of("params") for key, value in event["values"].items()}

    @property
    def notes(self) -> list[str]:
        """Its sentences for the person who runs it."""
        return [event["text"] for event in self._of("note")]

    def _of(self, kind: str) -> list[Event]:
        return [event for event in self._events if event["kind"] == kind]

    @cached_property
    def _events(self) -> list[Event]:
        return [] if self.folder is None else [event for _, event in read_events(self.folder / EVENTS)]

    def _read(self, name: str, form: type[Form], what: str) -> Form | None:
        return None if self.folder is None else read_json_if_there(self.folder / name, form, what)


class Run:
    """Everything that is on disk of one run. Its record is as it was when it was opened."""

    def __init__(self, record: RunRecord) -> None:
        self.record = record
        store = StageStore(Path(record.home))
        self.stages = {name: Stage(stage, store) for name, stage in record.stages.items()}

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Read the record in `folder`; everything else is read when it is asked for.

        Raises:
            StoreError: there is no record, or it is corrupt.
        """
        return cls(RunRecord.load(folder))

    def done(self, kind: str) -> list[Stage]:
        """Return the stages of `kind` that finished or were reused, in plan order."""
        return [stage for stage in self.stages.values() if stage.record.kind == kind and stage.record.done]

    @cached_property
    def configs(self) -> dict[str, StageConfig]:
        """Stage → its configuration; empty of a run from before they were saved.

        Raises:
            StoreError: they cannot be read.
        """
        path = self.record.folder / CONFIG
        form = dict[str, StageConfig]
        return read_json_if_there(path, form, "the configurations of a run's stages") or {}

    @cached_property
    def environment(self) -> dict[str, str]:
        """Versions, machine and command, by name; empty of a run from before they were saved."""
        path = self.record.folder / ENVIRONMENT
        return read_json_if_there(path, dict[str, str], "the environment of a run") or {}

    @cached_property
    def results(self) -> Results | None:
        """The final table, as the last report stage wrote it; None if no report stage is done.

        Raises:
            StoreError: the report stage is done, and its table cannot be read.
        """
        reports = self.done("report")
        if not reports:
            return None
        path = Path(str(reports[-1].record.folder)) / RESULTS
        try:
            return read_json(path, Results, "a table of results")
        except StoreError as error:
            raise StoreError(f"{error}; run the pipeline again") from error

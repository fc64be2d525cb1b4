"""What is known about one pipeline run: the plan before it, and the record kept while it goes on.

The record is `TATS_HOME/runs/<run id>/run.json`, replaced whole at every change, so that a reader (or
the next run after a power cut) never sees half of one.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

from tats_core.errors import StoreError
from tats_core.files import write_json

StageStatus = Literal["waiting", "running", "finished", "cached", "failed", "stopped", "skipped"]
RunStatus = Literal["running", "finished", "failed", "stopped"]
RunState = Literal["running", "finished", "failed", "stopped", "died"]

SCHEMA = 1

# Beside `run.json`: what its process holds locked, what asks it to stop, and the configurations.
_ALIVE, _PLEASE_STOP, _STOP_NOW, _CONFIG = "alive.lock", "please-stop", "stop-now", "config.json"


@dataclass
class StageRecord:
    """One stage of one run. Times are seconds since the epoch; `seconds` is this run's share of work."""

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
    """Of its output, as this run left or found it."""
    said_from: int = 0
    """Bytes of the stage's event file that earlier runs had written when this one began to work on it."""
    said_to: int | None = None
    """And where its own events end; None while they do not, or where it did no work."""

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
    def state(self) -> RunState:
        """`status`, or "died" where the record says "running" and no process is left that runs it."""
        if self.status != "running" or self.is_alive():
            return self.status
        # It may have ended between the reading of this record and the look at its lock.
        status = RunRecord.load(self.folder).status
        return "died" if status == "running" else status

    def is_alive(self) -> bool:
        """Say whether a process runs this run now, on whatever machine that shares the project folder."""
        try:
            with (self.folder / _ALIVE).open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return False
        return False

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Be alive: the kernel ends it with this process, however that ends."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / _ALIVE).open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def ask_to_stop(self, *, now: bool = False) -> None:
        """Ask whoever runs this run to stop at the next checkpoints, or `now`: as Ctrl-C once and twice."""
        path = self.folder / (_STOP_NOW if now else _PLEASE_STOP)
        try:
            path.touch()
        except OSError as error:
            raise StoreError(f"{path}: cannot be written ({error.strerror})") from error

    def asked_to_stop(self) -> Literal["stop", "now"] | None:
        """Say what `ask_to_stop` left."""
        if (self.folder / _STOP_NOW).exists():
            return "now"
        return "stop" if (self.folder / _PLEASE_STOP).exists() else None

    def outputs(self, kind: str) -> list[Path]:
        """Return the output folders of the finished or reused stages of `kind`, in plan order."""
        return [
            Path(one.folder) for one in self.stages.values() if one.kind == kind and one.done and one.folder
        ]

    def save_configs(self, configs: Mapping[str, StageConfig]) -> None:
        """Write the stages' configurations, by stage."""
        write_json(self.folder / _CONFIG, configs)

    @property
    def has_configs(self) -> bool:
        """False of a run from before configurations were kept beside the record."""
        return (self.folder / _CONFIG).exists()

    def configs(self) -> dict[str, StageConfig]:
        """Return the stages' configurations, by stage.

        Raises:
            StoreError: they are not there, or cannot be understood.
        """
        path = self.folder / _CONFIG
        try:
            found: dict[str, StageConfig] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StoreError(f"{path}: the run's configurations cannot be read ({error})") from error
        return found

    def save(self) -> None:
        """Write `run.json` whole."""
        write_json(self.folder / "run.json", asdict(self))

    @classmethod
    def load(cls, folder: Path) -> RunRecord:
        """Read the record kept in `folder`.

        Raises:
            StoreError: it is not there, or cannot be understood.
        """
        path = folder / "run.json"
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            raw["stages"] = {name: StageRecord(**one) for name, one in raw["stages"].items()}
            return cls(**raw)
        except OSError as error:
            raise StoreError(f"{path}: cannot be read ({error.strerror})") from error
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path}: is not the record of a run ({error})") from error

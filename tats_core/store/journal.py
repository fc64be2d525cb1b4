"""What is to be told about a run, on disk, until it was told.

``runs/<run id>/tracking/`` holds ``journal.jsonl`` (one operation a line, only appended to), ``sent.json``
(how far it was told, and under which ids of MLflow) and ``rejected.jsonl`` (what the server will never take).
A file of the run's name in ``.to-send/`` of the project folder marks a run of which something is left.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tats_core.files import write_json
from tats_core.store.run import RunRecord
from tats_core.training.events import read_events

_TO_SEND = ".to-send"


@dataclass
class Sent:
    """How far a journal was told."""

    offset: int = 0
    """Bytes of the journal."""
    runs: dict[str, str] = field(default_factory=dict)
    """Stage → id of its MLflow run; "" is the pipeline's own."""
    ended: bool = False
    failures: int = 0
    """How often the next operation failed while the server did answer other questions."""


class Spool:
    """The journal of one run and how far it was told."""

    def __init__(self, home: Path, run: str) -> None:
        self.home, self.run = home, run
        self.folder = home / "runs" / run / "tracking"
        self.journal = self.folder / "journal.jsonl"
        self._mark = home / _TO_SEND / run

    def begin(self) -> None:
        """Make the folder, and leave word that something is to be sent."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._mark.parent.mkdir(parents=True, exist_ok=True)
        self._mark.touch()
        sent = self.sent()
        if sent.ended:  # a sweep that is gone on with has more to tell
            sent.ended = False
            self.save(sent)

    def append(self, operation: Mapping[str, Any]) -> None:
        """Write one operation down. A line is one write: no reader sees half of one."""
        with self.journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps(operation) + "\n")

    def read(self, offset: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield `(offset after it, operation)` for each one from byte `offset` on."""
        return read_events(self.journal, offset)

    @property
    def waiting(self) -> int:
        """Operations that were not told yet."""
        return sum(1 for _ in self.read(self.sent().offset))

    def sent(self) -> Sent:
        """Return how far it was told."""
        path = self.folder / "sent.json"
        return Sent(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else Sent()

    def save(self, sent: Sent) -> None:
        """Write down how far it was told; once all was, nothing is left to send."""
        write_json(self.folder / "sent.json", vars(sent))
        if sent.ended:
            self._mark.unlink(missing_ok=True)

    def reject(self, operation: Mapping[str, Any], reason: str) -> None:
        """Keep what the server will never take."""
        with (self.folder / "rejected.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"reason": reason, "operation": operation}) + "\n")

    def record(self) -> RunRecord:
        """Return the record of the run."""
        return RunRecord.load(self.home / "runs" / self.run)

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Hold the right to send; yields False where another process sends."""
        with (self.folder / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True


def pending(home: Path) -> list[Spool]:
    """Return the spools of which something is left to send, the oldest first."""
    marks = home / _TO_SEND
    names = [path.name for path in marks.iterdir()] if marks.is_dir() else []
    spools = [Spool(home, name) for name in sorted(names, key=lambda name: name.split("-")[-3:])]
    return [spool for spool in spools if spool.journal.exists()]

"""The journal of a run: what is to be sent to MLflow, on disk until it is sent.

``runs/<run id>/tracking/`` holds ``journal.jsonl`` (one operation a line, only appended to), ``sent.json``
(how far it was sent, and under which ids of MLflow) and ``rejected.jsonl`` (what the server refused for
good). A file of the run's name in ``.to-send/`` of the project folder marks a run that is not completely
sent.

A stage's events are not copied: ``events-<n>.jsonl`` is a hard link to its event file, and the journal
records up to which byte they are this run's, since a later run that resumes the stage appends to the file.
The link outlives the commit, which moves the stage's folder, and `--force` and `tats gc`, which remove it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tats_core.files import append_line, read_json_if_there, write_json
from tats_core.training.events import read_events

Operation = dict[str, Any]
"""`kind`, `time` and what the kind needs (see `tracking.tracker`)."""

TRACKED = ("metrics", "params", "file")
"""The kinds of events that are sent."""

_TO_SEND = ".to-send"


Cursor = tuple[int, int]
"""A position in a journal: bytes of it, and of the event file of the operation that comes next."""


@dataclass
class Sent:
    """How far a journal was sent."""

    offset: int = 0
    events: int = 0
    runs: dict[str, str] = field(default_factory=dict)
    """Stage → id of its MLflow run; "" is the pipeline's own."""
    ended: bool = False
    failures: int = 0
    """How often the next operation failed although the server answered other requests."""

    @property
    def cursor(self) -> Cursor:
        """The position up to which all was sent."""
        return self.offset, self.events


class Spool:
    """The journal of one run and how far it was sent."""

    def __init__(self, home: Path, run: str) -> None:
        self.home, self.run = home, run
        self.folder = home / "runs" / run / "tracking"
        self.journal = self.folder / "journal.jsonl"
        self._mark = home / _TO_SEND / run

    def begin(self) -> None:
        """Create the folder, and mark the run as not sent."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._mark.parent.mkdir(parents=True, exist_ok=True)
        self._mark.touch()
        sent = self.sent()
        if sent.ended:  # a sweep that is resumed has more to send
            sent.ended = False
            self.save(sent)

    def append(self, operation: Mapping[str, object]) -> None:
        """Write one operation. A line is one write: no reader sees half of one."""
        append_line(self.journal, operation)

    def link(self, events: Path, name: str) -> bool:
        """Make an event file available as `name`; False where the file system has no such links."""
        try:
            os.link(events, self.folder / name)
        except OSError:
            return False
        return True

    def read(self, start: Cursor = (0, 0)) -> Iterator[tuple[Cursor, Operation]]:
        """Yield `(position after it, operation)` from `start` on; each event is an operation."""
        before, sent = start
        for offset, operation in read_events(self.journal, before):
            if operation["kind"] == "events":
                first = max(operation["start"], sent)
                for end, event in read_events(self.folder / operation["file"], first):
                    if end > operation["end"]:
                        break
                    if event["kind"] in TRACKED:
                        yield (before, end), {"kind": "event", "stage": operation["stage"], "event": event}
            else:
                yield (offset, 0), operation
            before, sent = offset, 0

    def stages(self) -> dict[str, Operation]:
        """Return the newest operation that starts each stage, by stage."""
        lines = (line for _, line in read_events(self.journal))
        return {line["stage"]["name"]: line for line in lines if line["kind"] == "stage"}

    @property
    def waiting(self) -> int:
        """How many operations were not sent yet."""
        return sum(1 for _ in self.read(self.sent().cursor))

    def sent(self) -> Sent:
        """Return how far it was sent."""
        return read_json_if_there(self.folder / "sent.json", Sent, "how far a run was sent") or Sent()

    def save(self, sent: Sent) -> None:
        """Write how far it was sent, and remove the mark once all is."""
        write_json(self.folder / "sent.json", vars(sent))
        if sent.ended:
            self._mark.unlink(missing_ok=True)

    def reject(self, operation: Mapping[str, object], reason: str) -> None:
        """Record an operation that the server refused for good."""
        append_line(self.folder / "rejected.jsonl", {"reason": reason, "operation": operation})

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
    """Return the spools that are not sent completely, the oldest first."""
    marks = home / _TO_SEND
    names = [path.name for path in marks.iterdir()] if marks.is_dir() else []
    spools = [Spool(home, name) for name in sorted(names, key=lambda name: name.split("-")[-3:])]
    return [spool for spool in spools if spool.journal.exists()]

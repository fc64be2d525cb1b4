"""What a running stage logs: one append-only JSON-lines file.

A worker never talks to a tracking server. Rank 0 appends events here; the driver reads them, shows progress
and sends them, in order and once, so a slow or dead server cannot slow or stop training.

One event a line::

    {"time": 1732..., "kind": "metrics",  "step": 120, "values": {"loss": 0.52, ...}}
    {"time": 1732..., "kind": "progress", "step": 120, "steps": 900, "epoch": 3, "epochs": 20, "shown": {...}}
    {"time": 1732..., "kind": "file",     "step": 120, "key": "masks", "path": "pictures/masks-000120.png"}
    {"time": 1732..., "kind": "note",     "text": "skipped 1 video that cannot be read: ..."}
    {"time": 1732..., "kind": "params",   "values": {"global_batch": 64, ...}}
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from tats_core.files import append_line

Event = dict[str, Any]
"""One line of an event file."""


@dataclass(frozen=True)
class Events:
    """What was appended to a stage's event file: complete lines from byte `start` to byte `end` of `file`."""

    file: Path
    start: int
    end: int
    all: tuple[Event, ...]
    new: tuple[Event, ...]
    """Those of this run; earlier runs of an unfinished stage wrote the others."""


class EventLog:
    """Appends events to `path`; with `path=None` (every rank but 0) it drops them.

    Each event is one `write` of a complete line, flushed, so a reader never sees half of one unless the
    machine died; the next log removes such a line.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            cut_torn_line(path)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record scalars at `step` (optimiser steps of the MAE or classifier, from 1)."""
        self._write("metrics", step=step, values=_finite(values))

    def progress(self, *, step: int, steps: int, epoch: int, epochs: int, shown: Mapping[str, float]) -> None:
        """Record how far the stage is; `shown` holds the few numbers that the terminal shows."""
        self._write("progress", step=step, steps=steps, epoch=epoch, epochs=epochs, shown=_finite(shown))

    def file(self, step: int, key: str, path: str) -> None:
        """Record a picture or table written at `path`, relative to the stage's folder."""
        self._write("file", step=step, key=key, path=path)

    def note(self, text: str) -> None:
        """Record a sentence for the person who runs the stage."""
        self._write("note", text=text)

    def params(self, values: Mapping[str, str | int | float | bool]) -> None:
        """Record what follows from the configuration (effective batch, learning rate, K of N)."""
        self._write("params", values=dict(values))

    def _write(self, kind: str, **fields: object) -> None:
        if self.path is not None:
            append_line(self.path, {"time": time.time(), "kind": kind, **fields})


def cut_torn_line(path: Path) -> None:
    """Remove an incomplete last line: with another event appended to it, it would not be JSON."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        content = file.read()
        if not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    # JSON has no NaN; in a curve, a gap shows the same.
    return {key: float(value) for key, value in values.items() if math.isfinite(value)}


def read_events(path: Path, offset: int = 0) -> Iterator[tuple[int, Event]]:
    """Yield `(offset after the event, event)` for each complete line of `path` from byte `offset` on.

    In place of a line that is no event (a disk was full, or a program wrote it) comes a note that says so.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            text = f"{path.name}: the line that ends at byte {offset} is damaged and is passed over"
            yield offset, _event(line) or {"kind": "note", "time": path.stat().st_mtime, "text": text}


def _event(line: bytes) -> Event | None:
    """Return the event in `line`, or None if it is none."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or not isinstance(event.get("kind"), str):
        return None
    kind = event["kind"]
    if kind not in _FIELDS:
        return event
    if not all(isinstance(event.get(name), form) for name, form in _FIELDS[kind].items()):
        return None
    curves = event[_CURVES[kind]] if kind in _CURVES else {}
    numbers = [event.get("time"), *curves.values()]
    path = PurePath(event["path"] if kind == "file" else "")
    is_valid = all(isinstance(number, int | float) for number in numbers) and not path.is_absolute()
    return event if is_valid and ".." not in path.parts else None


_FIELDS: dict[str, dict[str, type]] = {
    "metrics": {"step": int, "values": dict},
    "progress": {"step": int, "steps": int, "epoch": int, "epochs": int, "shown": dict},
    "file": {"step": int, "key": str, "path": str},
    "note": {"text": str},
    "params": {"values": dict},
}
"""Kind → what its fields are; other kinds are those of other files."""

_CURVES = {"metrics": "values", "progress": "shown"}
"""Kind → the field that holds numbers by their names."""

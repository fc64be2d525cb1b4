"""What the stages of a run say while they work and afterwards: their events, and what they print."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tats_core.errors import StoreError
from tats_core.store.outputs import StageStore
from tats_core.store.run import RunRecord, StageRecord
from tats_core.training.events import read_events

_TAIL_BYTES = 1 << 18  # enough for dozens of progress events, and read in no time


@dataclass(frozen=True)
class Said:
    """An event of a stage, or a line that something in it printed: `source` is "worker 0", "command", …"""

    stage: str
    event: dict[str, Any] | None = None
    source: str = ""
    line: str = ""


def folder(record: RunRecord, stage: StageRecord) -> Path | None:
    """Return where the stage's files are now; None where it has not begun."""
    if stage.done and stage.folder:
        return Path(stage.folder)
    if stage.key is None:
        return None
    store = StageStore(Path(record.home))
    return store.current(store.folder(stage.kind, stage.key))


@dataclass
class StageVoice:
    """Reads on where it stopped, through retries and the renaming at the commit.

    Of a stage that the run worked on itself, what other runs said is left out: by its place in the file,
    since the clocks of driver and workers may differ.
    """

    name: str
    worker: int | None = None
    """Only what this worker prints; None: everything."""
    _offsets: dict[str, int] = field(default_factory=dict)

    def read(self, record: RunRecord) -> Iterator[Said]:
        """Yield what is new; `record` is the run's, as it is now."""
        stage = record.stages[self.name]
        place = folder(record, stage)
        if place is None or (stage.status == "finished" and _is_anothers(record, place)):
            return
        if self.worker is None:
            yield from self._events(place / "events.jsonl", stage)
        for path in sorted((place / "log").glob("*")):
            source = _source(path.name)
            if source and (self.worker is None or source == f"worker {self.worker}"):
                for line in self._lines(path, growing=stage.status == "running"):
                    yield Said(self.name, source=source, line=line)

    def _events(self, path: Path, stage: StageRecord) -> Iterator[Said]:
        try:
            for offset, event in read_events(path, max(self._offset(path), stage.said_from)):
                if stage.said_to is not None and offset > stage.said_to:
                    return
                self._offsets[path.name] = offset
                yield Said(self.name, event)
        except FileNotFoundError:
            return  # the commit renamed the folder just now; the next look finds it

    def _lines(self, path: Path, *, growing: bool) -> Iterator[str]:
        try:
            with path.open("rb") as file:
                file.seek(self._offset(path))
                for line in file:
                    if growing and not line.endswith(b"\n"):
                        return  # the rest of it comes
                    self._offsets[path.name] = self._offsets.get(path.name, 0) + len(line)
                    yield line.decode(errors="replace").rstrip()
        except FileNotFoundError:
            return

    def _offset(self, path: Path) -> int:
        offset = self._offsets.get(path.name, 0)
        if offset and path.stat().st_size < offset:  # a forced attempt began anew
            offset = self._offsets[path.name] = 0
        return offset


def workers(record: RunRecord, name: str) -> list[int]:
    """Return the numbers of the workers that printed something in this stage."""
    place = folder(record, record.stages[name])
    paths = place.glob("log/worker-*.log") if place else ()
    return sorted(int(path.stem.removeprefix("worker-")) for path in paths)


def recent_progress(record: RunRecord, stage: StageRecord) -> list[dict[str, Any]]:
    """Return the newest progress events of a running stage, oldest first; reads the end of the file only."""
    place = folder(record, stage)
    if place is None:
        return []
    try:
        with (place / "events.jsonl").open("rb") as file:
            size = file.seek(0, 2)
            start = file.seek(max(stage.said_from, size - _TAIL_BYTES))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return []
    whole = lines[1:-1] if start > stage.said_from else lines[:-1]
    events = (json.loads(line) for line in whole if b'"progress"' in line)
    return [event for event in events if event["kind"] == "progress"]


def _is_anothers(record: RunRecord, output: Path) -> bool:
    """Say whether another run has made the output again since, and its events with it."""
    try:
        return StageStore(Path(record.home)).origin(output).run != record.id
    except StoreError:
        return False


def _source(file: str) -> str | None:
    if file.startswith("worker-") and file.endswith(".log"):
        return "worker " + file[len("worker-") : -len(".log")]
    return {"command.log": "command", "traceback.txt": "traceback"}.get(file)

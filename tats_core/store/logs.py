"""The log of a run's stages, while they work and afterwards: their events, and what they print."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tats_core.store.layout import EVENTS
from tats_core.store.run import Run, Stage
from tats_core.training.events import Event, read_events

_TAIL_BYTES = 1 << 18  # enough for dozens of progress events, and read at once


@dataclass(frozen=True)
class LogEntry:
    """An event of a stage, or a line that a process printed: `source` is "worker 0", "command", …"""

    stage: str
    event: Event | None = None
    source: str = ""
    line: str = ""


@dataclass
class StageLog:
    """Reads what is new in a stage's log, across retries and the renaming at the commit.

    Events that other runs wrote for the same stage are left out, by their offsets in the file: the clocks of
    driver and workers may differ.
    """

    name: str
    worker: int | None = None
    """Only what this worker prints; None: everything."""
    _offsets: dict[str, int] = field(default_factory=dict)

    def read(self, run: Run) -> Iterator[LogEntry]:
        """Yield what is new; `run` was opened just now."""
        stage = run.stages[self.name]
        folder, record = stage.folder, stage.record
        if folder is None:
            return
        if record.status == "finished" and stage.origin and stage.origin.run != run.record.id:
            return  # another run has made the output again since, and its events with it
        if self.worker is None:
            yield from self._events(folder / EVENTS, record.said_from, record.said_to)
        for path in sorted((folder / "log").glob("*")):
            source = _source(path.name)
            if source and (self.worker is None or source == f"worker {self.worker}"):
                for line in self._lines(path, growing=record.status == "running"):
                    yield LogEntry(self.name, source=source, line=line)

    def _events(self, path: Path, start: int, end: int | None) -> Iterator[LogEntry]:
        try:
            for offset, event in read_events(path, max(self._offset(path), start)):
                if end is not None and offset > end:
                    return
                self._offsets[path.name] = offset
                yield LogEntry(self.name, event)
        except FileNotFoundError:
            return  # the commit has just renamed the folder, which the next call reads

    def _lines(self, path: Path, *, growing: bool) -> Iterator[str]:
        try:
            with path.open("rb") as file:
                file.seek(self._offset(path))
                for line in file:
                    if growing and not line.endswith(b"\n"):
                        return  # the rest of the line is still to come
                    self._offsets[path.name] = self._offsets.get(path.name, 0) + len(line)
                    yield line.decode(errors="replace").rstrip()
        except FileNotFoundError:
            return

    def _offset(self, path: Path) -> int:
        offset = self._offsets.get(path.name, 0)
        if offset and path.stat().st_size < offset:  # a forced attempt began a new file
            offset = self._offsets[path.name] = 0
        return offset


def workers(stage: Stage) -> list[int]:
    """Return the numbers of the workers that printed something in this stage."""
    paths = stage.folder.glob("log/worker-*.log") if stage.folder else ()
    return sorted(int(path.stem.removeprefix("worker-")) for path in paths)


def recent_progress(stage: Stage) -> list[Event]:
    """Return the newest progress events of a running stage, oldest first; reads the end of the file only."""
    if stage.folder is None:
        return []
    path = stage.folder / EVENTS
    try:
        # The first line may be half of one, and is passed over.
        start = max(stage.record.said_from, path.stat().st_size - _TAIL_BYTES)
        return [event for _, event in read_events(path, start) if event["kind"] == "progress"]
    except FileNotFoundError:
        return []


def _source(file: str) -> str | None:
    if file.startswith("worker-") and file.endswith(".log"):
        return "worker " + file[len("worker-") : -len(".log")]
    return {"command.log": "command", "traceback.txt": "traceback"}.get(file)

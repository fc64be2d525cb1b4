"""What was decided about the trials of a sweep at each of their epochs, kept for a resume."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from tats_core.training.events import read_events


@dataclass(frozen=True)
class Decision:
    """What was decided about a trial after an epoch, and by which value of the scheduler's metric."""

    trial: str
    epoch: int
    value: float
    action: str
    """In Tune's words: CONTINUE or STOP."""


class Decisions:
    """All decisions of a sweep in their order, one JSON line each in `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = list(read_events(path))
        if path.exists():
            os.truncate(path, lines[-1][0] if lines else 0)  # a dying machine may leave half of one more
        self.before = [Decision(**line) for _, line in lines]
        """Those of the runs before this one."""
        self._actions = {(one.trial, one.epoch): one.action for one in self.before}

    def action(self, trial: str, epoch: int) -> str | None:
        """Return what was decided, or None if nothing was yet."""
        return self._actions.get((trial, epoch))

    def keep(self, decision: Decision) -> None:
        """Write one down."""
        self._actions[decision.trial, decision.epoch] = decision.action
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(decision)) + "\n")

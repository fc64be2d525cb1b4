"""The progress of a sweep, and the interface that displays it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Protocol

from tats_core.sweep.spec import Sweep, Trial
from tats_core.sweep.trial import Row, TrialResult


class SweepUI(Protocol):
    """Displays a sweep; every call comes from the thread that called `run`."""

    def started(self, sweep: Sweep, progress: Progress) -> None:
        """The common stages have finished; the first trial begins."""

    def changed(self, progress: Progress) -> None:
        """A trial began, reported an epoch, or ended."""

    def close(self) -> None:
        """Give the terminal back; may be called twice."""


@dataclass
class Progress:
    """How far a sweep is."""

    total: int
    slots: int
    began: float
    """Seconds since the epoch: the first trial's process is up."""
    running: dict[str, Trial] = field(default_factory=dict)
    rows: dict[str, Row] = field(default_factory=dict)
    """The newest row of each running trial."""
    ended: dict[str, TrialResult] = field(default_factory=dict)
    best: str = ""
    """The best mean over seeds so far, as `best top-1 42.0`; "" before a point has one."""
    before: int = 0
    """Trials that had ended before a resume."""

    def remaining(self) -> float | None:
        """Estimate the remaining seconds from the trials that ended in this run."""
        done = len(self.ended) - self.before
        if not done:
            return None
        return (time.time() - self.began) / done * (self.total - len(self.ended))

    def busy(self) -> float | None:
        """Return the share of the slots' time that was spent in training steps; None where no trial ended."""
        ended = list(self.ended.values())[self.before :]
        seconds = sum(result.seconds for result in ended)
        return seconds / ((time.time() - self.began) * self.slots) if ended else None

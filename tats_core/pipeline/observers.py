"""Who is told how a run goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from tats_core.pipeline.plan import Plan
from tats_core.store.run import RunRecord


class RunUI(Protocol):
    """Who is told how a run goes. Every call comes from the thread that called `runner.run`."""

    def started(self, plan: Plan, record: RunRecord) -> None:
        """The plan stands and preflight passed; nothing has run yet."""

    def stage_started(self, name: str) -> None:
        """A stage begins, or begins again (a retry)."""

    def params(self, name: str, values: Mapping[str, Any]) -> None:
        """What a stage's configuration came down to: effective batch, learning rate, K visible of N."""

    def progress(self, name: str, event: Mapping[str, Any]) -> None:
        """`event` has step, steps, epoch, epochs (int), shown (name → number) and time."""

    def note(self, name: str, text: str) -> None:
        """A sentence for the reader; `name` is a stage's, or "" for the run as a whole."""

    def stage_finished(self, name: str, seconds: float, cached: bool) -> None:
        """A stage's output is in place; `cached` means nothing had to be done."""

    def stage_failed(self, name: str, error: str) -> None:
        """A stage failed for good (its retries are used up)."""

    def finished(self, record: RunRecord) -> None:
        """The run ended, well or not: `record.status`, `record.error`."""


class SilentUI:
    """Tells nobody. For scripts and tests."""

    def started(self, plan: Plan, record: RunRecord) -> None:
        """Say nothing."""

    def stage_started(self, name: str) -> None:
        """Say nothing."""

    def params(self, name: str, values: Mapping[str, Any]) -> None:
        """Say nothing."""

    def progress(self, name: str, event: Mapping[str, Any]) -> None:
        """Say nothing."""

    def note(self, name: str, text: str) -> None:
        """Say nothing."""

    def stage_finished(self, name: str, seconds: float, cached: bool) -> None:
        """Say nothing."""

    def stage_failed(self, name: str, error: str) -> None:
        """Say nothing."""

    def finished(self, record: RunRecord) -> None:
        """Say nothing."""

"""The observers of a run: the terminal, tracking, hooks, the trials of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tats_core.pipeline.plan import Plan
from tats_core.store.run import Run, RunRecord, StageRecord
from tats_core.tracking import Tracker
from tats_core.training.events import Event, Events


class Observer:
    """Watches a run; every method does nothing unless overridden.

    Every call comes from the thread that called `runner.run`, and only `deliver` may wait. Where a run is
    ended at once, `aborted` is the last call, else `finished`.
    """

    def started(self, plan: Plan, record: RunRecord) -> None:
        """The plan is made and preflight passed; nothing has run yet."""

    def stage_started(self, stage: StageRecord, folders: tuple[Path, ...]) -> None:
        """A stage begins, or begins again (a retry); its files are in the first of `folders` that exists."""

    def events(self, stage: str, events: Events) -> None:
        """A stage wrote something."""

    def note(self, stage: str, text: str) -> None:
        """A sentence to display; `stage` is "" if it is about the run."""

    def stage_ended(self, stage: StageRecord, source: tuple[str, str] | None = None) -> None:
        """A stage ended, or is reused; `source` is the run and the stage that made a reused output."""

    def run_ended(self, record: RunRecord) -> None:
        """All stages have ended; `record` says how."""

    def deliver(self) -> None:
        """Wait until what this observer sends has arrived, but not for ever."""

    def finished(self, record: RunRecord) -> None:
        """The record is complete."""

    def aborted(self, record: RunRecord) -> None:
        """An internal error, or a second Ctrl-C, ends the run at once."""


class Display(Observer):
    """An observer that displays a run, without the events of earlier runs."""

    def params(self, name: str, values: Mapping[str, object]) -> None:
        """Values derived from a stage's configuration: effective batch, learning rate, K visible of N."""

    def progress(self, name: str, event: Event) -> None:
        """`event` has step, steps, epoch, epochs (int), shown (name → number) and time."""

    def stage_finished(self, name: str, seconds: float, cached: bool) -> None:
        """A stage's output is in place; `cached` means nothing had to be done."""

    def stage_failed(self, name: str, error: str) -> None:
        """A stage failed for good (its retries are used up)."""

    def events(self, stage: str, events: Events) -> None:
        for event in events.new:
            if event["kind"] == "progress":
                self.progress(stage, event)
            elif event["kind"] == "note":
                self.note(stage, event["text"])
            elif event["kind"] == "params":
                self.params(stage, event["values"])

    def stage_ended(self, stage: StageRecord, source: tuple[str, str] | None = None) -> None:
        if stage.done:
            self.stage_finished(stage.name, stage.seconds, stage.status == "cached")
        elif stage.status == "failed":  # that it was stopped is shown at the end of the run
            self.stage_failed(stage.name, stage.error or "")


class Tracking(Tracker, Observer):
    """MLflow's tracker, which writes what it observes into a journal."""

    def started(self, plan: Plan, record: RunRecord) -> None:
        self.configs.update(Run(record).configs)
        stages = {
            stage.name: {"kind": stage.kind, "needs": stage.needs, **self.configs[stage.name]["all"]}
            for stage in record.stages.values()
        }
        self.begin({"name": record.pipeline, "overrides": record.overrides, "stages": stages})

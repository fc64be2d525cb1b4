"""One trial: the sweep's pipeline with the trial's values, and the record of how it ended.

Its folder is `runs/<sweep's run>/trials/<id>/`: `run.json` of its stages, and `trial.json` once it has ended
and the sweep has seen all its epochs.
"""

from __future__ import annotations

import math
import queue
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal

from tats_core.addresses import masked
from tats_core.errors import TatsError
from tats_core.files import read_json_if_there, write_json
from tats_core.pipeline import runner
from tats_core.pipeline.observers import Observer
from tats_core.pipeline.stage_thread import Launch
from tats_core.report.units import is_number
from tats_core.stages.base import read_result
from tats_core.store import history
from tats_core.store.run import RunRecord, StageRecord
from tats_core.sweep.spec import STEP_SECONDS, Sweep, Trial
from tats_core.training.events import Events, read_events

_RESULT = "trial.json"

STUDY = "study.jsonl"
"""In a sweep's folder: the points that the search chose, in Optuna's journal."""

FIRST = "first-trial"
"""In a rehearsed sweep's folder: the id of the trial that loses a worker and resumes."""

Status = Literal["finished", "failed", "stopped early"]
Row = dict[str, float]


@dataclass(frozen=True)
class TrialResult:
    """How a trial ended: `seconds` in training steps, and the `metrics` that the sweep compares."""

    id: str
    status: Status
    point: dict[str, Any]
    seed: int | None
    metrics: dict[str, float] = field(default_factory=dict)
    epochs: int = 0
    seconds: float = 0.0
    error: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    """What it sets in the pipeline, seeds included."""

    @classmethod
    def of(cls, trial: Trial, status: Status, **fields: Any) -> TrialResult:
        """Return the result of a trial; `fields` are those that the trial does not know."""
        settings = dict(trial.overrides)
        return cls(trial.id, status, dict(trial.point), trial.seed, settings=settings, **fields)

    def save(self, folder: Path) -> None:
        """Write `trial.json` complete or not at all."""
        write_json(folder / _RESULT, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> TrialResult | None:
        """Return the result in `folder`, or None if the trial has not ended.

        Raises:
            StoreError: it cannot be read.
        """
        return read_json_if_there(folder / _RESULT, cls, "the record of a trial")


def newest(home: Path, name: str) -> Path | None:
    """Return the folder of the newest run of the sweep `name`, or None."""
    folders = (home / "runs" / run for run in history.ids(home, name))
    return next((folder for folder in folders if (folder / "sweep.json").exists()), None)


class EpochRows(Observer):
    """Observes a trial's stages: one row an epoch with the newest value of each metric, `<stage>.<metric>`.

    The stages that all trials share are left out.
    """

    def __init__(self, sweep: Sweep, rows: queue.SimpleQueue[Row | None]) -> None:
        self.rows = rows
        self.training_seconds = 0.0
        """Spent in steps since this object was made, so without those before a resume."""
        self._began = time.time()
        self.epochs: set[tuple[str, int]] = set()
        """Those that ended, with the names of their stages."""
        self.step_seconds: dict[str, list[float]] = {}
        self._common = sweep.common
        self._newest: Row = {}
        self._batch: dict[str, float] = {}
        self._step: dict[str, int] = {}

    def events(self, stage: str, events: Events) -> None:
        """Take the metrics of new events."""
        for event in events.all:
            self.event(stage, event)

    def event(self, name: str, event: Mapping[str, Any]) -> None:
        """Take the metrics of an event; an epoch that a resume repeats counts once."""
        stage = name.partition("[")[0]
        if stage in self._common:
            return
        if event["kind"] == "params" and "global_batch" in event["values"]:
            self._batch[name] = float(event["values"]["global_batch"])
        if event["kind"] != "metrics":
            return
        values = event["values"]
        self._newest |= {f"{stage}.{key}": value for key, value in values.items() if key != "epoch"}
        epoch = values.get("epoch")
        if epoch is None or (name, int(epoch)) in self.epochs:
            return
        self.epochs.add((name, int(epoch)))
        step = int(event["step"])
        steps = step - self._step.get(name, 0)
        self._step[name] = step
        if values.get("clips_per_second") and name in self._batch:
            seconds = self._batch[name] / values["clips_per_second"]
            self.step_seconds.setdefault(stage, []).append(seconds)
            if event["time"] >= self._began:
                self.training_seconds += seconds * steps
        self.rows.put({"epoch": len(self.epochs), "step": float(step), **self._newest})

    def stage_ended(self, stage: StageRecord, source: tuple[str, str] | None = None) -> None:
        """Read the events of a reused output, which this run did not see."""
        if stage.status == "cached" and stage.folder:
            for _, event in read_events(Path(stage.folder) / "events.jsonl"):
                self.event(stage.name, event)


def run(
    sweep: Sweep,
    trial: Trial,
    home: Path,
    run_id: str,
    rows: queue.SimpleQueue[Row | None],
    stop: threading.Event,
    launch: Launch,
) -> TrialResult | None:
    """Run a trial to its end and return how it ended, a failure too; None where `stop` was set."""
    observer = EpochRows(sweep, rows)
    metrics: dict[str, float] = {}
    try:
        dies = sweep.rehearsal is not None and _is_first(trial, home / "runs" / run_id)
        host = runner.Host(f"{run_id}/trials/{trial.id}", observer, stop, launch, dies)
        record = runner.run(sweep.load(trial.overrides), home, host=host)
        if record.status == "stopped":
            return None
        error = record.error
        if not error:
            metrics = _metrics(sweep, record, observer.step_seconds)
    except TatsError as raised:
        error = masked(str(raised))
    except Exception as raised:  # noqa: BLE001 (a bug in one trial must not end the sweep)
        traceback.print_exc()
        error = masked(f"{type(raised).__name__}: {raised} (a bug)")
    status: Status = "failed" if error else "finished"
    epochs, seconds = len(observer.epochs), observer.training_seconds
    return TrialResult.of(trial, status, metrics=metrics, epochs=epochs, seconds=seconds, error=error)


def _is_first(trial: Trial, folder: Path) -> bool:
    """Return whether no other trial of the sweep in `folder` has asked before; `FIRST` names the one."""
    try:
        with (folder / FIRST).open("x") as file:
            file.write(trial.id)
    except FileExistsError:
        return False
    return True


def _metrics(
    sweep: Sweep, record: RunRecord, step_seconds: Mapping[str, Sequence[float]]
) -> dict[str, float]:
    metrics = {}
    for metric in sweep.metrics:
        stage, _, number = metric.name.partition(".")
        if number == STEP_SECONDS:
            values = [median(step_seconds[stage])] if stage in step_seconds else []
        else:
            instances = [item for item in record.stages.values() if item.stage == stage and item.folder]
            numbers = [read_result(Path(item.folder or "")).get(number) for item in instances]
            values = [float(value) for value in numbers if is_number(value) and math.isfinite(value)]
        if values:
            metrics[metric.name] = fmean(values)
    return metrics

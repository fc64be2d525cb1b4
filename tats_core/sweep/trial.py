"""One trial: the sweep's pipeline with the trial's values, and what is kept of it.

Its folder is `runs/<sweep's run>/trials/<id>/`: `run.json` of its stages, `trial.json` once it has ended and
all its epochs were told.
"""

from __future__ import annotations

import json
import math
import queue
import threading
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal

from tats_core.errors import StoreError, TatsError
from tats_core.files import write_json
from tats_core.pipeline import runner
from tats_core.pipeline.stage_thread import Launch
from tats_core.stages.base import read_result
from tats_core.store import history
from tats_core.store.run import RunRecord, StageRecord
from tats_core.sweep.space import Point
from tats_core.sweep.spec import STEP_SECONDS, Sweep, Trial, shown
from tats_core.training.events import read_events

POINTS = "points.json"
"""In a sweep's folder: the points that were found on the way."""

Status = Literal["finished", "failed", "stopped early"]
Row = dict[str, float]


@dataclass(frozen=True)
class Ended:
    """How a trial ended. `seconds` are those of training steps; `metrics` the numbers that were asked for."""

    id: str
    status: Status
    point: dict[str, Any]
    seed: int | None
    metrics: dict[str, float] = field(default_factory=dict)
    epochs: int = 0
    seconds: float = 0.0
    error: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    """What it set in the pipeline, seeds too."""

    def save(self, folder: Path) -> None:
        """Write `trial.json` whole."""
        write_json(folder / "trial.json", asdict(self))

    @classmethod
    def load(cls, folder: Path) -> Ended | None:
        """Return what is kept in `folder`, or None if the trial has not ended.

        Raises:
            StoreError: it cannot be understood.
        """
        path = folder / "trial.json"
        if not path.exists():
            return None
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise StoreError(f"{path}: is not the record of a trial ({error})") from error


def newest(home: Path, name: str) -> Path | None:
    """Return the folder of the newest run of the sweep `name`, or None."""
    folders = (home / "runs" / one for one in history.ids(home, name))
    return next((one for one in folders if (one / "sweep.json").exists()), None)


def results(folder: Path) -> list[Ended]:
    """Return what has ended in a sweep's folder; points that were found on the way stand in their order."""
    ended = [Ended.load(one) for one in sorted((folder / "trials").glob("*"))]
    return in_order(asked(folder), [one for one in ended if one is not None])


def asked(folder: Path) -> list[Point]:
    """Return the points that were found on the way, in their order.

    Raises:
        StoreError: they cannot be understood.
    """
    path = folder / POINTS
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: are not the points of a sweep ({error})") from error
    return [dict(one) for one in found]


def in_order(points: Sequence[Point], trials: Iterable[Ended]) -> list[Ended]:
    """Return the trials in the order of their points; where that is not known, as they are."""
    place = {json.dumps(shown(point), sort_keys=True): number for number, point in enumerate(points)}
    return sorted(trials, key=lambda one: place.get(json.dumps(one.point, sort_keys=True), len(place)))


class Epochs:
    """Follows a trial's stages: one row an epoch with the newest of each number, `<stage>.<number>`.

    The stages that all trials share are not followed.
    """

    def __init__(self, sweep: Sweep, rows: queue.SimpleQueue[Row | None]) -> None:
        self.rows = rows
        self.count = 0
        self.training_seconds = 0.0
        """Spent in steps since this object was made: what was done before a resume does not count."""
        self._began = time.time()
        self.step_seconds: dict[str, list[float]] = {}
        self._common = sweep.common
        self._newest: Row = {}
        self._seen: set[tuple[str, int]] = set()
        self._batch: dict[str, float] = {}
        self._step: dict[str, int] = {}

    def run_started(self, resolved: Mapping[str, Any]) -> None:
        """Nothing is kept of it."""

    def stage_started(
        self,
        stage: StageRecord,
        config: Mapping[str, Any],
        settings: Mapping[str, Any],
        folders: tuple[Path, ...],
        data: Iterable[Path],
        inputs: Mapping[str, str],
    ) -> None:
        """Nothing is kept of it."""

    def event(self, name: str, event: Mapping[str, Any]) -> None:
        """Take the numbers of one event; after a resume, epochs that come again do not count twice."""
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
        if epoch is None or (name, int(epoch)) in self._seen:
            return
        self._seen.add((name, int(epoch)))
        self.count += 1
        self._time(name, event)
        self.rows.put({"epoch": self.count, "step": float(event["step"]), **self._newest})

    def _time(self, name: str, event: Mapping[str, Any]) -> None:
        values, step = event["values"], int(event["step"])
        steps = step - self._step.get(name, 0)
        self._step[name] = step
        if values.get("clips_per_second") and name in self._batch:
            seconds = self._batch[name] / values["clips_per_second"]
            self.step_seconds.setdefault(name.partition("[")[0], []).append(seconds)
            if event["time"] >= self._began:
                self.training_seconds += seconds * steps

    def stage_ended(self, stage: StageRecord, source: tuple[str, str] | None = None) -> None:
        """Of an output that was there already, read what was said when it was made."""
        if stage.status == "cached" and stage.folder:
            for _, event in read_events(Path(stage.folder) / "events.jsonl"):
                self.event(stage.name, event)

    def close(self) -> None:
        """Nothing is open."""


def run(
    sweep: Sweep,
    trial: Trial,
    home: Path,
    run_id: str,
    rows: queue.SimpleQueue[Row | None],
    stop: threading.Event,
    launch: Launch | None,
) -> Ended | None:
    """Run a trial to its end and return how it ended, a failure too; None where it was asked to stop."""
    epochs = Epochs(sweep, rows)
    place = f"{run_id}/trials/{trial.id}"
    try:
        host = runner.Host(place, lambda home, record: epochs, stop, launch)
        record = runner.run(sweep.load(trial.overrides), home, host=host)
        if record.status == "stopped":
            return None
        error = record.error
        metrics = {} if error else _metrics(sweep, record, epochs)
    except TatsError as raised:
        error, metrics = str(raised), {}
    except Exception as raised:  # noqa: BLE001 (a bug of ours is no reason to end the sweep)
        traceback.print_exc()
        error, metrics = f"{type(raised).__name__}: {raised} (a bug)", {}
    return Ended(
        id=trial.id,
        status="failed" if error else "finished",
        point=dict(trial.point),
        seed=trial.seed,
        metrics=metrics,
        epochs=epochs.count,
        seconds=epochs.training_seconds,
        error=error,
        settings=dict(trial.overrides),
    )


def _metrics(sweep: Sweep, record: RunRecord, epochs: Epochs) -> dict[str, float]:
    found = {}
    for metric in sweep.metrics:
        stage, _, number = metric.name.partition(".")
        if number == STEP_SECONDS:
            values = [median(epochs.step_seconds[stage])] if epochs.step_seconds.get(stage) else []
        else:
            results = [
                read_result(Path(one.folder))
                for one in record.stages.values()
                if one.stage == stage and one.folder
            ]
            values = [float(one[number]) for one in results if _is_number(one.get(number))]
        if values:
            found[metric.name] = fmean(values)
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

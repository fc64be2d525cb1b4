from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tats_core.files import write_json
from tats_core.store.run import RunRecord, StageRecord
from tats_core.sweep import spec
from tats_core.sweep.spec import Sweep, Trial
from tats_core.sweep.trial import TrialResult
from tats_core.training.events import EventLog
from tests.cli.conftest import tats

__all__ = ["tats"]

RATIO, KIND = "pretrain.sampler.mask_ratio", "pretrain.sampler.kind"

Changes = Mapping[str, Any]
"""What differs from a finished trial: fields of `TrialResult`."""


@dataclass
class Swept:
    """Sweeps of the menu in a project folder whose trials were never run."""

    home: Path
    folders: list[Path] = field(default_factory=list)

    def sweep(
        self,
        *sets: str,
        name: str = "demo_ratio",
        changes: Callable[[Trial], Changes] = lambda trial: {},
        losses: bool = True,
    ) -> tuple[Sweep, Path]:
        """Write a sweep that has ended; by default its trials differ by what `measured` says."""
        sweep = spec.load(name, sets)
        folder = self.home / "runs" / f"{sweep.name}-20260102-1000000{len(self.folders):02d}-aaaa"
        self.folders.append(folder)
        write_json(folder / "sweep.json", sweep.identity())
        spec.save(sweep, folder)
        RunRecord(
            folder.name, sweep.name, sweep.title, sweep.source, str(self.home), "finished", 100.0, {},
            finished=400.0, overrides=list(sets),
        ).save()  # fmt: skip
        for trial in (trial for point in sweep.points() for trial in sweep.trials_of(point)):
            ended = {"metrics": measured(sweep, trial), "status": "finished", "epochs": 5, **changes(trial)}
            TrialResult.of(trial, **ended).save(folder / "trials" / trial.id)
            if losses:
                self._save_curve(folder, trial)
        return sweep, folder

    def _save_curve(self, folder: Path, trial: Trial) -> None:
        output = self.home / "stages" / f"pretrain-{trial.id}"
        log = EventLog(output / "events.jsonl")
        for step in (10, 20, 30):
            log.metrics(step, {"loss": 1 / step})
        stage = StageRecord("pretrain", "pretrain", "pretrain", {}, [], status="finished", folder=str(output))
        RunRecord(
            f"{folder.name}/trials/{trial.id}",
            "x",
            "",
            "",
            str(self.home),
            "finished",
            0,
            {"pretrain": stage},
        ).save()


class Silent:
    """Displays nothing."""

    def started(self, sweep, progress) -> None:
        pass

    def changed(self, progress) -> None:
        pass

    def close(self) -> None:
        pass


def measured(sweep: Sweep, trial: Trial) -> dict[str, float]:
    """Every metric: 10 for random, 20 and 30 for the other samplers, and the seed."""
    rank = ("random", "adaptive", "tats").index(str(trial.point.get(KIND, "random")))
    return {metric.name: 10.0 * (rank + 1) + (trial.seed or 0) for metric in sweep.metrics}


@pytest.fixture
def swept(tmp_path: Path) -> Swept:
    return Swept(tmp_path / ".tats")


@pytest.fixture
def database(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where sweeps are tracked: a database that is ready."""
    database = tmp_path / "mlflow.db"
    shutil.copy(empty_database, database)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    return database

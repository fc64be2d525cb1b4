"""The trials of a sweep that have ended, as they are on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tats_core.sweep.spec import plain
from tats_core.sweep.trial import STUDY, TrialResult


def results(folder: Path) -> list[TrialResult]:
    """Return the trials that have ended; those of a study are in the order of its points.

    Raises:
        StoreError: a record of them cannot be read.
    """
    loaded = (TrialResult.load(path) for path in sorted((folder / "trials").glob("*")))
    trials = [result for result in loaded if result is not None]
    if not (folder / STUDY).exists():
        return trials
    from tats_core.sweep.search import read_points  # here: Optuna is slow to import

    order = {_identity(plain(point)): number for number, point in enumerate(read_points(folder))}
    return sorted(trials, key=lambda trial: order.get(_identity(trial.point), len(order)))


def _identity(point: Mapping[str, Any]) -> str:
    return json.dumps(point, sort_keys=True)

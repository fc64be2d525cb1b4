"""The points of a sweep, in the order in which they are tried, and which comes next.

A grid and random points are known before the start. Points of Optuna and of a population are chosen while the
sweep runs: each is a trial of an Optuna study in the sweep's folder, written before its first trial begins,
so that a resume chooses none twice.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import TPESampler
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from tats_core.errors import StoreError
from tats_core.sweep.population import generation
from tats_core.sweep.space import TRIES, Point, Range
from tats_core.sweep.spec import Pbt, Sweep, Trial
from tats_core.sweep.trial import STUDY, TrialResult
from tats_core.training.events import cut_torn_line

_ASKS = 50  # proposals of Optuna without an allowed and new point, before a point is drawn at random
_NAME = "points"
_POINT = "point"  # the attribute of an Optuna trial that holds the point, with a member's schedule

optuna.logging.set_verbosity(optuna.logging.WARNING)


def _study(path: Path, directions: Sequence[StudyDirection] = ()) -> optuna.Study | None:
    """Return the study in `path`; where there is none, a new one, or None without `directions`."""
    try:
        storage = JournalStorage(JournalFileBackend(str(path)))
        if storage.get_all_studies():
            return optuna.load_study(study_name=_NAME, storage=storage)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise StoreError(f"{path}: is not the study of a sweep ({error})") from error
    if not directions:
        return None
    return optuna.create_study(storage=storage, study_name=_NAME, directions=directions)


def _points(study: optuna.Study | None) -> list[Point]:
    if study is None:
        return []
    trials = study.get_trials(deepcopy=False)
    return [dict(trial.user_attrs[_POINT]) for trial in trials if _POINT in trial.user_attrs]


def read_points(folder: Path) -> list[Point]:
    """Return the points in the study of a sweep's folder, in their order.

    Raises:
        StoreError: they cannot be read.
    """
    return _points(_study(folder / STUDY))


class Points:
    """The points of one run of a sweep.

    Raises:
        StoreError: the study in `folder` cannot be read.
    """

    def __init__(self, sweep: Sweep, folder: Path) -> None:
        self._sweep = sweep
        self._known = sweep.points()
        self._study: optuna.Study | None = None
        if sweep.searcher.kind in ("optuna", "pbt"):
            path = folder / STUDY
            cut_torn_line(path)
            # A killed process leaves the lock, for which Optuna waits half a minute; no other process writes.
            path.with_name(f"{STUDY}.lock").unlink(missing_ok=True)
            directions = {"max": StudyDirection.MAXIMIZE, "min": StudyDirection.MINIMIZE}
            self._study = _study(path, [directions[metric.mode or "max"] for metric in sweep.objectives])
            self._known = _points(self._study)
        # A killed process may leave a partial generation: the same one is computed again.
        self._written = len(self._known) % (sweep.samples or 1) if isinstance(sweep.searcher, Pbt) else 0
        self._known = self._known[: len(self._known) - self._written]
        self._distributions = {key: distribution(values) for key, values in sweep.space.values.items()}

    def trials(self) -> list[Trial]:
        """Return the trials of the points known so far, each once."""
        trials = (trial for point in self._known for trial in self._sweep.trials_of(point))
        return list({trial.id: trial for trial in trials}.values())

    def next_trials(self, ended: Mapping[str, TrialResult]) -> list[Trial] | None:
        """Return the next trials, given how earlier ones ended: [] after the last, None if too early.

        They are one point of Optuna, or the next generation of a population.
        """
        self.record(ended)
        points: list[Point] | None = []
        if isinstance(self._sweep.searcher, Pbt):
            points = generation(self._sweep, self._known, ended)
            for point in (points or [])[self._written :]:
                self._add(point)
            self._written = 0 if points else self._written
        elif self._study is not None and len(self._known) < (self._sweep.samples or 0):
            points = self._propose(self._study)
        if points is None:
            return None
        self._known += points
        return [trial for point in points for trial in self._sweep.trials_of(point)]

    def record(self, ended: Mapping[str, TrialResult]) -> None:
        """Report to Optuna the points whose trials have all ended."""
        if self._study is None:
            return
        names = [metric.name for metric in self._sweep.objectives]
        for running in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            # A process killed in `_propose` leaves a trial of Optuna without a point; it fails.
            trials = self._sweep.trials_of(point) if (point := running.user_attrs.get(_POINT)) else []
            state, values = outcome(names, [ended.get(trial.id) for trial in trials])
            if state.is_finished():
                self._study.tell(running.number, values, state=state)

    def _propose(self, study: optuna.Study) -> list[Point]:
        """Return a point that is allowed and new, or [] where the space has no other.

        Optuna's estimator TPE proposes it, seeded for each point, so that a resume finds the same point; if
        all proposals are known or not allowed, a point is drawn at random.
        """
        space = self._sweep.space
        seed = random.Random(f"{self._sweep.searcher.seed} {len(self._known)}").getrandbits(32)
        study.sampler = TPESampler(seed=seed)
        for _ in range(_ASKS):
            trial = study.ask()
            values: Point = {}
            for key in space.order:
                if space.applies(key, values):
                    values[key] = _suggest(trial, key, self._distributions[key])
            point = space.reduced(values)
            if point not in self._known and space.allowed(point):
                trial.set_user_attr(_POINT, point)
                return [point]
            study.tell(trial, state=TrialState.FAIL)
        rng = random.Random(seed)
        drawn = (space.draw(rng) for _ in range(TRIES))
        new = list(islice((point for point in drawn if point not in self._known), 1))
        for point in new:
            self._add(point)
        return new

    def _add(self, point: Mapping[str, Any]) -> None:
        assert self._study is not None
        values = {key: value for key, value in point.items() if key in self._distributions}
        used = {key: self._distributions[key] for key in values}
        attributes = {_POINT: dict(point)}
        self._study.add_trial(
            create_trial(state=TrialState.RUNNING, params=values, distributions=used, user_attrs=attributes)
        )


def outcome(
    objectives: Sequence[str], trials: Sequence[TrialResult | None]
) -> tuple[TrialState, list[float] | None]:
    """Return the result of a point for Optuna: the mean over the seeds that finished.

    A point with a seed that was stopped early has no value: a value after a part of the epochs cannot be
    compared with a final one, and a mean without the stopped seed would favour the point. Optuna ranks such a
    pruned point below all points with a value.
    """
    results = [trial for trial in trials if trial is not None]
    if len(results) < len(trials):
        return TrialState.RUNNING, None
    if any(trial.status == "stopped early" for trial in results):
        return TrialState.PRUNED, None
    finished = [trial.metrics for trial in results if trial.status == "finished"]
    complete = [metrics for metrics in finished if all(name in metrics for name in objectives)]
    if not complete:
        return TrialState.FAIL, None
    return TrialState.COMPLETE, [fmean(metrics[name] for metrics in complete) for name in objectives]


def _suggest(trial: optuna.Trial, key: str, values: BaseDistribution) -> Any:
    if isinstance(values, FloatDistribution):
        return trial.suggest_float(key, values.low, values.high, log=values.log)
    if isinstance(values, IntDistribution):
        return trial.suggest_int(key, values.low, values.high)
    assert isinstance(values, CategoricalDistribution)
    return trial.suggest_categorical(key, values.choices)


def distribution(values: Range) -> BaseDistribution:
    """Return the values of a key in Optuna's terms."""
    if values.uniform:
        return FloatDistribution(*values.uniform)
    if values.loguniform:
        return FloatDistribution(*values.loguniform, log=True)
    if values.int_:
        return IntDistribution(*values.int_)
    return CategoricalDistribution(values.choice or ())

"""The points of a sweep, in the order in which they are tried, and which one comes next.

Those of a grid and those drawn at random are known before the start. Optuna's and those of a population are
found on the way and kept in `points.json` of the sweep's folder before their first trial begins: a resume
asks for none twice.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
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
from optuna.trial import FrozenTrial, TrialState, create_trial

from tats_core.files import write_json
from tats_core.sweep.population import generation
from tats_core.sweep.space import Point, Range, Values
from tats_core.sweep.spec import Sweep, Trial
from tats_core.sweep.trial import POINTS, Ended, asked

_ASKS = 50  # of Optuna for one point that is allowed and new; what is left of a space then is drawn from
_DRAWS = 1000

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Points:
    """The points of one run of a sweep.

    Raises:
        StoreError: `points.json` cannot be understood.
    """

    def __init__(self, sweep: Sweep, folder: Path) -> None:
        self._sweep, self._folder = sweep, folder
        self._known = sweep.points() or asked(folder)

    def trials(self) -> list[Trial]:
        """Return the trials of the points known by now, each once."""
        found = {one.id: one for point in self._known for one in self._sweep.trials_of(point)}
        return list(found.values())

    def ask(self, ended: Mapping[str, Ended]) -> list[Trial] | None:
        """Return the next trials, found by how those before ended: [] after the last, None if too early.

        Optuna is asked for one point, a population for its next generation.
        """
        sweep = self._sweep
        if sweep.searcher.kind == "pbt":
            found: list[dict[str, Any]] | None = generation(sweep, self._known, ended)
        elif sweep.searcher.kind == "optuna" and len(self._known) < (sweep.samples or 0):
            point = propose(sweep, self._known, ended)
            found = [] if point is None else [point]
        else:
            return []
        if found is None:
            return None
        if found:
            self._known += found
            write_json(self._folder / POINTS, self._known)
        return [one for point in found for one in sweep.trials_of(point)]


def propose(sweep: Sweep, before: Sequence[Point], ended: Mapping[str, Ended]) -> Point | None:
    """Return a point that is not among those `before`, or None where the space holds no other.

    It follows from the arguments alone: no study is kept, and the sampler is seeded anew for each point.
    Optuna's estimator TPE is asked; where all that it offers was tried or is not allowed, a point is drawn.
    """
    space = sweep.space
    distributions = {key: distribution(values) for key, values in space.values.items()}
    seed = random.Random(f"{sweep.searcher.seed} {len(before)}").getrandbits(32)
    study = optuna.create_study(
        directions=["maximize" if one.mode == "max" else "minimize" for one in sweep.objectives],
        sampler=TPESampler(seed=seed),
    )
    study.add_trials(_told(sweep, point, distributions, ended) for point in before)
    for _ in range(_ASKS):
        trial = study.ask()
        found: Point = {}
        for key in space.order:
            if space.applies(key, found):
                found[key] = _suggest(trial, key, distributions[key])
        point = space.reduced(found)
        if point not in before and space.allowed(point):
            return point
        study.tell(trial, state=TrialState.FAIL)
    chance = random.Random(seed)
    drawn = (space.draw(chance) for _ in range(_DRAWS))
    return next((point for point in drawn if point not in before), None)


def _told(
    sweep: Sweep, point: Point, distributions: Mapping[str, BaseDistribution], ended: Mapping[str, Ended]
) -> FrozenTrial:
    """Return a point as Optuna is told of it; its value is the mean over the seeds that finished.

    A point of which a seed was stopped early has no value: one after a part of the epochs cannot be compared
    with those at the end, and a mean without the stopped seed would favour the point. It is told as pruned,
    which ranks below all that have a value.
    """
    trials = [ended.get(one.id) for one in sweep.trials_of(point)]
    values = None
    if any(one is None for one in trials):
        state = TrialState.RUNNING
    elif any(one.status == "stopped early" for one in trials if one):
        state = TrialState.PRUNED
    else:
        names = [one.name for one in sweep.objectives]
        finished = [one.metrics for one in trials if one and one.status == "finished"]
        whole = [metrics for metrics in finished if all(name in metrics for name in names)]
        values = [fmean(metrics[name] for metrics in whole) for name in names] if whole else None
        state = TrialState.COMPLETE if whole else TrialState.FAIL
    return create_trial(
        state=state, values=values, params=point, distributions={key: distributions[key] for key in point}
    )


def distribution(values: Values) -> BaseDistribution:
    """Return the values of a key in Optuna's terms."""
    if isinstance(values, Range):
        if values.uniform:
            return FloatDistribution(*values.uniform)
        if values.loguniform:
            return FloatDistribution(*values.loguniform, log=True)
        if values.int_:
            return IntDistribution(*values.int_)
        return CategoricalDistribution(values.choice or ())
    return CategoricalDistribution(values)


def _suggest(trial: optuna.Trial, key: str, among: BaseDistribution) -> Any:
    if isinstance(among, FloatDistribution):
        return trial.suggest_float(key, among.low, among.high, log=among.log)
    if isinstance(among, IntDistribution):
        return trial.suggest_int(key, among.low, among.high)
    assert isinstance(among, CategoricalDistribution)
    return trial.suggest_categorical(key, among.choices)

"""Population-based training (arXiv 1711.09846) of how a sampler learns, as generations of ordinary trials.

Each member pre-trains for some epochs; then each of the lowest quarter continues the training of a member of
the highest quarter, with slightly changed settings, and all others continue their own. Nothing is mutable: a
trial is a pre-training up to an epoch whose `schedule` holds its complete history, its parents' included, and
the stage store has the checkpoint at the end of that history. So a generation is cached, killed and resumed
like any trial, and the winner's schedule is a pipeline that repeats its training in one piece, bit for bit.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from tats_core.errors import SpecError
from tats_core.pipeline.spec import Scalar
from tats_core.sweep.space import TRIES, Point, Range, Space
from tats_core.sweep.spec import Sweep, schedule_entry
from tats_core.sweep.trial import TrialResult

_SHARE = 4  # a quarter of the members is replaced, and a quarter is copied
_REDRAWN = 0.25  # how often a copied setting is drawn again instead of moved a little
_FACTORS = (0.8, 1.2)


def generation(
    sweep: Sweep, before: Sequence[Mapping[str, Any]], ended: Mapping[str, TrialResult]
) -> list[dict[str, Any]] | None:
    """Return the points of the next generation, in the order of the members.

    It follows from the arguments alone. []: none follows the last, nor one whose members all failed. None:
    the previous generation has not ended.
    """
    population = sweep.population
    members = sweep.samples or 0
    past = len(before) // members
    if past == population.generations:
        return []
    until = min((past + 1) * population.every, population.epochs)
    if not past:
        rng = random.Random(f"{sweep.searcher.seed}")
        drawn = [sweep.space.draw(rng) for _ in range(members)]
        return [_point(sweep, until, [schedule_entry(population.stage, 0, point)], point) for point in drawn]
    last = before[-members:]
    scores = _scores(sweep, last, ended)
    if scores is None:
        return None
    if max(scores) == -math.inf:
        return []
    rng = random.Random(f"{sweep.searcher.seed} {past}")
    order = sorted(range(members), key=scores.__getitem__, reverse=True)
    share = max(1, members // _SHARE)
    best = [member for member in order[:share] if scores[member] > -math.inf]
    replaced = {member for member in range(members) if scores[member] == -math.inf} | set(order[-share:])
    points = []
    for member, old in enumerate(last):
        parent = last[rng.choice(best)] if member in replaced else old
        settings = {key: parent[key] for key in sweep.space.values if key in parent}
        schedule = list(parent[f"{population.stage}.schedule"])
        if member in replaced:
            new = _explored(sweep.space, settings, rng)
            moved = {key: value for key, value in new.items() if settings.get(key, ...) != value}
            schedule.append(schedule_entry(population.stage, past * population.every, moved))
            settings = new
        points.append(_point(sweep, until, schedule, settings))
    return points


def _scores(
    sweep: Sweep, points: Sequence[Mapping[str, Any]], ended: Mapping[str, TrialResult]
) -> list[float] | None:
    """Return each member's objective, the higher the better; that of a failed member is minus infinity."""
    objective = sweep.objective
    sign = 1 if objective.mode == "max" else -1
    trials = [ended.get(sweep.trials_of(point)[0].id) for point in points]
    if any(trial is None for trial in trials):
        return None
    values = [trial.metrics.get(objective.name) for trial in trials if trial]
    return [-math.inf if value is None else sign * value for value in values]


def _point(
    sweep: Sweep, until: int, schedule: list[dict[str, Any]], settings: Mapping[str, Any]
) -> dict[str, Any]:
    stage = sweep.population.stage
    return {f"{stage}.until": until, **settings, f"{stage}.schedule": schedule}


def _explored(space: Space, settings: Mapping[str, Any], rng: random.Random) -> Point:
    """Return different settings near these.

    Raises:
        SpecError: the constraints allow none.
    """
    for _ in range(TRIES):
        drawn = space.draw(rng)
        point: Point = {}
        for key in space.order:
            if space.applies(key, point):
                redrawn = key not in settings or rng.random() < _REDRAWN
                if redrawn and key not in drawn:
                    break  # it applies here, but not beside the values that were drawn
                point[key] = drawn[key] if redrawn else _moved(space.values[key], settings[key], rng)
        else:
            point = space.reduced(point)
            if point != settings and space.allowed(point):
                return point
    raise SpecError(f"the constraints allow nothing near {dict(settings)}; loosen them")


def _moved(values: Range, value: Any, rng: random.Random) -> Scalar | None:
    """Return a value near `value`: times 0.8 or 1.2 in a range, a neighbour in a list."""
    if values.ends is None:
        listed = values.examples
        neighbour = listed.index(value) + rng.choice((-1, 1))
        return listed[min(max(neighbour, 0), len(listed) - 1)]
    factor = rng.choice(_FACTORS)
    moved: float = value * factor
    if values.int_:
        step = max(1, round(abs(value * (factor - 1))))
        moved = value + (step if factor > 1 else -step)
    low, high = values.ends
    return min(max(moved, low), high)

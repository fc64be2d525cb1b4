"""Population-based training (arXiv 1711.09846) of how a sampler learns, as generations of ordinary trials.

Each member pre-trains for some epochs; then those of the lowest quarter take over the training of one of the
highest quarter, whose settings they change a little, and all go on. Nothing is mutable in it: a trial is a
pre-training up to an epoch whose `schedule` holds its whole history, a parent's included, and the stage store
has the state in which that history ended so far. So a generation is cached, killed and resumed as any trial,
and the winner's schedule is a pipeline that trains it again in one piece, to the same bits.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from tats_core.errors import SpecError
from tats_core.pipeline.spec import Scalar
from tats_core.sweep.space import Point, Range, Space
from tats_core.sweep.spec import Sweep
from tats_core.sweep.trial import Ended

_SHARE = 4  # one member in so many is replaced, and one in so many is copied
_REDRAWN = 0.25  # how often a copied setting is drawn anew instead of moved a little
_FACTORS = (0.8, 1.2)
_TRIES = 1000


def generation(
    sweep: Sweep, before: Sequence[Mapping[str, Any]], ended: Mapping[str, Ended]
) -> list[dict[str, Any]] | None:
    """Return the points of the next generation, in the order of the members; [] after the last.

    It follows from the arguments alone. None: it cannot be known before all of the generation before ended.
    """
    breed = sweep.breed
    members = sweep.samples or 0
    past = len(before) // members
    if past == breed.generations or (past and not _alive(sweep, before[-members:], ended)):
        return []
    until = min((past + 1) * breed.every, breed.epochs)
    if not past:
        chance = random.Random(f"{sweep.searcher.seed}")
        drawn = [sweep.space.draw(chance) for _ in range(members)]
        return [_point(sweep, until, [_change(breed.stage, 0, one)], one) for one in drawn]
    last = before[-members:]
    scores = _scores(sweep, last, ended)
    if scores is None:
        return None
    chance = random.Random(f"{sweep.searcher.seed} {past}")
    order = sorted(range(members), key=lambda place: -scores[place])
    share = max(1, members // _SHARE)
    best = [place for place in order[:share] if scores[place] > -math.inf]
    lost = {place for place in range(members) if scores[place] == -math.inf} | set(order[-share:])
    points = []
    for place, old in enumerate(last):
        parent = last[chance.choice(best)] if place in lost else old
        settings = {key: parent[key] for key in sweep.space.values if key in parent}
        schedule = list(parent[f"{breed.stage}.schedule"])
        if place in lost:
            new = _explored(sweep.space, settings, chance)
            moved = {key: value for key, value in new.items() if settings.get(key, ...) != value}
            schedule.append(_change(breed.stage, past * breed.every, moved))
            settings = new
        points.append(_point(sweep, until, schedule, settings))
    return points


def _alive(sweep: Sweep, points: Sequence[Mapping[str, Any]], ended: Mapping[str, Ended]) -> bool:
    scores = _scores(sweep, points, ended)
    return scores is None or max(scores) > -math.inf


def _scores(
    sweep: Sweep, points: Sequence[Mapping[str, Any]], ended: Mapping[str, Ended]
) -> list[float] | None:
    """Return each member's objective, the higher the better; one that failed has minus infinity."""
    objective = sweep.objectives[0]
    sign = 1 if objective.mode == "max" else -1
    trials = [ended.get(sweep.trials_of(point)[0].id) for point in points]
    if any(one is None for one in trials):
        return None
    values = [one.metrics.get(objective.name) for one in trials if one]
    return [-math.inf if value is None else sign * value for value in values]


def _point(
    sweep: Sweep, until: int, schedule: list[dict[str, Any]], settings: Mapping[str, Any]
) -> dict[str, Any]:
    stage = sweep.breed.stage
    return {f"{stage}.until": until, **settings, f"{stage}.schedule": schedule}


def _change(stage: str, epoch: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return one entry of a pre-training's schedule."""
    found: dict[str, Any] = {"epoch": epoch}
    for key, value in settings.items():
        _, _, name = key.partition(f"{stage}.sampler.ppo.")
        if name:
            found.setdefault("ppo", {})[name] = value
        else:
            found["sampler_lr"] = value
    return found


def _explored(space: Space, settings: Mapping[str, Any], chance: random.Random) -> Point:
    """Return other settings near to these.

    Raises:
        SpecError: the constraints allow none.
    """
    for _ in range(_TRIES):
        drawn = space.draw(chance)
        found: Point = {}
        for key in space.order:
            if space.applies(key, found):
                anew = key not in settings or chance.random() < _REDRAWN
                if anew and key not in drawn:
                    break  # it applies here, but not beside the values that were drawn
                found[key] = drawn[key] if anew else _moved(space.values[key], settings[key], chance)
        else:
            found = space.reduced(found)
            if found != settings and space.allowed(found):
                return found
    raise SpecError(f"the constraints allow nothing near {dict(settings)}; loosen them")


def _moved(values: Any, value: Scalar | None, chance: random.Random) -> Scalar | None:
    """Return a value a little off: times 0.8 or 1.2 in a range, one place on in a list."""
    ends = (values.uniform or values.loguniform or values.int_) if isinstance(values, Range) else None
    if ends is None:
        among: list[Scalar | None] = list(values.corners if isinstance(values, Range) else values)
        place = among.index(value) + chance.choice((-1, 1))
        return among[min(max(place, 0), len(among) - 1)]
    assert isinstance(value, int | float)
    factor = chance.choice(_FACTORS)
    if values.int_:
        step = max(1, round(abs(value * (factor - 1))))
        return min(max(int(value) + (step if factor > 1 else -step), ends[0]), ends[1])
    return min(max(value * factor, ends[0]), ends[1])

from __future__ import annotations

import random

import pytest

from tats_core.errors import SpecError
from tats_core.sweep.space import Constraint, Range, Space


def space(values, where=None, constraints=()):
    parsed = tuple(Constraint.parse(text, list(values)) for text in constraints)
    return Space({key: Range.of(listed) for key, listed in values.items()}, where or {}, parsed)


def test_a_grid_holds_every_combination_once_and_the_last_key_changes_fastest() -> None:
    assert list(space({"a.x": (1, 2), "b.y": (3, 4)}).grid()) == [
        {"a.x": 1, "b.y": 3},
        {"a.x": 1, "b.y": 4},
        {"a.x": 2, "b.y": 3},
        {"a.x": 2, "b.y": 4},
    ]


def test_a_key_that_does_not_apply_is_not_in_the_point_and_makes_no_second_one() -> None:
    points = list(space({"s.ppo.clip": (0.1, 0.2), "s.kind": ("random", "tats")},
                       {"s.ppo.*": {"s.kind": ("tats",)}}).grid())  # fmt: skip
    assert points == [
        {"s.kind": "random"},
        {"s.ppo.clip": 0.1, "s.kind": "tats"},
        {"s.ppo.clip": 0.2, "s.kind": "tats"},
    ]


def test_constraints_compare_keys_with_keys_and_with_numbers() -> None:
    points = list(space({"p.m": (1, 2, 4), "p.r": (1, 2)}, constraints=["p.m <= p.r", "p.m != 2"]).grid())
    assert points == [{"p.m": 1, "p.r": 1}, {"p.m": 1, "p.r": 2}]


def test_a_constraint_on_no_key_names_the_nearest() -> None:
    with pytest.raises(SpecError, match=r"did you mean 'p\.clip'"):
        Constraint.parse("p.clipp < 1", ["p.clip"])


def test_draws_stay_in_their_ranges_and_are_the_same_for_the_same_seed() -> None:
    drawn = space({"a": Range(loguniform=(1e-4, 1e-2)), "b": Range.model_validate({"int": [1, 3]})})
    points = [drawn.draw(random.Random(seed)) for seed in range(50)]
    assert all(1e-4 <= point["a"] <= 1e-2 for point in points)
    assert {point["b"] for point in points} == {1, 2, 3}
    assert points == [drawn.draw(random.Random(seed)) for seed in range(50)]
    assert sum(point["a"] < 1e-3 for point in points) in range(15, 36), "as many below the middle as above"

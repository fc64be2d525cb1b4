"""Which points Optuna proposes; on the shipped pipeline `demo`, of which nothing is run."""

from __future__ import annotations

from pathlib import Path

import pytest
from optuna.trial import TrialState

from tats_core.errors import StoreError
from tats_core.sweep import search, spec
from tats_core.sweep.trial import Ended, asked, in_order

SWEEP = """
name: found
pipeline: demo
space:
  pretrain.sampler.kind: [random, tats]
  pretrain.sampler.mask_ratio: {uniform: [0.5, 0.95]}
  pretrain.sampler.ppo.epochs: {int: [1, 4]}
  pretrain.sampler.ppo.target_entropy: [null, 0.5, 0.7]
  pretrain.sampler_lr: {loguniform: [1.0e-4, 1.0e-2]}
where: {pretrain.sampler.ppo.*: {pretrain.sampler.kind: tats}}
constraints: [pretrain.sampler.mask_ratio <= 0.9]
seeds: {keys: [pretrain.seed], values: [0, 1]}
metrics:
  - {name: probe.linear_top1, mode: max, objective: true}
  - {name: pretrain.seconds, mode: min, objective: true}
searcher: {kind: optuna}
samples: 40
"""
RATIO = "pretrain.sampler.mask_ratio"


@pytest.fixture
def sweep(tmp_path: Path) -> spec.Sweep:
    path = tmp_path / "found.yaml"
    path.write_text(SWEEP)
    return spec.load(str(path))


def finish(sweep, point, *values, status="finished"):
    """Return how the two trials of a point ended; `values` are those of the objectives."""
    metrics = dict(zip(("probe.linear_top1", "pretrain.seconds"), values, strict=False))
    return {one.id: Ended(one.id, status, point, one.seed, metrics) for one in sweep.trials_of(point)}


def explore(sweep, points: search.Points, count: int, ended: dict[str, Ended]) -> list:
    """Ask for points one after the other; the nearer to a ratio of 0.6, the better."""
    found = []
    for _ in range(count):
        trials = points.ask(ended)
        if not trials:
            break
        point = trials[0].point
        found.append(point)
        ended |= finish(sweep, point, -abs(point[RATIO] - 0.6), 1.0)
    return found


def test_points_keep_to_the_space_its_conditions_and_its_constraints(sweep, tmp_path) -> None:
    found = explore(sweep, search.Points(sweep, tmp_path), 30, {})
    assert len(found) == 30
    for point in found:
        assert 0.5 <= point[RATIO] <= 0.9
        assert 1e-4 <= point["pretrain.sampler_lr"] <= 1e-2
        assert ("pretrain.sampler.ppo.epochs" in point) == (point["pretrain.sampler.kind"] == "tats")
        assert point.get("pretrain.sampler.ppo.epochs", 1) in (1, 2, 3, 4)
    assert {point["pretrain.sampler.kind"] for point in found} == {"random", "tats"}


def test_later_points_come_nearer_to_what_was_found_good(sweep, tmp_path) -> None:
    found = explore(sweep, search.Points(sweep, tmp_path), 40, {})
    far = [abs(point[RATIO] - 0.6) for point in found[20:]]
    # Drawn evenly from 0.5 to 0.9 they would be 0.125 away on average.
    assert sum(far) / len(far) < 0.0625


def test_a_resume_goes_on_as_if_it_had_never_been_disturbed(sweep, tmp_path) -> None:
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole = explore(sweep, search.Points(sweep, tmp_path / "whole"), 20, {})
    ended: dict[str, Ended] = {}
    first = explore(sweep, search.Points(sweep, tmp_path / "cut"), 13, ended)
    asked = search.Points(sweep, tmp_path / "cut")
    assert [one.point for one in asked.trials()[::2]] == first
    assert first + explore(sweep, asked, 7, ended) == whole


def test_a_point_is_on_disk_before_its_trials_are_handed_out(sweep, tmp_path) -> None:
    trials = search.Points(sweep, tmp_path).ask({})
    assert [one.seed for one in trials] == [0, 1]
    assert asked(tmp_path) == [trials[0].point]


def test_no_more_points_than_samples_are_asked_for(sweep, tmp_path) -> None:
    points = search.Points(sweep, tmp_path)
    assert len(explore(sweep, points, 50, {})) == 40
    assert points.ask({}) == []


def test_a_small_space_is_tried_to_its_end_and_no_point_twice(tmp_path) -> None:
    small = "{pretrain.sampler.kind: [random, tube], pretrain.sampler.mask_ratio: [0.8, 0.9]}"
    path = tmp_path / "found.yaml"
    path.write_text(SWEEP)
    sweep = spec.load(str(path), [f"space={small}", "where={}", "constraints=[]"])
    found = explore(sweep, search.Points(sweep, tmp_path), 40, {})
    assert len(found) == 4
    assert len({tuple(point.items()) for point in found}) == 4


def told(sweep, point, ended):
    keys = {key: search.distribution(values) for key, values in sweep.space.values.items()}
    return search._told(sweep, point, keys, ended)


def test_a_point_is_told_by_the_mean_over_its_seeds(sweep, tmp_path) -> None:
    first, second = search.Points(sweep, tmp_path).ask({})
    point = first.point
    zero = Ended(first.id, "finished", point, 0, {"probe.linear_top1": 40.0, "pretrain.seconds": 1.0})
    one = Ended(second.id, "finished", point, 1, {"probe.linear_top1": 50.0, "pretrain.seconds": 3.0})
    assert told(sweep, point, {first.id: zero}).state == TrialState.RUNNING
    whole = told(sweep, point, {first.id: zero, second.id: one})
    assert (whole.state, whole.values) == (TrialState.COMPLETE, [45.0, 2.0])
    lost = Ended(second.id, "failed", point, 1)
    assert told(sweep, point, {first.id: zero, second.id: lost}).values == [40.0, 1.0]
    assert told(sweep, point, finish(sweep, point, status="failed")).state == TrialState.FAIL


def test_a_point_with_a_seed_stopped_early_ranks_below_all_that_went_to_the_end(sweep, tmp_path) -> None:
    first, second = search.Points(sweep, tmp_path).ask({})
    point = first.point
    ended = finish(sweep, point, 99.0, 0.0)
    ended[second.id] = Ended(second.id, "stopped early", point, 1, {"probe.linear_top1": 98.0})
    assert told(sweep, point, ended).state == TrialState.PRUNED
    assert told(sweep, point, ended).values is None


def test_trials_stand_in_the_order_in_which_their_points_were_asked_for(sweep, tmp_path) -> None:
    ended: dict[str, Ended] = {}
    found = explore(sweep, search.Points(sweep, tmp_path), 5, ended)
    shuffled = sorted(ended.values(), key=lambda one: one.id)
    assert [one.point for one in in_order(asked(tmp_path), shuffled)[::2]] == found


def test_points_that_cannot_be_read_are_said_in_one_sentence(sweep, tmp_path) -> None:
    (tmp_path / "points.json").write_text("[{")
    with pytest.raises(StoreError, match=r"points\.json: are not the points of a sweep"):
        search.Points(sweep, tmp_path)

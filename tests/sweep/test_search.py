"""Which points Optuna proposes; on the shipped pipeline `demo`, of which nothing is run."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import TrialState

from tats_core.errors import StoreError
from tats_core.sweep import search, spec
from tats_core.sweep.summary import results
from tats_core.sweep.trial import TrialResult

SWEEP = """
name: found
pipeline: demo
space:
  pretrain.sampler.kind: [random, tats]
  pretrain.sampler.mask_ratio: {uniform: [0.5, 0.95]}
  pretrain.sampler.ppo.epochs: {int: [1, 4]}
  pretrain.sampler.ppo.kl_stop: [null, 0.05, 0.1]
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
    return {
        trial.id: TrialResult(trial.id, status, point, trial.seed, metrics)
        for trial in sweep.trials_of(point)
    }


def explore(sweep, points: search.Points, count: int, ended: dict[str, TrialResult]) -> list:
    """Ask for points one after the other; the nearer to a ratio of 0.6, the better."""
    tried = []
    for _ in range(count):
        trials = points.next_trials(ended)
        if not trials:
            break
        point = trials[0].point
        tried.append(point)
        ended |= finish(sweep, point, -abs(point[RATIO] - 0.6), 1.0)
    return tried


def test_points_keep_to_the_space_its_conditions_and_its_constraints(sweep, tmp_path) -> None:
    tried = explore(sweep, search.Points(sweep, tmp_path), 30, {})
    assert len(tried) == 30
    for point in tried:
        assert 0.5 <= point[RATIO] <= 0.9
        assert 1e-4 <= point["pretrain.sampler_lr"] <= 1e-2
        assert ("pretrain.sampler.ppo.epochs" in point) == (point["pretrain.sampler.kind"] == "tats")
        assert point.get("pretrain.sampler.ppo.epochs", 1) in (1, 2, 3, 4)
    assert {point["pretrain.sampler.kind"] for point in tried} == {"random", "tats"}


def test_later_points_come_nearer_to_what_was_found_good(sweep, tmp_path) -> None:
    tried = explore(sweep, search.Points(sweep, tmp_path), 40, {})
    far = [abs(point[RATIO] - 0.6) for point in tried[20:]]
    # Drawn evenly from 0.5 to 0.9 they would be 0.125 away on average.
    assert sum(far) / len(far) < 0.0625


def test_a_resume_finds_the_points_of_a_sweep_that_was_never_interrupted(sweep, tmp_path) -> None:
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole = explore(sweep, search.Points(sweep, tmp_path / "whole"), 20, {})
    ended: dict[str, TrialResult] = {}
    first = explore(sweep, search.Points(sweep, tmp_path / "cut"), 13, ended)
    resumed = search.Points(sweep, tmp_path / "cut")
    assert [trial.point for trial in resumed.trials()[::2]] == first
    assert first + explore(sweep, resumed, 7, ended) == whole


@pytest.mark.parametrize("lines", range(1, 12))
def test_a_kill_while_optuna_is_asked_changes_no_point(sweep, tmp_path, lines) -> None:
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole = explore(sweep, search.Points(sweep, tmp_path / "whole"), 16, {})
    ended: dict[str, TrialResult] = {}
    explore(sweep, search.Points(sweep, tmp_path / "cut"), 14, ended)
    journal = tmp_path / "cut" / "study.jsonl"
    *complete, last = journal.read_text().splitlines(keepends=True)[: -lines + 1 or None]
    journal.write_text("".join(complete) + last[: len(last) // 2])  # the machine died in the middle of a line
    journal.with_name("study.jsonl.lock").symlink_to(journal)  # and in Optuna's lock
    resumed = search.Points(sweep, tmp_path / "cut")
    points = [trial.point for trial in resumed.trials()[::2]]
    assert len(points) in (12, 13, 14)
    assert points + explore(sweep, resumed, 16 - len(points), ended) == whole


def test_the_study_is_one_that_optuna_opens_with_every_value_in_it(sweep, tmp_path) -> None:
    ended: dict[str, TrialResult] = {}
    points = search.Points(sweep, tmp_path)
    tried = explore(sweep, points, 12, ended)
    points.record(ended)
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "study.jsonl")))
    study = optuna.load_study(study_name=None, storage=storage)
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    assert [trial.params for trial in complete] == tried
    assert [trial.values for trial in complete] == [[-abs(point[RATIO] - 0.6), 1.0] for point in tried]


def test_a_point_is_on_disk_before_its_trials_are_handed_out(sweep, tmp_path) -> None:
    trials = search.Points(sweep, tmp_path).next_trials({})
    assert [trial.seed for trial in trials] == [0, 1]
    assert search.read_points(tmp_path) == [trials[0].point]


def test_no_more_points_than_samples_are_asked_for(sweep, tmp_path) -> None:
    points = search.Points(sweep, tmp_path)
    assert len(explore(sweep, points, 50, {})) == 40
    assert points.next_trials({}) == []


def test_a_small_space_is_tried_to_its_end_and_no_point_twice(tmp_path) -> None:
    small = "{pretrain.sampler.kind: [random, tube], pretrain.sampler.mask_ratio: [0.8, 0.9]}"
    path = tmp_path / "found.yaml"
    path.write_text(SWEEP)
    sweep = spec.load(str(path), [f"space={small}", "where={}", "constraints=[]"])
    tried = explore(sweep, search.Points(sweep, tmp_path), 40, {})
    assert len(tried) == 4
    assert len({tuple(point.items()) for point in tried}) == 4


def outcome(sweep, point, ended):
    names = [metric.name for metric in sweep.objectives]
    return search.outcome(names, [ended.get(trial.id) for trial in sweep.trials_of(point)])


def test_the_value_of_a_point_is_the_mean_over_its_seeds(sweep, tmp_path) -> None:
    first, second = search.Points(sweep, tmp_path).next_trials({})
    point = first.point
    seed_0 = TrialResult(first.id, "finished", point, 0, {"probe.linear_top1": 40.0, "pretrain.seconds": 1.0})
    seed_1 = TrialResult(
        second.id, "finished", point, 1, {"probe.linear_top1": 50.0, "pretrain.seconds": 3.0}
    )
    assert outcome(sweep, point, {first.id: seed_0}) == (TrialState.RUNNING, None)
    assert outcome(sweep, point, {first.id: seed_0, second.id: seed_1}) == (TrialState.COMPLETE, [45.0, 2.0])
    lost = TrialResult(second.id, "failed", point, 1)
    assert outcome(sweep, point, {first.id: seed_0, second.id: lost}) == (TrialState.COMPLETE, [40.0, 1.0])
    assert outcome(sweep, point, finish(sweep, point, status="failed")) == (TrialState.FAIL, None)


def test_a_point_with_a_seed_stopped_early_ranks_below_all_that_went_to_the_end(sweep, tmp_path) -> None:
    first, second = search.Points(sweep, tmp_path).next_trials({})
    point = first.point
    ended = finish(sweep, point, 99.0, 0.0)
    ended[second.id] = TrialResult(second.id, "stopped early", point, 1, {"probe.linear_top1": 98.0})
    assert outcome(sweep, point, ended) == (TrialState.PRUNED, None)


def test_trials_stand_in_the_order_in_which_their_points_were_asked_for(sweep, tmp_path) -> None:
    ended: dict[str, TrialResult] = {}
    tried = explore(sweep, search.Points(sweep, tmp_path), 5, ended)
    for result in ended.values():
        result.save(tmp_path / "trials" / result.id)
    assert [result.point for result in results(tmp_path)[::2]] == tried


def test_points_that_cannot_be_read_are_an_error_in_one_sentence(sweep, tmp_path) -> None:
    (tmp_path / "study.jsonl").write_text("[{}]\n[{}]\n")
    with pytest.raises(StoreError, match=r"study\.jsonl: is not the study of a sweep"):
        search.Points(sweep, tmp_path)

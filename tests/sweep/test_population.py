"""Population-based training: what follows on what, and that nothing but the history decides."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tats_core.errors import SpecError
from tats_core.pipeline import graph, runner
from tats_core.pipeline import spec as pipelines
from tats_core.sweep import engine, search, spec
from tats_core.sweep.population import generation
from tats_core.sweep.summary import Summary
from tats_core.sweep.trial import TrialResult
from tats_core.training.events import read_events
from tests.sweep.conftest import Silent

SWEEP = """
name: bred
pipeline: demo
set: {pretrain.epochs: 10}
space:
  pretrain.sampler.ppo.clip: {uniform: [0.05, 0.3]}
  pretrain.sampler.ppo.epochs: {int: [1, 4]}
  pretrain.sampler.ppo.minibatches: [1, 2, 4]
  pretrain.sampler_lr: {loguniform: [1.0e-4, 1.0e-2]}
constraints: [pretrain.sampler.ppo.minibatches <= pretrain.sampler.ppo.epochs]
metrics: [{name: pretrain.linear_top1, mode: max}]
searcher: {kind: pbt, every: 4}
samples: 8
"""
CLIP, SCHEDULE, UNTIL = "pretrain.sampler.ppo.clip", "pretrain.schedule", "pretrain.until"


@pytest.fixture
def sweep(tmp_path: Path) -> spec.Sweep:
    path = tmp_path / "bred.yaml"
    path.write_text(SWEEP)
    return spec.load(str(path))


def finish(sweep, points, scores) -> dict[str, TrialResult]:
    """Return how the members of a generation ended; None is a failure."""
    ended = {}
    for point, score in zip(points, scores, strict=True):
        (trial,) = sweep.trials_of(point)
        status, metrics = ("failed", {}) if score is None else ("finished", {"pretrain.linear_top1": score})
        ended[trial.id] = TrialResult(
            trial.id, status, trial.point, None, metrics, settings=dict(trial.overrides)
        )
    return ended


def test_the_lowest_quarter_takes_over_from_the_highest_and_all_others_continue(sweep) -> None:
    first = generation(sweep, [], {})
    assert [point[UNTIL] for point in first] == [4] * 8
    assert all([change["epoch"] for change in point[SCHEDULE]] == [0] for point in first)
    ended = finish(sweep, first, [50, 10, 60, 40, 90, 20, 80, 70])
    assert generation(sweep, first, dict(list(ended.items())[:7])) is None, "one has not ended"
    second = generation(sweep, first, ended)
    assert [point[UNTIL] for point in second] == [8] * 8
    for member in (0, 2, 3, 4, 6, 7):
        assert second[member][SCHEDULE] == first[member][SCHEDULE]
        assert second[member][CLIP] == first[member][CLIP]
    for member in (1, 5):  # they had 10 and 20
        history, change = second[member][SCHEDULE]
        assert [history] in (first[4][SCHEDULE], first[6][SCHEDULE])  # with 90 and 80
        assert change["epoch"] == 4
        assert set(change) > {"epoch"}


def test_the_last_generation_ends_with_the_training_and_none_follows(sweep) -> None:
    assert (sweep.population.generations, sweep.count) == (3, 24)
    points: list = []
    ended: dict[str, TrialResult] = {}
    while new := generation(sweep, points, ended):
        points += new
        ended |= finish(sweep, new, range(8))
    assert [point[UNTIL] for point in points[::8]] == [4, 8, 10]
    assert UNTIL not in sweep.settings(points[-1]), "to its end, as a pipeline without a population trains it"
    assert sweep.settings(points[0])[UNTIL] == 4
    assert all(not isinstance(value, list) for value in sweep.trials_of(points[-1])[0].point.values())


def test_settings_stay_in_the_space_and_a_schedule_says_what_they_came_to(sweep) -> None:
    points: list = []
    ended: dict[str, TrialResult] = {}
    while new := generation(sweep, points, ended):
        points += new
        ended |= finish(sweep, new, range(8))
    for point in points:
        assert 0.05 <= point[CLIP] <= 0.3
        assert 1e-4 <= point["pretrain.sampler_lr"] <= 1e-2
        assert point["pretrain.sampler.ppo.minibatches"] <= point["pretrain.sampler.ppo.epochs"]
        built = graph.build(sweep.load(sweep.settings(point))).instances["pretrain"].config
        sampler, rate = built.recipe.learning(built.last_epoch - 1)
        assert (sampler.ppo.clip, sampler.ppo.epochs, rate) == (
            point[CLIP], point["pretrain.sampler.ppo.epochs"], point["pretrain.sampler_lr"],
        )  # fmt: skip


def test_a_failed_member_is_replaced_and_if_all_fail_there_is_no_next_generation(sweep) -> None:
    first = generation(sweep, [], {})
    second = generation(sweep, first, finish(sweep, first, [None, None, None, 1, 2, 3, 4, 5]))
    assert [len(point[SCHEDULE]) for point in second] == [2, 2, 2, 1, 1, 1, 1, 1]
    assert generation(sweep, first, finish(sweep, first, [None] * 8)) == []


def test_the_table_is_of_the_newest_generation_and_the_best_pipeline_has_the_schedule(sweep, tmp_path):
    points: list = []
    ended: dict[str, TrialResult] = {}
    while new := generation(sweep, points, ended):
        points += new
        # The best number of all is one of the first generation.
        ended |= finish(sweep, new, [90 - len(points), *range(7)])
    summary = Summary.of(sweep, list(ended.values()), None)
    assert [row.point[UNTIL] for row in summary.rows] == [10] * 8
    assert summary.best_text.startswith("best pretrain.linear_top1: 66.0 with until=10 clip=")
    summary.write(tmp_path)
    best = graph.build(pipelines.load(str(tmp_path / "best.yaml"))).instances["pretrain"].config
    assert [trial.model_dump(exclude_none=True, exclude_defaults=True) for trial in best.schedule] == [
        {"epoch": 0, **points[0][SCHEDULE][0]}
    ]
    assert (best.until, best.epochs) == (None, 10)


def test_a_resume_continues_with_the_points_that_were_found(sweep, tmp_path) -> None:
    trials = search.Points(sweep, tmp_path).next_trials({})
    again = search.Points(sweep, tmp_path)
    assert again.trials() == trials
    assert again.next_trials({}) is None


@pytest.mark.parametrize("members", range(9))
def test_a_kill_while_a_generation_is_written_changes_no_member(sweep, tmp_path, members) -> None:
    whole = search.Points(sweep, tmp_path).next_trials({})
    journal = tmp_path / "study.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    assert len(lines) == 9, "the study itself and its eight members"
    journal.write_text("".join(lines[: members + 1]))
    resumed = search.Points(sweep, tmp_path)
    assert (resumed.trials() or resumed.next_trials({})) == whole
    assert len(search.read_points(tmp_path)) == 8


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("searcher={kind: pbt}", "every is missing"),
        ("searcher.every=10", "every is 10, but pretrain has only 10 epochs"),
        ("searcher={kind: random, every: 2}", "searcher.random has no key 'every'"),
        ("samples=1", "needs 2 members or more"),
        ("seeds={keys: [pretrain.seed], values: [0]}", "pbt leaves no room for seeds.keys"),
        ("scheduler={kind: asha, metric: pretrain.linear_top1}", "pbt leaves no room for scheduler"),
        ("pretrain.until=4", "pbt leaves no room for pretrain.until"),
        (
            "space.pretrain.sampler.mask_ratio=[0.8, 0.9]",
            "sampler.mask_ratio cannot change while the sampler trains; only ppo can",
        ),
        ("space={pretrian.sampler_lr: [0.1, 0.2]}", "'pretrian' is none; did you mean 'pretrain'?"),
        ("space={probe.seed: [1, 2]}", "a pre-training that a metric is of, and 'probe' is none"),
    ],
)
def test_what_a_population_cannot_do_is_an_error(override: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bred.yaml"
    path.write_text(SWEEP)
    with pytest.raises(SpecError) as raised:
        spec.load(str(path), [override, *(["constraints=[]"] if override.startswith("space={") else [])])
    assert message in str(raised.value)


TINY = (
    "data.generate.benchmarks=[ssv2]",
    "data.generate.clips_per_class=6",
    "data.generate.test_clips_per_class=4",
    "pretrain.workers=1",
    "pretrain.epochs=4",
    "pretrain.batch_size=16",
    "pretrain.health_clips=16",
    "pretrain.optimizer.warmup_epochs=1",
    "searcher.every=2",
    "samples=2",
)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own use of its libraries
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_winner_is_a_pipeline_that_ends_in_the_same_bits_without_a_population(tmp_path, database):
    path = tmp_path / "bred.yaml"
    path.write_text(SWEEP)
    sweep = spec.load(str(path), list(TINY))
    home = tmp_path / "home"
    outcome = engine.run(sweep, home, resume=False, ui=Silent())
    assert [trial.status for trial in outcome.summary.trials] == ["finished"] * 4
    assert [trial.epochs for trial in outcome.summary.trials] == [2] * 4, (
        "the second generation resumes from the first"
    )
    assert len(outcome.summary.rows) == 2, "the newest generation alone"

    def trained(where: Path) -> dict[int, Path]:
        """Output folders of the pre-trainings by the number of epochs of their configuration."""
        made = {}
        for folder in (where / "stages").glob("pretrain-*"):
            config = json.loads((folder / "key.json").read_text())["components"]["config"]
            made[json.dumps(config.get("schedule", [])), config.get("until", 4)] = folder
        return made

    parts = trained(home)
    assert sorted(until for _, until in parts) == [2, 2, 4, 4]
    notes = [
        event["text"]
        for (_, until), folder in parts.items()
        for _, event in read_events(folder / "events.jsonl")
        if event["kind"] == "note" and until == 4
    ]
    assert sum(note.startswith("resumed after step") for note in notes) == 2
    best = pipelines.load(str(outcome.folder / "best.yaml"))
    assert runner.run(best, tmp_path / "other", only=["data", "pretrain"]).status == "finished"
    ((name, straight),) = trained(tmp_path / "other").items()
    part, other = load_file(parts[name] / "model.safetensors"), load_file(straight / "model.safetensors")
    assert all(part[key].equal(other[key]) for key in part)
    assert math.isfinite(outcome.summary.trials[0].metrics["pretrain.linear_top1"])

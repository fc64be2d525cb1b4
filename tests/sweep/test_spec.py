"""Errors of a sweep are reported before anything starts; all on the shipped `demo_ratio`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tats_core import specs
from tats_core.errors import SpecError
from tats_core.files import write_json
from tats_core.pipeline import graph
from tats_core.sweep import engine, spec, summary

MENU = Path(__file__).resolve().parents[2] / "sweeps"
SHIPPED = sorted(MENU.glob("*.yaml"))
RATIO = "pretrain.sampler.mask_ratio"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_sweep_validates_and_opens_with_its_command_and_its_result(path: Path) -> None:
    assert spec.load(str(path)).count > 1
    header = [line for line in path.read_text().split("\nname:")[0].splitlines() if line.startswith("#")]
    assert f"tats sweep {path.stem}" in header[0]
    assert "result" in " ".join(header).lower()
    assert path.stem not in specs.names("pipelines")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("space.pretrain.sampler.mask_ration=[0.9]", "has no key 'mask_ration'; did you mean 'mask_ratio'?"),
        (f"space.{RATIO}=[0.9, 1.5]", f"space.{RATIO} = 1.5"),
        (f"space.{RATIO}=[high]", f"space.{RATIO} = 'high'"),
        (f"space.{RATIO}=[]", f"space.{RATIO} has no values"),
        (f"space.{RATIO}=[0.9, 0.9]", "the same value twice"),
        ("space={}", "space is empty"),
        ("metrics=[{name: probe.linear_topp1, mode: max}]", "did you mean 'linear_top1'?"),
        ("metrics=[{name: prob.linear_top1, mode: max}]", "no stage named 'prob'; did you mean 'probe'?"),
        ("metrics=[{name: probe.linear_top1}]", "none has a mode"),
        ("pretrain.sampler.kind=tats", "both set and searched"),
        ("pretrain.epoch=3", "did you mean 'epochs'?"),
        ("sercher.kind=random", "is named 'sercher'; did you mean 'searcher'?"),
        ("baseline.pretrain.sampler.kind=rand", "none of its values"),
        ('constraints=["pretrain.sampler.mask_ratio > 0.99"]', "leave no point"),
        ("seeds.values=[0, 0]", "the same seed twice"),
        ("searcher.kind=random", "samples is missing"),
        (f"space.{RATIO}={{uniform: [0.8, 0.9]}}", "a range, which a grid cannot hold"),
        ("scheduler={kind: asha, metric: pretrain.linear}", "did you mean 'pretrain.linear_top1'?"),
    ],
)
def test_an_error_names_the_file_and_the_key(override: str, message: str) -> None:
    with pytest.raises(SpecError) as raised:
        spec.load("demo_ratio", [override])
    assert message in str(raised.value)
    assert "demo_ratio.yaml" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("values", ["[0.85, 0.95]", "{choice: [0.85, 0.95]}"])
def test_a_baseline_is_one_of_the_values_however_they_are_listed(values: str) -> None:
    sets = [f"space.{RATIO}={values}", f"baseline={{{RATIO}: 0.9}}"]
    with pytest.raises(SpecError, match=rf"baseline\.{RATIO}: 0\.9 is none of its values \(0\.85, 0\.95\)"):
        spec.load("demo_ratio", sets)


def test_a_sweep_may_not_be_called_as_a_pipeline_is(tmp_path: Path) -> None:
    twin = tmp_path / "demo.yaml"
    twin.write_text((MENU / "demo_ratio.yaml").read_text().replace("name: demo_ratio", "name: demo"))
    with pytest.raises(SpecError, match="a pipeline of the same name"):
        spec.load(str(twin))


def test_trial_ids_follow_from_name_and_values_alone() -> None:
    first, again = spec.load("demo_ratio"), spec.load("demo_ratio", [f"space.{RATIO}=[0.95, 0.9]"])
    known = {trial.id: trial.overrides for point in first.points() for trial in first.trials_of(point)}
    assert len(known) == first.count == 27
    shared = [trial for point in again.points() for trial in again.trials_of(point)]
    assert len(shared) == 18
    assert all(known[trial.id] == trial.overrides for trial in shared)


@pytest.mark.parametrize(
    "value",
    [
        5e-05,
        3,
        0.5,
        True,
        None,
        "1",
        "null",
        "a: b",
        "ä",
        "",
        [1, 2],
        [{"epoch": 0, "sampler": {"ppo": 1e-06}}],
    ],
)
def test_a_value_reaches_the_pipeline_as_it_is(value) -> None:
    pipeline = spec.load("demo_ratio").complete_pipeline({"pretrain.any": value})
    assert pipeline.stages["pretrain"].config["any"] == value


def test_stages_that_no_trial_changes_are_common_and_those_that_no_metric_needs_are_left_out() -> None:
    sweep = spec.load("demo_ratio")
    assert sweep.common == {"data"}
    assert set(sweep.load({}).stages) == {"data", "pretrain"}


def test_trials_that_make_the_same_output_are_known_before() -> None:
    probed = ("metrics=[{name: probe.linear_top1, mode: max}]", "probe.matrix.init=[pretrained]")
    sweep = spec.load("demo_ratio", probed)
    works = [
        sweep.work(graph.build(sweep.load({RATIO: 0.9, "pretrain.seed": seed, "probe.seed": probe})))
        for seed, probe in ((0, 0), (0, 1), (1, 0))
    ]
    assert works[0] & works[1], "one pre-training for two probes"
    assert not works[0] & works[2]


def test_the_differences_between_two_sweeps_are_named(tmp_path: Path) -> None:
    sweep = spec.load("demo_ratio")
    write_json(tmp_path / "sweep.json", sweep.identity())
    engine.check_same(sweep, tmp_path)
    epochs = sweep.fixed["pretrain.epochs"]
    with pytest.raises(SpecError, match=rf"\(set\.pretrain\.epochs: {epochs} → 7\)"):
        engine.check_same(spec.load("demo_ratio", ["pretrain.epochs=7"]), tmp_path)


def test_the_best_point_is_a_pipeline_that_can_be_planned(tmp_path: Path) -> None:
    sweep = spec.load("demo_ratio")
    best = tmp_path / "best.yaml"
    best.write_text(summary.best_pipeline(sweep, {RATIO: 0.95, "pretrain.sampler.kind": "adaptive"}))
    from tats_core.pipeline import spec as pipelines

    built = graph.build(pipelines.load(str(best))).instances
    assert built["pretrain"].config.model_dump()["sampler"]["mask_ratio"] == 0.95
    assert built["pretrain"].config.model_dump()["sampler"]["kind"] == "adaptive"

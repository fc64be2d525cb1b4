"""The rule by which a rehearsal scales a pipeline down, and a small pipeline that is rehearsed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from tats_core.data.generate import GenerateConfig, generate
from tats_core.data.manifest import Manifest, VideoRecord
from tats_core.errors import SpecError
from tats_core.pipeline import exercised, graph, runner, spec
from tats_core.pipeline.rehearse import Rehearsal
from tats_core.specs import merge
from tats_core.stages.data import DataConfig
from tats_core.stages.evaluate import EvaluateStage
from tats_core.stages.finetune import FinetuneStage
from tats_core.stages.pretrain import PretrainStage
from tats_core.store.run import Run
from tats_core.sweep import spec as sweeps

HERE = Rehearsal(cpus=2)


@pytest.fixture
def toy_kinds():
    """Leave the real stage kinds, which the rule is about."""


def _pretrain(**changes):
    recipe = {"benchmark": "ssv2", "workers": 32, "batch_size": 2048, "model": "vit_base"}
    return PretrainStage.model_validate(recipe | changes)


def test_a_vit_b_keeps_its_shape_at_a_third_of_the_heads():
    tiny = HERE.scaled(_pretrain(sampler={"kind": "tats", "mask_ratio": 0.95}), first=True)
    assert (tiny.model.width, tiny.model.heads, tiny.model.depth) == (64, 4, 2)  # of 768, 12, 12
    assert (tiny.mae.decoder_width, tiny.mae.decoder_heads, tiny.mae.decoder_depth) == (32, 2, 2)
    assert (tiny.sampler.network.width, tiny.sampler.network.heads) == (32, 2)
    assert (tiny.clip.frames, tiny.clip.size, tiny.clip.tubelet, tiny.clip.patch) == (16, 48, 2, 8)
    assert tiny.sampler.mask_ratio == 0.95
    assert HERE.scaled(_pretrain(clip={"size": [224, 448]}), first=True).clip.size == (24, 48)


def test_every_option_of_a_recipe_stays():
    options = {
        "precision": "bf16",
        "mae": {"decoded_share": 0.5, "global_token": True, "motion_weight": 4},
        "model": {"preset": "vit_base", "positions": "separable", "gradient_checkpointing": True},
        "data": {"stride": 4, "colour_jitter": 0.2},
        "optimizer": {"clip_grad": 1.0, "base_lr": 3e-4},
        "sampler": {"kind": "tats", "mask_ratio": 0.8, "ppo": {"epochs": 3, "rollout_length": 2}},
    }
    tiny = HERE.scaled(_pretrain(**options), first=True).model_dump()
    assert merge(tiny, options) == merge(tiny, {"model": {"preset": "vit_base"}})


def test_schedules_stay_where_they_are_in_proportion_to_the_epochs():
    changes = [{"epoch": epoch, "sampler_lr": epoch / 1e6} for epoch in (80, 400, 500, 560)]
    config = _pretrain(
        epochs=800,
        until=600,
        optimizer={"warmup_epochs": 40},
        sampler_warmup_epochs=80,
        health_every=400,
        checkpoint={"epochs": 400},
        schedule=changes,
    )
    tiny = Rehearsal(cpus=2, epochs=4).scaled(config, first=True)
    assert (tiny.epochs, tiny.until) == (4, 3)
    assert (tiny.optimizer.warmup_epochs, tiny.sampler_warmup_epochs) == (0.2, 0.4)
    assert (tiny.health_every, tiny.checkpoint.epochs) == (2, 2)
    # Epochs .4, 2, 2.5 and 2.8 of 4: of the last three, which begin in one epoch, the last is in force.
    assert [(change.epoch, change.sampler_lr) for change in tiny.schedule] == [(0, 8e-5), (2, 5.6e-4)]


def test_a_training_that_is_short_already_keeps_its_epochs():
    assert HERE.scaled(_pretrain(epochs=2, health_every=2), first=True).epochs == 2
    assert HERE.scaled(_pretrain(epochs=2, health_every=2), first=True).health_every == 2


def test_the_first_stage_of_a_kind_has_all_workers_and_the_others_have_one():
    recipe = {"benchmark": "kinetics400", "workers": 32, "batch_size": 512, "accumulate": 4}
    config = FinetuneStage.model_validate(recipe | {"gpu": True, "data": {"decode_workers": 8}})
    first, later = HERE.scaled(config, first=True), HERE.scaled(config, first=False)
    assert (first.workers, first.batch_size, first.accumulate, first.gpu) == (2, 16, 2, False)
    assert (later.workers, later.batch_size, later.accumulate) == (1, 8, 2)
    assert (first.data.decode_workers, later.data.decode_workers) == (1, 0)
    gpus = Rehearsal(cpus=64, gpus=16).scaled(config, first=True)
    assert (gpus.workers, gpus.batch_size, gpus.gpu) == (16, 128, True)


def test_mixing_still_pairs_the_clips_of_a_worker():
    config = FinetuneStage.model_validate({"benchmark": "ssv2", "workers": 32, "batch_size": 64})
    assert HERE.scaled(config, first=True).batch_size == 4


def test_the_views_of_a_test_stay():
    config = EvaluateStage.model_validate({"benchmark": "ssv2", "clips": 10, "test_workers": 8})
    tiny = HERE.scaled(config, first=True)
    assert (tiny.clips, tiny.crops, tiny.test_workers) == (10, None, 2)


def test_weights_from_outside_are_left_out():
    config = FinetuneStage.model_validate({"benchmark": "ssv2", "encoder": "vitb.pth", "labels_per_class": 4})
    tiny = HERE.scaled(config, first=True)
    assert (tiny.encoder, tiny.init, tiny.labels_per_class) == (None, "scratch", None)


def test_real_data_are_used_where_they_are_and_the_others_are_generated(tmp_path, monkeypatch):
    monkeypatch.setenv("TATS_DATA", str(tmp_path))
    (tmp_path / "ucf101").mkdir()
    config = HERE.with_data(DataConfig(benchmarks=("ssv2", "ucf101"), fold=2))
    assert (config.generated, config.read, config.fold, config.first) == (("ssv2",), ("ucf101",), 2, 32)


@pytest.mark.parametrize("name", ["full_ssv2", "full_k400", "full_ucf101", "full_hmdb51", "demo", "filmed"])
def test_every_shipped_pipeline_can_be_rehearsed_on_two_cores(name):
    rehearsed = spec.load(name, (), HERE)
    assert rehearsed.name == f"{name}-rehearsal"
    instances = graph.build(rehearsed).instances
    assert list(instances) == list(graph.build(spec.load(name)).instances)
    assert all(i.kind.cpus(i.config) <= 2 and not i.kind.gpus(i.config) for i in instances.values())


def test_ones_own_videos_are_rehearsed_as_they_are(tmp_path):
    rehearsed = graph.build(spec.load("own", [f"data.videos={tmp_path}"], HERE)).instances
    data = rehearsed["data"].config
    assert (data.videos, data.generated, data.read, data.first) == (str(tmp_path), (), ("own",), 32)


def test_a_data_set_without_a_test_list_is_a_row_of_what_was_exercised(tmp_path):
    videos = (VideoRecord("a", str(tmp_path / "a.mp4"), 0), VideoRecord("b", str(tmp_path / "b.avi"), 0))
    Manifest("own", "train", ("one",), tmp_path, videos).save(tmp_path / "own.train.json")
    stage = SimpleNamespace(folder=tmp_path, record=SimpleNamespace(name="data"))
    configs = {
        "data": {"all": DataConfig(videos=str(tmp_path), benchmarks=("own",)).model_dump(mode="json")},
        "pretrain": {"all": {"benchmark": "own", "data": {"reader": "pyav"}}},
        "count": {"all": {"benchmark": "own"}},  # a stage kind without clips
    }
    run = SimpleNamespace(done=lambda kind: [stage], configs=configs)
    (row,) = exercised._data(run)
    assert row == ("yes", "data: own", f"2 .avi, .mp4, real, in {tmp_path}; reader: pyav")


@pytest.mark.parametrize("name", ["mask_ratio", "ppo", "pbt_ppo", "samplers"])
def test_every_shipped_sweep_can_be_rehearsed_with_all_its_trials(name):
    sweep = sweeps.load(name)
    tiny = sweeps.rehearsed(sweep, HERE)
    assert tiny.name == f"{name}-rehearsal"
    assert tiny.count == sweep.count
    for point in tiny.space.corners():
        built = graph.build(tiny.load(tiny.trials_of(point)[0].overrides)).instances.values()
        assert {i.kind.cpus(i.config) for i in built} == {1}


def test_the_generations_of_a_population_are_all_rehearsed():
    tiny = sweeps.rehearsed(sweeps.load("pbt_ppo"), HERE)
    ends = [
        graph.build(tiny.load({"pretrain.until": until})).instances["pretrain"].config.until
        for until in (80, 400, 800)
    ]
    assert ends == [1, 5, 10]


def test_no_file_may_have_the_name_of_a_rehearsal(tmp_path):
    path = tmp_path / "mine-rehearsal.yaml"
    path.write_text("stages: {data: {kind: data}}")
    with pytest.raises(SpecError, match="marks the runs of --rehearse"):
        spec.load(str(path))


@pytest.mark.slow
def test_a_small_pipeline_is_rehearsed_killed_resumed_and_marked(tmp_path: Path, monkeypatch):
    # UCF101 is there, Something-Something v2 is not.
    monkeypatch.setenv("TATS_DATA", str(tmp_path / "videos"))
    generate(tmp_path / "videos", GenerateConfig(benchmarks=("ucf101",), clips_per_class=5), workers=1)
    path = tmp_path / "small.yaml"
    path.write_text("""
defaults: {model: vit_tiny, precision: bf16, workers: 8, gpu: true}
stages:
  data: {kind: data}
  pretrain: {kind: pretrain, needs: data, benchmark: ssv2, epochs: 100, batch_size: 64}
  finetune: {kind: finetune, needs: pretrain, benchmark: ucf101, epochs: 20, batch_size: 32}
  evaluate: {kind: evaluate, needs: finetune, benchmark: ucf101}
  report: {kind: report, needs: evaluate}
""")
    record = runner.run(spec.load(str(path), (), Rehearsal(cpus=1)), tmp_path / "home" / "rehearsal")
    assert record.error is None
    run = Run(record)
    shown = exercised.table(run, graph.build(spec.load(str(path))), record)
    rows = {row[1]: (row[0], row[2]) for row in shown.rows}
    assert rows["stages"][1].startswith("5 of 5")
    assert "generated" in rows["data: ssv2"][1]
    assert f"real, in {tmp_path / 'videos' / 'ucf101'}" in rows["data: ucf101"][1]
    assert rows["resume"][0] == "yes"
    assert rows["GPUs, NCCL"][0] == "no"
    marked = sorted(
        path.suffix
        for path in record.outputs("report")[0].glob("results.*")
        if "rehearsal" in path.read_text(errors="ignore").lower()
    )
    assert marked == [".csv", ".html", ".json", ".md", ".tex"]
    assert "small-rehearsal" in (record.folder / "report.html").read_text()

"""The jobs of the stages, one after the other, on a few generated video files."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tats_core.data import benchmarks
from tats_core.data.benchmarks.base import Split
from tats_core.data.generate import GenerateConfig, generate
from tats_core.data.manifest import UNLABELLED, Manifest
from tats_core.errors import SpecError, Stopped, TrainingError, VideoError
from tats_core.models.tokens import ClipConfig, patchify
from tats_core.models.vit import VideoViT, ViTConfig
from tats_core.stages import evaluate, finetune, pretrain, probe
from tats_core.stages.jobs import clip_options
from tats_core.training import replay
from tats_core.training.checkpoint import CheckpointStore
from tats_core.training.events import EventLog, read_events
from tats_core.training.world import World

MODEL: dict[str, Any] = {"preset": "vit_micro", "width": 24, "depth": 1, "heads": 2}
CLIP: dict[str, Any] = {"frames": 4, "size": 16, "tubelet": 2, "patch": 8}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    config = GenerateConfig.model_validate(
        {
            "benchmarks": ["ucf101", "hmdb51"],
            "clips_per_class": 2,
            "test_clips_per_class": 1,
            "frames": 8,
            "scene": {"size": 32, "sprite_radius": [4, 6]},
        }
    )
    for name, videos in generate(folder, config, workers=1).items():
        for split in get_args(Split):
            benchmarks.BENCHMARKS[name].read(videos, split, 1).save(folder / f"{name}.{split}.json")
    return folder


def _run(job: Any, entry: Any, out: Path) -> dict[str, Any]:
    out.mkdir(parents=True, exist_ok=True)
    entry(
        {**job, "out": str(out)},
        World(),
        EventLog(out / "events.jsonl"),
        CheckpointStore(out / "checkpoints"),
    )
    result: dict[str, Any] = json.loads((out / "result.json").read_text())
    return result


def _job(folder: Path, config: dict[str, Any], **inputs: Path | None) -> dict[str, Any]:
    paths = {role: str(path) for role, path in {"data": folder, **inputs}.items() if path}
    return {"config": {"benchmark": "ucf101", **config}, "inputs": paths}


def _pretrain_job(folder: Path, *, start: Path | None = None, **config: Any) -> dict[str, Any]:
    recipe = {
        "model": MODEL,
        "clip": CLIP,
        "mae": {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2},
        "sampler": {"mask_ratio": 0.5, "network": {"width": 12, "heads": 2}},
        "epochs": 1,
        "batch_size": 8,
        "health_clips": 8,
    }
    return _job(folder, recipe | config, start=start)


def _finetune_job(folder: Path, encoder: Path | None, **config: Any) -> dict[str, Any]:
    recipe = {"model": MODEL, "clip": CLIP, "epochs": 1, "batch_size": 8, "mixup": 0, "cutmix": 0}
    return _job(folder, recipe | config, encoder=encoder)


def _evaluate_job(data: Path, model: Path, test: str) -> dict[str, Any]:
    return _job(data, {"benchmark": test, "clips": 2, "crops": 1}, model=model)


def _probe_job(folder: Path, encoder: Path | None, **config: Any) -> dict[str, Any]:
    return _job(folder, {"model": MODEL, "clip": CLIP, **config}, encoder=encoder)


def test_each_job_hands_its_model_to_the_next(data: Path, tmp_path: Path) -> None:
    result = _run(_pretrain_job(data), pretrain.train, tmp_path / "pretrain")
    assert result["tokens"] == 8
    assert result["visible"] == 4
    assert result["unreadable_videos"] == 0
    assert (tmp_path / "pretrain" / "pictures").is_dir()

    _run(_finetune_job(data, tmp_path / "pretrain"), finetune.train, tmp_path / "finetune")
    scored = _run(
        _evaluate_job(data, tmp_path / "finetune", "ucf101"), evaluate.score_videos, tmp_path / "evaluate"
    )
    assert scored["clips"] == 8
    assert scored["chance"] == 12.5
    predictions = json.loads((tmp_path / "evaluate" / "predictions.json").read_text())
    hits = sum(row["label"] == row["predicted"] for row in predictions)
    assert scored["top1"] == pytest.approx(100 * hits / 8)

    probed = _run(_probe_job(data, tmp_path / "pretrain"), probe.probe_encoder, tmp_path / "probe")
    assert probed["labels"] == 16
    assert 0 <= probed["linear_top1"] <= 100
    assert "attentive_top1" not in probed


def test_a_pre_training_goes_out_from_the_one_it_starts_from(data: Path, tmp_path: Path) -> None:
    _run(_pretrain_job(data), pretrain.train, tmp_path / "first")
    # Without a learning rate, what comes out is what went in.
    still = {"base_lr": 1e-30, "min_lr": 0, "warmup_lr": 0, "weight_decay": 0}
    job = _pretrain_job(data, start=tmp_path / "first", optimizer=still, seed=1)
    _run(job, pretrain.train, tmp_path / "second")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    (params,) = [
        e["values"] for _, e in read_events(tmp_path / "second/events.jsonl") if e["kind"] == "params"
    ]
    assert params["start"] == f"{len(first)} tensors matched (TATS layout)"


def test_an_evaluation_leaves_its_scores_tables_and_pictures(data: Path, tmp_path: Path) -> None:
    _run(_finetune_job(data, None), finetune.train, tmp_path / "finetune")
    out = tmp_path / "evaluate"
    scored = _run(_evaluate_job(data, tmp_path / "finetune", "ucf101"), evaluate.score_videos, out)
    listed = Manifest.load(data / "ucf101.test.json")
    with safe_open(out / "scores.safetensors", "pt") as file:
        scores_BC, label_B = file.get_tensor("scores"), file.get_tensor("label")
        metadata = file.metadata()
    assert list(metadata) == ["names"]  # of several, the order in the file would be one of chance
    names = json.loads(metadata["names"])
    assert names["ids"] == [video.id for video in listed.videos]
    assert tuple(names["classes"]) == listed.classes
    assert (scores_BC.dtype, scores_BC.shape) == (torch.float16, (8, 8))
    assert label_B.tolist() == listed.labels()
    torch.testing.assert_close(scores_BC.float().sum(1), torch.ones(8), atol=2e-3, rtol=0)

    classes = list(csv.DictReader((out / "per_class.csv").read_text().splitlines()))
    assert [row["class"] for row in classes] == list(listed.classes)
    # One clip a class: the mean over classes is the mean over clips.
    assert sum(float(row["top1"]) for row in classes) / 8 == pytest.approx(scored["top1"])
    assert scored["mean_class_accuracy"] == pytest.approx(scored["top1"])
    bins = list(csv.DictReader((out / "calibration.csv").read_text().splitlines()))
    gaps = [int(b["clips"]) * abs(float(b["confidence"] or 0) - float(b["accuracy"] or 0)) for b in bins]
    assert len(bins) == 15
    assert scored["ece"] == pytest.approx(sum(gaps) / 8, abs=0.01)

    paths = [event["path"] for _, event in read_events(out / "events.jsonl") if event["kind"] == "file"]
    assert paths == ["per_class.csv", "confusion.csv", "confusion.png", "calibration.csv", "calibration.png"]
    assert all((out / name).is_file() for name in paths)


def test_an_attentive_probe_leaves_the_encoder_as_it_was_and_repeats_itself(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _run(_pretrain_job(data), pretrain.train, tmp_path / "pretrain")
    encoders = []

    def watched(self: probe.Encoder, name: str) -> Any:
        encoder = self.model.encoder
        encoders.append(({name: tensor.clone() for name, tensor in encoder.state_dict().items()}, encoder))
        return frozen(self, name)

    frozen = probe.Encoder.frozen
    monkeypatch.setattr(probe.Encoder, "frozen", watched)
    job = _probe_job(data, tmp_path / "pretrain", attentive={"epochs": 2, "batch": 8, "clips": 2})
    results = [_run(job, probe.probe_encoder, tmp_path / name) for name in ("one", "two")]
    for before, encoder in encoders:
        after = encoder.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert all(parameter.grad is None for parameter in encoder.parameters())
    assert 0 <= results[0]["attentive_top1"] <= 100
    losses = [
        [event["values"]["attentive_loss"] for _, event in read_events(tmp_path / name / "events.jsonl")
         if event["kind"] == "metrics" and "attentive_loss" in event["values"]]
        for name in ("one", "two")
    ]  # fmt: skip
    assert len(losses[0]) == 2
    assert losses[0] == losses[1]
    assert results[0]["attentive_top1"] == results[1]["attentive_top1"]


def test_a_killed_attentive_probe_resumes_to_the_same_result(data: Path, tmp_path: Path) -> None:
    class Killed(CheckpointStore):
        def save(self, state: Any, **more: Any) -> None:
            super().save(state, **more)
            raise KeyboardInterrupt

    job = _probe_job(data, None, attentive={"epochs": 2, "batch": 8}, precision="bf16")
    whole = _run(job, probe.probe_encoder, tmp_path / "whole")
    out = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        probe.probe_encoder({**job, "out": str(out)}, World(), EventLog(None), Killed(out / "checkpoints"))
    resumed = _run(job, probe.probe_encoder, out)
    notes = [event["text"] for _, event in read_events(out / "events.jsonl") if event["kind"] == "note"]
    assert notes == ["resumed after epoch 1 of 2"]
    assert whole | {"seconds": 0} == resumed | {"seconds": 0}
    saved = [(tmp_path / name / "checkpoints" / "attentive").iterdir() for name in ("whole", "killed")]
    files = [max(folders) / "state.pt" for folders in saved]
    first, second = (torch.load(file, weights_only=True)["probe"] for file in files)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_half_precision_is_the_encoders_alone() -> None:
    torch.manual_seed(0)
    encoder = VideoViT(ViTConfig.model_validate(MODEL), ClipConfig.model_validate(CLIP))
    views_BVCTHW = torch.randn(1, 1, 3, 4, 16, 16)
    full_BND, half_BND = (
        probe.tokens_of(encoder, views_BVCTHW, precision, World()) for precision in ("fp32", "bf16")
    )
    assert all(parameter.dtype == torch.float32 for parameter in encoder.parameters())
    assert not torch.equal(full_BND, half_BND.float())
    # bfloat16 keeps 8 bits.
    torch.testing.assert_close(half_BND.float(), full_BND, rtol=0, atol=0.1)


def test_the_tokens_of_a_videos_clips_are_joined_in_order() -> None:
    torch.manual_seed(0)
    encoder = VideoViT(ViTConfig.model_validate(MODEL), ClipConfig.model_validate(CLIP))
    views_BVCTHW = torch.randn(2, 3, 3, 4, 16, 16)
    tokens_BND = probe.tokens_of(encoder, views_BVCTHW, "fp32", World())
    assert tokens_BND.shape == (2, 3 * 8, 24)
    assert not tokens_BND.requires_grad
    alone_1ND = encoder(patchify(views_BVCTHW[1, 2:], encoder.clip))
    torch.testing.assert_close(tokens_BND[1:, 16:], alone_1ND)


def test_averaged_weights_are_what_is_saved_and_the_run_says_so(data: Path, tmp_path: Path) -> None:
    for name, ema in (("last", None), ("average", {"decay": 0.9})):
        out = tmp_path / name
        _run(_finetune_job(data, None, ema=ema, precision="bf16"), finetune.train, out)
        saved = load_file(out / "model.safetensors")
        state = torch.load(max((out / "checkpoints").iterdir()) / "state.pt", weights_only=True)["trainer"]
        expected = state["model"]
        if ema:
            expected = {key.removeprefix("module."): tensor for key, tensor in state["average"].items()}
        assert all(torch.equal(tensor, expected[key]) for key, tensor in saved.items())
        assert all(tensor.dtype == torch.float32 for tensor in saved.values())
        (params,) = [e["values"] for _, e in read_events(out / "events.jsonl") if e["kind"] == "params"]
        assert params["saved_weights"] == ("moving average" if ema else "last step")
    assert not torch.equal(expected["head.weight"], state["model"]["head.weight"])


def test_videos_without_labels_are_enough_for_pre_training(data: Path, tmp_path: Path) -> None:
    for split in get_args(Split):
        listed = Manifest.load(data / f"ucf101.{split}.json")
        videos = tuple(replace(video, label=UNLABELLED) for video in listed.videos)
        unlabelled = replace(listed, benchmark="own", classes=(), videos=videos)
        unlabelled.save(tmp_path / f"own.{split}.json")
    job = _pretrain_job(tmp_path, benchmark="own")
    result = _run(job, pretrain.train, tmp_path / "pretrain")
    assert result["effective_rank"] > 0
    assert "linear_top1" not in result


def test_without_a_test_list_a_pre_training_looks_at_its_training_clips(data: Path, tmp_path: Path) -> None:
    Manifest.load(data / "ucf101.train.json").save(tmp_path / "ucf101.train.json")
    result = _run(_pretrain_job(tmp_path), pretrain.train, tmp_path / "pretrain")
    assert result["effective_rank"] > 0
    assert "linear_top1" not in result
    notes = [event.get("text", "") for _, event in read_events(tmp_path / "pretrain" / "events.jsonl")]
    assert any("there is no test list" in note for note in notes)


def test_a_model_is_not_scored_on_the_classes_of_another_data_set(data: Path, tmp_path: Path) -> None:
    _run(_finetune_job(data, None), finetune.train, tmp_path / "finetune")
    with pytest.raises(
        SpecError, match=r"knows other classes than .* hmdb51: the model alone has '.*' and \d+ more"
    ):
        _run(
            _evaluate_job(data, tmp_path / "finetune", "hmdb51"), evaluate.score_videos, tmp_path / "evaluate"
        )


@pytest.mark.parametrize(
    ("model", "test", "sentence"),
    [
        ("abc", "abd", "the model alone has 'c'; the test alone has 'd'"),
        ("abcdefg", "ab", "the model alone has 'c', 'd', 'e' and 2 more"),
        ("abc", "acb", "the same in another order, first at 1, which is 'b' and 'c'"),
    ],
)
def test_classes_that_differ_are_named(model: str, test: str, sentence: str) -> None:
    assert evaluate.other_classes(list(model), list(test)) == sentence


def test_a_partial_copy_marks_the_result_of_every_job(data: Path, tmp_path: Path) -> None:
    for split in get_args(Split):
        replace(Manifest.load(data / f"ucf101.{split}.json"), absent=3).save(
            tmp_path / f"ucf101.{split}.json"
        )
    tuned = _run(_finetune_job(tmp_path, None), finetune.train, tmp_path / "finetune")
    job = _evaluate_job(tmp_path, tmp_path / "finetune", "ucf101")
    tested = _run(job, evaluate.score_videos, tmp_path / "evaluate")
    assert (tuned["absent_train"], tested["absent_test"]) == (3, 3)
    assert Manifest.load(data / "ucf101.train.json").absence() == {}


def test_an_unreadable_test_video_is_an_error_that_names_it(data: Path, tmp_path: Path) -> None:
    _run(_finetune_job(data, None), finetune.train, tmp_path / "finetune")
    listed = Manifest.load(data / "ucf101.test.json")
    broken = Path(listed.videos[3].path)
    whole = broken.read_bytes()
    try:
        broken.write_bytes(whole[: len(whole) // 8])
        with pytest.raises(VideoError, match=broken.name):
            _run(
                _evaluate_job(data, tmp_path / "finetune", "ucf101"),
                evaluate.score_videos,
                tmp_path / "evaluate",
            )
    finally:
        broken.write_bytes(whole)


def test_an_unreadable_training_video_is_named_counted_and_skipped(data: Path, tmp_path: Path) -> None:
    broken = Path(Manifest.load(data / "ucf101.train.json").videos[0].path)
    whole = broken.read_bytes()
    job = _finetune_job(data, None, data={"max_unreadable": 0.1})
    try:
        broken.write_bytes(b"not a video")
        result = _run(job, finetune.train, tmp_path / "finetune")
    finally:
        broken.write_bytes(whole)
    assert result["unreadable_videos"] == 1
    notes = [e["text"] for _, e in read_events(tmp_path / "finetune" / "events.jsonl") if e["kind"] == "note"]
    assert any(broken.name in text for text in notes)


def test_a_broken_training_video_stops_neither_a_health_check_nor_a_probe(data: Path, tmp_path: Path) -> None:
    # The health check and the probe see all 16 training videos, so this one too.
    broken = Path(Manifest.load(data / "ucf101.train.json").videos[0].path)
    whole = broken.read_bytes()
    allowed = {"max_unreadable": 0.1}
    try:
        broken.write_bytes(b"not a video")
        result = _run(
            _pretrain_job(data, health_clips=16, data=allowed), pretrain.train, tmp_path / "pretrain"
        )
        probed = _run(
            _probe_job(data, tmp_path / "pretrain", data=allowed),
            probe.probe_encoder,
            tmp_path / "probe",
        )
    finally:
        broken.write_bytes(whole)
    assert "linear_top1" in result
    assert "linear_top1" in probed
    for stage in ("pretrain", "probe"):
        events = [event for _, event in read_events(tmp_path / stage / "events.jsonl")]
        assert any(broken.name in event["text"] for event in events if event["kind"] == "note")


def test_a_probe_stops_when_a_person_asks(data: Path, tmp_path: Path) -> None:
    job = _probe_job(data, None, batch_size=4) | {"out": str(tmp_path)}
    with pytest.raises(Stopped):
        probe.probe_encoder(
            job, World(), EventLog(None), CheckpointStore(tmp_path / "checkpoints", stop=lambda: True)
        )


def test_frames_that_contradict_the_models_clip_are_refused(data: Path, tmp_path: Path) -> None:
    job = _finetune_job(data, None, data={"frames": 6})
    with pytest.raises(SpecError, match=r"data\.frames contradicts clip\.frames"):
        _run(job, finetune.train, tmp_path / "finetune")


def test_a_failed_training_says_how_its_last_step_is_replayed(data: Path, tmp_path: Path) -> None:
    recipe = {"optimizer": {"base_lr": 1e30, "warmup_epochs": 0}, "epochs": 30}
    with pytest.raises(TrainingError, match=r" [KM]iB of this worker\): `tats replay .*dump`"):
        _run(_finetune_job(data, None, **recipe), finetune.train, tmp_path)
    about = replay.read(tmp_path / "dump")
    culprit = replay.replay(tmp_path / "dump", about, torch.device("cpu"))
    assert culprit is not None
    assert "in the weights: model." in culprit.text or "Classifier" in culprit.text


def test_frames_and_size_come_from_the_models_clip() -> None:
    from tats_core.data.loaders import ClipOptions

    options = clip_options(ClipConfig.model_validate(CLIP), ClipOptions())
    assert (options.frames, options.size) == (4, 16)

"""The jobs of the stages, one after the other, on a few generated video files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from tats_core.data import benchmarks
from tats_core.data.benchmarks.base import Split
from tats_core.data.generate import GenerateConfig, generate
from tats_core.data.manifest import Manifest
from tats_core.errors import SpecError, TrainingError, VideoError
from tats_core.training.checkpoint import FolderStore
from tats_core.training.events import EventLog, read_events
from tats_core.training.jobs import evaluate, finetune, pretrain, probe
from tats_core.training.jobs.common import clip_options, dump_on_failure
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
    for name, place in generate(folder, config, workers=1).items():
        for split in get_args(Split):
            benchmarks.find(name).read(place, split, 1).save(folder / f"{name}.{split}.json")
    return folder


def _run(job: Any, entry: Any, out: Path) -> dict[str, Any]:
    out.mkdir(parents=True, exist_ok=True)
    entry({**job, "out": str(out)}, World(), EventLog(out / "events.jsonl"), FolderStore(out / "checkpoints"))
    result: dict[str, Any] = json.loads((out / "result.json").read_text())
    return result


def _pretrain_job(data: Path) -> dict[str, Any]:
    recipe = {
        "model": MODEL,
        "clip": CLIP,
        "mae": {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2},
        "sampler": {"mask_ratio": 0.5, "network": {"width": 12, "heads": 2}},
        "epochs": 1,
        "batch_size": 8,
    }
    return {
        "recipe": recipe,
        "data": {},
        "train": str(data / "ucf101.train.json"),
        "held_out": str(data / "ucf101.test.json"),
        "health_clips": 8,
    }


def _finetune_job(data: Path, encoder: Path | None) -> dict[str, Any]:
    recipe = {"model": MODEL, "clip": CLIP, "epochs": 1, "batch_size": 8, "mixup": 0, "cutmix": 0}
    return {
        "recipe": recipe,
        "data": {},
        "train": str(data / "ucf101.train.json"),
        "encoder": None if encoder is None else str(encoder),
        "benchmark": "ucf101",
        "init": "pretrained",
    }


def _evaluate_job(data: Path, model: Path, test: str) -> dict[str, Any]:
    place = {"test": str(data / f"{test}.test.json"), "model": str(model)}
    return {"data": {}, **place, "clips": 2, "crops": 1, "benchmark": test, "init": "pretrained"}


def test_each_job_hands_its_model_to_the_next(data: Path, tmp_path: Path) -> None:
    found = _run(_pretrain_job(data), pretrain.run, tmp_path / "pretrain")
    assert found["tokens"] == 8
    assert found["visible"] == 4
    assert found["unreadable_videos"] == 0
    assert (tmp_path / "pretrain" / "pictures").is_dir()

    _run(_finetune_job(data, tmp_path / "pretrain"), finetune.run, tmp_path / "finetune")
    scored = _run(_evaluate_job(data, tmp_path / "finetune", "ucf101"), evaluate.run, tmp_path / "evaluate")
    assert scored["clips"] == 8
    assert scored["chance"] == 12.5
    predictions = json.loads((tmp_path / "evaluate" / "predictions.json").read_text())
    hits = sum(row["label"] == row["predicted"] for row in predictions)
    assert scored["top1"] == pytest.approx(100 * hits / 8)

    job = {"model": MODEL, "clip": CLIP, "data": {}, "encoder": str(tmp_path / "pretrain")}
    lists = {split: str(data / f"ucf101.{split}.json") for split in get_args(Split)}
    named = {"benchmark": "ucf101", "init": "pretrained"}
    probed = _run({**job, **lists, **named}, probe.run, tmp_path / "probe")
    assert probed["labels"] == 16
    assert 0 <= probed["linear_top1"] <= 100


def test_a_model_is_not_scored_on_the_classes_of_another_data_set(data: Path, tmp_path: Path) -> None:
    _run(_finetune_job(data, None), finetune.run, tmp_path / "finetune")
    with pytest.raises(SpecError, match="knows other classes"):
        _run(_evaluate_job(data, tmp_path / "finetune", "hmdb51"), evaluate.run, tmp_path / "evaluate")


def test_an_unreadable_test_video_is_an_error_that_names_it(data: Path, tmp_path: Path) -> None:
    _run(_finetune_job(data, None), finetune.run, tmp_path / "finetune")
    listed = Manifest.load(data / "ucf101.test.json")
    broken = Path(listed.videos[3].path)
    whole = broken.read_bytes()
    try:
        broken.write_bytes(whole[: len(whole) // 8])
        with pytest.raises(VideoError, match=broken.name):
            _run(_evaluate_job(data, tmp_path / "finetune", "ucf101"), evaluate.run, tmp_path / "evaluate")
    finally:
        broken.write_bytes(whole)


def test_an_unreadable_training_video_is_named_counted_and_skipped(data: Path, tmp_path: Path) -> None:
    broken = Path(Manifest.load(data / "ucf101.train.json").videos[0].path)
    whole = broken.read_bytes()
    job = _finetune_job(data, None)
    try:
        broken.write_bytes(b"not a video")
        found = _run({**job, "data": {"max_unreadable": 0.1}}, finetune.run, tmp_path / "finetune")
    finally:
        broken.write_bytes(whole)
    assert found["unreadable_videos"] == 1
    notes = [e["text"] for _, e in read_events(tmp_path / "finetune" / "events.jsonl") if e["kind"] == "note"]
    assert any(broken.name in text for text in notes)


def test_frames_that_contradict_the_models_clip_are_refused(data: Path, tmp_path: Path) -> None:
    job = _finetune_job(data, None)
    with pytest.raises(SpecError, match=r"data\.frames contradicts clip\.frames"):
        _run({**job, "data": {"frames": 6}}, finetune.run, tmp_path / "finetune")


def test_a_failed_training_leaves_its_state_and_its_last_videos(data: Path, tmp_path: Path) -> None:
    class Trainer:
        last_index_B = torch.tensor([2, 0])

        def state_dict(self) -> dict[str, Any]:
            return {"weight": torch.ones(2)}

    manifest = Manifest.load(data / "ucf101.train.json")
    with (
        pytest.raises(TrainingError, match=r"not finite; state and last videos are in .*dump"),
        dump_on_failure(Trainer(), manifest, tmp_path, World(rank=1)),
    ):
        raise TrainingError("not finite")
    folder = tmp_path / "dump" / "worker-1"
    assert torch.equal(torch.load(folder / "state.pt", weights_only=True)["weight"], torch.ones(2))
    assert json.loads((folder / "videos.json").read_text()) == [manifest.videos[i].path for i in (2, 0)]


def test_frames_and_size_come_from_the_models_clip() -> None:
    from tats_core.data.loaders import ClipOptions
    from tats_core.models.tokens import ClipConfig

    options = clip_options(ClipConfig.model_validate(CLIP), ClipOptions())
    assert (options.frames, options.size) == (4, 16)

"""Pre-training, fine-tuning and probing that start from a checkpoint of elsewhere."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tats_core.errors import SpecError
from tats_core.models import hugging_face
from tats_core.models.mae import MAEConfig, VideoMAE
from tats_core.models.tokens import ClipConfig
from tats_core.models.vit import ViTConfig
from tats_core.pipeline import graph as graphs
from tats_core.pipeline.keys import stage_key
from tats_core.pipeline.spec import Pipeline, Stage
from tats_core.stages import KINDS, checkpoint_input, finetune, pretrain, probe
from tats_core.stages.base import Input, ParallelWork, Preflight, StageContext
from tats_core.stages.jobs import load_encoder
from tats_core.training.events import EventLog, read_events

MODEL: dict[str, Any] = {"preset": "vit_micro", "width": 24, "depth": 1, "heads": 2}
CLIP: dict[str, Any] = {"frames": 4, "size": 16, "tubelet": 2, "patch": 8}
MAE: dict[str, Any] = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}


def _mae(seed: int = 0, **changes: Any) -> VideoMAE:
    torch.manual_seed(seed)
    vit, clip = ViTConfig.model_validate({**MODEL, **changes}), ClipConfig.model_validate(CLIP)
    return VideoMAE(vit, MAEConfig.model_validate(MAE), clip)


def _checkpoint(path: Path, model: VideoMAE) -> Path:
    torch.save(hugging_face.exported(model)[0], path)
    return path


def _pipeline(**finetuning: Any) -> Pipeline:
    common = {"model": MODEL, "clip": CLIP, "benchmark": "ssv2"}
    stages = {
        "data": Stage("data", "data", (), {}, 0, {"generate": {"benchmarks": ["ssv2"]}}),
        "finetune": Stage("finetune", "finetune", ("data",), {}, 0, {**common, **finetuning}),
        "probe": Stage("probe", "probe", ("data",), {}, 0, {**common, **finetuning}),
    }
    return Pipeline("mine", "", "mine.yaml", {}, stages)


def _pretraining(**keys: Any) -> Pipeline:
    stages = {
        "data": Stage("data", "data", (), {}, 0, {"generate": {"benchmarks": ["ssv2"]}}),
        "pretrain": Stage("pretrain", "pretrain", ("data",), {}, 0, _recipe(**keys)),
    }
    return Pipeline("mine", "", "mine.yaml", {}, stages)


def _recipe(**keys: Any) -> dict[str, Any]:
    return {"model": MODEL, "clip": CLIP, "mae": MAE, "benchmark": "ssv2", **keys}


@pytest.fixture(autouse=True)
def real_kinds(toy_kinds: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "KINDS", KINDS)


def _key(pipeline: Pipeline, stage: str) -> Mapping[str, Any]:
    return stage_key(graphs.build(pipeline).instances[stage], [], "mine").components


def test_a_checkpoint_stands_in_for_a_pre_training(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="leads to no stage of kind 'pretrain', whose output it reads"):
        graphs.build(_pipeline())
    file = _checkpoint(tmp_path / "videomae.pth", _mae())
    instances = graphs.build(_pipeline(encoder=str(file))).instances
    assert instances["finetune"].needs == instances["probe"].needs == ("data",)


def test_the_key_follows_the_content_and_not_the_place(tmp_path: Path) -> None:
    first, copy = _checkpoint(tmp_path / "one.pth", _mae(0)), tmp_path / "copy.pth"
    copy.write_bytes(first.read_bytes())
    other = _checkpoint(tmp_path / "other.pth", _mae(1))
    for stage in ("finetune", "probe"):
        keys = [_key(_pipeline(encoder=str(file)), stage) for file in (first, copy, other)]
        assert keys[0] == keys[1]
        assert {part for part in keys[0] if keys[0][part] != keys[2][part]} == {"external"}
    before = checkpoint_input.digest("encoder", str(copy))
    copy.write_bytes(other.read_bytes())
    os.utime(copy, ns=(1, 1))
    assert (
        checkpoint_input.digest("encoder", str(copy))
        == checkpoint_input.digest("encoder", str(other))
        != before
    )


def test_from_scratch_a_checkpoint_is_not_in_the_key(tmp_path: Path) -> None:
    file = _checkpoint(tmp_path / "one.pth", _mae())
    for stage in ("finetune", "probe"):
        without = _key(_pipeline(init="scratch"), stage)
        assert _key(_pipeline(init="scratch", encoder=str(file)), stage) == without


def test_what_is_declared_beside_the_weights_is_in_the_digest(tmp_path: Path) -> None:
    _checkpoint(tmp_path / "pytorch_model.bin", _mae())
    before = checkpoint_input.digest("encoder", str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert checkpoint_input.digest("encoder", str(tmp_path)) != before


@pytest.mark.parametrize("kind", [finetune.KIND, probe.KIND])
def test_preflight_names_a_checkpoint_that_is_missing_or_does_not_fit(kind: Any, tmp_path: Path) -> None:
    def faults(**changes: Any) -> list[str]:
        config = kind.Config.model_validate(
            {"model": MODEL, "clip": CLIP, "benchmark": "ssv2", "encoder": str(tmp_path / "x.pth"), **changes}
        )
        return list(kind.preflight(config, Preflight("stage", {}, tmp_path)))

    assert faults() == [
        f"encoder: {tmp_path / 'x.pth'}: the checkpoint cannot be read (no such file or folder)"
    ]
    assert faults(init="scratch") == []
    _checkpoint(tmp_path / "x.pth", _mae())
    assert faults() == []
    (fault,) = faults(model={**MODEL, "depth": 3}, clip={**CLIP, "patch": 4})
    assert fault.endswith("another depth 1 (here 3), patch 8 (here 4); set model and clip alike")


def test_the_key_of_a_pre_training_follows_the_content_of_its_start(tmp_path: Path) -> None:
    first, copy = _checkpoint(tmp_path / "one.pth", _mae(0)), tmp_path / "copy.pth"
    copy.write_bytes(first.read_bytes())
    other = _checkpoint(tmp_path / "other.pth", _mae(1))
    keys = [_key(_pretraining(start=str(file)), "pretrain") for file in (first, copy, other)]
    assert keys[0] == keys[1]
    fresh = _key(_pretraining(), "pretrain")
    for changed in (keys[2], fresh):
        assert {part for part in changed if keys[0][part] != changed[part]} == {"external"}


def test_preflight_of_a_pre_training_names_a_start_that_is_missing_or_does_not_fit(tmp_path: Path) -> None:
    def faults(**changes: Any) -> list[str]:
        config = pretrain.PretrainStage.model_validate(_recipe(**changes))
        return pretrain.KIND.preflight(config, Preflight("pretrain", {}, tmp_path))

    file = tmp_path / "x.pth"
    assert faults() == []
    assert faults(start=str(file)) == [
        f"start: {file}: the checkpoint cannot be read (no such file or folder)"
    ]
    _checkpoint(file, _mae())
    assert faults(start=str(file)) == []
    assert faults(start=str(file), mae={**MAE, "decoder_depth": 2}) == [
        f"start: {file}: its decoder has another decoder_depth 1 (here 2); set mae alike"
    ]


def test_a_pre_trainings_start_must_fit_its_decoder_too(tmp_path: Path) -> None:
    file, source = tmp_path / "x.pth", _mae()
    _checkpoint(file, source)
    vit, clip = source.encoder.config, source.clip
    assert checkpoint_input.faults("start", str(file), vit, clip, source.config) == []
    deeper = source.config.model_copy(update={"decoder_depth": 2})
    assert checkpoint_input.faults("start", str(file), vit, clip) == []
    assert checkpoint_input.faults("start", str(file), vit, clip, deeper) == [
        f"start: {file}: its decoder has another decoder_depth 1 (here 2); set mae alike"
    ]


def test_the_stage_gives_its_job_the_checkpoints_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _checkpoint(tmp_path / "x.pth", _mae())
    jobs: list[Mapping[str, Any]] = []

    def fit(work: ParallelWork) -> None:
        jobs.append(work.job)

    inputs = (
        Input("data", "data", {}, tmp_path / "data"),
        Input("pretrain", "pretrain", {}, tmp_path / "pre"),
    )
    context = StageContext("any", "mine", "0" * 64, tmp_path, inputs, EventLog(None), fit, threading.Event())
    for changes in ({"encoder": "x.pth"}, {"encoder": "x.pth", "init": "scratch"}, {}):
        config = {"model": MODEL, "clip": CLIP, "benchmark": "ssv2", **changes}
        finetune.KIND.run(finetune.FinetuneStage.model_validate(config), context)
    assert [job["inputs"].get("encoder") for job in jobs] == [
        str(tmp_path / "x.pth"),
        None,
        str(tmp_path / "pre"),
    ]
    jobs.clear()
    for changes in ({"start": "x.pth"}, {}):
        pretrain.KIND.run(pretrain.PretrainStage.model_validate(_recipe(**changes)), context)
    assert [job["inputs"].get("start") for job in jobs] == [str(tmp_path / "x.pth"), None]


def test_what_matched_is_a_note_and_a_parameter(tmp_path: Path) -> None:
    source, target = _mae(0), _mae(1)
    file = _checkpoint(tmp_path / "x.pth", source)
    matched = load_encoder(target.encoder, str(file), EventLog(tmp_path / "events.jsonl"))
    assert matched["encoder"].startswith("16 tensors matched (Hugging Face layout), ")
    ((_, event),) = read_events(tmp_path / "events.jsonl")
    assert event["text"] == f"encoder from {file}: {matched['encoder']}"
    assert torch.equal(target.encoder.embedding.weight, source.encoder.embedding.weight)


def test_a_pre_training_says_what_it_started_from(tmp_path: Path) -> None:
    source, target = _mae(0), _mae(1)
    file = _checkpoint(tmp_path / "x.pth", source)
    matched = pretrain.load_start(target, str(file), EventLog(tmp_path / "events.jsonl"))
    whole = len(target.state_dict())
    assert matched["start"].startswith(f"{whole} tensors matched (Hugging Face layout), ")
    ((_, event),) = read_events(tmp_path / "events.jsonl")
    assert event["text"] == f"start from {file}: {matched['start']}"
    assert torch.equal(target.to_pixels.weight, source.to_pixels.weight)

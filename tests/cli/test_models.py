"""`tats export`, `tats predict` and `tats weights`."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tats_core.models.classifier import VideoClassifier
from tats_core.models.mae import MAEConfig, VideoMAE
from tats_core.models.tokens import ClipConfig
from tats_core.models.vit import ViTConfig
from tats_core.store.run import RunRecord, StageRecord
from tats_core.training import weights

VIT = ViTConfig.model_validate({"preset": "vit_micro", "width": 12, "depth": 1, "heads": 2})
CLIP = ClipConfig(frames=2, size=8, tubelet=2, patch=4)
MAE = MAEConfig(decoder_width=8, decoder_depth=1, decoder_heads=1)
CLASSES = ["falling", "rising", "rolling", "sliding", "spinning", "turning"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A project folder with one finished run: a pre-training and two fine-tunings."""
    home = tmp_path / ".tats"
    torch.manual_seed(0)
    stages = {}
    shape = {"model": VIT, "clip": CLIP}
    views = {"benchmark": "ssv2", "sampling": "uniform", "stride": 2}
    for name in ("pretrain", "finetune[ssv2]", "finetune[ucf101]"):
        kind = name.split("[", maxsplit=1)[0]
        folder = home / "stages" / f"{kind}-{len(stages)}"
        folder.mkdir(parents=True)
        if kind == "pretrain":
            weights.save(folder, VideoMAE(VIT, MAE, CLIP), {**shape, "mae": MAE, "views": views})
        else:
            model = VideoClassifier(VIT, CLIP, len(CLASSES), head_scale=1)
            described = {**shape, "head_norm": "layer", "classes": CLASSES, "views": views}
            weights.save(folder, model, described)
        stages[name] = StageRecord(name, kind, kind, {}, [], status="finished", folder=str(folder))
    RunRecord(
        "mine-20260101-120000000-ab",
        "mine",
        "",
        "mine.yaml",
        str(home),
        "finished",
        0.0,
        stages,
        finished=1.0,
    ).save()
    return home


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=10, width=32, height=32, pix_fmt="yuv420p")
        for index in range(6):
            pixels = np.full((32, 32, 3), 40 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        container.mux(stream.encode())
    return path


def test_predict_prints_five_classes_of_each_video(tats, home, video):
    done = tats("predict", "mine", str(video), str(video), "--stage", "finetune[ssv2]")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert len(lines) == 12
    assert lines[0] == lines[6] == str(video)
    chances = [float(line.split("%")[0]) for line in lines[1:6]]
    assert chances == sorted(chances, reverse=True)
    assert {line.split("%  ")[1] for line in lines[1:6]} < set(CLASSES)


def test_predict_prints_json_for_scripts(tats, home, video):
    done = tats("predict", "mine", str(video), "--stage", "finetune[ssv2]", "--json")
    printed = json.loads(done.out)
    assert printed["model"] == str(home / "stages" / "finetune-1")
    (prediction,) = printed["videos"]
    assert prediction["video"] == str(video)
    assert len(prediction["classes"]) == 5
    best = prediction["classes"][0]
    assert CLASSES[best["label"]] == best["name"]
    assert 1 / 6 < best["probability"] < 1


def test_several_models_are_one_sentence_with_how_to_choose(tats, home, video):
    done = tats("predict", "mine", str(video))
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "tats: the run mine-20260101-120000000-ab has 2 fine-tuned models: finetune[ssv2], finetune[ucf101]; "
        "choose one with --stage 'finetune[ssv2]'\n"
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("mine", "none.mp4", "--stage", "finetune[ssv2]"), "none.mp4: there is no such file"),
        (
            (".tats/stages/pretrain-0", "clip.mp4"),
            "its model is pre-trained, but a fine-tuned model is needed here",
        ),
        (("mni", "clip.mp4"), "'mni' is no run in "),
        (("mine", "text.mp4", "--stage", "finetune[ssv2]"), "text.mp4"),
    ],
)
def test_what_predict_cannot_do_is_a_sentence(tats, home, video, words, sentence):
    (home.parent / "text.mp4").write_text("hello")
    done = tats("predict", *words)
    assert (done.code, done.out) == (2, "")
    assert sentence in done.err
    assert len(done.err.splitlines()) == 1


def test_an_exported_model_predicts_what_the_run_predicts(tats, home, video):
    expected = tats("predict", "mine", str(video), "--stage", "finetune[ssv2]").out
    for form in ("hf", "safetensors"):
        done = tats("export", "mine", "--stage", "finetune[ssv2]", "--format", form, "--out", form)
        assert done.code == 0, done.err
        out = home.parent / form
        assert done.out == f"{out}: the model of {home / 'stages' / 'finetune-1'}, as {form}\n"
        assert tats("predict", form, str(video)).out == expected


def test_a_pre_training_is_exported_by_its_stage(tats, home):
    done = tats("export", "mine", "--stage", "pretrain", "--format", "hf", "--out", "hf")
    assert done.code == 0, done.err
    config = json.loads((home.parent / "hf" / "config.json").read_text())
    assert config["architectures"] == ["VideoMAEForPreTraining"]
    again = tats("export", "mine", "--stage", "pretrain", "--format", "hf", "--out", "hf")
    assert again.code == 2
    assert "is there already; give --out a new folder" in again.err


def test_weights_describes_a_checkpoint_and_how_to_initialise_from_it(tats, home):
    tats("export", "mine", "--stage", "finetune[ssv2]", "--format", "hf", "--out", "hf")
    done = tats("weights", "hf")
    assert done.out.splitlines() == [
        "layout     Hugging Face",
        "kind       fine-tuned",
        "encoder    width 12, depth 1, heads 2, mlp 48; positions joint",
        "clip       tubelet 2, patch 4, frames 2, size 8",
        "classes    6",
        "understood 18 tensors",
        f"Initialise from it with the key 'encoder: {home.parent / 'hf'}' of a finetune or probe stage, "
        "or with 'start:' of a pretrain stage.",
    ]
    printed = json.loads(tats("weights", "hf", "--json").out)
    values = [printed[key] for key in ("layout", "kind", "heads", "unknown")]
    assert values == ["Hugging Face", "fine-tuned", 2, []]


def test_weights_names_the_tensors_that_it_does_not_know(tats, home):
    model = VideoMAE(VIT, MAE, CLIP)
    torch.save(
        {
            "encoder.patch_embed.proj.weight": model.encoder.embedding.weight.detach(),
            "encoder.blocks.0.mlp.fc1.weight": torch.zeros(48, 12),
            "encoder.pos_embed_probs": torch.zeros(1, 4, 12),
        },
        home.parent / "ada.pth",
    )
    lines = tats("weights", "ada.pth").out.splitlines()
    assert lines[0] == "layout     VideoMAE"
    assert "unexpected 1 tensors: encoder.pos_embed_probs" in lines
    assert any("do not determine the number of heads" in line for line in lines)
    done = tats("weights", "none.pth")
    assert (done.code, done.out) == (2, "")
    assert "none.pth: the checkpoint cannot be read (no such file or folder)" in done.err

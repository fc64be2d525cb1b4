"""Exported folders, read by the tools that they are for.

Axes: B clips, C=3 channels, T frames, H W pixels, N tokens, K visible and M masked ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers  # its classes are imported when they are named: that takes seconds
from safetensors.torch import load_file, save_file

from tats_core.data import clips, transforms
from tats_core.errors import StoreError, WeightsError
from tats_core.models.classifier import VideoClassifier
from tats_core.models.mae import MAEConfig, VideoMAE
from tats_core.models.tokens import ClipConfig, patchify
from tats_core.models.vit import ViTConfig
from tats_core.store.models import find_model
from tats_core.tracking.export import export
from tats_core.training import weights
from tats_core.training.predict import Predictor

VIT = ViTConfig.model_validate({"preset": "vit_micro", "width": 24, "depth": 2, "heads": 3})
CLIP = ClipConfig(frames=4, size=16, tubelet=2, patch=4)
MAE = MAEConfig(decoder_width=16, decoder_depth=2, decoder_heads=2)
CLASSES = ["falling", "rolling", "turning"]
VIEWS = {"benchmark": "ssv2", "sampling": "uniform", "stride": 2, "protocol": "ours"}


def _shaken(model: torch.nn.Module) -> torch.nn.Module:
    """Random biases and norms: what is zero or one at the start would hide a mistake."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def _tuned(folder: Path, **changed: Any) -> VideoClassifier:
    folder.mkdir()
    described = {
        "model": VIT,
        "clip": CLIP,
        "head_norm": "layer",
        "classes": CLASSES,
        "views": VIEWS,
    } | changed
    model = VideoClassifier(
        described["model"], described["clip"], 3, head_norm=described["head_norm"], head_scale=1
    )
    weights.save(folder, _shaken(model), described)
    return model


def _pre(folder: Path) -> VideoMAE:
    folder.mkdir()
    model = VideoMAE(VIT, MAE, CLIP)
    weights.save(folder, _shaken(model), {"model": VIT, "clip": CLIP, "mae": MAE})
    for name in ("sampler.safetensors", "sampler.json"):
        (folder / name).write_text("{}")
    return model


def _video() -> torch.Tensor:
    return torch.randn(2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(1))


def test_transformers_gives_an_exported_classifiers_scores(tmp_path: Path) -> None:
    ours = _tuned(tmp_path / "tuned")
    export(tmp_path / "tuned", "finetune", "hf", tmp_path / "out")
    theirs, info = transformers.VideoMAEForVideoClassification.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(info.values()), info
    assert theirs.config.id2label == dict(enumerate(CLASSES))
    assert theirs.config.layer_norm_eps == 1e-6
    video_BCTHW = _video()
    with torch.no_grad():
        logits, expected = theirs.eval()(video_BCTHW.transpose(1, 2)).logits, ours(video_BCTHW)
    # Nothing is set by hand: their last norm keeps its own epsilon.
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


def test_transformers_gives_an_exported_pre_trainings_loss(tmp_path: Path) -> None:
    ours = _pre(tmp_path / "pre")
    export(tmp_path / "pre", "pretrain", "hf", tmp_path / "out")
    theirs, info = transformers.VideoMAEForPreTraining.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(info.values()), info
    video_BCTHW = _video()
    order_BN = torch.rand(2, CLIP.tokens).argsort(1)
    visible_BK, masked_BM = (part.sort(1).values for part in (order_BN[:, :8], order_BN[:, 8:]))
    masked_BN = torch.ones(2, CLIP.tokens, dtype=torch.bool).scatter(1, visible_BK, False)
    with torch.no_grad():
        loss = theirs.eval()(video_BCTHW.transpose(1, 2), masked_BN).loss
        expected = ours(patchify(video_BCTHW, CLIP), visible_BK, masked_BM).error_BM.mean()
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(24, 36), (24, 43), (24, 42), (37, 22), (16, 21), (16, 16), (90, 160)])
def test_transformers_prepares_a_clip_as_ours_is_prepared(tmp_path: Path, shape: tuple[int, int]) -> None:
    _tuned(tmp_path / "tuned")
    export(tmp_path / "tuned", "finetune", "hf", tmp_path / "out")
    processor = transformers.VideoMAEImageProcessor.from_pretrained(tmp_path / "out")
    frames_THWC = torch.randint(256, (4, *shape, 3), dtype=torch.uint8)
    theirs_BTCHW = processor(list(frames_THWC.permute(0, 3, 1, 2)), return_tensors="pt").pixel_values
    (cropped_THWC,) = transforms.crops_of_test(frames_THWC, 16, 1)
    ours_BCTHW = clips.normalise(transforms.channels_first(cropped_THWC.unsqueeze(0)))
    torch.testing.assert_close(theirs_BTCHW.transpose(1, 2), ours_BCTHW, rtol=0, atol=1e-5)


def test_an_exported_classifier_comes_back_from_either_form(tmp_path: Path) -> None:
    ours = _tuned(tmp_path / "tuned")
    for form in ("hf", "safetensors"):
        export(tmp_path / "tuned", "finetune", form, tmp_path / form)  # type: ignore[arg-type]
        predictor = Predictor.load(find_model(str(tmp_path / form), tmp_path, "finetune"))
        assert predictor.classes == tuple(CLASSES)
        assert predictor.views.model_dump() == VIEWS
        with torch.no_grad():
            torch.testing.assert_close(
                predictor.model.eval()(_video()), ours.eval()(_video()), rtol=0, atol=1e-6
            )


def test_safetensors_keep_the_model_and_the_sampler_and_nothing_else(tmp_path: Path) -> None:
    _pre(tmp_path / "pre")
    (tmp_path / "pre" / "events.jsonl").write_text("")
    (tmp_path / "out").mkdir()  # an empty folder may be there
    export(tmp_path / "pre", "pretrain", "safetensors", tmp_path / "out")
    names = ["model.json", "model.safetensors", "sampler.json", "sampler.safetensors"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "pre" / name).read_bytes()


def test_what_hugging_face_cannot_hold_leaves_no_folder(tmp_path: Path) -> None:
    _tuned(tmp_path / "batch", head_norm="batch")
    separable = VIT.model_copy(update={"positions": "separable"})
    _tuned(tmp_path / "separable", model=separable)
    _tuned(tmp_path / "wide", clip=CLIP.model_copy(update={"size": (16, 24)}))
    lacking = {"batch": "head_norm: layer", "separable": "model.positions: joint", "wide": "square clips"}
    for name, key in lacking.items():
        with pytest.raises(WeightsError, match=f"has only {key}; export as safetensors"):
            export(tmp_path / name, "finetune", "hf", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(lacking)


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    _tuned(tmp_path / "tuned")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("")
    with pytest.raises(StoreError, match="is there already; give --out a new folder"):
        export(tmp_path / "tuned", "finetune", "hf", tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        export(tmp_path / "tuned", "finetune", "hf", tmp_path / "file" / "out")


@pytest.mark.parametrize("form", ["safetensors", "hf", "mlflow"])
def test_a_model_saved_in_another_format_is_not_exported(tmp_path: Path, form: Any) -> None:
    _tuned(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    save_file(load_file(file), file)
    with pytest.raises(WeightsError, match=r"model.safetensors: is a model of TATS saved without a format"):
        export(tmp_path / "model", "finetune", form, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_pre_trained_model_cannot_be_served(tmp_path: Path) -> None:
    _pre(tmp_path / "pre")
    with pytest.raises(WeightsError, match="has no classes to predict; export a fine-tuned one for MLflow"):
        export(tmp_path / "pre", "pretrain", "mlflow", tmp_path / "out")


def test_the_config_names_its_model_for_transformers(tmp_path: Path) -> None:
    _tuned(tmp_path / "tuned")
    export(tmp_path / "tuned", "finetune", "hf", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["architectures"], config["model_type"]) == (["VideoMAEForVideoClassification"], "videomae")

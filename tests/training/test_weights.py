from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tats_core.errors import WeightsError
from tats_core.models.classifier import VideoClassifier
from tats_core.models.mae import MAEConfig, VideoMAE
from tats_core.models.tokens import ClipConfig
from tats_core.models.vit import ViTConfig
from tats_core.training import weights

CLIP = ClipConfig(frames=4, size=8, tubelet=2, patch=4)
MAE = MAEConfig(decoder_width=16, decoder_depth=1, decoder_heads=2)


def _vit(depth: int = 2, width: int = 24) -> ViTConfig:
    return ViTConfig.model_validate({"preset": "vit_micro", "width": width, "depth": depth, "heads": 3})


def _saved(folder: Path) -> VideoMAE:
    mae = VideoMAE(_vit(), MAE, CLIP)
    weights.save(folder, mae, {"model": _vit(), "clip": CLIP, "classes": ["a", "b"]})
    return mae


def test_a_saved_model_comes_back_as_it_was(tmp_path: Path) -> None:
    mae = _saved(tmp_path)
    other = VideoMAE(_vit(), MAE, CLIP)
    weights.load(tmp_path, other)
    for (name, one), two in zip(mae.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


def test_its_description_rebuilds_its_configuration(tmp_path: Path) -> None:
    _saved(tmp_path)
    described = weights.describe(tmp_path)
    assert ViTConfig.model_validate(described["model"]) == _vit()
    assert ClipConfig.model_validate(described["clip"]) == CLIP
    assert described["classes"] == ["a", "b"]


def test_a_classifier_takes_the_pre_trained_encoder_without_its_final_norm(tmp_path: Path) -> None:
    mae = _saved(tmp_path)
    model = VideoClassifier(_vit(), CLIP, 2)
    weights.load_encoder(model.encoder, tmp_path, without=("norm.",))
    expected = {k: v for k, v in mae.encoder.state_dict().items() if not k.startswith("norm.")}
    found = model.encoder.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_weights_of_another_depth_are_refused_with_a_name(tmp_path: Path) -> None:
    _saved(tmp_path)
    model = VideoClassifier(_vit(depth=3), CLIP, 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        weights.load_encoder(model.encoder, tmp_path, without=("norm.",))
    assert str(caught.value) == (
        f"{tmp_path}: the weights do not fit the model: missing 12 (such as blocks.2.attn.proj.bias)"
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_weights_of_another_width_are_refused_with_a_name(tmp_path: Path) -> None:
    _saved(tmp_path)
    with pytest.raises(WeightsError, match=r"of other shape \d+ \(such as blocks.0.attn.proj.bias\)$"):
        weights.load_encoder(VideoMAE(_vit(width=48), MAE, CLIP).encoder, tmp_path)


def test_weights_that_the_model_has_no_place_for_are_refused(tmp_path: Path) -> None:
    _saved(tmp_path)
    with pytest.raises(WeightsError, match=r"unexpected 2 \(such as norm.bias\)$"):
        weights.load_encoder(VideoClassifier(_vit(), CLIP, 2).encoder, tmp_path)


def test_a_model_without_an_encoder_is_not_a_pre_training(tmp_path: Path) -> None:
    weights.save(tmp_path, torch.nn.Linear(2, 2), {})
    with pytest.raises(WeightsError, match="holds no encoder; is it the output of a pre-training"):
        weights.load_encoder(VideoMAE(_vit(), MAE, CLIP).encoder, tmp_path)


def test_a_folder_without_a_model_is_said_to_be_one(tmp_path: Path) -> None:
    model = VideoMAE(_vit(), MAE, CLIP)
    with pytest.raises(WeightsError, match=r"model.safetensors"):
        weights.load(tmp_path, model)
    with pytest.raises(WeightsError, match=r"model.safetensors"):
        weights.load_encoder(model.encoder, tmp_path)


def test_half_a_file_of_weights_is_refused(tmp_path: Path) -> None:
    _saved(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"model.safetensors"):
        weights.load(tmp_path, VideoMAE(_vit(), MAE, CLIP))


@pytest.mark.parametrize("text", [None, "{not json"])
def test_a_description_that_is_missing_or_broken_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "model.json").write_text(text)
    with pytest.raises(WeightsError, match="is not the description of a saved model"):
        weights.describe(tmp_path)


def test_a_kill_while_saving_leaves_the_weights_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mae = _saved(tmp_path)

    def half(tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    other = VideoMAE(_vit(), MAE, CLIP)
    with monkeypatch.context() as patch:
        patch.setattr(weights, "save_file", half)
        with pytest.raises(KeyboardInterrupt):
            weights.save(tmp_path, other, {})
    weights.load(tmp_path, other)
    assert torch.equal(other.mask_token, mae.mask_token)
    assert weights.describe(tmp_path)["classes"] == ["a", "b"]

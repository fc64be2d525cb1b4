from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tats_core.errors import WeightsError
from tats_core.files import digest
from tats_core.models import checkpoints_io, hugging_face
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
    for (name, saved), loaded in zip(mae.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(saved, loaded), name
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
    match = checkpoints_io.load(model.encoder, checkpoints_io.read(tmp_path))
    assert match.missing == ()
    assert match.unexpected == ("norm.bias", "norm.weight")
    expected = {k: v for k, v in mae.encoder.state_dict().items() if not k.startswith("norm.")}
    loaded = model.encoder.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_weights_of_another_depth_are_refused_with_a_name(tmp_path: Path) -> None:
    _saved(tmp_path)
    model = VideoClassifier(_vit(depth=3), CLIP, 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        checkpoints_io.load(model.encoder, checkpoints_io.read(tmp_path))
    assert str(caught.value) == (
        f"{tmp_path}: its encoder has another depth 2 (here 3); set model and clip alike"
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (VideoMAE(_vit(depth=3), MAE, CLIP), r"missing 12 \(such as encoder.blocks.2.attn.proj.bias\)$"),
        (VideoMAE(_vit(depth=1), MAE, CLIP), r"unexpected 12 \(such as encoder.blocks.1.attn.proj.bias\)$"),
        (
            VideoMAE(_vit(width=48), MAE, CLIP),
            r"of other shape \d+ \(such as encoder.blocks.0.attn.proj.bias",
        ),
    ],
    ids=["depth", "no place", "width"],
)
def test_a_whole_model_that_does_not_fit_is_refused_with_a_name(
    tmp_path: Path, other: VideoMAE, message: str
) -> None:
    _saved(tmp_path)
    with pytest.raises(WeightsError, match=message):
        weights.load(tmp_path, other)


def test_a_model_without_an_encoder_is_not_a_pre_training(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "linear.pth")
    with pytest.raises(WeightsError, match="holds no encoder of VideoMAE's"):
        checkpoints_io.read(tmp_path / "linear.pth")


def test_a_pre_training_starts_from_encoder_and_decoder(tmp_path: Path) -> None:
    mae, other = _saved(tmp_path), VideoMAE(_vit(), MAE, CLIP)
    match = weights.initialise_mae(other, tmp_path)
    assert (match.missing, match.unexpected) == ((), ())
    for (name, saved), loaded in zip(mae.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(saved, loaded), name


def test_a_pre_training_from_a_classifier_starts_with_its_encoder_alone(tmp_path: Path) -> None:
    source, other = VideoClassifier(_vit(), CLIP, 2), VideoMAE(_vit(), MAE, CLIP)
    weights.save(
        tmp_path, source, {"model": _vit(), "clip": CLIP, "classes": ["a", "b"], "head_norm": "layer"}
    )
    token = other.mask_token.clone()
    match = weights.initialise_mae(other, tmp_path)
    assert {"mask_token", "encoder.norm.weight", "to_pixels.bias"} < set(match.missing)
    assert not [name for name in match.missing if name.startswith("encoder.blocks.")]
    assert torch.equal(other.encoder.embedding.weight, source.encoder.embedding.weight)
    assert torch.equal(other.mask_token, token)


def test_a_pre_trained_model_is_rebuilt_from_its_folder(tmp_path: Path) -> None:
    mae = VideoMAE(_vit(), MAE, CLIP)
    weights.save(tmp_path, mae, {"model": _vit(), "clip": CLIP, "mae": MAE})
    again = weights.load_mae(tmp_path)
    assert torch.equal(again.mask_token, mae.mask_token)
    assert (again.config, again.clip) == (MAE, CLIP)


def test_a_pre_trained_model_where_classes_are_needed_is_refused(tmp_path: Path) -> None:
    weights.save(tmp_path, VideoMAE(_vit(), MAE, CLIP), {"model": _vit(), "clip": CLIP, "mae": MAE})
    with pytest.raises(
        WeightsError, match="its model is pre-trained and has no classes; name a fine-tuned one"
    ):
        weights.load_classifier(tmp_path)


def test_a_fine_tuned_model_where_a_decoder_is_needed_is_refused(tmp_path: Path) -> None:
    _saved(tmp_path)  # it has classes, and no configuration of a decoder
    with pytest.raises(
        WeightsError, match="its model is fine-tuned and has no decoder; name a pre-trained one"
    ):
        weights.load_mae(tmp_path)


def test_a_description_without_an_encoder_is_refused(tmp_path: Path) -> None:
    weights.save(tmp_path, VideoClassifier(_vit(), CLIP, 2), {"classes": ["a", "b"]})
    with pytest.raises(WeightsError, match=r"model.json: does not describe a video encoder"):
        weights.load_classifier(tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    model = VideoMAE(_vit(), MAE, CLIP)
    with pytest.raises(WeightsError, match=r"model.safetensors"):
        weights.load(tmp_path, model)
    with pytest.raises(WeightsError, match=r"model.safetensors"):
        checkpoints_io.load(model.encoder, checkpoints_io.read(tmp_path))


@pytest.mark.parametrize(
    ("metadata", "saved"),
    [(None, "without a format, as before they were counted"), ({"tats": "1"}, "in format 1")],
)
def test_a_model_saved_in_another_format_is_refused_in_a_sentence(
    tmp_path: Path, metadata: dict[str, str] | None, saved: str
) -> None:
    classifier = VideoClassifier(_vit(), CLIP, 2)
    for name, model, more in (
        ("mae", VideoMAE(_vit(), MAE, CLIP), {"mae": MAE}),
        ("classifier", classifier, {"classes": ["a", "b"], "head_norm": "layer"}),
    ):
        (tmp_path / name).mkdir()
        weights.save(tmp_path / name, model, {"model": _vit(), "clip": CLIP, **more})
        file = tmp_path / name / "model.safetensors"
        save_file(load_file(file), file, metadata)
    sentence = (
        f"model.safetensors: is a model of TATS saved {saved}, and this version reads format 2 only: the "
        "same numbers would mean something else; train it again (run its pipeline), or use the version "
        "that saved it"
    )
    for load in (
        weights.load_mae,
        lambda folder: weights.initialise_mae(VideoMAE(_vit(), MAE, CLIP), folder),
    ):
        with pytest.raises(WeightsError, match=rf"mae/{re.escape(sentence)}$"):
            load(tmp_path / "mae")
    for load in (weights.load_classifier, checkpoints_io.read):
        with pytest.raises(WeightsError, match=rf"classifier/{re.escape(sentence)}$"):
            load(tmp_path / "classifier")


def test_our_tensors_in_a_file_without_a_format_are_refused(tmp_path: Path) -> None:
    mae = VideoMAE(_vit(), MAE, CLIP)
    torch.save(mae.state_dict(), tmp_path / "ours.pth")
    with pytest.raises(WeightsError, match=r"ours.pth: is a model of TATS saved without a format"):
        weights.initialise_mae(mae, tmp_path / "ours.pth")


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


def test_the_same_weights_are_the_same_bytes(tmp_path: Path) -> None:
    mae = _saved(tmp_path)
    saved = set()
    for _ in range(20):
        weights.save(tmp_path, mae, {})
        saved.add(digest(tmp_path / "model.safetensors"))
    assert len(saved) == 1


def test_a_kill_while_saving_leaves_the_weights_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mae = _saved(tmp_path)

    def half(tensors: object, path: Path, metadata: object) -> None:
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


@pytest.mark.parametrize("named", [True, False])
def test_a_classifier_of_hugging_face_is_rebuilt_with_its_classes_or_numbers(
    tmp_path: Path, named: bool
) -> None:
    source = VideoClassifier(_vit(), CLIP, 3)
    tensors, config = hugging_face.exported(source, ["a", "b", "c"])
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    if not named:
        del config["id2label"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    model, classes = weights.load_classifier(tmp_path)
    assert classes == (["a", "b", "c"] if named else ["class 0", "class 1", "class 2"])
    for (name, saved), loaded in zip(source.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(saved, loaded), name


def test_a_pre_trained_model_of_hugging_face_has_no_classes_either(tmp_path: Path) -> None:
    tensors, config = hugging_face.exported(VideoMAE(_vit(), MAE, CLIP))
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        WeightsError, match="its model is pre-trained and has no classes; name a fine-tuned one"
    ):
        weights.load_classifier(tmp_path)

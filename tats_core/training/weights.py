"""Models on disk: tensors as safetensors with a JSON description beside them; also models made elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from tats_core.errors import WeightsError
from tats_core.files import replacing, write_json
from tats_core.models import checkpoints_io, hugging_face
from tats_core.models.checkpoints_io import Match
from tats_core.models.classifier import VideoClassifier
from tats_core.models.mae import MAEConfig, VideoMAE
from tats_core.models.tokens import ClipConfig
from tats_core.models.vit import ViTConfig
from tats_core.training.optim import fresh_weights


def save(folder: Path, module: nn.Module, described: Mapping[str, object], name: str = "model") -> None:
    """Write `<name>.safetensors` and `<name>.json`; each is complete or absent."""
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in module.state_dict().items()}
    with replacing(folder / f"{name}.safetensors") as temporary:
        save_file(tensors, temporary, checkpoints_io.METADATA)
    plain = {
        key: value.model_dump(mode="json") if isinstance(value, BaseModel) else value
        for key, value in described.items()
    }
    write_json(folder / f"{name}.json", plain)


def describe(folder: Path, name: str = "model") -> dict[str, Any]:
    """Read `<name>.json`.

    Raises:
        WeightsError: it is missing or not JSON.
    """
    path = folder / f"{name}.json"
    try:
        described: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: is not the description of a saved model ({error})") from error
    return described


def load(folder: Path, module: nn.Module, name: str = "model") -> None:
    """Load `<name>.safetensors` into `module`; every name and shape must match.

    Raises:
        WeightsError: they do not, the file cannot be read, or another version of TATS saved it.
    """
    path = folder / f"{name}.safetensors"
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: the saved weights cannot be read ({error})") from error
    checkpoints_io.refuse_other_format(path)
    wanted = module.state_dict()
    faults = {
        "missing": sorted(wanted.keys() - tensors.keys()),
        "unexpected": sorted(tensors.keys() - wanted.keys()),
        "of other shape": sorted(
            key for key in wanted.keys() & tensors.keys() if wanted[key].shape != tensors[key].shape
        ),
    }
    parts = [f"{what} {len(keys)} (such as {keys[0]})" for what, keys in faults.items() if keys]
    if parts:
        raise WeightsError(f"{folder}: the weights do not fit the model: {', '.join(parts)}")
    module.load_state_dict(tensors)


def initialise_mae(mae: VideoMAE, path: Path) -> Match:
    """Initialise a pre-training from a model: encoder and decoder where it has both, else the encoder alone.

    Returns:
        What was loaded; `missing` names what keeps its initial values.

    Raises:
        WeightsError: encoder or decoder is of another size.
    """
    foreign = checkpoints_io.read(path)
    if foreign.kind == "pre-trained":
        return checkpoints_io.load(mae, foreign)
    match = checkpoints_io.load(mae.encoder, foreign)
    missing = sorted(mae.state_dict().keys() - {f"encoder.{name}" for name in match.matched})
    return replace(match, missing=tuple(missing))


def load_mae(folder: Path) -> VideoMAE:
    """Rebuild the pre-trained model saved in `folder`.

    Raises:
        WeightsError: it holds none.
    """
    described = describe(folder)
    if "mae" not in described:
        raise WeightsError(f"{folder}: its model is fine-tuned and has no decoder; name a pre-trained one")
    vit, clip = _encoder_of(described, folder)
    with fresh_weights(0):  # loaded below; the draws must not disturb those of another stage
        mae = VideoMAE(vit, MAEConfig.model_validate(described["mae"]), clip)
    load(folder, mae)
    return mae


def load_classifier(folder: Path) -> tuple[VideoClassifier, list[str]]:
    """Rebuild the fine-tuned model in `folder`, ours or Hugging Face's; returns it with its class names.

    Raises:
        WeightsError: it holds none.
    """
    if not (folder / "model.json").exists() and (folder / "config.json").exists():
        return _classifier_of_hugging_face(folder)
    described = describe(folder)
    if "classes" not in described:
        raise WeightsError(f"{folder}: its model is pre-trained and has no classes; name a fine-tuned one")
    vit, clip = _encoder_of(described, folder)
    classes: list[str] = described["classes"]
    with fresh_weights(0):
        model = VideoClassifier(vit, clip, len(classes), head_norm=described["head_norm"])
    load(folder, model)
    return model, classes


def _encoder_of(described: Mapping[str, object], folder: Path) -> tuple[ViTConfig, ClipConfig]:
    try:
        return ViTConfig.model_validate(described["model"]), ClipConfig.model_validate(described["clip"])
    except (KeyError, ValidationError) as error:
        raise WeightsError(f"{folder / 'model.json'}: does not describe a video encoder ({error})") from error


def _classifier_of_hugging_face(folder: Path) -> tuple[VideoClassifier, list[str]]:
    foreign = checkpoints_io.read(folder)
    if foreign.kind != "fine-tuned":
        raise WeightsError(f"{folder}: its model is {foreign.kind} and has no classes; name a fine-tuned one")
    vit, clip = hugging_face.configs_of(describe(folder, "config"))
    labels = range(len(foreign.tensors["head.weight"]))
    classes = list(foreign.classes) or [f"class {label}" for label in labels]
    with fresh_weights(0):
        model = VideoClassifier(vit, clip, len(classes))
    checkpoints_io.load(model, foreign)
    return model, classes

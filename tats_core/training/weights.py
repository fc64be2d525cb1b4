"""Finished models on disk: tensors as safetensors, what they are as JSON beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tats_core.errors import WeightsError
from tats_core.models.vit import VideoViT


def save(folder: Path, module: nn.Module, described: Mapping[str, Any], name: str = "model") -> None:
    """Write `<name>.safetensors` and `<name>.json`; each appears whole or not at all."""
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in module.state_dict().items()}
    beside = folder / f"{name}.safetensors.tmp"
    save_file(tensors, beside)
    beside.replace(folder / f"{name}.safetensors")
    plain = {
        key: value.model_dump(mode="json") if isinstance(value, BaseModel) else value
        for key, value in described.items()
    }
    beside = folder / f"{name}.json.tmp"
    beside.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    beside.replace(folder / f"{name}.json")


def describe(folder: Path, name: str = "model") -> dict[str, Any]:
    """Read `<name>.json`.

    Raises:
        WeightsError: it is not there or not JSON.
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
        WeightsError: they do not, or the file cannot be read.
    """
    _fill(module, _read(folder / f"{name}.safetensors"), str(folder))


def load_encoder(encoder: VideoViT, folder: Path, without: tuple[str, ...] = ()) -> None:
    """Load the encoder of the pre-trained model in `folder`.

    Args:
        without: prefixes of what the given encoder does not have (a fine-tuned one has no final norm).

    Raises:
        WeightsError: no encoder there, or one of another size.
    """
    tensors = {
        key.removeprefix("encoder."): tensor
        for key, tensor in _read(folder / "model.safetensors").items()
        if key.startswith("encoder.") and not key.removeprefix("encoder.").startswith(without)
    }
    if not tensors:
        raise WeightsError(f"{folder}: holds no encoder; is it the output of a pre-training?")
    _fill(encoder, tensors, str(folder))


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: the saved weights cannot be read ({error})") from error


def _fill(module: nn.Module, tensors: Mapping[str, Any], where: str) -> None:
    wanted = module.state_dict()
    missing = sorted(wanted.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - wanted.keys())
    other = sorted(k for k in wanted.keys() & tensors.keys() if wanted[k].shape != tensors[k].shape)
    if missing or unexpected or other:
        parts = [
            f"{what} {len(names)} (such as {names[0]})"
            for what, names in (("missing", missing), ("unexpected", unexpected), ("of other shape", other))
            if names
        ]
        raise WeightsError(f"{where}: the weights do not fit the model: {', '.join(parts)}")
    module.load_state_dict(dict(tensors))

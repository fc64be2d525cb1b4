"""Hugging Face's VideoMAE: its names of our tensors, its `config.json`, and our models in its form.

Beside names, three things differ. It has no key bias, which adds the same to all scores of a query and drops
out of the softmax. The rows of its prediction head are ordered (t, p, p, c), ours (c, t, p, p). Its positions
are the `joint` table, which is not in its files. VideoMAE's own files differ from ours in the same three.

Axes: P pixel values a token, X what else a tensor has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from tats_core import imagenet
from tats_core.errors import WeightsError
from tats_core.models.classifier import VideoClassifier
from tats_core.models.mae import VideoMAE
from tats_core.models.tokens import ClipConfig
from tats_core.models.vit import ViTConfig

PREFIX: Final = "videomae."
"""Of the names of an encoder that has a head."""
NAMES: Final = (
    ("embeddings.patch_embeddings.projection.", "encoder.embedding."),
    ("encoder.layer.", "encoder.blocks."),
    ("layernorm.", "encoder.norm."),
    ("decoder.decoder_layers.", "decoder."),
    ("classifier.", "head."),
    ("encoder_to_decoder.", "to_decoder."),
    ("mask_token", "mask_token"),
    ("decoder.norm.", "decoder_norm."),
    ("decoder.head.", "to_pixels."),
    ("fc_norm.", "head_norm."),
)
"""How a tensor's name begins: theirs, ours."""
LAYERS: Final = (
    (".layernorm_before.", ".norm1."),
    (".layernorm_after.", ".norm2."),
    (".attention.output.dense.", ".attn.proj."),
    (".attention.attention.", ".attn."),
    (".intermediate.dense.", ".mlp.fc1."),
    (".output.dense.", ".mlp.fc2."),
)
"""Layers of a block: theirs, ours. The order matters: some names contain others, both ways."""
ATTENTION: Final = ("query", "key", "value")
"""What is one tensor in ours, in this order."""

_CLIP_KEYS: Final = {
    "size": "image_size",
    "patch": "patch_size",
    "frames": "num_frames",
    "tubelet": "tubelet_size",
}
_VIT_KEYS: Final = {"width": "hidden_size", "depth": "num_hidden_layers", "heads": "num_attention_heads"}
DECODER_KEYS: Final = {f"decoder_{ours}": f"decoder_{theirs}" for ours, theirs in _VIT_KEYS.items()}
"""Our keys of clip, encoder and decoder, and those of Hugging Face's `config.json`."""


def exported(
    model: VideoMAE | VideoClassifier, classes: list[str] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and `config.json` of Hugging Face's model for pre-training or classification.

    Its norms before the two heads have an epsilon of 1e-5, VideoMAE's code and ours 1e-6: their result for a
    vector with variance v is smaller by a share of 4.5e-6 / v.

    Raises:
        WeightsError: a setting of the model does not exist there; names the key.
    """
    encoder = model.encoder
    vit, clip = encoder.config, encoder.clip
    fits = {"model.positions: joint": vit.positions == "joint", "square clips": isinstance(clip.size, int)}
    if isinstance(model, VideoMAE):
        fits["mae.global_token: false"] = not model.config.global_token
        fits["mae.target: normalized"] = model.config.target == "normalized"
    else:
        fits["head_norm: layer"] = isinstance(model.head_norm, torch.nn.LayerNorm)
    if lacking := [setting for setting, fit in fits.items() if not fit]:
        raise WeightsError(f"Hugging Face's VideoMAE has only {lacking[0]}; export as safetensors instead")
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if ".attn.qkv." in name:
            for part, rows in zip(ATTENTION, tensor.chunk(3), strict=True):
                if not name.endswith("bias") or part != "key":
                    tensors[_hf_name(name.replace(".qkv.", f".{part}."))] = rows.clone()
        else:
            theirs = channels_last(tensor) if name.startswith("to_pixels.") else tensor
            tensors[_hf_name(name)] = theirs.detach().clone().contiguous()
    config: dict[str, Any] = {
        "model_type": "videomae",
        **{key: getattr(clip, ours) for ours, key in _CLIP_KEYS.items()},
        "num_channels": 3,
        **{key: getattr(vit, ours) for ours, key in _VIT_KEYS.items()},
        "intermediate_size": int(vit.width * vit.mlp_ratio),
        "layer_norm_eps": 1e-6,
        "qkv_bias": True,
    }
    if isinstance(model, VideoMAE):
        config |= {
            "architectures": ["VideoMAEForPreTraining"],
            "use_mean_pooling": False,
            "norm_pix_loss": True,
            **{key: getattr(model.config, ours) for ours, key in DECODER_KEYS.items()},
            "decoder_intermediate_size": int(model.config.decoder_width * vit.mlp_ratio),
        }
    else:
        names = classes or [f"LABEL_{label}" for label in range(model.head.out_features)]
        config |= {
            "architectures": ["VideoMAEForVideoClassification"],
            "use_mean_pooling": True,
            "id2label": {str(label): name for label, name in enumerate(names)},
            "label2id": {name: label for label, name in enumerate(names)},
        }
    return tensors, config


def configs_of(config: Mapping[str, Any]) -> tuple[ViTConfig, ClipConfig]:
    """Return the encoder and the clip that a `config.json` of Hugging Face's VideoMAE describes.

    Raises:
        ValueError: it describes another model.
        KeyError: it leaves out a size.
    """
    for key, known in (("model_type", "videomae"), ("hidden_act", "gelu")):
        if config.get(key, "gelu") != known:
            raise ValueError(f"its {key} is {config.get(key)!r}, not '{known}'")
    width, mlp = config["hidden_size"], config["intermediate_size"]
    ratio = mlp / width
    vit = ViTConfig(
        **{ours: config[key] for ours, key in _VIT_KEYS.items()},
        mlp_ratio=ratio if int(width * ratio) == mlp else (mlp + 0.5) / width,  # it is rounded down again
        positions="joint",
    )
    return vit, ClipConfig(**{ours: config[key] for ours, key in _CLIP_KEYS.items()})


def preprocessor_of(clip: ClipConfig) -> dict[str, object]:
    """Return the `preprocessor_config.json` with which Hugging Face's model sees our test's middle crop."""
    return {
        "image_processor_type": "VideoMAEImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": clip.size},
        "resample": 2,  # bilinear
        "do_center_crop": True,
        "crop_size": {"height": clip.size, "width": clip.size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(imagenet.MEAN),
        "image_std": list(imagenet.STD),
    }


def _hf_name(name: str) -> str:
    theirs, ours = next(pair for pair in NAMES if name.startswith(pair[1]))
    name = (PREFIX if ours.startswith("encoder.") else "") + theirs + name.removeprefix(ours)
    for their_layer, our_layer in LAYERS:
        name = name.replace(our_layer, their_layer)
    return name


def channels_first(rows_PX: Tensor) -> Tensor:
    """Bring rows of VideoMAE's prediction head from the order (t, p, p, c) to ours, (c, t, p, p)."""
    return rows_PX.unflatten(0, (-1, 3)).transpose(0, 1).flatten(0, 1)  # type: ignore[no-any-return, no-untyped-call]


def channels_last(rows_PX: Tensor) -> Tensor:
    """Undo `channels_first`."""
    return rows_PX.unflatten(0, (3, -1)).transpose(0, 1).flatten(0, 1)  # type: ignore[no-any-return, no-untyped-call]

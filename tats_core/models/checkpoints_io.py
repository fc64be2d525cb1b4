"""Checkpoints of other code bases: reads VideoMAE's, AdaMAE's and Hugging Face's, writes Hugging Face's.

Beside names, three things differ. Other models have no key bias: it is zero when they are read, and left out
when they are written, since it adds the same to all scores of a query and drops out of the softmax. The rows
of their prediction head are ordered (t, p, p, c), ours (c, t, p, p). Their positions are the `joint` table,
which is not in the file.

The epsilon of norms is 1e-6 as in VideoMAE's code, whatever a `config.json` says (Hugging Face's default is
1e-12).

Axes: D width, P pixel values a token.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from tats_core import imagenet
from tats_core.errors import WeightsError
from tats_core.models.classifier import VideoClassifier
from tats_core.models.mae import MAEConfig, VideoMAE
from tats_core.models.tokens import ClipConfig, positions
from tats_core.models.vit import VideoViT, ViTConfig

FORMAT: Final = "2"
"""Of the tensors that we save; raise it when their meaning changes though names and shapes do not.

The first files have no format: in them, the pixels of a token have another order.
"""
METADATA: Final = {"tats": FORMAT}
"""The header of our safetensors files. A single entry: several are written in random order, and other bytes
of the same weights would make every stage that reads them run again."""

_WRAPPINGS: Final = ("model", "module", "state_dict", "model_state_dict")
_PREFIXES: Final = ("module.", "_orig_mod.", "backbone.", "model.")
_DECLARING: Final = ("model.json", "config.json")
_FILES: Final = ("model.safetensors", "pytorch_model.bin")

_SHARED: Final = (
    ("encoder_to_decoder.", "to_decoder."),
    ("mask_token", "mask_token"),
    ("decoder.norm.", "decoder_norm."),
    ("decoder.head.", "to_pixels."),
    ("fc_norm.", "head_norm."),
)
_HUGGING_FACE: Final = (
    ("videomae.embeddings.patch_embeddings.projection.", "encoder.embedding."),
    ("videomae.layernorm.", "encoder.norm."),
    ("videomae.encoder.layer.", "encoder.blocks."),
    ("decoder.decoder_layers.", "decoder."),
    ("classifier.", "head."),
    *_SHARED,
)
_OFFICIAL: Final = (
    ("encoder.patch_embed.proj.", "encoder.embedding."),
    ("encoder.blocks.", "encoder.blocks."),
    ("encoder.norm.", "encoder.norm."),
    ("decoder.blocks.", "decoder."),
    # Fine-tuned models have no `encoder.` before their names.
    ("patch_embed.proj.", "encoder.embedding."),
    ("blocks.", "encoder.blocks."),
    ("norm.", "encoder.norm."),
    ("head.", "head."),
    *_SHARED,
)
"""How a tensor's name begins: theirs, ours."""
_LAYERS: Final = (
    (".layernorm_before.", ".norm1."),
    (".layernorm_after.", ".norm2."),
    (".attention.output.dense.", ".attn.proj."),
    (".attention.attention.", ".attn."),
    (".intermediate.dense.", ".mlp.fc1."),
    (".output.dense.", ".mlp.fc2."),
)
"""Layers of a block: Hugging Face's, ours. The order matters: some names contain others, both ways."""
_CLIP_KEYS: Final = {
    "size": "image_size",
    "patch": "patch_size",
    "frames": "num_frames",
    "tubelet": "tubelet_size",
}
_VIT_KEYS: Final = {"width": "hidden_size", "depth": "num_hidden_layers", "heads": "num_attention_heads"}
"""Our keys of a clip and an encoder, and those of Hugging Face's `config.json`."""
_ATTENTION: Final = ("query", "key", "value")
_BLOCKS: Final = "encoder.blocks."
_OF_BLOCK: Final = frozenset(
    f"{layer}.{part}"
    for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "norm1", "norm2")
    for part in ("weight", "bias")
)
"""Tensors of a block. With another one, such as a layer scale, the block would compute something else."""

_PREFIXED: Final = re.compile(rf"^({'|'.join(map(re.escape, _PREFIXES))})+")
_UNREADABLE: Final = (
    *(OSError, SafetensorError, RuntimeError, EOFError, struct.error),
    # What the unpickler raises on a file that is no pickle.
    *(LookupError, ValueError, TypeError, AttributeError, AssertionError),
)
_TABLES: Final = re.compile(r"(^|\.)(pos_embed|position_embeddings|decoder_pos_embed)$")


@dataclass(frozen=True)
class Foreign:
    """A checkpoint under our names."""

    path: Path
    layout: str
    """`TATS`, `Hugging Face` or `VideoMAE`."""
    tensors: Mapping[str, Tensor]
    unknown: tuple[str, ...]
    """Names in the file that we have no tensor for, such as AdaMAE's sampler."""
    declared: Mapping[str, int | str]
    """What only the description beside the weights has: heads, positions, frames, size."""
    classes: tuple[str, ...] = ()
    """Names of a classifier's classes, where the description beside the weights has them."""

    @property
    def kind(self) -> str:
        """What the file holds: `pre-trained`, `fine-tuned`, or `encoder` alone."""
        if "head.weight" in self.tensors:
            return "fine-tuned"
        return "pre-trained" if {"to_pixels.weight", "mask_token"} <= self.tensors.keys() else "encoder"

    @property
    def size(self) -> dict[str, int | str]:
        """Width, depth, MLP width, tubelet and patch of its encoder, and what is declared.

        The number of heads does not show in the weights, and VideoMAE's files declare nothing.
        """
        kernel = self.tensors["encoder.embedding.weight"].shape
        return {
            "width": kernel[0],
            "depth": self._depth(_BLOCKS),
            "mlp": self.tensors["encoder.blocks.0.mlp.fc1.weight"].shape[0],
            "tubelet": kernel[2],
            "patch": kernel[3],
            **self.declared,
        }

    def misfit(self, vit: ViTConfig, clip: ClipConfig) -> str | None:
        """Return a sentence on how its encoder differs from `vit` and `clip`, or None if it fits.

        Frames and size may differ: positions are fixed codes, not weights.
        """
        layers = {name.split(".", 3)[3] for name in self.tensors if name.startswith(_BLOCKS)}
        if strange := sorted(layers - _OF_BLOCK):
            return f"{self.path}: its blocks have {', '.join(strange)}, which ours have not: another model"
        wanted = {
            "width": vit.width,
            "depth": vit.depth,
            "heads": vit.heads,
            "mlp": int(vit.width * vit.mlp_ratio),
            "positions": vit.positions,
            "tubelet": clip.tubelet,
            "patch": clip.patch,
        }
        return self._difference("encoder", wanted, self.size, "model and clip")

    def misfit_of_decoder(self, mae: MAEConfig) -> str | None:
        """Return a sentence on how its decoder differs from `mae`, or None if it fits.

        Heads are compared only where they are declared.
        """
        size: dict[str, int | str] = {
            **self.declared,
            "decoder_width": self.tensors["mask_token"].shape[-1],
            "decoder_depth": self._depth("decoder."),
            "global_token": "global_to_decoder.weight" in self.tensors,
        }
        keys = ("decoder_width", "decoder_depth", "decoder_heads", "global_token")
        return self._difference("decoder", {key: getattr(mae, key) for key in keys}, size, "mae")

    def _difference(
        self, part: str, wanted: Mapping[str, int | str], size: Mapping[str, int | str], settings: str
    ) -> str | None:
        differ = [
            f"{key} {size[key]} (here {value})"
            for key, value in wanted.items()
            if size.get(key, value) != value
        ]
        if not differ:
            return None
        return f"{self.path}: its {part} has another {', '.join(differ).lower()}; set {settings} alike"

    def _depth(self, blocks: str) -> int:
        names = [name.removeprefix(blocks) for name in self.tensors if name.startswith(blocks)]
        return len({name.split(".")[0] for name in names})


@dataclass(frozen=True)
class Match:
    """What was loaded from a checkpoint into a module."""

    layout: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    """Tensors of the module that the file does not have; they keep their initial values."""
    unexpected: tuple[str, ...]
    """Tensors of the file that the module does not have."""

    def sentence(self) -> str:
        """Return a line for a log."""
        parts = [f"{len(self.matched)} tensors matched ({self.layout} layout)"]
        for what, names in (("missing", self.missing), ("unexpected", self.unexpected)):
            if names:
                parts.append(f"{len(names)} {what} (such as {names[0]})")
        return ", ".join(parts)


def read(path: Path) -> Foreign:
    """Read a checkpoint file, or a folder that holds one, of any of the known layouts and wrappings.

    Raises:
        WeightsError: it cannot be read, would run code when unpickled, holds no video encoder, or was saved
            by another version of TATS.
    """
    file, *descriptions = files(path)
    tensors = _unwrapped(_load(file), file)
    declared, classes = _declared(descriptions)
    if "encoder.embedding.weight" in tensors:
        refuse_other_format(file)
        return Foreign(path, "TATS", tensors, (), declared, classes)
    hugging_face = any(".attention.attention.query.weight" in name for name in tensors)
    if hugging_face and not any(name.startswith("videomae.") for name in tensors):  # a bare VideoMAEModel
        tensors = {f"videomae.{name}": tensor for name, tensor in tensors.items()}
    named, unknown = _renamed(tensors, _HUGGING_FACE if hugging_face else _OFFICIAL)
    if "encoder.embedding.weight" not in named or "encoder.blocks.0.mlp.fc1.weight" not in named:
        some = next(iter(tensors), "nothing at all")
        raise WeightsError(
            f"{file}: holds no encoder of VideoMAE's, AdaMAE's, Hugging Face's or our layout, but {some}"
        )
    _refuse_learned_positions(tensors, file)
    ours = _joined_attention(named)
    for name in ours.keys() & {"to_pixels.weight", "to_pixels.bias"}:
        ours[name] = channels_first(ours[name])
    layout = "Hugging Face" if hugging_face else "VideoMAE"
    return Foreign(path, layout, ours, tuple(sorted(unknown)), {**declared, "positions": "joint"}, classes)


def files(path: Path) -> list[Path]:
    """Return the files that `read` reads: the weights, then the descriptions beside them.

    Raises:
        WeightsError: `path` does not exist or holds no weights.
    """
    file = path
    if path.is_dir():
        file = next((path / name for name in _FILES if (path / name).is_file()), path)
        if file == path:
            raise WeightsError(
                f"{path}: holds neither {_FILES[0]} nor {_FILES[1]}; name the checkpoint's file"
            )
    if not file.is_file():
        raise WeightsError(f"{path}: the checkpoint cannot be read (no such file or folder)")
    beside = [file.with_name(name) for name in _DECLARING] if file.name in _FILES else []
    return [file, *(description for description in beside if description.is_file())]


def refuse_other_format(file: Path) -> None:
    """Check that a file of ours was saved in the format that this version reads.

    Raises:
        WeightsError: another version of TATS saved it, it does not name its format, or it cannot be read.
    """
    format_of = None
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, "pt") as opened:
                format_of = (opened.metadata() or {}).get("tats")
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"{file}: the saved weights cannot be read ({error})") from error
    if format_of != FORMAT:
        saved = f"in format {format_of}" if format_of else "without a format, as before they were counted"
        raise WeightsError(
            f"{file}: is a model of TATS saved {saved}, and this version reads format {FORMAT} only: the "
            "same numbers would mean something else; train it again (run its pipeline), or use the version "
            "that saved it"
        )


def _load(file: Path) -> object:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        # VideoMAE's files hold the arguments of its command line: a Namespace has plain values only.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{file}: holds more than tensors and plain values, and reading it could run its code; save its "
            "state_dict alone (torch.save(model.state_dict(), FILE)) where you trust it"
        ) from error
    except _UNREADABLE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"{file}: the checkpoint cannot be read ({reason})") from error


def _declared(descriptions: list[Path]) -> tuple[dict[str, int | str], tuple[str, ...]]:
    """Return what `model.json` (ours) or `config.json` (Hugging Face's) declares, and the class names."""
    if not descriptions:
        return {}, ()
    path = descriptions[0]
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        if path.name == "model.json":
            vit = ViTConfig.model_validate(described["model"])
            clip = ClipConfig.model_validate(described["clip"])
            heads = described["mae"]["decoder_heads"] if "mae" in described else None
            classes = described.get("classes", ())
        else:
            vit, clip = configs_of_hugging_face(described)
            heads = described.get("decoder_num_attention_heads")
            labels = described.get("id2label", {})
            classes = [str(labels[label]) for label in sorted(labels, key=int)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path}: does not describe a video encoder ({error})") from error
    sizes: dict[str, int | str] = {
        "heads": vit.heads,
        "positions": vit.positions,
        "frames": clip.frames,
        "size": clip.size,
    }
    if heads is not None:
        sizes["decoder_heads"] = heads
    return sizes, tuple(classes)


def _refuse_learned_positions(tensors: Mapping[str, Tensor], file: Path) -> None:
    for name, table in tensors.items():
        if not _TABLES.search(name) or table.ndim != 3:
            continue
        n, width = table.shape[1:]
        fixed_ND = positions(ClipConfig(frames=n, size=1, tubelet=1, patch=1), width, "joint")
        if not torch.allclose(table[0].float(), fixed_ND, atol=1e-3):
            raise WeightsError(
                f"{file}: its positions ({name}) are not VideoMAE's fixed table, and learned positions "
                "cannot be loaded"
            )


def _unwrapped(loaded: object, file: Path) -> dict[str, Tensor]:
    while isinstance(loaded, Mapping) and not any(isinstance(x, Tensor) for x in loaded.values()):
        inside = [loaded[name] for name in _WRAPPINGS if isinstance(loaded.get(name), Mapping)]
        if not inside:
            raise WeightsError(f"{file}: holds no tensors, nor any under {', '.join(_WRAPPINGS)}")
        loaded = inside[0]
    if not isinstance(loaded, Mapping):
        raise WeightsError(f"{file}: is no state dict but a {type(loaded).__name__}")
    tensors: dict[str, Tensor] = {}
    for name, value in loaded.items():
        if not isinstance(value, Tensor):
            continue
        short = _PREFIXED.sub("", str(name))
        if short in tensors:
            raise WeightsError(f"{file}: holds two models ({short} is in it twice); save one of them alone")
        tensors[short] = value
    return tensors


def _renamed(
    tensors: Mapping[str, Tensor], beginnings: tuple[tuple[str, str], ...]
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors under our names, and the names that we have no tensor for."""
    named: dict[str, Tensor] = {}
    unknown: list[str] = []
    for name, tensor in tensors.items():
        theirs, ours = next((pair for pair in beginnings if name.startswith(pair[0])), ("", ""))
        if ours:
            rest = name.removeprefix(theirs)
            for their_layer, our_layer in _LAYERS:
                rest = rest.replace(their_layer, our_layer)
            named[ours + rest] = tensor
        elif not _TABLES.search(name):
            unknown.append(name)
    return named, unknown


def _joined_attention(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join separate queries, keys and values in one tensor; a missing bias is zero."""
    joined = dict(named)
    for name in [name for name in named if name.endswith(".attn.query.weight")]:
        attention = name.removesuffix("query.weight")
        weights = [joined.pop(f"{attention}{part}.weight") for part in _ATTENTION]
        joined[f"{attention}qkv.weight"] = torch.cat(weights)
    for name in [name for name in joined if name.endswith(".attn.qkv.weight")]:
        attention = name.removesuffix("qkv.weight")
        zero_D = torch.zeros_like(joined[name][: len(joined[name]) // 3, 0])
        biases = [
            joined.pop(f"{attention}{part}.bias", joined.pop(f"{attention}{part[0]}_bias", zero_D))
            for part in _ATTENTION
        ]
        joined.setdefault(f"{attention}qkv.bias", torch.cat(biases))
    return joined


def channels_first(rows_PX: Tensor) -> Tensor:
    """Bring rows of VideoMAE's prediction head from the order (t, p, p, c) to ours, (c, t, p, p)."""
    return rows_PX.unflatten(0, (-1, 3)).transpose(0, 1).flatten(0, 1)  # type: ignore[no-any-return, no-untyped-call]


def channels_last(rows_PX: Tensor) -> Tensor:
    """Undo `channels_first`."""
    return rows_PX.unflatten(0, (3, -1)).transpose(0, 1).flatten(0, 1)  # type: ignore[no-any-return, no-untyped-call]


def load_encoder(encoder: VideoViT, foreign: Foreign) -> Match:
    """Load the encoder of a checkpoint into `encoder`; only its final norm may be missing.

    Raises:
        WeightsError: a tensor is missing, or the encoder is of another size; says how they differ.
    """
    _refuse_misfit(encoder, foreign)
    tensors = {n.removeprefix("encoder."): t for n, t in foreign.tensors.items() if n.startswith("encoder.")}
    return _fill(encoder, tensors, foreign, optional=("norm.",))


def load_classifier(model: VideoClassifier, foreign: Foreign) -> Match:
    """Load a fine-tuned checkpoint into `model`.

    Raises:
        WeightsError: it is not fine-tuned, or does not fit.
    """
    if foreign.kind != "fine-tuned":
        raise WeightsError(f"{foreign.path}: is {foreign.kind} and has no classes; name a fine-tuned model")
    _refuse_misfit(model.encoder, foreign)
    return _fill(model, foreign.tensors, foreign)


def load_mae(model: VideoMAE, foreign: Foreign) -> Match:
    """Load a pre-trained checkpoint, encoder and decoder, into `model`.

    Raises:
        WeightsError: it has no decoder, or does not fit.
    """
    if foreign.kind != "pre-trained":
        raise WeightsError(f"{foreign.path}: is {foreign.kind} and has no decoder; name a pre-trained model")
    _refuse_misfit(model.encoder, foreign)
    if misfit := foreign.misfit_of_decoder(model.config):
        raise WeightsError(misfit)
    return _fill(model, foreign.tensors, foreign)


def _refuse_misfit(encoder: VideoViT, foreign: Foreign) -> None:
    if misfit := foreign.misfit(encoder.config, encoder.clip):
        raise WeightsError(misfit)


def _fill(
    module: torch.nn.Module, tensors: Mapping[str, Tensor], foreign: Foreign, optional: tuple[str, ...] = ()
) -> Match:
    wanted = module.state_dict()
    matched = sorted(n for n in wanted.keys() & tensors.keys() if wanted[n].shape == tensors[n].shape)
    missing = sorted(wanted.keys() - set(matched))
    needed = [name for name in missing if not name.startswith(optional)]
    if needed:
        first = f"has shape {tuple(tensors[needed[0]].shape)}" if needed[0] in tensors else "is missing"
        raise WeightsError(
            f"{foreign.path}: {len(needed)} of {len(wanted)} tensors do not fit: {needed[0]} {first}, "
            f"here it has {tuple(wanted[needed[0]].shape)}"
        )
    module.load_state_dict({name: tensors[name] for name in matched}, strict=False)
    unexpected = sorted({*(tensors.keys() - wanted.keys()), *foreign.unknown})
    return Match(foreign.layout, tuple(matched), tuple(missing), tuple(unexpected))


def to_hugging_face(
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
    lacking = [("model.positions", vit.positions != "joint", "joint")]
    if isinstance(model, VideoMAE):
        lacking += [("mae.global_token", model.config.global_token, "false")]
        lacking += [("mae.target", model.config.target != "normalized", "normalized")]
    else:
        lacking += [("head_norm", not isinstance(model.head_norm, torch.nn.LayerNorm), "layer")]
    for key, wrong, right in lacking:
        if wrong:
            raise WeightsError(
                f"Hugging Face's VideoMAE has only {key}: {right}; export as safetensors instead"
            )
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name.endswith(("attn.qkv.bias", "attn.qkv.weight")):
            block, kind = _hf_name(name.rsplit("attn.", 1)[0]), name.rsplit(".", 1)[1]
            for part, rows in zip(_ATTENTION, tensor.chunk(3), strict=True):
                if (part, kind) != ("key", "bias"):
                    tensors[f"{block}attention.attention.{part}.{kind}"] = rows.clone()
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
            "decoder_hidden_size": model.config.decoder_width,
            "decoder_num_hidden_layers": model.config.decoder_depth,
            "decoder_num_attention_heads": model.config.decoder_heads,
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


def configs_of_hugging_face(config: Mapping[str, Any]) -> tuple[ViTConfig, ClipConfig]:
    """Return the encoder and the clip that a `config.json` of Hugging Face's VideoMAE describes.

    Raises:
        ValueError: it describes another model.
        KeyError: it leaves out a size.
    """
    if config.get("model_type") != "videomae":
        raise ValueError(f"its model_type is {config.get('model_type')!r}, not 'videomae'")
    if config.get("hidden_act", "gelu") != "gelu":
        raise ValueError(f"its hidden_act is {config['hidden_act']!r}, and only 'gelu' is known here")
    width, mlp = config["hidden_size"], config["intermediate_size"]
    ratio = mlp / width
    vit = ViTConfig(
        **{ours: config[key] for ours, key in _VIT_KEYS.items()},
        mlp_ratio=ratio if int(width * ratio) == mlp else (mlp + 0.5) / width,  # it is rounded down again
        positions="joint",
    )
    return vit, ClipConfig(**{ours: config[key] for ours, key in _CLIP_KEYS.items()})


def preprocessor_of(clip: ClipConfig) -> dict[str, object]:
    """Return the `preprocessor_config.json` with which Hugging Face's model sees the clips of our test."""
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
    theirs, ours = next((pair for pair in _HUGGING_FACE if name.startswith(pair[1])), ("", ""))
    name = theirs + name.removeprefix(ours)
    for their_layer, our_layer in _LAYERS:
        name = name.replace(our_layer, their_layer)
    return name

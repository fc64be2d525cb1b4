"""Checkpoints of other code bases under our names: VideoMAE's, AdaMAE's, Hugging Face's; ours too.

`hugging_face` says in what they differ. The epsilon of norms is 1e-6 as in VideoMAE's code, whatever a
`config.json` says (Hugging Face's default is 1e-12).

Axes: D width.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from tats_core.errors import WeightsError
from tats_core.models import hugging_face
from tats_core.models.classifier import VideoClassifier
from tats_core.models.hugging_face import ATTENTION
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

_FILES: Final = ("model.safetensors", "pytorch_model.bin")
_DESCRIPTIONS: Final = ("model.json", "config.json")
_WRAPPINGS: Final = ("model", "module", "state_dict", "model_state_dict")
_PREFIXES: Final = re.compile(r"^(module\.|_orig_mod\.|backbone\.|model\.|videomae\.)+")
_NAMES: Final = (
    *hugging_face.NAMES,
    # VideoMAE's
    ("patch_embed.proj.", "encoder.embedding."),
    ("blocks.", "encoder.blocks."),
    ("norm.", "encoder.norm."),
    ("decoder.blocks.", "decoder."),
    ("head.", "head."),
)
"""How a tensor's name begins: theirs, ours."""
_LAYERS: Final = (
    *hugging_face.LAYERS,
    # VideoMAE's names of biases, and older ones of Hugging Face's
    (".q_bias", ".query.bias"),
    (".k_bias", ".key.bias"),
    (".v_bias", ".value.bias"),
)
"""Layers of a block, in this order: theirs, ours."""
_OF_BLOCK: Final = frozenset(
    f"{layer}.{part}"
    for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "norm1", "norm2")
    for part in ("weight", "bias")
)
"""Tensors of a block. With another one, such as a layer scale, the block would compute something else."""
_TABLES: Final = re.compile(r"(^|\.)(pos_embed|position_embeddings|decoder_pos_embed)$")

_HEADS: Final = {192: 3, 384: 6, 512: 8, 640: 8, 768: 12, 1024: 16, 1280: 16}
"""Attention heads by width of all encoders and decoders in VideoMAE's modeling_pretrain.py: they do not show
in the weights, and with other heads the same weights predict something else without a word."""

_COMPARED: Final = ("width", "depth", "heads", "mlp", "positions", "tubelet", "patch")
"""Sizes in which an encoder must agree; frames and size may differ."""

_UNREADABLE: Final = (
    *(OSError, SafetensorError, RuntimeError, EOFError, struct.error),
    # What the unpickler raises on a file that is no pickle.
    *(LookupError, ValueError, TypeError, AttributeError, AssertionError),
)


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
    tokens: int | None = None
    """Of its clips, where the file has a table of positions."""

    @property
    def kind(self) -> str:
        """What the file holds: `pre-trained`, `fine-tuned`, or `encoder` alone."""
        if "head.weight" in self.tensors:
            return "fine-tuned"
        return "pre-trained" if {"to_pixels.weight", "mask_token"} <= self.tensors.keys() else "encoder"

    @property
    def size(self) -> dict[str, int | str]:
        """Width, depth, MLP width, tubelet and patch of its encoder, and what is declared.

        The number of heads does not show in the weights: of VideoMAE's files it is that of its code for this
        width, and unknown for other widths.
        """
        kernel = self.tensors["encoder.embedding.weight"].shape
        return {
            "width": kernel[0],
            "depth": self._depth("encoder.blocks."),
            "mlp": self.tensors["encoder.blocks.0.mlp.fc1.weight"].shape[0],
            "tubelet": kernel[2],
            "patch": kernel[3],
            **self.declared,
        }

    def misfit(self, vit: ViTConfig, clip: ClipConfig, mae: MAEConfig | None = None) -> str | None:
        """Return a sentence on how it differs from an encoder and, with `mae`, a decoder; None if it fits.

        Frames and size may differ: positions are fixed codes, not weights. What only a description declares
        is compared where there is one, and a decoder only where the file has one.
        """
        layers = {name.split(".", 3)[3] for name in self.tensors if name.startswith("encoder.blocks.")}
        if strange := sorted(layers - _OF_BLOCK):
            return f"{self.path}: its blocks have {', '.join(strange)}, which ours have not: another model"
        wanted = {**dict(vit), **dict(clip), "mlp": int(vit.width * vit.mlp_ratio)}
        if differ := _differences(_COMPARED, self.size, wanted):
            return f"{self.path}: its encoder has another {differ.lower()}; set model and clip alike"
        if mae is None or self.kind != "pre-trained":
            return None
        decoder = {
            **self.declared,
            "decoder_width": self.tensors["mask_token"].shape[-1],
            "decoder_depth": self._depth("decoder."),
            "global_token": "global_to_decoder.weight" in self.tensors,
        }
        differ = _differences((*hugging_face.DECODER_KEYS, "global_token"), decoder, dict(mae))
        return f"{self.path}: its decoder has another {differ.lower()}; set mae alike" if differ else None

    def adapted(self, clip: ClipConfig) -> str:
        """Return what is done where its clips were others than `clip`: "", or a part of a sentence."""
        differ = _differences(("frames", "size"), self.declared, dict(clip))
        if not differ and self.tokens not in (None, clip.tokens):
            differ = f"{self.tokens} tokens (here {clip.tokens})"
        if not differ:
            return ""
        return f"made for clips of {differ}: the fixed positions are computed for the clip here"

    def _depth(self, blocks: str) -> int:
        names = [name.removeprefix(blocks) for name in self.tensors if name.startswith(blocks)]
        return len({name.split(".")[0] for name in names})


def _differences(keys: Iterable[str], sizes: Mapping[str, object], wanted: Mapping[str, object]) -> str:
    """Return in which of `keys` the sizes that are known are not those wanted."""
    differ = [key for key in keys if sizes.get(key, wanted[key]) != wanted[key]]
    return ", ".join(f"{key} {sizes[key]} (here {wanted[key]})" for key in differ)


@dataclass(frozen=True)
class Match:
    """What was loaded from a checkpoint into a module."""

    layout: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    """Tensors of the module that the file does not have; they keep their initial values."""
    unexpected: tuple[str, ...]
    """Tensors of the file that the module does not have."""
    adapted: str = ""
    """What was done since its clips were others or its heads unknown; "" where neither is so."""

    def sentence(self) -> str:
        parts = [f"{len(self.matched)} tensors matched ({self.layout} layout)"]
        for what, names in (("missing", self.missing), ("unexpected", self.unexpected)):
            if names:
                parts.append(f"{len(names)} {what} (such as {names[0]})")
        return ", ".join([*parts, *filter(None, [self.adapted])])


# ------------------------------------------------------------------------------------------- reading


def read(path: Path) -> Foreign:
    """Read a checkpoint file, or a folder that holds one, of any of the known layouts and wrappings.

    Raises:
        WeightsError: it cannot be read, would run code when unpickled, holds no video encoder, lacks biases,
            or was saved by another version of TATS.
    """
    file, *descriptions = files(path)
    loaded = _load(file)
    tensors = _unwrapped(loaded, file)
    sizes, classes, biases = _described(descriptions[0]) if descriptions else (_arguments(loaded), (), True)
    if "encoder.embedding.weight" in tensors:
        refuse_other_format(file)
        return Foreign(path, "TATS", tensors, (), sizes, classes)
    named = {name: renamed for name in tensors if (renamed := _our_name(name))}
    ours = {renamed: tensors[name] for name, renamed in named.items()}
    if not {"encoder.embedding.weight", "encoder.blocks.0.mlp.fc1.weight"} <= ours.keys():
        some = next(iter(tensors), "nothing at all")
        raise WeightsError(
            f"{file}: holds no encoder of VideoMAE's, AdaMAE's, Hugging Face's or our layout, but {some}"
        )
    known = {
        key: _HEADS[width]
        for key, name in (("heads", "encoder.blocks.0.norm1.weight"), ("decoder_heads", "mask_token"))
        if name in ours and (width := ours[name].shape[-1]) in _HEADS
    }
    tables = {name: table for name, table in tensors.items() if _TABLES.search(name) and table.ndim == 3}
    _refuse_learned_positions(tables, file)
    _join_attention(ours, file, biases)
    for name in ours.keys() & {"to_pixels.weight", "to_pixels.bias"}:
        ours[name] = hugging_face.channels_first(ours[name])
    return Foreign(
        path,
        "Hugging Face" if any(".attention.attention." in name for name in named) else "VideoMAE",
        ours,
        tuple(sorted(name for name in tensors if name not in named and not _TABLES.search(name))),
        {**known, **sizes, "positions": "joint"},
        classes,
        next((table.shape[1] for name, table in tables.items() if "decoder" not in name), None),
    )


def files(path: Path) -> list[Path]:
    """Return the files that `read` reads: the weights, then the descriptions beside them.

    Raises:
        WeightsError: `path` does not exist or holds no weights.
    """
    file = path
    if path.is_dir():
        file = next((path / name for name in _FILES if (path / name).is_file()), path)
        if file == path:
            raise WeightsError(f"{path}: holds neither {' nor '.join(_FILES)}; name the checkpoint's file")
    if not file.is_file():
        raise WeightsError(f"{path}: the checkpoint cannot be read (no such file or folder)")
    beside = [file.with_name(name) for name in _DESCRIPTIONS] if file.name in _FILES else []
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


def _described(path: Path) -> tuple[dict[str, int | str], tuple[str, ...], bool]:
    """Return what `model.json` (ours) or `config.json` (Hugging Face's) declares: sizes, classes, biases."""
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        if path.name == "model.json":
            vit = ViTConfig.model_validate(described["model"])
            clip = ClipConfig.model_validate(described["clip"])
            heads = described["mae"]["decoder_heads"] if "mae" in described else None
            classes = described.get("classes", ())
        else:
            vit, clip = hugging_face.configs_of(described)
            heads = described.get("decoder_num_attention_heads")
            labels = described.get("id2label", {})
            classes = [str(labels[label]) for label in sorted(labels, key=int)]
        biases = bool(described.get("qkv_bias", True))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path}: does not describe a video encoder ({error})") from error
    sizes = {"heads": vit.heads, "positions": vit.positions, "frames": clip.frames, "size": clip.size}
    return sizes | ({"decoder_heads": heads} if heads else {}), tuple(classes), biases


def _arguments(loaded: object) -> dict[str, int | str]:
    """Return the sizes of clips in the arguments of the command line that VideoMAE saves with the weights."""
    saved = loaded.get("args") if isinstance(loaded, dict) else None
    arguments = vars(saved) if isinstance(saved, argparse.Namespace) else {}
    named = {"frames": arguments.get("num_frames"), "size": arguments.get("input_size")}
    return {key: value for key, value in named.items() if isinstance(value, int)}


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
        short = _PREFIXES.sub("", str(name))
        if isinstance(value, Tensor) and short in tensors:
            raise WeightsError(f"{file}: holds two models ({short} is in it twice); save one of them alone")
        if isinstance(value, Tensor):
            tensors[short] = value
    return tensors


def _our_name(name: str) -> str | None:
    """Return our name of a tensor of another code base; None for one that we do not have."""
    inside = name.removeprefix("encoder.")  # in front of VideoMAE's names of a pre-trained encoder
    for theirs, ours in _NAMES:
        for start in (name, inside) if ours.startswith("encoder.") else (name,):
            if start.startswith(theirs):
                renamed = ours + start.removeprefix(theirs)
                for their_layer, our_layer in _LAYERS:
                    renamed = renamed.replace(their_layer, our_layer)
                return renamed
    return None


def _refuse_learned_positions(tables: Mapping[str, Tensor], file: Path) -> None:
    for name, table in tables.items():
        n, width = table.shape[1:]
        fixed_ND = positions(ClipConfig(frames=n, size=1, tubelet=1, patch=1), width, "joint")
        if not torch.allclose(table[0].float(), fixed_ND, atol=1e-3):
            raise WeightsError(
                f"{file}: its positions ({name}) are not VideoMAE's fixed table, and learned positions "
                "cannot be loaded"
            )


def _join_attention(tensors: dict[str, Tensor], file: Path, biases: bool) -> None:
    """Join separate queries, keys and values in one tensor, in place; a missing key bias is zero.

    Raises:
        WeightsError: queries or values have no bias, and no description says so: zeros in their place would
            compute something else without a word.
    """
    for name in [name for name in tensors if name.endswith(".mlp.fc1.weight")]:
        at = name.replace("mlp.fc1.weight", "attn.")
        weights = {part: tensors.pop(f"{at}{part}.weight", None) for part in ATTENTION}
        split = [weight for weight in weights.values() if weight is not None]
        if 0 < len(split) < len(weights) or len({weight.shape for weight in split}) > 1:
            raise WeightsError(
                f"{file}: {at.removesuffix('.')} needs weights of {', '.join(ATTENTION)}, of equal shapes; "
                "save the complete state_dict"
            )
        if split:
            tensors[f"{at}qkv.weight"] = torch.cat(split)
        bias = {part: tensors.pop(f"{at}{part}.bias", None) for part in ATTENTION}
        if f"{at}qkv.weight" not in tensors or f"{at}qkv.bias" in tensors:
            continue
        lacking = [part for part in ("query", "value") if bias[part] is None]
        if lacking and (biases or len(lacking) == 1):
            raise WeightsError(
                f"{file}: {at.removesuffix('.')} has no bias of {' and '.join(lacking)} (q_bias, v_bias), "
                "which the layout has; save the complete state_dict"
            )
        weight = tensors[f"{at}qkv.weight"]
        zero_D = torch.zeros_like(weight[: len(weight) // 3, 0])
        tensors[f"{at}qkv.bias"] = torch.cat([zero_D if b is None else b for b in bias.values()])


# ------------------------------------------------------------------------------------------- loading


def load(module: VideoViT | VideoClassifier | VideoMAE, foreign: Foreign) -> Match:
    """Load a checkpoint into a module: any into an encoder, whose final norm may be missing; a fine-tuned one
    into a classifier; a pre-trained one, encoder and decoder, into a masked autoencoder.

    Raises:
        WeightsError: it is of another kind, a tensor is missing, or sizes differ; says how.
    """
    tensors, mae = foreign.tensors, None
    optional: tuple[str, ...] = ()
    encoder = module if isinstance(module, VideoViT) else module.encoder
    if isinstance(module, VideoViT):
        tensors = {n.removeprefix("encoder."): t for n, t in tensors.items() if n.startswith("encoder.")}
        optional = ("norm.",)
    else:
        mae = module.config if isinstance(module, VideoMAE) else None
        needed, part = ("pre-trained", "decoder") if mae else ("fine-tuned", "classes")
        if foreign.kind != needed:
            raise WeightsError(f"{foreign.path}: is {foreign.kind} and has no {part}; name a {needed} model")
    if misfit := foreign.misfit(encoder.config, encoder.clip, mae):
        raise WeightsError(misfit)
    wanted = module.state_dict()
    matched = sorted(n for n in wanted.keys() & tensors.keys() if wanted[n].shape == tensors[n].shape)
    missing = sorted(wanted.keys() - set(matched))
    needed_names = [name for name in missing if not name.startswith(optional)]
    if needed_names:
        first = needed_names[0]
        problem = f"has shape {tuple(tensors[first].shape)}" if first in tensors else "is missing"
        raise WeightsError(
            f"{foreign.path}: {len(needed_names)} of {len(wanted)} tensors do not fit: {first} {problem}, "
            f"here it has {tuple(wanted[first].shape)}"
        )
    module.load_state_dict({name: tensors[name] for name in matched}, strict=False)
    unexpected = sorted({*(tensors.keys() - wanted.keys()), *foreign.unknown})
    declared = {"heads", "decoder_heads"} if mae else {"heads"}
    guess = "" if declared <= foreign.declared.keys() else "its number of heads is unknown: as set here"
    adapted = "; ".join(filter(None, [foreign.adapted(encoder.clip), guess]))
    return Match(foreign.layout, tuple(matched), tuple(missing), tuple(unexpected), adapted)

"""Equal weights in Hugging Face's VideoMAE and in ours must give equal numbers.

`transformers` adds masked pixels, positions and losses in its own way, so that these few tests hold cube
embedding, positions, blocks, decoder, target and loss to the published model at once.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from transformers.models.videomae import VideoMAEConfig
from transformers.models.videomae.modeling_videomae import (
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
    get_sinusoid_encoding_table,
)

from tats_core.models.classifier import VideoClassifier
from tats_core.models.mae import MAEConfig, VideoMAE
from tats_core.models.tokens import ClipConfig, patchify, positions
from tats_core.models.vit import ViTConfig

CLIP = ClipConfig(frames=4, size=12, tubelet=2, patch=4)
VIT = ViTConfig.model_validate(
    {"preset": "vit_micro", "width": 24, "depth": 2, "heads": 3, "positions": "joint"}
)
MAE = MAEConfig(decoder_width=16, decoder_depth=2, decoder_heads=2)


def _reference(**changes: object) -> VideoMAEConfig:
    return VideoMAEConfig(
        **{
            "image_size": 12,
            "patch_size": 4,
            "num_frames": 4,
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "intermediate_size": 96,
            "decoder_hidden_size": 16,
            "decoder_num_hidden_layers": 2,
            "decoder_num_attention_heads": 2,
            "decoder_intermediate_size": 64,
            "layer_norm_eps": 1e-6,
        }
        | changes
    )


def _blocks(tensors: Mapping[str, Tensor], theirs: str, ours: str, depth: int) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    for place in range(depth):
        block, to = f"{theirs}.{place}", f"{ours}.{place}"
        attention = f"{block}.attention.attention"
        query_bias, value_bias = tensors[f"{attention}.query.bias"], tensors[f"{attention}.value.bias"]
        named[f"{to}.attn.qkv.weight"] = torch.cat(
            [tensors[f"{attention}.{part}.weight"] for part in ("query", "key", "value")]
        )
        # VideoMAE's keys have no bias; a bias of zero is the same.
        named[f"{to}.attn.qkv.bias"] = torch.cat([query_bias, torch.zeros_like(query_bias), value_bias])
        for here, there in (
            ("attn.proj", "attention.output.dense"),
            ("mlp.fc1", "intermediate.dense"),
            ("mlp.fc2", "output.dense"),
            ("norm1", "layernorm_before"),
            ("norm2", "layernorm_after"),
        ):
            for kind in ("weight", "bias"):
                named[f"{to}.{here}.{kind}"] = tensors[f"{block}.{there}.{kind}"]
    return named


def _encoder(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    embedding = "videomae.embeddings.patch_embeddings.projection"
    return {
        "encoder.embedding.weight": tensors[f"{embedding}.weight"],
        "encoder.embedding.bias": tensors[f"{embedding}.bias"],
        **_blocks(tensors, "videomae.encoder.layer", "encoder.blocks", VIT.depth),
    }


def _shaken(model: torch.nn.Module) -> torch.nn.Module:
    """Random biases, norms and mask token: what is zero or one at the start would hide a mistake."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.double().eval()


def _channels_first(rows_PX: Tensor) -> Tensor:
    """VideoMAE's pixels of a token are ordered (t, p, p, c), ours (c, t, p, p)."""
    return rows_PX.unflatten(0, (-1, 3)).transpose(0, 1).flatten(0, 1)


@pytest.mark.parametrize(("frames", "size", "width"), [(4, 12, 24), (8, 48, 98)])
def test_joint_positions_are_videomaes_table(frames: int, size: int, width: int) -> None:
    clip = ClipConfig(frames=frames, size=size, tubelet=2, patch=4)
    expected_ND = get_sinusoid_encoding_table(clip.tokens, width)[0]
    torch.testing.assert_close(positions(clip, width, "joint"), expected_ND, rtol=0, atol=1e-6)


def test_the_loss_and_the_predictions_are_videomaes() -> None:
    torch.manual_seed(0)
    theirs = _shaken(VideoMAEForPreTraining(_reference(use_mean_pooling=False)))
    theirs.decoder.norm.eps = 1e-6  # the published code's; the port left PyTorch's default here
    tensors = theirs.state_dict()
    ours = VideoMAE(VIT, MAE, CLIP).double()
    ours.load_state_dict(
        {
            **_encoder(tensors),
            **_blocks(tensors, "decoder.decoder_layers", "decoder", MAE.decoder_depth),
            "encoder.norm.weight": tensors["videomae.layernorm.weight"],
            "encoder.norm.bias": tensors["videomae.layernorm.bias"],
            "to_decoder.weight": tensors["encoder_to_decoder.weight"],
            "mask_token": tensors["mask_token"],
            "decoder_norm.weight": tensors["decoder.norm.weight"],
            "decoder_norm.bias": tensors["decoder.norm.bias"],
            "to_pixels.weight": _channels_first(tensors["decoder.head.weight"]),
            "to_pixels.bias": _channels_first(tensors["decoder.head.bias"]),
        }
    )
    video_BCTHW = torch.randn(2, 3, 4, 12, 12, dtype=torch.float64)
    order_BN = torch.rand(2, CLIP.tokens).argsort(1)
    visible_BK, masked_BM = (part.sort(1).values for part in (order_BN[:, :4], order_BN[:, 4:]))
    masked_BN = torch.ones(2, CLIP.tokens, dtype=torch.bool).scatter(1, visible_BK, False)
    expected = theirs(video_BCTHW.transpose(1, 2), masked_BN)
    found = ours(patchify(video_BCTHW, CLIP), visible_BK, masked_BM)
    expected_PBM = _channels_first(expected.logits.permute(2, 0, 1))
    torch.testing.assert_close(found.prediction_BMP, expected_PBM.permute(1, 2, 0), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.error_BM.mean(), expected.loss, rtol=1e-5, atol=0, check_dtype=False)


def test_the_class_scores_are_videomaes() -> None:
    torch.manual_seed(0)
    theirs = _shaken(VideoMAEForVideoClassification(_reference(num_labels=7)))
    tensors = theirs.state_dict()
    ours = VideoClassifier(VIT, CLIP, 7).double().eval()
    ours.load_state_dict(
        {
            **_encoder(tensors),
            "head_norm.weight": tensors["fc_norm.weight"],
            "head_norm.bias": tensors["fc_norm.bias"],
            "head.weight": tensors["classifier.weight"],
            "head.bias": tensors["classifier.bias"],
        }
    )
    # The port gives this norm PyTorch's epsilon; the published code gives every norm 1e-6.
    theirs.fc_norm.eps = 1e-6
    video_BCTHW = torch.randn(2, 3, 4, 12, 12, dtype=torch.float64)
    expected_BC = theirs(video_BCTHW.transpose(1, 2)).logits
    torch.testing.assert_close(ours(video_BCTHW), expected_BC, rtol=0, atol=1e-6)

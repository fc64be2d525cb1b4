"""Equal weights in Hugging Face's VideoMAE and in ours must give equal numbers.

`transformers` adds masked pixels, positions and losses in its own way, so that these few tests hold cube
embedding, positions, blocks, decoder, target and loss to the published model at once.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers  # its classes are imported when they are named: that takes seconds

from tats_core.models import checkpoints_io, hugging_face
from tats_core.models.classifier import VideoClassifier
from tats_core.models.mae import MAEConfig, VideoMAE
from tats_core.models.tokens import ClipConfig, patchify, positions
from tats_core.models.vit import ViTConfig

CLIP = ClipConfig(frames=4, size=12, tubelet=2, patch=4)
VIT = ViTConfig.model_validate(
    {"preset": "vit_micro", "width": 24, "depth": 2, "heads": 3, "positions": "joint"}
)
MAE = MAEConfig(decoder_width=16, decoder_depth=2, decoder_heads=2)


def _reference(**changes: object) -> transformers.VideoMAEConfig:
    return transformers.VideoMAEConfig(
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


def _shaken(model: torch.nn.Module) -> torch.nn.Module:
    """Random biases, norms and mask token: what is zero or one at the start would hide a mistake."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.double().eval()


def _saved(theirs: transformers.PreTrainedModel, folder: Path) -> checkpoints_io.Foreign:
    theirs.save_pretrained(folder)
    return checkpoints_io.read(folder)


@pytest.mark.parametrize(("frames", "size", "width"), [(4, 12, 24), (8, 48, 98)])
def test_joint_positions_are_videomaes_table(frames: int, size: int, width: int) -> None:
    clip = ClipConfig(frames=frames, size=size, tubelet=2, patch=4)
    from transformers.models.videomae.modeling_videomae import get_sinusoid_encoding_table

    expected_ND = get_sinusoid_encoding_table(clip.tokens, width)[0]
    torch.testing.assert_close(positions(clip, width, "joint"), expected_ND, rtol=0, atol=1e-6)


def test_the_loss_and_the_predictions_are_videomaes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = _shaken(transformers.VideoMAEForPreTraining(_reference(use_mean_pooling=False)))
    theirs.decoder.norm.eps = 1e-6  # the published code's; the port left PyTorch's default here
    ours = VideoMAE(VIT, MAE, CLIP).double()
    match = checkpoints_io.load(ours, _saved(theirs, tmp_path))
    assert (match.missing, match.unexpected) == ((), ())
    video_BCTHW = torch.randn(2, 3, 4, 12, 12, dtype=torch.float64)
    order_BN = torch.rand(2, CLIP.tokens).argsort(1)
    visible_BK, masked_BM = (part.sort(1).values for part in (order_BN[:, :4], order_BN[:, 4:]))
    masked_BN = torch.ones(2, CLIP.tokens, dtype=torch.bool).scatter(1, visible_BK, False)
    expected = theirs(video_BCTHW.transpose(1, 2), masked_BN)
    reconstruction = ours(patchify(video_BCTHW, CLIP), visible_BK, masked_BM)
    expected_PBM = hugging_face.channels_first(expected.logits.permute(2, 0, 1))
    torch.testing.assert_close(
        reconstruction.prediction_BMP, expected_PBM.permute(1, 2, 0), rtol=0, atol=1e-5
    )
    torch.testing.assert_close(
        reconstruction.error_BM.mean(), expected.loss, rtol=1e-5, atol=0, check_dtype=False
    )


def test_the_class_scores_are_videomaes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = _shaken(transformers.VideoMAEForVideoClassification(_reference(num_labels=7)))
    ours = VideoClassifier(VIT, CLIP, 7).double().eval()
    match = checkpoints_io.load(ours, _saved(theirs, tmp_path))
    assert (match.missing, match.unexpected) == ((), ())
    # The port gives this norm PyTorch's epsilon; the published code gives every norm 1e-6.
    theirs.fc_norm.eps = 1e-6
    video_BCTHW = torch.randn(2, 3, 4, 12, 12, dtype=torch.float64)
    expected_BC = theirs(video_BCTHW.transpose(1, 2)).logits
    torch.testing.assert_close(ours(video_BCTHW), expected_BC, rtol=0, atol=1e-6)


def test_the_ports_default_epsilon_moves_no_score_that_one_would_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = _shaken(
        transformers.VideoMAEForVideoClassification(_reference(num_labels=7, layer_norm_eps=1e-12))
    )
    ours = VideoClassifier(VIT, CLIP, 7).double().eval()
    checkpoints_io.load(ours, _saved(theirs, tmp_path))
    video_BCTHW = torch.randn(2, 3, 4, 12, 12, dtype=torch.float64)
    expected_BC = theirs(video_BCTHW.transpose(1, 2)).logits
    torch.testing.assert_close(ours(video_BCTHW), expected_BC, rtol=0, atol=1e-4)


def test_a_pre_trained_model_gives_hugging_face_the_same_loss() -> None:
    torch.manual_seed(1)
    ours = _shaken(VideoMAE(VIT, MAE, CLIP))
    assert isinstance(ours, VideoMAE)
    tensors, config = hugging_face.exported(ours)
    theirs = transformers.VideoMAEForPreTraining(transformers.VideoMAEConfig(**config)).double().eval()
    missing, unexpected = theirs.load_state_dict(tensors, strict=False)
    assert (missing, unexpected) == ([], [])
    theirs.decoder.norm.eps = 1e-6
    video_BCTHW = torch.randn(2, 3, 4, 12, 12, dtype=torch.float64)
    order_BN = torch.rand(2, CLIP.tokens).argsort(1)
    visible_BK, masked_BM = (part.sort(1).values for part in (order_BN[:, :4], order_BN[:, 4:]))
    masked_BN = torch.ones(2, CLIP.tokens, dtype=torch.bool).scatter(1, visible_BK, False)
    loss = ours(patchify(video_BCTHW, CLIP), visible_BK, masked_BM).error_BM.mean()
    expected = theirs(video_BCTHW.transpose(1, 2), masked_BN).loss
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0, check_dtype=False)


def test_a_fine_tuned_model_gives_hugging_face_the_same_scores_whatever_its_key_bias() -> None:
    torch.manual_seed(2)
    ours = _shaken(VideoClassifier(VIT, CLIP, 5))
    assert isinstance(ours, VideoClassifier)
    assert ours.encoder.blocks[0].attn.qkv.bias[24:48].abs().min() > 0  # type: ignore[union-attr, index, operator]
    tensors, config = hugging_face.exported(ours, ["a", "b", "c", "d", "e"])
    assert not [name for name in tensors if "key.bias" in name]
    theirs = (
        transformers.VideoMAEForVideoClassification(transformers.VideoMAEConfig(**config)).double().eval()
    )
    assert theirs.config.id2label[4] == "e"
    missing, unexpected = theirs.load_state_dict(tensors, strict=False)
    assert (missing, unexpected) == ([], [])
    video_BCTHW = torch.randn(2, 3, 4, 12, 12, dtype=torch.float64)
    # As it comes, the port's last norm has another epsilon: its output shrinks by a share of 4.5e-6 / v.
    as_it_comes_BC = theirs(video_BCTHW.transpose(1, 2)).logits
    features_BD = ours.features(video_BCTHW)
    assert isinstance(ours.head_norm, torch.nn.LayerNorm)
    normed_BD = ours.head_norm(features_BD) - ours.head_norm.bias
    lost_BD = normed_BD * 4.5e-6 / features_BD.var(1, correction=0, keepdim=True)
    expected_BC = ours(video_BCTHW) - lost_BD @ ours.head.weight.T
    assert 0 < (ours(video_BCTHW) - as_it_comes_BC).abs().max() < 1e-4
    torch.testing.assert_close(as_it_comes_BC, expected_BC, rtol=0, atol=1e-9)
    theirs.fc_norm.eps = 1e-6
    expected_BC = theirs(video_BCTHW.transpose(1, 2)).logits
    torch.testing.assert_close(ours(video_BCTHW), expected_BC, rtol=0, atol=1e-6)

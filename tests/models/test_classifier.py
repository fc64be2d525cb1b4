from __future__ import annotations

import pytest
import torch
from torch import nn

from tats_core.models.classifier import VideoClassifier
from tats_core.models.tokens import ClipConfig, patchify
from tats_core.models.vit import ViTConfig

CLIP = ClipConfig(frames=4, size=8, tubelet=2, patch=4)
VIT = ViTConfig.model_validate({"preset": "vit_micro", "width": 24, "depth": 2, "heads": 3})


def _classifier(**options: object) -> VideoClassifier:
    torch.manual_seed(0)
    return VideoClassifier(VIT, CLIP, 5, **options)  # type: ignore[arg-type]


def test_features_are_the_mean_of_the_tokens_before_any_final_norm() -> None:
    model = _classifier().eval()
    video_BCTHW = torch.randn(2, 3, 4, 8, 8)
    tokens_BND = model.encoder.encode(model.encoder.tokenize(patchify(video_BCTHW, CLIP)))
    torch.testing.assert_close(model.features(video_BCTHW), tokens_BND.mean(1))
    assert not [name for name in model.state_dict() if name.startswith("encoder.norm")]


def test_the_head_starts_small_so_that_all_classes_are_alike() -> None:
    torch.manual_seed(0)
    logits_BC = _classifier(head_scale=0.001)(torch.randn(4, 3, 4, 8, 8))
    assert logits_BC.abs().max() < 0.01
    ratio = _classifier(head_scale=1.0).head.weight / _classifier(head_scale=0.001).head.weight
    torch.testing.assert_close(ratio, torch.full((5, 24), 1000.0))


def test_a_batch_norm_before_the_head_takes_out_what_all_clips_share() -> None:
    model = _classifier(head_norm="batch", head_scale=1.0).train()
    # Clips that are one picture but for a thousandth: the batch norm spreads them to deviation 1.
    video_BCTHW = torch.randn(1, 3, 4, 8, 8) + 1e-3 * torch.randn(16, 3, 4, 8, 8)
    normed_BD = model.head_norm(1e4 * model.features(video_BCTHW))
    torch.testing.assert_close(normed_BD.mean(0), torch.zeros(24), rtol=0, atol=1e-3)
    torch.testing.assert_close(normed_BD.var(0, correction=0), torch.ones(24), rtol=1e-2, atol=0)
    assert list(model.head_norm.parameters()) == []


def test_a_layer_norm_before_the_head_sees_one_clip_at_a_time() -> None:
    model = _classifier(head_norm="layer", head_scale=1.0).eval()
    assert isinstance(model.head_norm, nn.LayerNorm)
    video_BCTHW = torch.randn(3, 3, 4, 8, 8)
    torch.testing.assert_close(model(video_BCTHW)[:1], model(video_BCTHW[:1]), rtol=1e-4, atol=1e-5)


def test_a_training_from_scratch_starts_with_normal_matrices_as_videomaes() -> None:
    # modeling_finetune.py: truncated normal of .02, at +-2, which cuts nothing; zero biases; the cube
    # embedding is a convolution and keeps PyTorch's, uniform in +-1 / sqrt(96).
    encoder = _classifier().encoder
    for layer in (module for module in encoder.blocks.modules() if isinstance(module, nn.Linear)):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert 0.05 < layer.weight.abs().max() < 0.12
        assert not layer.bias.any()
    assert 0.98 * 96**-0.5 < encoder.embedding.weight.abs().max() <= 96**-0.5
    head = _classifier(head_scale=0.001).head
    assert head.weight.std().item() == pytest.approx(2e-5, rel=0.2)
    assert not head.bias.any()


def test_mimetic_attention_replaces_the_normal_matrices_of_attention_alone() -> None:
    torch.manual_seed(0)
    mimetic = VIT.model_copy(update={"attention_init": "mimetic"})
    block = VideoClassifier(mimetic, CLIP, 5).encoder.blocks[0]
    assert block.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert block.attn.proj.weight.std() > 0.05

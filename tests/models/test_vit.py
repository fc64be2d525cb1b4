from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tats_core.models.tokens import ClipConfig
from tats_core.models.vit import PRESETS, VideoViT, ViTConfig, blocks, initialise_mimetic, take

CLIP = ClipConfig(frames=4, size=8, tubelet=2, patch=4)
SMALL = {"preset": "vit_micro", "width": 24, "depth": 2, "heads": 3}


def _vit(**changes: object) -> VideoViT:
    torch.manual_seed(0)
    return VideoViT(ViTConfig.model_validate(SMALL | changes), CLIP)


def test_a_bare_name_is_a_preset_and_a_key_beside_it_wins() -> None:
    base = ViTConfig.model_validate("vit_base")
    assert (base.width, base.depth, base.heads) == (768, 12, 12)
    shallow = ViTConfig.model_validate({"preset": "vit_large", "depth": 2})
    assert (shallow.width, shallow.depth, shallow.heads) == (1024, 2, 16)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_has_heads_that_divide_its_width(name: str) -> None:
    config = ViTConfig.model_validate(name)
    assert config.width % config.heads == 0
    assert config.preset == name


def test_a_misspelt_preset_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(ValidationError, match="no model preset 'vit_bse'; did you mean 'vit_base'"):
        ViTConfig.model_validate("vit_bse")


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValidationError, match=r"width \(768\) must be a multiple of heads \(7\)"):
        ViTConfig.model_validate({"preset": "vit_base", "heads": 7})


def test_the_encoder_has_the_parameters_counted_by_hand() -> None:
    counted = sum(p.numel() for p in _vit().parameters())
    embedding = 24 * CLIP.pixels + 24
    attention = 24 * 72 + 72 + 24 * 24 + 24
    mlp = 24 * 96 + 96 + 96 * 24 + 24
    assert counted == embedding + 2 * (attention + mlp + 4 * 24) + 2 * 24


def test_positions_follow_from_the_configuration_and_are_not_saved() -> None:
    assert not [name for name in _vit().state_dict() if "position" in name]


@settings(max_examples=15)
@given(st.permutations(range(CLIP.tokens)), st.integers(1, CLIP.tokens))
def test_embedding_the_visible_tokens_alone_is_picking_them_from_all(order: list[int], visible: int) -> None:
    vit = _vit()
    patches_BNP = torch.randn(2, CLIP.tokens, CLIP.pixels)
    visible_BK = torch.tensor(order[:visible]).expand(2, -1)
    picked_BKD = vit.norm(vit.encode(take(vit.tokenize(patches_BNP), visible_BK)))
    torch.testing.assert_close(vit(patches_BNP, visible_BK), picked_BKD, rtol=1e-4, atol=1e-5)


def test_encoding_everything_is_encoding_the_choice_of_all_tokens() -> None:
    vit = _vit()
    patches_BNP = torch.randn(1, CLIP.tokens, CLIP.pixels)
    everything_BN = torch.arange(CLIP.tokens)[None]
    torch.testing.assert_close(vit(patches_BNP), vit(patches_BNP, everything_BN), rtol=1e-5, atol=1e-6)


def test_gradient_checkpointing_changes_neither_output_nor_gradients() -> None:
    plain, checkpointed = _vit(), _vit(gradient_checkpointing=True)
    patches_BNP = torch.randn(2, CLIP.tokens, CLIP.pixels)
    for vit in (plain, checkpointed):
        vit.train()(patches_BNP).square().sum().backward()
    for weight, checkpointed_weight in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        assert weight.grad is not None
        assert torch.equal(weight.grad, checkpointed_weight.grad)  # type: ignore[arg-type]


def test_stochastic_depth_grows_linearly_to_its_last_block() -> None:
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in blocks(24, 5, 3, 4.0, 0.2)]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])


def test_take_picks_other_tokens_in_every_clip() -> None:
    values_BNX = torch.arange(12).view(2, 3, 2)
    assert take(values_BNX, torch.tensor([[2, 0], [1, 1]])).tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]


def test_mimetic_heads_start_by_looking_at_their_like() -> None:
    torch.manual_seed(0)
    (block,) = blocks(64, 1, 1, 4.0, 0.0)
    initialise_mimetic(block)
    query, key, value = block.attn.qkv.weight.detach().view(3, 64, 64)
    # One head has full rank, so the products are exactly a I + b Z: their mean diagonal is a, up to the
    # mean of 64 normal numbers of deviation b / 8, and the deviation of what is off the diagonal b / 8.
    scores, mixed = query.T @ key, value.T @ block.attn.proj.weight.detach().T
    away = ~torch.eye(64, dtype=torch.bool)
    assert scores.diagonal().mean().item() == pytest.approx(0.7, abs=5 * 0.7 / 64)
    assert scores[away].std().item() == pytest.approx(0.7 / 8, rel=0.05)
    assert mixed.diagonal().mean().item() == pytest.approx(-0.4, abs=5 * 0.4 / 64)
    assert mixed[away].std().item() == pytest.approx(0.4 / 8, rel=0.05)


def test_mimetic_heads_of_a_cut_rank_keep_the_largest_directions() -> None:
    torch.manual_seed(0)
    (block,) = blocks(24, 1, 3, 4.0, 0.0)
    initialise_mimetic(block)
    query, key, _ = block.attn.qkv.weight.detach().view(3, 3, 8, 24)
    for head in range(3):
        # Query and key share the singular values evenly: rows of equal length, orthogonal to each other.
        gram_query, gram_key = query[head] @ query[head].T, key[head] @ key[head].T
        torch.testing.assert_close(gram_query, gram_key, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(gram_key, gram_key.diagonal().diag(), rtol=1e-4, atol=1e-5)
    assert not torch.equal(query[0], query[1])

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from tats_core.errors import SpecError
from tats_core.models.tokens import ClipConfig, CubeEmbedding, patchify, per_token, positions, unpatchify
from tats_core.specs import validate

CLIP = ClipConfig(frames=4, size=6, tubelet=2, patch=3)


def test_the_default_clip_is_videomaes() -> None:
    clip = ClipConfig()
    assert (clip.slices, clip.rows, clip.columns, clip.tokens, clip.pixels) == (8, 14, 14, 1568, 1536)


def test_a_clip_must_be_cut_without_a_rest() -> None:
    with pytest.raises(ValidationError, match=r"frames \(5\) must be a multiple of tubelet \(2\)"):
        ClipConfig(frames=5)
    with pytest.raises(ValidationError, match=r"size \(225\) must be a multiple of patch \(16\)"):
        ClipConfig(size=225)
    with pytest.raises(ValidationError, match=r"size \(225\) must be a multiple of patch \(16\)"):
        ClipConfig(size=(224, 225))


def test_a_clip_may_be_wider_than_high() -> None:
    clip = ClipConfig(frames=16, size=(48, 64), patch=16)
    assert (clip.height, clip.width, clip.rows, clip.columns, clip.tokens) == (48, 64, 3, 4, 96)
    assert ClipConfig(size=(48, 48)).model_dump() == ClipConfig(size=48).model_dump()


@pytest.mark.parametrize("size", [0, "wide", [48], [48, 64, 3], [48, 1.5], True])
def test_a_size_that_is_none_is_refused_in_one_sentence(size: object) -> None:
    wanted = r"^p\.yaml: size: must be a number of pixels, or a list of two: height and width \(it is "
    with pytest.raises(SpecError, match=wanted):
        validate(ClipConfig, {"size": size}, "p.yaml")


@settings(max_examples=20)
@given(st.integers(1, 3), st.integers(1, 4), *(st.integers(1, 3) for _ in range(3)), st.integers(1, 2))
def test_cutting_a_clip_into_tokens_loses_nothing(
    t: int, p: int, slices: int, rows: int, columns: int, batch: int
) -> None:
    clip = ClipConfig(frames=t * slices, size=(p * rows, p * columns), tubelet=t, patch=p)
    video_BCTHW = torch.randn(batch, 3, clip.frames, clip.height, clip.width)
    patches_BNP = patchify(video_BCTHW, clip)
    assert patches_BNP.shape == (batch, clip.tokens, clip.pixels)
    assert torch.equal(unpatchify(patches_BNP, clip), video_BCTHW)


def test_a_token_holds_its_cube_ordered_by_channel_time_row_and_column() -> None:
    # Pixel (c, t, y, x) has the value 1000 c + 100 t + 10 y + x.
    c, t, y, x = torch.meshgrid(*(torch.arange(n) for n in (3, 4, 6, 6)), indexing="ij")
    patches_NP = patchify((1000 * c + 100 * t + 10 * y + x)[None], CLIP)[0]
    # Token 6 is slice 1 (frames 2, 3), patch row 1 (y 3..5), patch column 0 (x 0..2).
    assert patches_NP[6, :9].tolist() == [230, 231, 232, 240, 241, 242, 250, 251, 252]
    assert patches_NP[6, 9] == 330
    assert patches_NP[6, 18:21].tolist() == [1230, 1231, 1232]
    assert patches_NP[5, 0] == 203
    assert patches_NP[:4, 0].tolist() == [0, 3, 30, 33]


def test_a_map_over_pixels_becomes_its_mean_over_each_cube() -> None:
    motion_BTHW = torch.zeros(1, 4, 6, 6)
    motion_BTHW[0, 0, 0, 0] = 9.0
    motion_BTHW[0, 2:, 3:, 3:] = 1.0
    # 9 in one of the 2*3*3 pixels of the first token; the last token moves as a whole.
    assert per_token(motion_BTHW, CLIP).tolist() == [[0.5, 0, 0, 0, 0, 0, 0, 1]]


def test_the_cube_embedding_is_a_convolution_whose_stride_is_its_kernel() -> None:
    embedding = CubeEmbedding(CLIP, 10).double()
    nn.init.normal_(embedding.bias)
    video_BCTHW = torch.randn(2, 3, 4, 6, 6, dtype=torch.float64)
    expected_BDFHW = nn.functional.conv3d(video_BCTHW, embedding.weight, embedding.bias, stride=(2, 3, 3))
    embedded_BND = embedding(patchify(video_BCTHW, CLIP))
    torch.testing.assert_close(embedded_BND, expected_BDFHW.flatten(2).transpose(1, 2), rtol=0, atol=1e-12)


def test_the_cube_embedding_has_the_first_weights_of_a_convolution_as_videomaes() -> None:
    torch.manual_seed(0)
    embedding = CubeEmbedding(CLIP, 640)
    # VideoMAE's modeling_finetune.py initialises Linear layers and norms only. A kernel sees 3*2*3*3 = 54
    # values: uniform in +-1 / sqrt(54), deviation that by sqrt(3).
    bound = 54**-0.5
    assert embedding.weight.shape == (640, 3, 2, 3, 3)
    for values in (embedding.weight, embedding.bias):
        assert 0.99 * bound < values.abs().max() <= bound
        assert values.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    torch.manual_seed(0)
    assert torch.equal(embedding.weight, nn.Conv3d(3, 640, (2, 3, 3)).weight)


def test_joint_positions_start_as_worked_by_hand() -> None:
    table_ND = positions(CLIP, 4, "joint")
    # Width 4: frequencies 1 and 10000^(-2/4) = 0.01, each as sine and cosine.
    torch.testing.assert_close(table_ND[0], torch.tensor([0.0, 1.0, 0.0, 1.0]))
    by_hand = torch.tensor([math.sin(3), math.cos(3), math.sin(0.03), math.cos(0.03)])
    torch.testing.assert_close(table_ND[3], by_hand)


def test_separable_positions_keep_the_place_apart_from_the_time() -> None:
    clip = ClipConfig(frames=8, size=24, tubelet=2, patch=8)
    table_FSD = positions(clip, 128, "separable").view(4, 9, 128)
    time = 128 - 2 * (2 * (128 // 6))
    # The same place at another time differs in the coordinates of time alone, and the other way round.
    assert torch.equal(table_FSD[0, :, time:], table_FSD[3, :, time:])
    assert torch.equal(table_FSD[:, 0, :time], table_FSD[:, 8, :time])
    assert len(table_FSD.view(36, 128).unique(dim=0)) == 36


@pytest.mark.parametrize("kind", ["joint", "separable"])
def test_every_position_has_the_same_length(kind: str) -> None:
    # One sine and one cosine of each frequency: the squared length is half the width.
    table_ND = positions(ClipConfig(frames=4, size=32, patch=8), 96, kind)  # type: ignore[arg-type]
    torch.testing.assert_close(table_ND.square().sum(1), torch.full((32,), 48.0))

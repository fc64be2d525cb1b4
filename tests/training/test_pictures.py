"""What the mask pictures are made of: what is visible, what was predicted, what leaks and what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tats_core.models.mae import MAEConfig, VideoMAE
from tats_core.models.tokens import ClipConfig
from tats_core.models.vit import ViTConfig
from tats_core.report.masks import Picture
from tats_core.sampling import SAMPLERS, Policy, Rollout, Sampler, SamplerSite
from tats_core.sampling.plackett_luce import Noise
from tats_core.training import pictures

CLIP = ClipConfig(frames=4, size=16, tubelet=2, patch=4)
VIT = ViTConfig.model_validate({"preset": "vit_micro", "width": 24, "depth": 2, "heads": 3})
RATIO = 0.875  # 4 of 32 tokens are visible


class Corner(Sampler):
    """Always shows the first places of the first slice."""

    def draw(self, clips: int, noise: Noise, policy: Policy | None = None) -> Rollout:
        return self.rollout(torch.arange(self.visible).expand(clips, -1))


def _mae(target: str = "normalized") -> VideoMAE:
    torch.manual_seed(0)
    config = MAEConfig.model_validate(
        {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2, "target": target}
    )
    return VideoMAE(VIT, config, CLIP).eval()


def _sampler(kind: str) -> Sampler:
    small = {"tats": {"network": {"width": 12, "heads": 2}}}.get(kind, {})
    config = SAMPLERS[kind].model_validate({"mask_ratio": RATIO, **small})
    return config.build(SamplerSite(slices=2, rows=4, columns=4, width=24, heads=3))


def _video(clips: int = 1) -> Tensor:
    return 0.5 * torch.randn(clips, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0))


def _drawn(mae: VideoMAE, sampler: Sampler, video_BCTHW: Tensor, **more: Any) -> Picture:
    with torch.no_grad():
        (picture,) = pictures.reconstructions(
            mae, sampler, video_BCTHW, torch.Generator().manual_seed(0), **more
        )
    return picture


def _masked_pixels(values_THWC: Any) -> Any:
    """Pixels outside the tokens that `Corner` shows."""
    hidden_THW = np.ones((4, 16, 16), bool)
    hidden_THW[:2, :4] = False
    return values_THWC[hidden_THW]


def _masked_changed(video_BCTHW: Tensor) -> Tensor:
    other_BCTHW = video_BCTHW.clone()
    other_BCTHW[:, :, 2:] = 0.5 * other_BCTHW[:, :, 2:] + 0.3
    return other_BCTHW


def test_visible_tokens_are_shown_as_they_are_and_have_no_error() -> None:
    picture = _drawn(_mae(), Corner(32, RATIO), _video())
    assert picture.visible_THW.shape == (2, 4, 4)
    assert picture.visible_THW[0, 0].all()
    assert picture.visible_THW.sum() == 4
    visible = (picture.prediction_THWC[:2, :4] * 255).round()
    np.testing.assert_array_equal(visible, picture.frames_THWC[:2, :4])
    np.testing.assert_array_equal(np.isnan(picture.error_THW), picture.visible_THW)


@pytest.mark.parametrize("target", ["normalized", "floored", "pixel"])
def test_a_prediction_does_not_depend_on_what_is_masked(target: str) -> None:
    mae, sampler, video_BCTHW = _mae(target), Corner(32, RATIO), _video()
    picture, changed = (_drawn(mae, sampler, x) for x in (video_BCTHW, _masked_changed(video_BCTHW)))
    np.testing.assert_allclose(
        _masked_pixels(picture.prediction_THWC), _masked_pixels(changed.prediction_THWC), atol=1e-6
    )
    assert not np.array_equal(picture.frames_THWC[2:], changed.frames_THWC[2:])
    assert not np.array_equal(picture.error_THW[1], changed.error_THW[1])


def test_the_error_is_the_mean_difference_of_a_tokens_pixels() -> None:
    picture = _drawn(_mae(), Corner(32, RATIO), _video())
    difference_THW = np.abs(picture.prediction_THWC - picture.frames_THWC / 255).mean(-1)
    by_token_THW = difference_THW.reshape(2, 2, 4, 4, 4, 4).mean((1, 3, 5))
    masked_THW = ~picture.visible_THW
    # Pixels are bytes in the picture: half a step of 1/255.
    np.testing.assert_allclose(picture.error_THW[masked_THW], by_token_THW[masked_THW], atol=0.002)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_sampler_has_the_maps_that_it_has(kind: str) -> None:
    sampler = _sampler(kind)
    policy = sampler(torch.zeros(1, 32, 24)) if sampler.learns else None
    picture = _drawn(_mae(), sampler, _video())
    assert (picture.policy_THW is not None) == (policy is not None)
    assert (picture.value_THW is not None) == (policy is not None and policy.value_BN is not None)
    assert picture.value_THW is None or kind == "tats", "the others of this package have no critic"


def test_a_policy_is_in_units_of_blind_drawing() -> None:
    sampler = _sampler("tats")
    picture = _drawn(_mae(), sampler, _video())
    assert picture.policy_THW is not None
    assert picture.policy_THW.mean() == pytest.approx(1)
    with torch.no_grad():
        sampler.actor.weight.zero_()  # type: ignore[union-attr, operator]
    np.testing.assert_allclose(_drawn(_mae(), sampler, _video()).policy_THW, 1, atol=1e-6)


def test_grid_and_animation_are_written_beside_each_other(tmp_path: Path) -> None:
    base = tmp_path / "new" / "a.clip"
    mae = _mae()
    grid, animation = pictures.write(mae, _drawn(mae, _sampler("tats"), _video()), base, "a clip")
    assert (grid, animation) == (tmp_path / "new" / "a.clip.png", tmp_path / "new" / "a.clip.gif")
    for path, frames in ((grid, 1), (animation, 4)):
        with Image.open(path) as picture:
            assert getattr(picture, "n_frames", 1) == frames

"""Samplers that do not learn: random, tube and frame masking.

Axes: B clips, N tokens, K visible ones, D width, S patches a slice.
"""

from __future__ import annotations

import logging
from typing import Literal

import torch

from tats_core.sampling.base import Policy, Rollout, Sampler
from tats_core.sampling.config import SamplerConfig, SamplerSite
from tats_core.sampling.plackett_luce import Noise

logger = logging.getLogger(__name__)


class RandomConfig(SamplerConfig):
    """Random masking."""

    kind: Literal["random"] = "random"

    def build(self, site: SamplerSite) -> RandomSampler:
        return RandomSampler(site.tokens, self.mask_ratio)


class RandomSampler(Sampler):
    """Any K of the N tokens, all draws alike (MAE-ST, arXiv 2205.09113)."""

    def draw(self, clips: int, noise: Noise, policy: Policy | None = None) -> Rollout:
        return self.rollout(noise.uniform(clips, self.tokens).topk(self.visible, dim=1).indices)


class TubeConfig(SamplerConfig):
    """Tube masking."""

    kind: Literal["tube"] = "tube"

    def build(self, site: SamplerSite) -> TubeSampler:
        return TubeSampler(site.tokens, self.mask_ratio, site.slices)


class TubeSampler(Sampler):
    """The same patches in every slice (VideoMAE): nothing masked can be copied from another time."""

    def __init__(self, tokens: int, mask_ratio: float, slices: int) -> None:
        self.slices = slices
        super().__init__(tokens, mask_ratio)

    def set_mask_ratio(self, mask_ratio: float) -> None:
        """K becomes the multiple of the number of slices that is nearest to the common rule's."""
        super().set_mask_ratio(mask_ratio)
        wanted = self.visible
        self.visible = self.slices * max(1, round(wanted / self.slices))
        if self.visible != wanted:
            logger.warning(
                "tube masking shows %d tokens, the multiple of %d slices nearest to %d",
                self.visible,
                self.slices,
                wanted,
            )

    def draw(self, clips: int, noise: Noise, policy: Policy | None = None) -> Rollout:
        """Draw K/F patches uniformly and repeat them over the F slices."""
        patches = self.tokens // self.slices
        patch_BK = noise.uniform(clips, patches).topk(self.visible // self.slices, dim=1).indices
        first_F = torch.arange(self.slices, device=patch_BK.device) * patches
        return self.rollout((patch_BK.unsqueeze(1) + first_F[:, None]).flatten(1))


class FrameConfig(SamplerConfig):
    """Frame masking."""

    kind: Literal["frame"] = "frame"

    def build(self, site: SamplerSite) -> FrameSampler:
        return FrameSampler(site.tokens, self.mask_ratio, site.slices)


class FrameSampler(Sampler):
    """Whole slices, in random order, until K tokens are visible; the last slice is filled at random."""

    def __init__(self, tokens: int, mask_ratio: float, slices: int) -> None:
        super().__init__(tokens, mask_ratio)
        self.slices = slices

    def draw(self, clips: int, noise: Noise, policy: Policy | None = None) -> Rollout:
        """Draw slices uniformly without replacement."""
        rank_BF = noise.uniform(clips, self.slices).argsort(1).argsort(1)
        # Slice rank decides, chance within a slice: noise in [0, 1) never overtakes a whole rank.
        chance_BN = noise.uniform(clips, self.tokens)
        score_BN = rank_BF.repeat_interleave(self.tokens // self.slices, 1) + chance_BN
        return self.rollout(score_BN.topk(self.visible, dim=1, largest=False).indices)

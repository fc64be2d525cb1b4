"""Samplers that learn nothing: random, tube and frame masking.

Axes: B clips, N tokens, K visible ones, D width, S patches a slice.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from tats_core.sampling.base import Rollout, Sampler
from tats_core.sampling.plackett_luce import gumbel_top_k

logger = logging.getLogger(__name__)


class RandomSampler(Sampler):
    """Any K of the N tokens, all draws alike (MAE-ST, arXiv 2205.09113)."""

    def act(self, tokens_BND: Tensor, generator: torch.Generator | None = None) -> Rollout:
        """Draw K tokens uniformly without replacement."""
        flat_BN = torch.zeros(tokens_BND.shape[:2], device=tokens_BND.device)
        return self._rollout(gumbel_top_k(flat_BN, self.visible, generator))


class TubeSampler(Sampler):
    """The same places in every slice (VideoMAE): nothing masked can be copied from another time."""

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

    def act(self, tokens_BND: Tensor, generator: torch.Generator | None = None) -> Rollout:
        """Draw K/F places uniformly and repeat them over the F slices."""
        places = self.tokens // self.slices
        flat_BS = torch.zeros(tokens_BND.shape[0], places, device=tokens_BND.device)
        place_BK = gumbel_top_k(flat_BS, self.visible // self.slices, generator)
        first_F = torch.arange(self.slices, device=place_BK.device) * places
        return self._rollout((place_BK.unsqueeze(1) + first_F[:, None]).flatten(1))


class FrameSampler(Sampler):
    """Whole slices, in random order, until K tokens are visible; the last slice is filled at random."""

    def __init__(self, tokens: int, mask_ratio: float, slices: int) -> None:
        super().__init__(tokens, mask_ratio)
        self.slices = slices

    def act(self, tokens_BND: Tensor, generator: torch.Generator | None = None) -> Rollout:
        """Draw slices uniformly without replacement."""
        batch, places = tokens_BND.shape[0], self.tokens // self.slices
        flat_BF = torch.zeros(batch, self.slices, device=tokens_BND.device)
        order_BF = gumbel_top_k(flat_BF, self.slices, generator)
        rank_BF = order_BF.argsort(1)
        # Slice rank decides, chance within a slice: uniform noise in [0, 1) never overtakes a whole rank.
        noise_BN = torch.rand(batch, self.tokens, generator=generator, device=order_BF.device)
        score_BN = rank_BF.repeat_interleave(places, 1) + noise_BN
        return self._rollout(score_BN.topk(self.visible, dim=1, largest=False).indices)

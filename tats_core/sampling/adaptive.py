"""AdaMAE's sampler (arXiv 2211.09120), the baseline with a policy but without trajectories or PPO.

Axes: B clips, N tokens, D encoder width.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from tats_core.sampling.base import LearnedSampler, Policy, Rollout
from tats_core.sampling.config import SamplerConfig, SamplerSite, WhileTraining
from tats_core.sampling.objective import LossObjective, Transition


class AdaptiveConfig(SamplerConfig):
    """AdaMAE's sampler."""

    kind: Literal["adaptive"] = "adaptive"
    objective_weight: Annotated[float, WhileTraining] = Field(
        1e-4, gt=0, description="weight of the sampling loss, whose error is the autoencoder's loss"
    )

    def build(self, site: SamplerSite) -> AdaptiveSampler:
        """Return the sampler, with fresh weights."""
        return AdaptiveSampler(site.tokens, self.mask_ratio, site.width, site.heads)

    def objective(self, seed: int) -> SamplingObjective:
        """Return AdaMAE's loss."""
        return SamplingObjective(self)


class AdaptiveSampler(LearnedSampler):
    """One multi-head attention block of encoder width over all tokens, then a linear actor.

    Trained by AdaMAE's sampling loss (eq. 3), see `SamplingObjective`; it has no critic.
    """

    def __init__(self, tokens: int, mask_ratio: float, encoder_width: int, heads: int) -> None:
        super().__init__(tokens, mask_ratio)
        self.heads = heads
        self.norm = nn.LayerNorm(encoder_width, eps=1e-6)
        self.qkv = nn.Linear(encoder_width, 3 * encoder_width)
        self.out = nn.Linear(encoder_width, encoder_width)
        self.actor = nn.Linear(encoder_width, 1, bias=False)  # a bias would drop out of the softmax
        nn.init.normal_(self.actor.weight, std=0.01)

    def forward(self, tokens_BND: Tensor) -> Policy:
        """Policy of clips."""
        b, n, d = tokens_BND.shape
        tokens_BND = tokens_BND.detach()
        qkv_3BHNE = self.qkv(self.norm(tokens_BND)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed_BHNE = functional.scaled_dot_product_attention(*qkv_3BHNE.unbind(0))
        mixed_BND = tokens_BND + self.out(mixed_BHNE.transpose(1, 2).reshape(b, n, d))
        logits_BN = self.actor(mixed_BND).squeeze(-1).float()
        return Policy(logits_BN)


def sampling_loss(policy: Policy, rollout: Rollout, error_BM: Tensor, weight: float) -> Tensor:
    """AdaMAE's objective (eq. 3): `-weight * sum over masked i of log pi(i) * error(i)`, mean over clips.

    Large errors raise the probability of being visible; `error_BM` is a constant here.
    """
    log_probs_BM = policy.log_probs_BN.gather(1, rollout.masked_BM)
    return -weight * (log_probs_BM * error_BM.detach()).sum(1).mean()


class SamplingObjective(LossObjective[AdaptiveConfig]):
    """One step on AdaMAE's loss after every draw; the reward is the autoencoder's loss, as published."""

    def loss(self, policy: Policy, transition: Transition) -> Tensor:
        """AdaMAE's loss of clips."""
        weight = self.config.objective_weight
        return sampling_loss(policy, transition.rollout, transition.reward_BM, weight)

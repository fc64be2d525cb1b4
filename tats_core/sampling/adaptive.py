"""AdaMAE's sampler (arXiv 2211.09120), the baseline with a policy but without trajectories or PPO.

Axes: B clips, N tokens, D encoder width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from tats_core.sampling.base import LearnedSampler, Policy, Rollout
from tats_core.sampling.objective import Learner, Objective, Transition
from tats_core.sampling.reward import Outcome


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
        """Policy of clips; values are zero."""
        b, n, d = tokens_BND.shape
        tokens_BND = tokens_BND.detach()
        qkv_3BHNE = self.qkv(self.norm(tokens_BND)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed_BHNE = functional.scaled_dot_product_attention(*qkv_3BHNE.unbind(0))
        mixed_BND = tokens_BND + self.out(mixed_BHNE.transpose(1, 2).reshape(b, n, d))
        logits_BN = self.actor(mixed_BND).squeeze(-1).float()
        return Policy(logits_BN, logits_BN.new_zeros(logits_BN.shape))


def sampling_loss(policy: Policy, rollout: Rollout, error_BM: Tensor, weight: float) -> Tensor:
    """AdaMAE's objective (eq. 3): `-weight * sum over masked i of log pi(i) * error(i)`, mean over clips.

    Large errors raise the probability of being visible; `error_BM` is a constant here.
    """
    log_probs_BM = policy.log_probs_BN.gather(1, rollout.masked_BM)
    return -weight * (log_probs_BM * error_BM.detach()).sum(1).mean()


class SamplingObjective(Objective):
    """One step on AdaMAE's sampling loss after every draw."""

    learns_from_the_draw = True

    def __init__(self, weight: float) -> None:
        self.weight, self.memory = weight, []

    def reward(self, outcome: Outcome) -> Tensor:
        """The autoencoder's own loss, as published."""
        return outcome.loss_BM

    def update(self, transition: Transition, learner: Learner) -> dict[str, float]:
        """Learn from one draw."""
        mean, deviation = learner.moments(transition.reward_BM)
        graph = transition.policy if transition.policy.logits_BN.requires_grad else None
        clips = len(transition.tokens_BND)
        index = torch.arange(clips, device=transition.tokens_BND.device)
        loss_sum, share_sum = 0.0, 0.0
        for number, piece in enumerate(index.tensor_split(learner.accumulate), start=1):
            last, weight = number == learner.accumulate, len(piece) / clips
            part = transition if graph else transition.part(piece)
            policy = graph or learner.policy(part.tokens_BND, last=last)
            loss = weight * sampling_loss(policy, part.rollout, part.reward_BM, self.weight)
            learner.backward(loss, last=last)
            loss_sum += loss.item()
            entropy = policy.entropy_B.detach().mean().item()
            share_sum += weight * entropy / math.log(part.rollout.tokens)
        learner.step()
        metrics = {"reward_mean": float(mean), "reward_std": float(deviation)}
        return metrics | {"sampling_loss": loss_sum, "entropy_share": share_sum}

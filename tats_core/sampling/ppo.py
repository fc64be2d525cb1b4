"""Proximal policy optimisation (arXiv 1707.06347) of a token sampler.

One draw of K visible tokens is one decision: there is no time, hence no discount and no GAE. Two ways to
say which token earned what (`credit`):

* ``masked_token``: for each masked token i the reward is what its reconstruction earned (`reward`), the
  advantage ``A_i = R_i - V``, the ratio ``pi_new(i) / pi_old(i)``: what was hard to reconstruct becomes
  likelier to be visible next time (AdaMAE's idea under PPO). Only what stays masked earns anything, and what
  the policy likes best seldom does: each token counts 1 / P(it stays masked), so that on average all count
  alike (Horvitz and Thompson 1952), but at most `max_weight`, since rare events of much weight are noise.
* ``sequence``: the K picks are the actions, each with its exact Plackett-Luce conditional; all share the
  clip's advantage, how far its mean reward lies below what the critic expects.

The critic's value is the clip's (the mean of its per-token outputs). A value of each token would predict
the reward itself: once it is right, the advantage of every token is noise around zero and the policy has
nothing left to learn from. A baseline must not depend on the action, and in ``masked_token`` the token is
the action. Where rewards are scaled within each clip, the clip's own mean is the baseline (as in GRPO, arXiv
2402.03300), a constant that the critic learns at once, and `sequence`, which compares clips, is refused.
Critic and normalised advantages have the plain mean; with the weighted one the policy found no more motion
(docs/lab-notes.md).

`epochs` x `minibatches` optimiser steps use one memory. At the first, new and old policy are the same and
every ratio is 1; from the second on they differ, and the clip has something to do. With one epoch of one
mini-batch there is no second step: that is REINFORCE with a critic, not PPO.

Axes: B clips, N tokens, K visible and M masked ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Final, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from tats_core.sampling.base import Policy
from tats_core.sampling.config import SamplerConfig, WhileTraining
from tats_core.sampling.objective import Learner, Metrics, Objective, Transition, standardised
from tats_core.sampling.plackett_luce import masked_chances, ordered_log_probs
from tats_core.sampling.reward import REWARDS, Outcome, RewardKind, RewardScale, ranks, top, within_clips
from tats_core.specs import StrictModel


class PPOConfig(StrictModel):
    """How the sampler learns."""

    credit: Literal["masked_token", "sequence"] = Field("masked_token", description="what a reward is for")
    normalize_advantage: bool = Field(
        True, description="advantages to mean 0, deviation 1 over the memory of all workers"
    )
    reward: RewardKind = Field(
        "motion",
        description="what a masked token earns: pixel, its squared error; normalized, that over its variance "
        "in space; dynamic, the error of what changes; motion, normalized times how much it moves",
    )
    reward_floor: float = Field(
        0.2,
        gt=0,
        description="deviation below which a token counts as flat (normalized, motion), in ImageNet's",
    )
    reward_scale: RewardScale = Field(
        "top",
        description="rewards to mean 0, deviation 1 over the clips of all workers (global), or within each "
        "clip: by value (clip), by rank (rank), or 1 for those that earn most, a share of 1 - mask_ratio, "
        "and 0 for others (top); within clips the critic has nothing to explain",
    )
    clip: float = Field(0.2, gt=0, lt=1, description="epsilon: a ratio earns nothing beyond 1 +- epsilon")
    value_clip: float | None = Field(None, gt=0, description="largest move of the value in one update")
    value_weight: float = Field(0.5, ge=0, description="c_v")
    max_weight: float = Field(
        10.0,
        ge=1,
        description="a masked token counts 1 / its chance to stay masked, at most this; 1: all count alike "
        "(credit: masked_token)",
    )
    entropy_weight: float = Field(
        0.0, ge=0, description="c_e, of a bonus on the entropy; what keeps the policy open is network.spread"
    )
    rollout_length: int = Field(1, ge=1, description="iterations of joint training between two updates")
    epochs: int = Field(
        1, ge=1, description="passes over the rollout memory; one, of one mini-batch, is REINFORCE, not PPO"
    )
    minibatches: int = Field(
        4, ge=1, description="parts of each iteration in the memory, each one optimiser step"
    )
    kl_stop: float | None = Field(0.05, gt=0, description="KL(old || new) that ends an update early, nats")

    @model_validator(mode="after")
    def _clips_can_be_compared(self) -> Self:
        if self.credit == "sequence" and self.reward_scale != "global":
            raise ValueError(
                "credit: sequence compares clips, of which all earn the same with "
                f"reward_scale: {self.reward_scale}; set reward_scale: global"
            )
        return self


_LOG_RATIO: Final = 2.0
"""Largest log ratio; the clip acts at a tenth of it."""


def surrogate(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """The clipped objective, element by element: `min(r A, clip(r, 1-eps, 1+eps) A)` (PPO, eq. 7)."""
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def value_loss(value: Tensor, old_value: Tensor, target: Tensor, clip: float | None) -> Tensor:
    """Mean squared error of the value; with `clip`, the worse of it and of a value held near the old one."""
    error = (value - target).square()
    if clip is not None:
        near = old_value + (value - old_value).clamp(-clip, clip)
        error = torch.maximum(error, (near - target).square())
    return error.mean()


def returns(transition: Transition, config: PPOConfig) -> Tensor:
    """What was earned: `[B, M]`, by each masked token, or `[B, 1]`, by all picks of a clip together."""
    if config.credit == "masked_token":
        return transition.reward_BM
    # A pick earns what it spares the clip: rewarded with the error itself, the sampler would hide what is
    # hard, the opposite of the other credit.
    return -transition.reward_BM.mean(1, keepdim=True)


def weights(transition: Transition, config: PPOConfig) -> Tensor:
    """How much each reward counts: `[B, M]`, mean 1 in a clip; `[B, 1]` of ones for credit `sequence`."""
    rollout, logits_BN = transition.rollout, transition.policy.logits_BN.detach()
    if config.credit == "sequence":
        return torch.ones_like(logits_BN[:, :1])
    chance_BM = masked_chances(logits_BN, rollout.visible_BK.shape[1]).gather(1, rollout.masked_BM)
    weight_BM = chance_BM.reciprocal().clamp(max=config.max_weight)
    return weight_BM / weight_BM.mean(1, keepdim=True)


def advantages(transition: Transition, config: PPOConfig) -> Tensor:
    """Returns minus the critic's value: `[B, M]` or `[B, 1]`."""
    return returns(transition, config) - transition.policy.value_B1


def ppo_loss(
    new: Policy,
    transition: Transition,
    config: PPOConfig,
    mean: float | Tensor = 0.0,
    deviation: float | Tensor = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """`-E[w min(rA, clip(r)A)] + c_v (V-R)^2 - c_e H(pi) / log N` over the clips of `transition`.

    Args:
        mean, deviation: by which advantages are normalised; the defaults leave them as they are.

    Returns:
        The loss, and its parts and the health of the update, without gradients; all are scalars.
    """
    rollout, old = transition.rollout, transition.policy
    new_log_BN, old_log_BN = new.log_probs_BN, old.log_probs_BN
    if config.credit == "masked_token":
        new_log_BA = new_log_BN.gather(1, rollout.masked_BM)
        old_log_BA = old_log_BN.gather(1, rollout.masked_BM)
    else:
        new_log_BA = ordered_log_probs(new.logits_BN, rollout.visible_BK)
        old_log_BA = ordered_log_probs(old.logits_BN, rollout.visible_BK)
    target_B1 = returns(transition, config).mean(1, keepdim=True)
    advantage_BX = (advantages(transition, config) - mean) / deviation

    # Bounded, since exp must not overflow, and since a single token that became far likelier although it
    # earned nothing would otherwise be the whole of a clipped gradient (dual-clip PPO, arXiv 1912.09729).
    # From above alone: a good token that became far less likely must still be corrected.
    ratio_BA = (new_log_BA - old_log_BA).clamp(max=_LOG_RATIO).exp()
    gain_BA = surrogate(ratio_BA, advantage_BX.expand_as(ratio_BA), config.clip)
    policy_loss = -(weights(transition, config) * gain_BA).mean()
    critic_loss = value_loss(new.value_B1, old.value_B1, target_B1, config.value_clip)
    entropy_share = new.entropy_B.mean() / math.log(rollout.tokens)
    total = policy_loss + config.value_weight * critic_loss - config.entropy_weight * entropy_share
    with torch.no_grad():
        # Not a tensor of two numbers: their copy from the host would wait for the device.
        ends_2 = torch.linspace(0.01, 0.99, 2, device=ratio_BA.device, dtype=ratio_BA.dtype)
        low, high = torch.quantile(ratio_BA.flatten(), ends_2)
        parts = {
            "policy_loss": policy_loss,
            "value_loss": critic_loss,
            "entropy_share": entropy_share,
            # Exact: both policies are known in full. The masked tokens are no sample of the old policy.
            "kl": (old_log_BN.exp() * (old_log_BN - new_log_BN)).sum(1).mean(),
            "clip_fraction": ((ratio_BA - 1).abs() > config.clip).float().mean(),
            # Quantiles: the extremes of thousands of ratios say nothing about the others.
            "ratio_q01": low,
            "ratio_q99": high,
        }
    return total, {name: part.detach() for name, part in parts.items()}


def improve(
    learner: Learner,
    memory: Sequence[Transition],
    config: PPOConfig,
    generator: torch.Generator,
    *,
    parts: int = 1,
) -> Metrics:
    """One PPO update: `epochs` passes over `memory` in mini-batches.

    Args:
        generator: of the order of the mini-batches, the same on all workers.
        parts: gradients of a mini-batch are added up over so many parts of it, to save memory.

    Returns:
        The mean of each metric over the mini-batches, the one that ended the update early included; and
        `ppo_steps`, the optimiser steps made.
    """
    logged: list[Tensor] = []
    names: list[str] = []
    steps = 0
    earned = torch.cat([advantages(transition, config).flatten() for transition in memory])
    mean, deviation = learner.moments(earned)
    scale = (mean, deviation.clamp_min(1e-8)) if config.normalize_advantage else (0.0, 1.0)
    for transition, index in _minibatches(memory, config, generator):
        sums = torch.zeros(0)
        pieces = [piece for piece in index.tensor_split(parts) if len(piece)]
        for number, piece in enumerate(pieces, start=1):
            last = number == len(pieces)
            part = transition.part(piece)
            policy = learner.policy(part.tokens_BND, last=last)
            loss, metrics = ppo_loss(policy, part, config, *scale)
            share = len(piece) / len(index)
            learner.backward(loss * share, last=last)
            names, values = list(metrics), torch.stack(list(metrics.values())) * share
            sums = values if number == 1 else sums + values
        logged.append(learner.mean(sums).double())
        kl = logged[-1][names.index("kl")]
        stepped = learner.step(kl > config.kl_stop if steps and config.kl_stop is not None else None)
        if stepped is None:
            break
        steps += stepped
    means = sum(logged[1:], logged[0]) / len(logged)
    # Before they are normalised: a mean far from 0 is a critic that is wrong about all clips alike.
    health: Metrics = {"advantage_mean": mean, "advantage_std": deviation}
    health |= explained_variance(learner, memory, config)
    return {**dict(zip(names, means, strict=True)), **health, "ppo_steps": float(steps)}


def explained_variance(learner: Learner, memory: Sequence[Transition], config: PPOConfig) -> Metrics:
    """`1 - Var(R - V) / Var(R)` of the clips' returns: 1 for a perfect critic, 0 for a constant one.

    Of all clips in the memories of all workers, with the values that the update started from. NaN where
    returns do not differ between clips: there is nothing to explain then, and the quotient is noise. Empty
    where rewards are scaled within clips, so that returns never do.
    """
    if config.reward_scale != "global":
        return {}
    return_X1 = torch.cat([returns(transition, config).mean(1, keepdim=True) for transition in memory])
    left_X1 = return_X1 - torch.cat([transition.policy.value_B1 for transition in memory])
    deviation, left = (learner.moments(x_X1)[1] for x_X1 in (return_X1, left_X1))
    # Rewards are standardised: returns within a thousandth of their deviation are the same.
    explained = 1 - (left / deviation.clamp_min(1e-3)) ** 2
    return {"explained_variance": explained.masked_fill(deviation < 1e-3, math.nan)}


def _minibatches(
    memory: Sequence[Transition], config: PPOConfig, generator: torch.Generator
) -> list[tuple[Transition, Tensor]]:
    """Each pass is over all mini-batches in random order, each a run of clips of one draw.

    The clips of a batch are in random order already. Row i of worker r of n is row `i n + r` of the global
    batch, so that the workers' runs together are those of a single worker with all clips; mini-batches drawn
    from each worker's own clips would not be.
    """
    parts = []
    for transition in memory:
        index_B = torch.arange(len(transition.tokens_BND), device=transition.tokens_BND.device)
        parts += [(transition, part) for part in index_B.tensor_split(config.minibatches) if len(part)]
    orders = (torch.randperm(len(parts), generator=generator).tolist() for _ in range(config.epochs))
    return [parts[number] for order in orders for number in order]


class PPOSamplerConfig(SamplerConfig):
    """Base of the samplers that are trained by PPO; their policies have a critic's values."""

    ppo: Annotated[PPOConfig, WhileTraining] = Field(default_factory=PPOConfig, description="how it learns")

    def objective(self, seed: int) -> PPO:
        return PPO(self, seed)


class PPO(Objective[PPOSamplerConfig]):
    """Updates of a sampler from a memory of its last draws."""

    def __init__(self, config: PPOSamplerConfig, seed: int) -> None:
        super().__init__(config)
        self.shuffles = torch.Generator().manual_seed(seed)

    def reward(self, outcome: Outcome) -> Tensor:
        return REWARDS[self.config.ppo.reward](outcome, self.config.ppo.reward_floor)

    def update(self, transition: Transition, learner: Learner) -> Metrics:
        """Remember a draw, its rewards scaled; learn once the memory is full."""
        config, reward_BM = self.config.ppo, transition.reward_BM
        mean, deviation = learner.moments(reward_BM)
        metrics: Metrics = {"reward_mean": mean, "reward_std": deviation}
        if config.reward_scale == "global":
            scaled_BM = standardised(reward_BM, learner)
        else:
            values_BM, weight_BM = reward_BM.float(), weights(transition, config)
            if config.reward_scale == "rank":
                values_BM = ranks(values_BM, weight_BM)
            elif config.reward_scale == "top":
                rollout = transition.rollout
                values_BM = top(values_BM, rollout.visible_BK.shape[1] / rollout.tokens, weight_BM)
            scaled_BM = within_clips(values_BM, weight_BM)
        self.memory.append(replace(transition, reward_BM=scaled_BM))
        if len(self.memory) < config.rollout_length:
            return metrics
        parts = learner.accumulate
        metrics |= improve(learner, self.memory, config, self.shuffles, parts=parts)
        self.memory.clear()
        return metrics

    def get_extra_state(self) -> dict[str, Tensor]:
        """The state of the shuffles, the same on all workers."""
        return {"shuffles": self.shuffles.get_state()}

    def set_extra_state(self, state: Mapping[str, Tensor]) -> None:
        self.shuffles.set_state(state["shuffles"])

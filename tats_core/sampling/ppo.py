"""Proximal policy optimisation (arXiv 1707.06347) of a token sampler.

One draw of K visible tokens is one decision: there is no time, hence no discount and no GAE. Two ways to
say which token earned what (`credit`):

* ``masked_token``: for each masked token i the reward is its reconstruction error, the advantage
  ``A_i = R_i - V``, the ratio ``pi_new(i) / pi_old(i)``: what was hard to reconstruct becomes likelier to
  be visible next time (AdaMAE's idea under PPO).
* ``sequence``: the K picks are the actions, each with its exact Plackett-Luce conditional; all share the
  clip's advantage, how far its mean error lies below what the critic expects.

The critic's value is the clip's (the mean of its per-token outputs). A value of each token would predict
the reward itself: once it is right, the advantage of every token is noise around zero and the policy has
nothing left to learn from. A baseline must not depend on the action, and in ``masked_token`` the token is
the action.

Axes: B clips, N tokens, K visible and M masked ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from tats_core.sampling.base import Policy
from tats_core.sampling.objective import Learner, Objective, Transition
from tats_core.sampling.plackett_luce import ordered_log_probs
from tats_core.specs import StrictModel


class PPOConfig(StrictModel):
    """How the sampler learns."""

    credit: Literal["masked_token", "sequence"] = Field("masked_token", description="what a reward is for")
    normalize_advantage: bool = Field(
        True, description="advantages to mean 0, deviation 1 over the memory of all workers"
    )
    error_space: Literal["pixel", "normalized"] = Field(
        "pixel",
        description="where the reward's error is measured; normalized makes flat noise as hard as motion",
    )
    clip: float = Field(0.2, gt=0, lt=1, description="epsilon: a ratio earns nothing beyond 1 +- epsilon")
    value_clip: float | None = Field(None, gt=0, description="largest move of the value in one update")
    value_weight: float = Field(0.5, ge=0, description="c_v")
    entropy_weight: float = Field(0.1, ge=0, description="c_e; where target_entropy is set, its start")
    target_entropy: float | None = Field(
        0.6, gt=0, lt=1, description="entropy held by adapting c_e, as a share of log N; null: c_e is fixed"
    )
    rollout_length: int = Field(1, ge=1, description="iterations of joint training between two updates")
    epochs: int = Field(1, ge=1, description="passes over the rollout memory")
    minibatches: int = Field(1, ge=1, description="parts of the memory, each one optimiser step")
    kl_stop: float | None = Field(0.05, gt=0, description="KL(old || new) that ends an update early, nats")


@dataclass(frozen=True)
class Loss:
    """The parts of the objective, and what a healthy update looks like; all are scalars."""

    total: Tensor
    parts: dict[str, Tensor]


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


@dataclass(frozen=True)
class Scale:
    """Mean and deviation of an update's advantages; the defaults leave these as they are."""

    mean: float = 0.0
    deviation: float = 1.0


def returns(transition: Transition, config: PPOConfig) -> Tensor:
    """What was earned: `[B, M]`, by each masked token, or `[B, 1]`, by all picks of a clip together."""
    if config.credit == "masked_token":
        return transition.reward_BM
    # A pick earns what it spares the clip: rewarded with the error itself, the sampler would hide what is
    # hard, the opposite of the other credit.
    return -transition.reward_BM.mean(1, keepdim=True)


def advantages(transition: Transition, config: PPOConfig) -> Tensor:
    """Returns minus the critic's value: `[B, M]` or `[B, 1]`."""
    return returns(transition, config) - transition.policy.value_B1


def ppo_loss(
    new: Policy,
    transition: Transition,
    config: PPOConfig,
    entropy_weight: float,
    scale: Scale = Scale(),
) -> Loss:
    """`-E[min(rA, clip(r)A)] + c_v (V-R)^2 - c_e H(pi) / log N` over the clips of `transition`."""
    rollout, old = transition.rollout, transition.policy
    new_log_BN, old_log_BN = new.log_probs_BN, old.log_probs_BN
    if config.credit == "masked_token":
        new_log_BA = new_log_BN.gather(1, rollout.masked_BM)
        old_log_BA = old_log_BN.gather(1, rollout.masked_BM)
    else:
        new_log_BA = ordered_log_probs(new.logits_BN, rollout.visible_BK)
        old_log_BA = ordered_log_probs(old.logits_BN, rollout.visible_BK)
    return_BX = returns(transition, config)
    target_B1 = return_BX.mean(1, keepdim=True)
    advantage_BX = (return_BX - old.value_B1 - scale.mean) / scale.deviation

    ratio_BA = (new_log_BA - old_log_BA).exp()
    policy_loss = -surrogate(ratio_BA, advantage_BX.expand_as(ratio_BA), config.clip).mean()
    critic_loss = value_loss(new.value_B1, old.value_B1, target_B1, config.value_clip)
    entropy_share = new.entropy_B.mean() / math.log(rollout.tokens)
    total = policy_loss + config.value_weight * critic_loss - entropy_weight * entropy_share
    with torch.no_grad():
        variance, left = (x_B1.var(correction=0) for x_B1 in (target_B1, target_B1 - new.value_B1))
        parts = {
            "policy_loss": policy_loss,
            "value_loss": critic_loss,
            "entropy_share": entropy_share,
            # Exact: both policies are known in full. The masked tokens are no sample of the old policy.
            "kl": (old_log_BN.exp() * (old_log_BN - new_log_BN)).sum(1).mean(),
            "clip_fraction": ((ratio_BA - 1).abs() > config.clip).float().mean(),
            "ratio_max": ratio_BA.max(),
            "ratio_min": ratio_BA.min(),
            "explained_variance": (variance - left) / variance.clamp_min(1e-12),
        }
    return Loss(total, {name: part.detach() for name, part in parts.items()})


class EntropyController:
    """Holds the policy's entropy at a target by moving the weight of the entropy bonus.

    Multiplicative steps on the weight: it must be able to grow from nearly nothing to whatever is needed.
    """

    def __init__(self, weight: float, target_share: float | None, rate: float = 0.1) -> None:
        self.weight, self.target_share, self.rate = weight, target_share, rate
        # A new policy is uniform and needs no bonus, but the weight must be able to grow back quickly.
        self.lowest = max(weight / 10, 1e-3)

    def update(self, entropy_share: float) -> None:
        """Raise the weight where the entropy lies below its target, lower it where above."""
        if self.target_share is None:
            return
        # Slow on purpose: the policy answers to a weight only after tens of steps, and a fast controller
        # swings between blind and collapsed.
        gap = (self.target_share - entropy_share) / self.target_share
        moved = max(self.weight, self.lowest) * math.exp(self.rate * gap)
        self.weight = min(max(moved, self.lowest), 2.0)


def improve(
    learner: Learner,
    memory: Sequence[Transition],
    config: PPOConfig,
    controller: EntropyController,
    generator: torch.Generator,
    *,
    parts: int = 1,
    first: Policy | None = None,
) -> dict[str, float]:
    """One PPO update: `epochs` passes over `memory` in mini-batches.

    Args:
        generator: shuffles the mini-batches.
        parts: gradients of a mini-batch are added up over so many parts of it, to save memory.
        first: the policy that drew `memory`, with its graph: where one mini-batch is the whole memory, the
            first pass would compute the same again.

    Returns:
        The mean of each metric over the optimiser steps made.
    """
    totals: dict[str, float] = {}
    steps = 0
    earned = torch.cat([advantages(transition, config).flatten() for transition in memory])
    mean, deviation = (float(moment) for moment in learner.moments(earned))
    scale = Scale(mean, max(deviation, 1e-8)) if config.normalize_advantage else Scale()
    for transition, index in _minibatches(memory, config, generator):
        sums = torch.zeros(0)
        names: list[str] = []
        pieces = [piece for piece in index.tensor_split(parts) if len(piece)]
        for number, piece in enumerate(pieces, start=1):
            last = number == len(pieces)
            if first is not None:
                part, policy = transition, first
            else:
                part = transition.part(piece)
                policy = learner.policy(part.tokens_BND, last=last)
            loss = ppo_loss(policy, part, config, controller.weight, scale)
            share = len(piece) / len(index)
            learner.backward(loss.total * share, last=last)
            names = list(loss.parts)
            metrics = torch.stack([loss.parts[name] for name in names]) * share
            sums = metrics if number == 1 else sums + metrics
        first = None
        means = dict(zip(names, learner.mean(sums).tolist(), strict=True))
        if steps and config.kl_stop is not None and means["kl"] > config.kl_stop:
            learner.discard()
            break
        learner.step()
        steps += 1
        for name, mean_of_step in means.items():
            totals[name] = totals.get(name, 0.0) + mean_of_step
    health = {name: total / steps for name, total in totals.items()}
    controller.update(health["entropy_share"])
    # Before they are normalised: a mean far from 0 is a critic that is wrong about all clips alike.
    health |= {"advantage_mean": mean, "advantage_std": deviation}
    return health | {"entropy_weight": controller.weight, "ppo_steps": float(steps)}


def _minibatches(
    memory: Sequence[Transition], config: PPOConfig, generator: torch.Generator
) -> list[tuple[Transition, Tensor]]:
    order: list[tuple[Transition, Tensor]] = []
    for _ in range(config.epochs):
        for transition in memory:
            clips = transition.tokens_BND.shape[0]
            shuffled = torch.randperm(clips, generator=generator).to(transition.tokens_BND.device)
            order += [(transition, part) for part in shuffled.tensor_split(config.minibatches) if len(part)]
    return order


class PPO(Objective):
    """Updates of a sampler from a memory of its last draws."""

    def __init__(self, config: PPOConfig, seed: int) -> None:
        self.memory = []
        self.shuffles = torch.Generator().manual_seed(seed)
        self.controller = EntropyController(config.entropy_weight, config.target_entropy)
        self.config = config

    @property
    def first_pass_is_the_draw(self) -> bool:
        """True where the memory is one draw and a mini-batch is all of it."""
        return self.config.rollout_length == self.config.minibatches == 1

    def configure(self, config: PPOConfig, *, restart: bool) -> None:
        """Learn as `config` says from here on; `restart` the control of the entropy at its weight."""
        weight = config.entropy_weight if restart else self.controller.weight
        self.config = config
        self.controller = EntropyController(config.entropy_weight, config.target_entropy)
        self.controller.weight = weight

    def update(self, transition: Transition, learner: Learner) -> dict[str, float]:
        """Remember a draw, its rewards standardised over all workers; learn once the memory is full."""
        mean, deviation = learner.moments(transition.reward_BM)
        metrics = {"reward_mean": float(mean), "reward_std": float(deviation)}
        policy, reward_BM = transition.policy, transition.reward_BM
        rollout = replace(transition.rollout, policy=policy.detached())
        standard_BM = ((reward_BM - mean) / deviation.clamp_min(1e-8)).float()
        self.memory.append(Transition(transition.tokens_BND, rollout, standard_BM))
        if len(self.memory) < self.config.rollout_length:
            return metrics
        metrics |= improve(
            learner,
            self.memory,
            self.config,
            self.controller,
            self.shuffles,
            parts=learner.accumulate,
            first=policy if policy.logits_BN.requires_grad else None,
        )
        self.memory.clear()
        return metrics

    def state_dict(self) -> dict[str, float | Tensor]:
        """Weight of the entropy bonus and state of the shuffles."""
        return {"entropy_weight": self.controller.weight, "shuffles": self.shuffles.get_state()}

    def load_state_dict(self, state: Mapping[str, float | Tensor]) -> None:
        """Undo `state_dict`."""
        weight, shuffles = state["entropy_weight"], state["shuffles"]
        assert isinstance(shuffles, Tensor)
        self.controller.weight = float(weight)
        self.shuffles.set_state(shuffles)

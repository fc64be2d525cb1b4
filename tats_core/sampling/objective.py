"""How learned samplers are trained: what a draw led to, and what an objective makes of it.

Axes: B clips, N tokens, K visible and M decoded masked ones, D width.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from tats_core.sampling.base import Policy, Rollout
from tats_core.sampling.reward import Outcome
from tats_core.specs import StrictModel

Config = TypeVar("Config", bound=StrictModel)
Metrics = dict[str, float | Tensor]
"""Of a step; scalars on the device stay there until they are logged, since reading one waits for it."""


@dataclass(frozen=True)
class Transition:
    """What one joint iteration leaves for the update: state, action and reward of B clips."""

    tokens_BND: Tensor
    rollout: Rollout
    reward_BM: Tensor
    """Of the decoded tokens, as `Objective.reward` returned it: not standardised."""

    @property
    def policy(self) -> Policy:
        assert self.rollout.policy is not None
        return self.rollout.policy

    def part(self, index: Tensor) -> Transition:
        """The clips `index` of this transition."""
        return self.restored({name: rows[index] for name, rows in self.state_dict().items()}, index.device)

    def state_dict(self) -> dict[str, Tensor]:
        """Plain tensors with a row for each clip, so that a checkpoint loads with `weights_only`."""
        value_BN = self.policy.value_BN
        return {
            "tokens_BND": self.tokens_BND,
            "reward_BM": self.reward_BM,
            "visible_BK": self.rollout.visible_BK,
            "masked_BM": self.rollout.masked_BM,
            "logits_BN": self.policy.logits_BN,
            **({} if value_BN is None else {"value_BN": value_BN}),
        }

    @classmethod
    def restored(cls, state: Mapping[str, Tensor], device: torch.device) -> Self:
        state = {name: tensor.to(device) for name, tensor in state.items()}
        policy = Policy(state["logits_BN"], state.get("value_BN"))
        tokens_BND = state["tokens_BND"]
        rollout = Rollout(state["visible_BK"], state["masked_BM"], tokens_BND.shape[1], policy)
        return cls(tokens_BND, rollout, state["reward_BM"])


class Learner(Protocol):
    """A sampler in training, as its objective sees it; `training.pretrain.SamplerLearner` is one."""

    accumulate: int
    """Parts of a batch over which gradients are added up, to save memory."""

    def policy(self, tokens_BND: Tensor, *, last: bool) -> Policy:
        """Return the current policy, with gradients; `last` of the parts of one optimiser step."""

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of one part."""

    def step(self, stop: Tensor | None = None) -> bool | None:
        """Average over workers, clip and step; False if the gradient was not finite.

        None, and no step, where `stop` is true, a scalar that must be the same on all workers.
        """

    def mean(self, values: Tensor) -> Tensor:
        """Average over workers, so that all of them stop early together."""

    def moments(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of all elements over all workers."""


class Objective(nn.Module, ABC, Generic[Config]):
    """How a learned sampler is trained on what its draws led to.

    Errors: `reward` gets the raw ones (`Outcome`): the clips' pixels and the predicted pixels, both in units
    of ImageNet's deviation, and the autoencoder's own loss of each decoded token, in the units of its target.
    It returns a number for each decoded token of this worker's clips, which `update` gets unchanged as
    `transition.reward_BM`. `standardised` brings that to mean 0 and deviation 1 over all workers' clips.

    State: tensors in buffers (`register_buffer`), the objective's or the sampler's. They are saved in
    checkpoints, and after each update the floating-point ones are averaged over the workers, so that a
    running mean that each worker updates with its own clips becomes that of all clips. Other state goes
    through `get_extra_state` and must follow from what is the same on all workers (`learner.mean`,
    `learner.moments`): a checkpoint holds that of the first worker.
    """

    learns_from_the_draw: ClassVar[bool] = False
    """Whether `update` makes one pass over just the clips drawn, so that it can use the draw's graph."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        """The sampler's configuration."""
        self.memory: list[Transition] = []
        """Draws not yet learned from; a checkpoint holds them."""

    def configure(self, config: Config) -> None:
        """Learn as `config` says from here on; called at the start of an epoch and after a resume.

        It differs from the last one in keys that are marked `WhileTraining` and that a schedule changed.
        """
        self.config = config

    def reward(self, outcome: Outcome) -> Tensor:
        """Return what each decoded token of a draw earned, `[B, M]`, from each clip alone.

        By default the autoencoder's own loss; others are in `sampling.reward`.
        """
        return outcome.loss_BM

    @abstractmethod
    def update(self, transition: Transition, learner: Learner) -> Metrics:
        """Learn from a draw whose policy may have its graph; return metrics."""


class LossObjective(Objective[Config]):
    """One optimiser step on a loss after every draw."""

    learns_from_the_draw = True

    @abstractmethod
    def loss(self, policy: Policy, transition: Transition) -> Tensor:
        """Return the loss of clips, their mean; `policy` is the one that drew, with its graph."""

    def update(self, transition: Transition, learner: Learner) -> Metrics:
        """Learn from one draw; return the loss, the policy's entropy and the moments of the reward."""
        mean, deviation = learner.moments(transition.reward_BM)
        graph = transition.policy if transition.policy.logits_BN.requires_grad else None
        clips = len(transition.tokens_BND)
        index = torch.arange(clips, device=transition.tokens_BND.device)
        loss_sum = share_sum = torch.zeros((), dtype=torch.float64, device=index.device)
        for number, piece in enumerate(index.tensor_split(learner.accumulate), start=1):
            last, weight = number == learner.accumulate, len(piece) / clips
            part = transition if graph else transition.part(piece)
            policy = graph or learner.policy(part.tokens_BND, last=last)
            loss = weight * self.loss(policy, part)
            learner.backward(loss, last=last)
            loss_sum = loss_sum + loss.detach().double()
            entropy = policy.entropy_B.detach().mean().double()
            share_sum = share_sum + weight * entropy / math.log(part.rollout.tokens)
        learner.step()
        metrics: Metrics = {"reward_mean": mean, "reward_std": deviation}
        return metrics | {"sampling_loss": loss_sum, "entropy_share": share_sum}


def standardised(values_BM: Tensor, learner: Learner) -> Tensor:
    """Bring values to mean 0 and deviation 1 over the clips of all workers, float32."""
    mean, deviation = learner.moments(values_BM)
    return ((values_BM - mean) / deviation.clamp_min(1e-8)).float()

"""How learned samplers are trained: what a draw led to, and what an objective makes of it.

Axes: B clips, N tokens, K visible and M decoded masked ones, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

import torch
from torch import Tensor

from tats_core.sampling.base import Policy, Rollout
from tats_core.sampling.reward import Outcome


@dataclass(frozen=True)
class Transition:
    """What one joint iteration leaves for the update: state, action and reward of B clips."""

    tokens_BND: Tensor
    rollout: Rollout
    reward_BM: Tensor
    """Of the decoded tokens."""

    @property
    def policy(self) -> Policy:
        """The policy that drew."""
        assert self.rollout.policy is not None
        return self.rollout.policy

    def part(self, index: Tensor) -> Transition:
        """The clips `index` of this transition."""
        policy = Policy(self.policy.logits_BN[index], self.policy.value_BN[index])
        visible_BK, masked_BM = self.rollout.visible_BK[index], self.rollout.masked_BM[index]
        rollout = Rollout(visible_BK, masked_BM, self.rollout.tokens, policy)
        return Transition(self.tokens_BND[index], rollout, self.reward_BM[index])

    def state_dict(self) -> dict[str, Tensor]:
        """Plain tensors with a row for each clip, so that a checkpoint loads with `weights_only`."""
        return {
            "tokens_BND": self.tokens_BND,
            "reward_BM": self.reward_BM,
            "visible_BK": self.rollout.visible_BK,
            "masked_BM": self.rollout.masked_BM,
            "logits_BN": self.policy.logits_BN,
            "value_BN": self.policy.value_BN,
        }

    @classmethod
    def restored(cls, state: Mapping[str, Tensor], device: torch.device) -> Self:
        """Undo `state_dict`."""
        state = {name: tensor.to(device) for name, tensor in state.items()}
        policy = Policy(state["logits_BN"], state["value_BN"])
        tokens_BND = state["tokens_BND"]
        rollout = Rollout(state["visible_BK"], state["masked_BM"], tokens_BND.shape[1], policy)
        return cls(tokens_BND, rollout, state["reward_BM"])


class Learner(Protocol):
    """A sampler in training, as its objective sees it; `training.pretrain.SamplerLearner` is one."""

    accumulate: int
    """Parts of a batch over which gradients are added up, to save memory."""

    def policy(self, tokens_BND: Tensor, *, last: bool) -> Policy:
        """Return the current policy, with gradients; `last` of the parts of one optimiser step."""
        ...

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of one part."""
        ...

    def step(self) -> bool:
        """Average over workers, clip and step; False if the gradient was not finite."""
        ...

    def discard(self) -> None:
        """Forget the gradients added since the last step."""
        ...

    def mean(self, values: Tensor) -> Tensor:
        """Average over workers, so that all of them stop early together."""
        ...

    def moments(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of all elements over all workers."""
        ...


class Objective(ABC):
    """How a learned sampler is trained on what its draws led to."""

    memory: list[Transition]
    """Draws not yet learned from."""

    learns_from_the_draw: ClassVar[bool] = False
    """Whether `update` makes one pass over just the clips drawn, so that it can use the draw's graph."""

    @abstractmethod
    def reward(self, outcome: Outcome) -> Tensor:
        """Return what each decoded token of a draw earned, `[B, M]`, from each clip alone."""

    @abstractmethod
    def update(self, transition: Transition, learner: Learner) -> dict[str, float]:
        """Learn from a draw whose policy may have its graph; return metrics."""

    def state_dict(self) -> dict[str, float | Tensor]:
        """Everything that the next update depends on, without `memory`."""
        return {}

    def load_state_dict(self, state: Mapping[str, float | Tensor]) -> None:  # noqa: B027, a state may be empty
        """Undo `state_dict`."""

"""What an optimiser is: an update rule, and the learning rate of each step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn

from tats_core.specs import OneOf, StrictModel
from tats_core.training.optim import GuardedStep, parameter_groups
from tats_core.training.schedules import SCHEDULES, ScheduleConfig

Groups = list[dict[str, Any]]
"""Parameters with their weight decay, as torch's optimisers take them."""
_SCHEDULE = OneOf(SCHEDULES, "cosine")


class OptimizerConfig(StrictModel, ABC):
    """An update rule with warm-up and schedule.

    Learning rates are for a global batch of 256 clips and are scaled linearly to the actual one.
    """

    kind: str = Field(description="which update rule")
    base_lr: float = Field(1.5e-4, gt=0, description="peak learning rate at a global batch of 256")
    min_lr: float = Field(1e-5, ge=0, description="learning rate at the end, scaled alike")
    warmup_lr: float = Field(
        0.0,
        ge=0,
        description="learning rate of the first step, scaled alike (VideoMAE's declares 1e-6, uses 0)",
    )
    warmup_epochs: float = Field(40, ge=0, description="epochs of linear warm-up")
    schedule: Annotated[ScheduleConfig, _SCHEDULE] = Field(
        default_factory=_SCHEDULE.build, description="how the learning rate falls after the warm-up"
    )
    weight_decay: float = Field(0.05, ge=0, description="decoupled weight decay, none of vectors")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="factor on the rate from one block of the encoder to the one below"
    )
    clip_grad: float | None = Field(None, gt=0, description="largest global gradient norm; null: no clipping")

    @abstractmethod
    def optimizer(self, groups: Groups) -> torch.optim.Optimizer:
        """Return torch's optimiser of `groups`, whose learning rate is set before each step."""

    def scaled(self, lr: float, global_batch: int) -> float:
        """The linear scaling rule: `lr * global batch / 256`."""
        return lr * global_batch / 256

    def lr(self, step: int, steps_per_epoch: int, epochs: int, global_batch: int) -> float:
        """The learning rate of optimiser step `step` (from 0) of a training over `epochs` epochs.

        The last step of the warm-up has the peak, and so has the first one after it, as in VideoMAE's code.
        """
        peak, first, end = (
            self.scaled(lr, global_batch) for lr in (self.base_lr, self.warmup_lr, self.min_lr)
        )
        warmup, steps = self.warmup_epochs * steps_per_epoch, epochs * steps_per_epoch
        if step < warmup:
            return first + (peak - first) * min(1.0, step / max(1.0, warmup - 1))
        share = min(1.0, (step - warmup) / max(1e-9, steps - warmup))
        return end + (peak - end) * self.schedule.level(share)

    def build(self, model: nn.Module, name: str, *, depth: int = 0) -> GuardedStep:
        """Build the optimiser of `model`, called `name` in messages.

        Args:
            depth: blocks of the model's encoder, for `layer_decay`.
        """
        groups = parameter_groups(model, self.weight_decay, self.layer_decay, depth)
        return GuardedStep(self.optimizer(groups), self.clip_grad, name)

"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from tats_core.training.optimizers.base import Groups, OptimizerConfig


class SGDConfig(OptimizerConfig):
    """SGD with Nesterov's momentum; its weight decay is added to the gradient."""

    kind: Literal["sgd"] = "sgd"
    base_lr: float = Field(0.1, gt=0, description="peak learning rate at a global batch of 256")
    min_lr: float = Field(0.0, ge=0, description="learning rate at the end, scaled alike")
    weight_decay: float = Field(1e-4, ge=0, description="weight decay in the gradient, none of vectors")
    momentum: float = Field(0.9, ge=0, lt=1, description="decay of the sum of gradients")
    nesterov: bool = Field(True, description="look ahead by the momentum; no effect without momentum")

    def optimizer(self, groups: Groups) -> torch.optim.Optimizer:
        nesterov = self.nesterov and self.momentum > 0  # torch refuses it otherwise
        return torch.optim.SGD(groups, lr=0.0, momentum=self.momentum, nesterov=nesterov)

"""Lion (arXiv 2302.06675): the sign of a momentum."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from tats_core.training.optimizers.base import Groups, OptimizerConfig


class LionConfig(OptimizerConfig):
    """Lion; the paper takes a rate 3 to 10 times lower than AdamW's, a weight decay as much higher."""

    kind: Literal["lion"] = "lion"
    base_lr: float = Field(5e-5, gt=0, description="peak learning rate at a global batch of 256")
    min_lr: float = Field(0.0, ge=0, description="learning rate at the end, scaled alike")
    weight_decay: float = Field(0.15, ge=0, description="decoupled weight decay, none of vectors")
    betas: tuple[float, float] = Field(
        (0.9, 0.99), description="weights of the momentum: in a step, in memory"
    )

    def optimizer(self, groups: Groups) -> torch.optim.Optimizer:
        from timm.optim.lion import Lion  # here: timm takes 2 s to import

        return Lion(groups, lr=0.0, betas=self.betas)

"""AdamW (arXiv 1711.05101)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from tats_core.training.optimizers.base import Groups, OptimizerConfig


class AdamWConfig(OptimizerConfig):
    """AdamW; the defaults are VideoMAE's for pre-training."""

    kind: Literal["adamw"] = "adamw"
    betas: tuple[float, float] = Field((0.9, 0.95), description="decay of the two moments")

    def optimizer(self, groups: Groups) -> torch.optim.Optimizer:
        """Return it fused: several times fewer passes over the parameters."""
        return torch.optim.AdamW(groups, lr=0.0, betas=self.betas, fused=True)

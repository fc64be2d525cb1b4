"""A linear classifier of mean-pooled features, in closed form."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from tats_core.report.metrics import METRICS
from tats_core.training.probes.base import PooledProbe


class LinearConfig(PooledProbe):
    """Ridge regression of the classes on standardised features.

    One linear solve, so that its result does not depend on a schedule.
    """

    metric = METRICS["linear_top1"]
    by_default = True
    strength: float = Field(0.1, gt=0, description="ridge for each training clip")

    def classify(self, train_BD: Tensor, train_label_B: Tensor, test_BD: Tensor, classes: int) -> Tensor:
        mean_D, deviation_D = train_BD.mean(0), train_BD.std(0).clamp_min(1e-6)
        train, test = ((x - mean_D).double() / deviation_D for x in (train_BD, test_BD))
        target = functional.one_hot(train_label_B, classes).double() - 1 / classes
        ridge = (
            self.strength * len(train) * torch.eye(train.shape[1], dtype=torch.float64, device=train.device)
        )
        scores: Tensor = test @ torch.linalg.solve(train.T @ train + ridge, train.T @ target)
        return scores

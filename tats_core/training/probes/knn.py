"""A vote of the nearest training clips: no training at all."""

from __future__ import annotations

from typing import Final

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from tats_core.report.metrics import METRICS
from tats_core.training.probes.base import PooledProbe, standardised

_CLIPS: Final = 1024
"""Test clips compared with all training clips at once; of a large benchmark, all pairs would take 19 GB."""


class KNNConfig(PooledProbe):
    """Votes of the nearest training clips by cosine similarity of standardised features."""

    metric = METRICS["knn_top1"]
    by_default = True
    neighbours: int = Field(10, ge=1, description="training clips that vote")

    def classify(self, train_BD: Tensor, train_label_B: Tensor, test_BD: Tensor, classes: int) -> Tensor:
        train, test = (functional.normalize(x_BD, dim=1) for x_BD in standardised(train_BD, test_BD))
        nearest = [
            (part @ train.T).topk(min(self.neighbours, len(train)), dim=1)
            for part in torch.split(test, _CLIPS)
        ]
        similarity, index = (torch.cat(parts) for parts in zip(*nearest, strict=True))
        # Temperature 0.07, as in the kNN evaluations of DINO and SimSiam.
        votes = torch.zeros(len(test), classes, device=test.device)
        return votes.scatter_add_(1, train_label_B[index], (similarity / 0.07).exp())

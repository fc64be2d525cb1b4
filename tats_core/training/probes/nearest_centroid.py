"""The class whose mean lies nearest: what the features hold without any fitted direction."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tats_core.report.metrics import Metric
from tats_core.training.probes.base import PooledProbe, standardised


class NearestCentroidConfig(PooledProbe):
    """The nearest class mean by cosine similarity of standardised features."""

    metric = Metric(
        "nearest_centroid_top1",
        "centroid",
        1,
        "%",
        "more",
        table="Frozen encoder",
        meaning="top-1 of the nearest class mean of the same frozen features: nothing fitted but the means.",
    )

    def classify(self, train_BD: Tensor, train_label_B: Tensor, test_BD: Tensor, classes: int) -> Tensor:
        """Return similarities `[B, C]`; a class without training clips has -1."""
        train, test = standardised(train_BD, test_BD)
        sums = torch.zeros(classes, train.shape[1], device=train.device).index_add_(0, train_label_B, train)
        clips_C1 = torch.bincount(train_label_B, minlength=classes).unsqueeze(1)
        means = functional.normalize(sums / clips_C1.clamp_min(1), dim=1)
        similarity: Tensor = functional.normalize(test, dim=1) @ means.T
        return similarity.masked_fill(clips_C1.T == 0, -1.0)

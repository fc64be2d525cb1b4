"""Metrics of tables and health plots.

Axes: B clips, N tokens, K visible ones (in a calibration: bins), D width, C classes.
"""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def on_host(metrics: Mapping[str, float | Tensor]) -> dict[str, float]:
    """Return metrics as numbers; scalars on a device come in one copy, for which it waits once."""
    numbers: dict[str, Any] = dict(metrics)
    scalars = {name: value.detach().double() for name, value in metrics.items() if isinstance(value, Tensor)}
    if scalars:
        numbers.update(zip(scalars, torch.stack(list(scalars.values())).tolist(), strict=True))
    return numbers


def top_k_percent(scores_BC: Tensor, label_B: Tensor, k: int) -> float:
    """Share of clips, in percent, whose class is among the `k` highest scores (k is cut to C)."""
    best_BK = scores_BC.topk(min(k, scores_BC.shape[1]), dim=1).indices
    return 100 * (best_BK == label_B[:, None]).any(1).double().mean().item()


def wilson_interval(percent: float, clips: int, z: float = 1.959964) -> tuple[float, float]:
    """95% interval of a share measured on `clips` clips, in percent (Wilson 1927).

    Unlike the normal approximation it stays within 0..100 and holds for few clips.
    """
    share = percent / 100
    centre = (share + z * z / (2 * clips)) / (1 + z * z / clips)
    reach = z / (1 + z * z / clips) * math.sqrt(share * (1 - share) / clips + z * z / (4 * clips * clips))
    # At 0 and 100% the bound is exact; rounding must not push it past the share itself.
    return 100 * max(0.0, min(share, centre - reach)), 100 * min(1.0, max(share, centre + reach))


def effective_rank(features_BD: Tensor) -> float:
    """Exponential of the entropy of the normalised singular values of the centred features (Roy 2007).

    D for features spread evenly, 1 for features that all lie on one line: representation collapse.
    """
    values = torch.linalg.svdvals((features_BD - features_BD.mean(0)).double())
    share = values / values.sum().clamp_min(1e-12)
    return float(torch.exp(-(share * share.clamp_min(1e-12).log()).sum()))


def confusion(predicted_B: Tensor, label_B: Tensor, classes: int) -> Tensor:
    """Count clips by class and prediction: `[C, C]` int64, a row for each true class."""
    cell_B = label_B * classes + predicted_B
    return torch.bincount(cell_B, minlength=classes * classes).view(classes, classes)


def mean_class_accuracy(confusion_CC: Tensor) -> float:
    """Mean over the classes of the share of their clips that are recognised, in percent.

    Every class counts alike, however many clips it has; a class without clips does not count.
    """
    clips_C = confusion_CC.sum(1)
    recall_C = confusion_CC.diagonal()[clips_C > 0].double() / clips_C[clips_C > 0]
    return 100 * float(recall_C.mean())


@dataclass(frozen=True)
class Calibration:
    """How sure a model is and how often it is right, in bins of equal width of its confidence."""

    clips_K: Tensor
    confidence_K: Tensor
    """Mean confidence of a bin's clips, in percent; 0 in an empty bin."""
    accuracy_K: Tensor
    """Share of a bin's clips that are right, in percent; 0 in an empty bin."""

    @property
    def ece(self) -> float:
        """Expected calibration error: the bins' mean gap, weighted by their clips, in percent."""
        gap_K = (self.accuracy_K - self.confidence_K).abs()
        return float((gap_K * self.clips_K).sum() / self.clips_K.sum())


def calibration(probability_BC: Tensor, label_B: Tensor, bins: int = 15) -> Calibration:
    """Sort clips by the probability of their likeliest class into `bins` bins (Guo 2017, arXiv 1706.04599).

    A bin holds its upper edge and not its lower one, as in that paper.
    """
    confidence_B, predicted_B = probability_BC.double().max(1)
    bin_B = (confidence_B * bins).ceil().long().clamp(1, bins) - 1
    clips_K = torch.bincount(bin_B, minlength=bins).double()

    def mean(values_B: Tensor) -> Tensor:
        sum_K = torch.zeros(bins, dtype=torch.float64).scatter_add_(0, bin_B, values_B)
        return 100 * sum_K / clips_K.clamp_min(1)

    return Calibration(clips_K, mean(confidence_B), mean((predicted_B == label_B).double()))


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory of this process so far, MiB: of the GPU, or resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10

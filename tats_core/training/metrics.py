"""What the tables and health plots are made of.

Axes: B clips, N tokens, K visible ones, D width, C classes.
"""

from __future__ import annotations

import math
import resource
import sys

import torch
from torch import Tensor


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


def motion_lift(motion_BN: Tensor, visible_BK: Tensor) -> float:
    """Mean motion of the visible tokens over mean motion of all tokens: 1 for a sampler blind to motion."""
    return float(motion_BN.gather(1, visible_BK).mean() / motion_BN.mean().clamp_min(1e-12))


def ridge_probe(
    train_BD: Tensor, train_label_B: Tensor, test_BD: Tensor, classes: int, strength: float = 0.1
) -> Tensor:
    """Scores `[B, C]` of a ridge classifier on standardised features, in closed form.

    Standardising is the probe's BatchNorm; `strength` is the ridge per training clip. One linear solve,
    so its result does not depend on a schedule.
    """
    mean_D, deviation_D = train_BD.mean(0), train_BD.std(0).clamp_min(1e-6)
    train, test = ((x - mean_D).double() / deviation_D for x in (train_BD, test_BD))
    target = torch.nn.functional.one_hot(train_label_B, classes).double() - 1 / classes
    ridge = strength * len(train) * torch.eye(train.shape[1], dtype=torch.float64, device=train.device)
    scores: Tensor = test @ torch.linalg.solve(train.T @ train + ridge, train.T @ target)
    return scores


def knn_probe(
    train_BD: Tensor, train_label_B: Tensor, test_BD: Tensor, classes: int, neighbours: int = 10
) -> Tensor:
    """Votes `[B, C]` of the nearest training clips by cosine similarity of standardised features."""
    mean_D, deviation_D = train_BD.mean(0), train_BD.std(0).clamp_min(1e-6)
    train, test = (
        torch.nn.functional.normalize((x - mean_D) / deviation_D, dim=1) for x in (train_BD, test_BD)
    )
    similarity, index = (test @ train.T).topk(min(neighbours, len(train)), dim=1)
    # Temperature 0.07, as in the kNN evaluations of DINO and SimSiam.
    votes = torch.zeros(len(test), classes, device=test.device)
    return votes.scatter_add_(1, train_label_B[index], (similarity / 0.07).exp())


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory of this process so far, MiB: of the GPU, or resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10

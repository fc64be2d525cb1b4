"""The multi-view test of a fine-tuned model.

Axes: B clips, V views a clip, C=3 channels (or classes, in scores), T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from tats_core.data.clips import Batch
from tats_core.models.classifier import VideoClassifier
from tats_core.training.optim import evaluating
from tats_core.training.world import Precision, World


def score_views(
    model: VideoClassifier,
    batches: Iterable[Batch],
    world: World,
    precision: Precision = "fp32",
) -> tuple[Tensor, Tensor, Tensor]:
    """Class probabilities of videos: the mean of their views' softmax (VideoMAE's multi-view test).

    Args:
        batches: test views, each video once.

    Returns:
        `scores_BC`, `label_B` and `index_B` of all videos of `batches`, on the CPU.
    """
    scores, labels, indices = [], [], []
    with evaluating(model):
        for batch in batches:
            views_BVCTHW = batch.normalised(world.device)
            with world.autocast(precision):
                logits_VC = model(views_BVCTHW.flatten(0, 1))
            scores.append(logits_VC.float().softmax(-1).unflatten(0, views_BVCTHW.shape[:2]).mean(1).cpu())
            labels.append(batch.label_B)
            indices.append(batch.index_B)
    return torch.cat(scores), torch.cat(labels), torch.cat(indices)

"""The job of probing a frozen encoder."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tats_core.data.loaders import ClipOptions, eval_views
from tats_core.data.manifest import Manifest
from tats_core.models.classifier import VideoClassifier
from tats_core.models.tokens import ClipConfig
from tats_core.models.vit import ViTConfig
from tats_core.specs import StrictModel
from tats_core.training import metrics, weights
from tats_core.training.checkpoint import CheckpointStore
from tats_core.training.events import EventLog
from tats_core.training.jobs.common import clip_options, few_labels, write_result
from tats_core.training.optim import evaluating, fresh_weights
from tats_core.training.world import World


class ProbeJob(StrictModel):
    """Linear and kNN probe of a frozen encoder."""

    model: ViTConfig
    clip: ClipConfig
    data: ClipOptions
    train: str
    test: str
    labels_per_class: int | None = None
    encoder: str | None = None
    batch_size: int = 32
    seed: int = 0
    benchmark: str
    init: str
    out: str


def run(job: Mapping[str, Any], world: World, events: EventLog, store: CheckpointStore) -> None:
    """Linear and kNN probe of the frozen encoder's mean-pooled tokens, in one process."""
    began = time.perf_counter()
    task = ProbeJob.model_validate(job)
    train = few_labels(Manifest.load(Path(task.train)), task.labels_per_class, task.seed)
    test = Manifest.load(Path(task.test))
    with fresh_weights(task.seed):
        model = VideoClassifier(task.model, task.clip, len(train.classes))
    if task.encoder is not None:
        weights.load_encoder(model.encoder, Path(task.encoder), without=("norm.",))
    model.to(world.device)
    options = clip_options(task.clip, task.data)
    halves: list[tuple[Tensor, Tensor]] = []
    with evaluating(model):
        for manifest in (train, test):
            features, labels = [], []
            batches = eval_views(manifest, options, clips=1, crops=1, batch_size=task.batch_size)
            for views_BVCTHW, label_B, _ in batches:
                features.append(model.features(views_BVCTHW[:, 0].to(world.device)).float().cpu())
                labels.append(label_B)
            halves.append((torch.cat(features), torch.cat(labels)))
    (train_BD, train_label_B), (test_BD, test_label_B) = halves
    classes = len(train.classes)
    linear_BC = metrics.ridge_probe(train_BD, train_label_B, test_BD, classes)
    knn_BC = metrics.knn_probe(train_BD, train_label_B, test_BD, classes)
    figures = {
        "linear_top1": metrics.top_k_percent(linear_BC, test_label_B, 1),
        "knn_top1": metrics.top_k_percent(knn_BC, test_label_B, 1),
        "effective_rank": metrics.effective_rank(test_BD),
    }
    events.metrics(1, figures)
    described = {
        "benchmark": task.benchmark,
        "init": task.init,
        "clips": len(test),
        "labels": len(train),
        "seconds": time.perf_counter() - began,
    }
    write_result(Path(task.out), figures | described)

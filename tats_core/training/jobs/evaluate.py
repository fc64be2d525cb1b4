"""The job of evaluation."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from tats_core.data.loaders import ClipOptions, eval_views
from tats_core.data.manifest import Manifest
from tats_core.errors import SpecError
from tats_core.models.classifier import VideoClassifier
from tats_core.models.tokens import ClipConfig
from tats_core.models.vit import ViTConfig
from tats_core.specs import StrictModel
from tats_core.training import metrics, weights
from tats_core.training.checkpoint import CheckpointStore
from tats_core.training.evaluate import score_views
from tats_core.training.events import EventLog
from tats_core.training.jobs.common import clip_options, write_json, write_result
from tats_core.training.optim import fresh_weights, parameter_count
from tats_core.training.world import World


class EvaluateJob(StrictModel):
    """Test a fine-tuned model on all videos of one manifest."""

    data: ClipOptions
    test: str
    model: str = Field(description="folder of the fine-tuned model")
    clips: int | None = None
    crops: int | None = None
    batch_size: int = 8
    benchmark: str
    init: str
    out: str


def run(job: Mapping[str, Any], world: World, events: EventLog, store: CheckpointStore) -> None:
    """Multi-view test: each worker scores its share of the videos, rank 0 writes the result."""
    began = time.perf_counter()
    task = EvaluateJob.model_validate(job)
    manifest = Manifest.load(Path(task.test))
    model, classes = load_classifier(Path(task.model))
    if tuple(classes) != manifest.classes:
        raise SpecError(
            f"the model in {task.model} knows other classes ({len(classes)}) than the test videos of "
            f"{manifest.benchmark} ({len(manifest.classes)}); evaluate it on the data it was fine-tuned for"
        )
    views = eval_views(
        manifest,
        clip_options(model.encoder.clip, task.data),
        clips=task.clips,
        crops=task.crops,
        batch_size=task.batch_size,
        rank=world.rank,
        world_size=world.size,
    )
    scores_BC, label_B, index_B = score_views(model.to(world.device), views, world)
    scores_BC, label_B, index_B = gather_uneven(world, scores_BC, label_B, index_B)
    if not world.is_first:
        return
    top1 = metrics.top_k_percent(scores_BC, label_B, 1)
    low, high = metrics.wilson_interval(top1, len(manifest))
    figures = {
        "top1": top1,
        "top5": metrics.top_k_percent(scores_BC, label_B, 5),
        "low": low,
        "high": high,
        "chance": 100 / len(classes),
    }
    events.metrics(1, figures)
    described = {
        "benchmark": task.benchmark,
        "init": task.init,
        "clips": len(manifest),
        "classes": len(classes),
        "parameters": parameter_count([model]),
        "test_seconds": time.perf_counter() - began,
    }
    order = index_B.argsort()
    predictions = [
        {"id": manifest.videos[int(index)].id, "label": int(label), "predicted": int(best)}
        for index, label, best in zip(index_B[order], label_B[order], scores_BC.argmax(1)[order], strict=True)
    ]
    write_json(Path(task.out) / "predictions.json", predictions)
    write_result(Path(task.out), figures | described)


def load_classifier(folder: Path) -> tuple[VideoClassifier, list[str]]:
    """Rebuild the fine-tuned model saved in `folder`; returns it with its class names."""
    described = weights.describe(folder)
    vit, clip = ViTConfig.model_validate(described["model"]), ClipConfig.model_validate(described["clip"])
    classes: list[str] = described["classes"]
    with fresh_weights(0):  # replaced below, but the draws must not disturb another stage's
        model = VideoClassifier(vit, clip, len(classes), head_norm=described["head_norm"])
    weights.load(folder, model)
    return model, classes


def gather_uneven(world: World, *tensors: Tensor) -> list[Tensor]:
    """Join tensors of all workers along axis 0 where their lengths differ by at most a little."""
    if world.size == 1:
        return list(tensors)
    length = torch.tensor([len(tensors[0])], device=world.device)
    lengths = world.gather(length).tolist()
    joined = []
    for tensor in tensors:
        padded = tensor.new_zeros(max(lengths), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        parts = torch.split(world.gather(padded.to(world.device)).cpu(), max(lengths))
        joined.append(torch.cat([part[:own] for part, own in zip(parts, lengths, strict=True)]))
    return joined

"""The job of fine-tuning."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from tats_core.data.loaders import ClipOptions, TrainLoader
from tats_core.data.manifest import Manifest
from tats_core.specs import StrictModel
from tats_core.training import metrics, weights
from tats_core.training.checkpoint import CheckpointStore
from tats_core.training.events import EventLog
from tats_core.training.finetune import FinetuneConfig, FinetuneTrainer, finetune
from tats_core.training.jobs.common import (
    clip_options,
    dump_on_failure,
    few_labels,
    labelled,
    say_unreadable,
    start_encoder,
    write_result,
)
from tats_core.training.optim import parameter_count
from tats_core.training.views import Views
from tats_core.training.world import World


class FinetuneJob(StrictModel):
    """Fine-tune on the labelled clips of one manifest."""

    recipe: FinetuneConfig
    data: ClipOptions
    train: str
    labels_per_class: int | None = None
    encoder: str | None = Field(None, description="folder of the pre-trained model; null: from scratch")
    benchmark: str
    init: str
    workers: int | None = Field(None, description="those that the recipe is for; null: those there are")
    out: str


def run(job: Mapping[str, Any], world: World, events: EventLog, store: CheckpointStore) -> None:
    """Fine-tuning of one worker."""
    began = time.perf_counter()
    task = FinetuneJob.model_validate(job)
    recipe, out = task.recipe.among(world.size, task.workers or world.size), Path(task.out)
    manifest = labelled(few_labels(Manifest.load(Path(task.train)), task.labels_per_class, recipe.seed))
    loader = TrainLoader(
        manifest,
        clip_options(recipe.clip, task.data),
        batch_size=recipe.per_worker(world.size),
        seed=recipe.seed,
        rank=world.rank,
        world_size=world.size,
        samples_per_clip=recipe.samples_per_clip,
        purpose="finetune",
    )
    trainer = FinetuneTrainer(recipe, len(manifest.classes), world)
    started = start_encoder(trainer.model.encoder, task.encoder, events)
    trainer.start()
    events.params(
        {
            "clips": len(manifest),
            "classes": len(manifest.classes),
            "global_batch": recipe.batch_size * recipe.samples_per_clip,
            "steps": recipe.epochs * loader.steps,
            "epochs": recipe.epochs,
            "peak_lr": recipe.optimizer.scaled(recipe.optimizer.base_lr, recipe.batch_size),
            "tokens": recipe.clip.tokens,
            "workers": world.size,
            "device": str(world.device),
            "saved_weights": "moving average" if recipe.ema else "last step",
            **started,
        }
    )
    with dump_on_failure(trainer, manifest, out, world):
        figures = finetune(trainer, loader, events=events, store=store)
    unreadable = world.union(loader.unreadable)  # each worker met those of its own shares only
    say_unreadable(unreadable, events)
    if world.is_first:
        described = {
            "model": recipe.model,
            "clip": recipe.clip,
            "head_norm": recipe.head_norm,
            "classes": list(manifest.classes),
            "views": Views.of(loader),
        }
        weights.save(out, trainer.finished, described)
        usage = {
            "benchmark": task.benchmark,
            "init": task.init,
            "labels": len(manifest),
            "seconds": time.perf_counter() - began,
            "peak_memory_mb": metrics.peak_memory_mb(world.device),
            "parameters": parameter_count([trainer.model]),
            "skipped_steps": trainer.guarded.skipped,
            "unreadable_videos": len(unreadable),
        }
        write_result(out, figures | usage)

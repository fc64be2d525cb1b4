"""Fine-tuning on one benchmark, from a pre-trained encoder or from scratch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tats_core.data.loaders import TrainLoader
from tats_core.stages import jobs
from tats_core.stages.base import StageContext
from tats_core.stages.configs import EncoderKind, Initialised, Trained, TrainedKind
from tats_core.training import metrics, weights
from tats_core.training.checkpoint import CheckpointStore
from tats_core.training.events import EventLog
from tats_core.training.finetune import FinetuneConfig, FinetuneTrainer, finetune
from tats_core.training.optim import parameter_count
from tats_core.training.views import Views
from tats_core.training.world import World


class FinetuneStage(Trained, Initialised, FinetuneConfig):
    """A recipe, the encoder's weights, and where it runs."""

    splits = frozenset({"train"})

    @property
    def recipe(self) -> FinetuneConfig:
        """The recipe alone."""
        return FinetuneConfig.model_validate(self.model_dump(include=set(FinetuneConfig.model_fields)))


class Finetune(EncoderKind[FinetuneStage], TrainedKind[FinetuneStage]):
    """Output: `model.safetensors` with `model.json` (classes, size) and `result.json`."""

    name = "finetune"
    Config = FinetuneStage
    curves = TrainedKind.curves | {"train_top1"}
    reports = TrainedKind.reports | {"labels", "train_top1"}

    def run(self, config: FinetuneStage, ctx: StageContext) -> None:
        jobs.copy_fork(self.name, config.fork, ctx.out)
        inputs = {"data": ctx.input("data").path, "encoder": self.encoder(config, ctx)}
        jobs.run_workers(train, config, inputs, ctx, workers=config.started, fewer=config.fewer)


# --- in a worker ---------------------------------------------------------------------------------------


def train(raw_job: Mapping[str, Any], world: World, events: EventLog, store: CheckpointStore) -> None:
    """Fine-tuning of one worker."""
    began = time.perf_counter()
    job = jobs.Job[FinetuneStage].model_validate(raw_job)
    config, out = job.config, Path(job.out)
    recipe = config.recipe.among(world.size, config.workers)
    numerics = recipe.choose_kernels(world.device)
    manifest = jobs.labelled(job.manifest("train"), config.labels_per_class, recipe.seed)
    loader = TrainLoader(
        manifest,
        jobs.clip_options(recipe.clip, config.data),
        batch_size=recipe.per_worker(world.size),
        seed=recipe.seed,
        rank=world.rank,
        world_size=world.size,
        samples_per_clip=recipe.samples_per_clip,
        purpose="finetune",
        device=world.device,
    )
    trainer = FinetuneTrainer(recipe, len(manifest.classes), world)
    matched = jobs.load_encoder(trainer.model.encoder, job.inputs.get("encoder"), events)
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
            "numerics": numerics,
            "saved_weights": "moving average" if recipe.ema else "last step",
            **matched,
        }
    )
    with jobs.dump_on_failure(trainer, manifest, out, world):
        watch = jobs.watch_of(config, world)
        results = finetune(trainer, loader, events=events, store=store, watch=watch)
    unreadable = world.union(loader.unreadable)  # each worker knows only those of its share
    jobs.note_unreadable(unreadable, events)
    trained = trainer.finished()
    if world.is_first:
        described = {
            "model": recipe.model,
            "clip": recipe.clip,
            "head_norm": recipe.head_norm,
            "classes": list(manifest.classes),
            "views": Views.of(loader),
        }
        weights.save(out, trained, described)
        usage = {
            "benchmark": config.benchmark,
            "init": config.init,
            "labels": len(manifest),
            "seconds": time.perf_counter() - began,
            "peak_memory_mb": metrics.peak_memory_mb(world.device),
            "parameters": parameter_count([trainer.model]),
            "skipped_steps": trainer.skipped,
            "unreadable_videos": len(unreadable),
            **manifest.absence(),
        }
        jobs.write_result(out, results | usage)


KIND = Finetune()

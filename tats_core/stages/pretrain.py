"""Joint pre-training of masked autoencoder and sampler on one benchmark's videos."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from tats_core.data import ground_truth
from tats_core.data.loaders import ClipOptions, TrainLoader, eval_views
from tats_core.data.manifest import Manifest
from tats_core.specs import NotIdentity, StrictModel
from tats_core.stages import checkpoint_input
from tats_core.stages.base import Preflight, StageContext
from tats_core.stages.common import (
    clip_options,
    dump_on_failure,
    say_unreadable,
    start_mae,
    write_result,
)
from tats_core.stages.training import Trained, TrainedKind
from tats_core.training import metrics, weights
from tats_core.training.checkpoint import CheckpointStore, FolderStore
from tats_core.training.events import EventLog
from tats_core.training.health import HealthCheck, HeldOut
from tats_core.training.optim import parameter_count
from tats_core.training.pretrain import JointTrainer, PretrainConfig, pretrain
from tats_core.training.views import Views
from tats_core.training.world import World

_HEALTH = frozenset(
    {
        "between_clip_variance",
        "coverage",
        "effective_rank",
        "entropy_share",
        "knn_top1",
        "linear_top1",
        "motion_lift",
        "pixel_motion_lift",
        "random_lift",
    }
)
"""What a look at features and policy finds (`training.health`)."""


class PretrainStage(Trained, PretrainConfig):
    """A recipe, and where it runs."""

    start: Annotated[str | None, NotIdentity] = Field(
        None,
        description="file or folder of a checkpoint to start from (VideoMAE's, AdaMAE's, Hugging Face's or "
        "ours): encoder and decoder where it has both, else the encoder alone; null: fresh weights",
    )
    health_clips: int = Field(256, ge=1, description="clips looked at in a health check")
    health_pictures: int = Field(4, ge=0, description="clips that are drawn in a health check")

    @property
    def recipe(self) -> PretrainConfig:
        """The recipe alone."""
        return PretrainConfig.model_validate(self.model_dump(include=set(PretrainConfig.model_fields)))


class Pretrain(TrainedKind[PretrainStage]):
    """Output: `model.safetensors`, `sampler.safetensors`, pictures and `result.json`."""

    name = "pretrain"
    Config = PretrainStage
    # Its benchmark is its own: a matrix over benchmarks varies what follows.
    follows = frozenset()
    curves = _HEALTH | {"loss", "clips_per_second"}
    reports = _HEALTH | {
        "loss",
        "parameters",
        "peak_memory_mb",
        "probe_chance",
        "seconds",
        "skipped_steps",
        "steps",
        "unreadable_videos",
        "visible",
    }

    def reads(self, config: PretrainStage) -> tuple[str, ...]:
        """It reads the manifests."""
        return ("data",)

    def preflight(self, config: PretrainStage, ctx: Preflight) -> list[str]:
        """A checkpoint to start from must be there and fit, its decoder too."""
        found = checkpoint_input.faults("start", config.start, config.model, config.clip, config.mae)
        return found + super().preflight(config, ctx)

    def external(self, config: PretrainStage) -> Mapping[str, str]:
        """Return the digest of a checkpoint to start from."""
        return checkpoint_input.digest("start", config.start)

    def run(self, config: PretrainStage, ctx: StageContext) -> None:
        """Train on Ray Train's workers, from where the first epochs of the same training ended if any did."""
        shorter = (config.beginning(until) for until in range(config.last_epoch - 1, 0, -1))
        before = next((found for one in shorter if (found := ctx.output_of(one))), None)
        data = ctx.input("data").path
        job = PretrainJob(
            recipe=config.recipe,
            data=config.data,
            train=str(data / f"{config.benchmark}.train.json"),
            held_out=str(data / f"{config.benchmark}.test.json"),
            start=str(checkpoint_input.place(config.start)) if config.start else None,
            health_clips=config.health_clips,
            workers=config.workers,
            before=str(before) if before else None,
            health_pictures=config.health_pictures,
            out=str(ctx.out),
        )
        self.fit(f"{__name__}:train", job, config, ctx)


# --- in a worker ------------------------------------------------------------------------------------------


STATE = "state"
"""Folder of the state in which a training that stops before its last epoch ends."""


class PretrainJob(StrictModel):
    """Pre-train on the clips of one manifest."""

    recipe: PretrainConfig
    data: ClipOptions
    train: str = Field(description="manifest of the training videos")
    held_out: str = Field(description="manifest of videos for health figures and pictures")
    start: str | None = Field(None, description="model to start from; null: fresh weights")
    health_clips: int = Field(256, ge=1, description="clips of each of the two for the health check")
    workers: int | None = Field(None, description="those that the recipe is for; null: those there are")
    before: str | None = Field(None, description="output of the first epochs of this training")
    health_pictures: int = Field(4, ge=0, description="clips that are drawn in a health check")
    out: str


def train(job: Mapping[str, Any], world: World, events: EventLog, store: CheckpointStore) -> None:
    """Joint pre-training of one worker."""
    began = time.perf_counter()
    task = PretrainJob.model_validate(job)
    recipe, out = task.recipe.among(world.size, task.workers or world.size), Path(task.out)
    options = clip_options(recipe.clip, task.data)
    manifest = Manifest.load(Path(task.train))
    loader = TrainLoader(
        manifest,
        options,
        batch_size=recipe.per_worker(world.size),
        seed=recipe.seed,
        rank=world.rank,
        world_size=world.size,
        purpose="pretrain",
    )
    trainer = JointTrainer(recipe, world)
    started = start_mae(trainer.mae, task.start, events)
    visible, tokens = trainer.sampler.visible, trainer.sampler.tokens
    parameters = parameter_count([trainer.mae])
    events.params(
        {
            "clips": len(manifest),
            "global_batch": recipe.batch_size,
            "steps": recipe.last_epoch * loader.steps,
            "epochs": recipe.last_epoch,
            "peak_lr": recipe.optimizer.scaled(recipe.optimizer.base_lr, recipe.batch_size),
            "visible_tokens": visible,
            "tokens": tokens,
            "workers": world.size,
            "device": str(world.device),
            "parameters": parameters,
            "sampler_parameters": parameter_count([trainer.sampler]),
            **started,
        }
    )
    held_out = held_out_clips(
        manifest, Manifest.load(Path(task.held_out)), options, task.health_clips, world, events
    )
    health = HealthCheck(
        held_out, recipe.sampler.mask_ratio, world, events, out, recipe.seed, task.health_pictures
    )
    before = FolderStore(Path(task.before) / STATE, world, say=events.note) if task.before else None
    after = FolderStore(out / STATE, world, background=False) if recipe.until else None
    with dump_on_failure(trainer, manifest, out, world):
        figures = pretrain(
            trainer, loader, events=events, store=store, health=health, before=before, after=after
        )
    unreadable = world.union(loader.unreadable)  # each worker met those of its own shares only
    say_unreadable(unreadable, events)
    if world.is_first:
        described = {"model": recipe.model, "clip": recipe.clip, "mae": recipe.mae, "views": Views.of(loader)}
        weights.save(out, trainer.mae, described)
        weights.save(out, trainer.sampler, {"sampler": recipe.sampler}, name="sampler")
        usage = {
            "seconds": time.perf_counter() - began,
            "peak_memory_mb": metrics.peak_memory_mb(world.device),
            "parameters": parameters,
            "visible": visible,
            "tokens": tokens,
            "mask_ratio": recipe.sampler.mask_ratio,
            "sampler": recipe.sampler.kind,
            "skipped_steps": trainer.skipped,
            "unreadable_videos": len(unreadable),
        }
        write_result(out, figures | usage)


def held_out_clips(
    train: Manifest, test: Manifest, options: ClipOptions, clips: int, world: World, events: EventLog
) -> HeldOut:
    """This worker's share of the clips of a health check, `clips` of each manifest over all workers."""
    halves = []
    for manifest in (train, test):
        share = max(1, min(clips, len(manifest)) // world.size)  # as many on each worker
        part = manifest.spread(share * world.size)
        unreadable: dict[str, str] = {}
        views = eval_views(
            part,
            options,
            clips=1,
            crops=1,
            rank=world.rank,
            world_size=world.size,
            unreadable=unreadable,
        )
        batches = list(views)
        say_unreadable(unreadable, events)
        videos, labels, indices = (torch.cat([batch[field] for batch in batches]) for field in range(3))
        halves.append((part, videos[:, 0], labels, indices))
    (_, train_BCTHW, train_label_B, _), (part, test_BCTHW, test_label_B, index_B) = halves
    motion_BTHW = None
    if ground_truth.has_motion(test):
        motion_BTHW = ground_truth.motion_clips(part, options, index_B.tolist())
    return HeldOut(train_BCTHW, train_label_B, test_BCTHW, test_label_B, motion_BTHW, len(train.classes))


KIND = Pretrain()

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
from tats_core.models.mae import VideoMAE
from tats_core.specs import NotIdentity
from tats_core.stages import checkpoint_input, jobs
from tats_core.stages.base import Preflight, StageContext
from tats_core.stages.configs import Trained, TrainedKind
from tats_core.store.layout import STATE
from tats_core.training import metrics, weights
from tats_core.training.checkpoint import CheckpointStore
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
        "random_lift",
        *(
            f"{motion}_{of}"
            for motion in ("motion", "pixel_motion", "flow")
            for of in ("lift", "oracle", "share")
        ),
        *(f"{cue}_correlation" for cue in ("motion", "flow", "brightness", "contrast")),
    }
)
"""Metrics of a health check of features and policy (`training.health`)."""


class PretrainStage(Trained, PretrainConfig):
    """A recipe, and where it runs."""

    splits = frozenset({"train"})  # without a test list, health checks look at training clips

    start: Annotated[str | None, NotIdentity] = Field(
        None,
        description="file or folder of a checkpoint to start from (VideoMAE's, AdaMAE's, Hugging Face's or "
        "ours): encoder and decoder where it has both, else the encoder alone; null: fresh weights",
    )
    health_clips: int = Field(256, ge=1, description="clips of a health check")
    health_pictures: int = Field(4, ge=0, description="clips that are drawn in a health check")

    @property
    def recipe(self) -> PretrainConfig:
        """The recipe alone."""
        return PretrainConfig.model_validate(
            {name: getattr(self, name) for name in PretrainConfig.model_fields}
        )


class Pretrain(TrainedKind[PretrainStage]):
    """Output: `model.safetensors`, `sampler.safetensors`, pictures and `result.json`."""

    name = "pretrain"
    Config = PretrainStage
    # A matrix over benchmarks varies the stages after it.
    follows = frozenset()
    curves = TrainedKind.curves | _HEALTH
    reports = TrainedKind.reports | _HEALTH | {"probe_chance", "steps", "visible"}

    def reads(self, config: PretrainStage) -> tuple[str, ...]:
        return ("data",)

    def preflight(self, config: PretrainStage, ctx: Preflight) -> list[str]:
        """A checkpoint to start from must exist and fit, its decoder too."""
        faults = checkpoint_input.faults("start", config.start, config.model, config.clip, config.mae)
        return faults + super().preflight(config, ctx)

    def external(self, config: PretrainStage) -> Mapping[str, str]:
        return checkpoint_input.digest("start", config.start)

    def run(self, config: PretrainStage, ctx: StageContext) -> None:
        """Train; if the store has the first epochs of the same training, from where they end."""
        jobs.copy_fork(self.name, config.fork, ctx.out)
        shorter = (config.beginning(until) for until in range(config.last_epoch - 1, 0, -1))
        before = next((output for first in shorter if (output := ctx.output_of(first))), None)
        start = checkpoint_input.path_of(config.start) if config.start else None
        inputs = {"data": ctx.input("data").path, "start": start, "before": before}
        jobs.run_workers(train, config, inputs, ctx, workers=config.started, fewer=config.fewer)


# --- in a worker ---------------------------------------------------------------------------------------


def train(raw_job: Mapping[str, Any], world: World, events: EventLog, store: CheckpointStore) -> None:
    """Joint pre-training of one worker."""
    began = time.perf_counter()
    job = jobs.Job[PretrainStage].model_validate(raw_job)
    recipe, out = job.config.recipe.among(world.size, job.config.workers), Path(job.out)
    numerics = recipe.choose_kernels(world.device)
    options = jobs.clip_options(recipe.clip, job.config.data)
    manifest = job.manifest("train")
    loader = TrainLoader(
        manifest,
        options,
        batch_size=recipe.per_worker(world.size),
        seed=recipe.seed,
        rank=world.rank,
        world_size=world.size,
        purpose="pretrain",
        device=world.device,
    )
    trainer = JointTrainer(recipe, world)
    matched = load_start(trainer.mae, job.inputs.get("start"), events)
    parameters = parameter_count([trainer.mae])
    masking = {"visible": trainer.sampler.visible, "tokens": trainer.sampler.tokens}
    events.params(
        {
            "clips": len(manifest),
            "global_batch": recipe.batch_size,
            "steps": recipe.last_epoch * loader.steps,
            "epochs": recipe.last_epoch,
            "peak_lr": recipe.optimizer.scaled(recipe.optimizer.base_lr, recipe.batch_size),
            "visible_tokens": masking["visible"],
            "tokens": masking["tokens"],
            "workers": world.size,
            "device": str(world.device),
            "numerics": numerics,
            "parameters": parameters,
            "sampler_parameters": parameter_count([trainer.sampler]),
            **matched,
        }
    )
    test = job.manifest("test") if job.has("test") else manifest.unlabelled()
    if test.split == "train":
        events.note("there is no test list: health checks look at training clips, and have no probes")
    held_out = held_out_clips(manifest, test, options, job.config.health_clips, world, events)
    pictures = job.config.health_pictures
    health = HealthCheck(held_out, recipe.sampler.mask_ratio, world, events, out, recipe.seed, pictures)
    earlier = job.inputs.get("before")
    before = CheckpointStore(Path(earlier) / STATE, world, say=events.note) if earlier else None
    after = CheckpointStore(out / STATE, world, background=False) if recipe.until else None
    with jobs.dump_on_failure(trainer, manifest, out, world):
        results = pretrain(
            trainer,
            loader,
            events=events,
            store=store,
            health=health,
            before=before,
            after=after,
            watch=jobs.watch_of(job.config, world),
        )
    unreadable = world.union(loader.unreadable)  # each worker met those of its own shares only
    jobs.note_unreadable(unreadable, events)
    mae = trainer.whole_mae()
    if world.is_first:
        described = {"model": recipe.model, "clip": recipe.clip, "mae": recipe.mae, "views": Views.of(loader)}
        weights.save(out, mae, described)
        weights.save(out, trainer.sampler, {"sampler": recipe.sampler}, name="sampler")
        usage = {
            "seconds": time.perf_counter() - began,
            "peak_memory_mb": metrics.peak_memory_mb(world.device),
            "parameters": parameters,
            **masking,
            "mask_ratio": recipe.sampler.mask_ratio,
            "sampler": recipe.sampler.kind,
            "skipped_steps": trainer.skipped,
            "unreadable_videos": len(unreadable),
            **manifest.absence(),
        }
        jobs.write_result(out, results | usage)


def load_start(mae: VideoMAE, path: str | None, events: EventLog) -> dict[str, str]:
    """Load the model in `path`, if any; return what matched, as a parameter.

    Raises:
        WeightsError: it does not fit.
    """
    if path is None:
        return {}
    match = weights.initialise_mae(mae, Path(path))
    events.note(f"start from {path}: {match.sentence()}")
    return {"start": match.sentence()}


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
        jobs.note_unreadable(unreadable, events)
        video_BCTHW = torch.cat([batch.video_BCTHW[:, 0] for batch in batches])
        label_B = torch.cat([batch.label_B for batch in batches])
        index_B = torch.cat([batch.index_B for batch in batches])
        halves.append((part, video_BCTHW, label_B, index_B))
    (_, train_BCTHW, train_label_B, _), (part, test_BCTHW, test_label_B, index_B) = halves
    motion_BTHW = None
    if ground_truth.has_motion(test):
        motion_BTHW = ground_truth.motion_clips(part, options, index_B.tolist())
    return HeldOut(train_BCTHW, train_label_B, test_BCTHW, test_label_B, motion_BTHW, len(train.classes))


KIND = Pretrain()

"""Fine-tuning on one benchmark, from a pre-trained encoder or from scratch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from tats_core.data.loaders import ClipOptions, TrainLoader
from tats_core.data.manifest import Manifest
from tats_core.specs import NotIdentity, StrictModel
from tats_core.stages import checkpoint_input
from tats_core.stages.base import Preflight, StageContext
from tats_core.stages.common import (
    clip_options,
    dump_on_failure,
    few_labels,
    labelled,
    say_unreadable,
    start_encoder,
    write_result,
)
from tats_core.stages.training import Trained, TrainedKind
from tats_core.training import metrics, weights
from tats_core.training.checkpoint import CheckpointStore
from tats_core.training.events import EventLog
from tats_core.training.finetune import FinetuneConfig, FinetuneTrainer, finetune
from tats_core.training.optim import parameter_count
from tats_core.training.views import Views
from tats_core.training.world import World


class FinetuneStage(Trained, FinetuneConfig):
    """A recipe, its start, and where it runs."""

    init: Literal["pretrained", "scratch"] = Field("pretrained", description="what the encoder starts from")
    encoder: Annotated[str | None, NotIdentity] = Field(
        None,
        description="file or folder of a checkpoint to start from instead of a pre-training of this pipeline "
        "(VideoMAE's, AdaMAE's, Hugging Face's or ours); not used from scratch",
    )
    labels_per_class: int | None = Field(None, ge=1, description="labelled videos of each class; null: all")

    @property
    def recipe(self) -> FinetuneConfig:
        """The recipe alone."""
        return FinetuneConfig.model_validate(self.model_dump(include=set(FinetuneConfig.model_fields)))

    @property
    def outside(self) -> str | None:
        """The checkpoint from outside that is read, if any."""
        return self.encoder if self.init == "pretrained" else None


class Finetune(TrainedKind[FinetuneStage]):
    """Output: `model.safetensors` with `model.json` (classes, size) and `result.json`."""

    name = "finetune"
    Config = FinetuneStage
    curves = frozenset({"loss", "train_top1", "clips_per_second"})
    reports = frozenset(
        {
            "labels",
            "loss",
            "parameters",
            "peak_memory_mb",
            "seconds",
            "skipped_steps",
            "train_top1",
            "unreadable_videos",
        }
    )

    def reads(self, config: FinetuneStage) -> tuple[str, ...]:
        """From scratch, or from outside, it does not wait for a pre-training."""
        return ("data", "pretrain") if config.init == "pretrained" and not config.encoder else ("data",)

    def preflight(self, config: FinetuneStage, ctx: Preflight) -> list[str]:
        """A checkpoint from outside must be there and fit."""
        found = checkpoint_input.faults("encoder", config.outside, config.model, config.clip)
        return found + super().preflight(config, ctx)

    def external(self, config: FinetuneStage) -> Mapping[str, str]:
        """Return the digest of a checkpoint from outside."""
        return checkpoint_input.digest("encoder", config.outside)

    def run(self, config: FinetuneStage, ctx: StageContext) -> None:
        """Train on Ray Train's workers."""
        data = ctx.input("data").path
        encoder = str(checkpoint_input.place(config.outside)) if config.outside else None
        if config.init == "pretrained" and encoder is None:
            encoder = str(ctx.input("pretrain").path)
        job = FinetuneJob(
            recipe=config.recipe,
            data=config.data,
            train=str(data / f"{config.benchmark}.train.json"),
            labels_per_class=config.labels_per_class,
            encoder=encoder,
            benchmark=config.benchmark,
            init=config.init,
            workers=config.workers,
            out=str(ctx.out),
        )
        self.fit(f"{__name__}:train", job, config, ctx)


# --- in a worker ------------------------------------------------------------------------------------------


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


def train(job: Mapping[str, Any], world: World, events: EventLog, store: CheckpointStore) -> None:
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


KIND = Finetune()

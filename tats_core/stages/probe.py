"""Linear, kNN and attentive probe of a frozen encoder, pre-trained or fresh.

Axes: B clips, V clips of a video, C=3 channels (classes, in scores), T frames, H W pixels, N tokens, D width.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from tats_core.data.loaders import ClipOptions, TrainLoader, eval_views
from tats_core.data.manifest import Manifest
from tats_core.models.classifier import VideoClassifier
from tats_core.models.tokens import ClipConfig, patchify
from tats_core.models.vit import VideoViT, ViTConfig
from tats_core.specs import NotIdentity, StrictModel
from tats_core.stages import checkpoint_input
from tats_core.stages.base import Preflight, StageContext, StageKind
from tats_core.stages.common import (
    clip_options,
    few_labels,
    labelled,
    say_unreadable,
    start_encoder,
    write_result,
)
from tats_core.stages.training import Placed, run_here
from tats_core.training import metrics, probes
from tats_core.training.checkpoint import CheckpointStore
from tats_core.training.events import EventLog
from tats_core.training.optim import evaluating, fresh_weights
from tats_core.training.probes import AttentiveConfig
from tats_core.training.world import Precision, World


class ProbeStage(Placed):
    """Which encoder, and how many labels."""

    model: ViTConfig = Field(default_factory=lambda: ViTConfig.model_validate("vit_base"))
    clip: ClipConfig = Field(default_factory=ClipConfig)
    init: Literal["pretrained", "scratch"] = Field("pretrained", description="which encoder is probed")
    encoder: Annotated[str | None, NotIdentity] = Field(
        None, description="as of a fine-tuning: a checkpoint from outside the pipeline; not used from scratch"
    )
    labels_per_class: int | None = Field(None, ge=1, description="labelled videos of each class; null: all")
    batch_size: Annotated[int, NotIdentity] = Field(32, ge=1, description="clips encoded together")
    precision: Precision = Field("fp32", description="of the encoder; bf16: its matrix products in bfloat16")
    attentive: AttentiveConfig | None = Field(
        None, description="train a probe that attends to all tokens too ({}: with its defaults); null: do not"
    )
    seed: int = Field(
        0, ge=0, description="labels chosen, weights of a fresh encoder, training of the attentive probe"
    )

    @property
    def outside(self) -> str | None:
        """The checkpoint from outside that is read, if any."""
        return self.encoder if self.init == "pretrained" else None


class Probe(StageKind[ProbeStage]):
    """Output: `result.json` (linear, kNN and attentive top-1, effective rank)."""

    name = "probe"
    Config = ProbeStage
    reports = frozenset(
        {"attentive_top1", "clips", "effective_rank", "knn_top1", "labels", "linear_top1", "seconds"}
    )

    def reads(self, config: ProbeStage) -> tuple[str, ...]:
        """A fresh encoder, or one from outside, does not wait for a pre-training."""
        return ("data", "pretrain") if config.init == "pretrained" and not config.encoder else ("data",)

    def preflight(self, config: ProbeStage, ctx: Preflight) -> list[str]:
        """A checkpoint from outside must be there and fit."""
        return checkpoint_input.faults("encoder", config.outside, config.model, config.clip)

    def external(self, config: ProbeStage) -> Mapping[str, str]:
        """Return the digest of a checkpoint from outside."""
        return checkpoint_input.digest("encoder", config.outside)

    def gpus(self, config: ProbeStage) -> int:
        """One, if at all."""
        return int(config.gpu)

    def run(self, config: ProbeStage, ctx: StageContext) -> None:
        """Probe on a worker with a GPU, or here."""
        data = ctx.input("data").path
        encoder = str(checkpoint_input.place(config.outside)) if config.outside else None
        if config.init == "pretrained" and encoder is None:
            encoder = str(ctx.input("pretrain").path)
        job = ProbeJob(
            model=config.model,
            clip=config.clip,
            data=config.data,
            train=str(data / f"{config.benchmark}.train.json"),
            test=str(data / f"{config.benchmark}.test.json"),
            labels_per_class=config.labels_per_class,
            encoder=encoder,
            batch_size=config.batch_size,
            precision=config.precision,
            attentive=config.attentive,
            seed=config.seed,
            benchmark=config.benchmark,
            init=config.init,
            out=str(ctx.out),
        ).model_dump(mode="json", exclude_unset=True)
        if not config.gpu:
            run_here(probe_encoder, job, ctx)
            return
        ctx.fit(f"{__name__}:probe_encoder", job, workers=1, gpu=True, max_failures=config.max_failures)


# --- in a worker ------------------------------------------------------------------------------------------


class ProbeJob(StrictModel):
    """Linear, kNN and perhaps attentive probe of a frozen encoder."""

    model: ViTConfig
    clip: ClipConfig
    data: ClipOptions
    train: str
    test: str
    labels_per_class: int | None = None
    encoder: str | None = None
    batch_size: int = 32
    precision: Precision = "fp32"
    attentive: AttentiveConfig | None = None
    seed: int = 0
    benchmark: str
    init: str
    out: str


def probe_encoder(job: Mapping[str, Any], world: World, events: EventLog, store: CheckpointStore) -> None:
    """Probe the frozen encoder in one process: its mean-pooled tokens, and all of them if asked to.

    After a kill, the training of the attentive probe goes on; the rest is done again.
    """
    began = time.perf_counter()
    task = ProbeJob.model_validate(job)
    train = labelled(few_labels(Manifest.load(Path(task.train)), task.labels_per_class, task.seed))
    test = labelled(Manifest.load(Path(task.test)))
    with fresh_weights(task.seed):
        model = VideoClassifier(task.model, task.clip, len(train.classes))
    started = start_encoder(model.encoder, task.encoder, events)
    if started:
        events.params(started)
    model.to(world.device)
    options = clip_options(task.clip, task.data)
    figures = pooled_probes(model, task, (train, test), options, world, events, store)
    if task.attentive is not None:
        figures |= attentive_probe(
            model.encoder, task, task.attentive, (train, test), options, world, events, store
        )
    events.metrics(1, figures)
    described = {
        "benchmark": task.benchmark,
        "init": task.init,
        "clips": len(test),
        "labels": len(train),
        "seconds": time.perf_counter() - began,
    }
    write_result(Path(task.out), figures | described)


def pooled_probes(
    model: VideoClassifier,
    task: ProbeJob,
    manifests: tuple[Manifest, Manifest],
    options: ClipOptions,
    world: World,
    events: EventLog,
    store: CheckpointStore,
) -> dict[str, float]:
    """Linear and kNN probe of the mean-pooled tokens of one central clip a video, and their rank."""
    halves: list[tuple[Tensor, Tensor]] = []
    with evaluating(model), world.autocast(task.precision):
        # Of the training videos some may be broken, as in every training; the test is on all of its own.
        unreadable: dict[str, str] = {}
        for manifest, passed_over in zip(manifests, (unreadable, None), strict=True):
            features, labels = [], []
            batches = eval_views(
                manifest, options, clips=1, crops=1, batch_size=task.batch_size, unreadable=passed_over
            )
            for batch in store.until_stopped(batches):
                features.append(model.features(batch.normalised(world.device)[:, 0]).float().cpu())
                labels.append(batch.label_B)
            halves.append((torch.cat(features), torch.cat(labels)))
    say_unreadable(unreadable, events)
    (train_BD, train_label_B), (test_BD, test_label_B) = halves
    classes = len(manifests[0].classes)
    linear_BC = probes.ridge_probe(train_BD, train_label_B, test_BD, classes)
    knn_BC = probes.knn_probe(train_BD, train_label_B, test_BD, classes)
    return {
        "linear_top1": metrics.top_k_percent(linear_BC, test_label_B, 1),
        "knn_top1": metrics.top_k_percent(knn_BC, test_label_B, 1),
        "effective_rank": metrics.effective_rank(test_BD),
    }


def attentive_probe(
    encoder: VideoViT,
    task: ProbeJob,
    config: AttentiveConfig,
    manifests: tuple[Manifest, Manifest],
    options: ClipOptions,
    world: World,
    events: EventLog,
    store: CheckpointStore,
) -> dict[str, float]:
    """Attentive probe: random clips of fine-tuning's augmentation to learn from, central crops to test."""
    train, test = manifests
    loader = TrainLoader(
        train,
        options,
        batch_size=min(config.batch, len(train)),
        seed=task.seed,
        samples_per_clip=config.clips,
        purpose="finetune",
    )

    def learnt_from(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in loader.epoch(epoch):
            # The clips of a video stand side by side.
            video_BCTHW = batch.normalised(world.device)
            views_BVCTHW = video_BCTHW.view(-1, config.clips, *video_BCTHW.shape[1:])
            tokens_BND = tokens_of(encoder, views_BVCTHW, task.precision, world)
            yield tokens_BND, batch.label_B[:: config.clips].to(world.device)

    probe = probes.fit_attentive(
        config,
        width=task.model.width,
        heads=task.model.heads,
        classes=len(train.classes),
        batches=learnt_from,
        steps=loader.steps,
        seed=task.seed,
        device=world.device,
        events=events,
        store=store,
    )
    loader.close()
    say_unreadable(loader.unreadable, events)
    views = eval_views(test, options, clips=config.clips, crops=1, batch_size=task.batch_size)
    tested = (
        (tokens_of(encoder, batch.normalised(world.device), task.precision, world), batch.label_B)
        for batch in views
    )
    scores_BC, label_B = probes.score_attentive(probe, tested)
    return {"attentive_top1": metrics.top_k_percent(scores_BC, label_B, 1)}


def tokens_of(encoder: VideoViT, views_BVCTHW: Tensor, precision: Precision, world: World) -> Tensor:
    """Return the frozen encoder's tokens `[B, V*N, D]` of all clips of each video."""
    with evaluating(encoder), world.autocast(precision):
        patches_XNP = patchify(views_BVCTHW.flatten(0, 1), encoder.clip)
        tokens_XND: Tensor = encoder(patches_XNP)
    return tokens_XND.reshape(len(views_BVCTHW), -1, tokens_XND.shape[-1])


KIND = Probe()

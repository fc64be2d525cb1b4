"""Linear, kNN and attentive probe of a frozen encoder, pre-trained or fresh.

Axes: B clips, V clips of a video, C=3 channels (classes, in scores), T frames, H W pixels, N tokens, D width.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from tats_core.data.loaders import ClipOptions, TrainLoader, eval_views
from tats_core.data.manifest import Manifest
from tats_core.models.classifier import VideoClassifier
from tats_core.models.tokens import patchify
from tats_core.models.vit import VideoViT
from tats_core.specs import NotIdentity
from tats_core.stages.base import StageContext
from tats_core.stages.configs import EncoderKind, Initialised
from tats_core.stages.jobs import (
    Job,
    clip_options,
    labelled,
    load_encoder,
    note_unreadable,
    run_workers,
    write_result,
)
from tats_core.training import metrics, probes
from tats_core.training.checkpoint import CheckpointStore
from tats_core.training.events import EventLog
from tats_core.training.optim import evaluating, fresh_weights
from tats_core.training.probes import AttentiveConfig
from tats_core.training.world import Precision, World


class ProbeStage(Initialised):
    """Which encoder, and how many labels."""

    batch_size: Annotated[int, NotIdentity] = Field(32, ge=1, description="clips encoded together")
    precision: Precision = Field("fp32", description="of the encoder; bf16: its matrix products in bfloat16")
    attentive: AttentiveConfig | None = Field(
        None, description="train a probe that attends to all tokens too ({}: with its defaults); null: do not"
    )
    seed: int = Field(
        0, ge=0, description="labels chosen, weights of a fresh encoder, training of the attentive probe"
    )


class Probe(EncoderKind[ProbeStage]):
    """Output: `result.json` (linear, kNN and attentive top-1, effective rank)."""

    name = "probe"
    Config = ProbeStage
    reports = frozenset(
        {"attentive_top1", "clips", "effective_rank", "knn_top1", "labels", "linear_top1", "seconds"}
    )

    def gpus(self, config: ProbeStage) -> int:
        """One, if at all."""
        return int(config.gpu)

    def run(self, config: ProbeStage, ctx: StageContext) -> None:
        """Probe on a worker with a GPU, or in this process."""
        inputs = {"data": ctx.input("data").path, "encoder": self.encoder(config, ctx)}
        run_workers(probe_encoder, config, inputs, ctx, workers=int(config.gpu))


# --- in a worker ---------------------------------------------------------------------------------------


def probe_encoder(raw_job: Mapping[str, Any], world: World, events: EventLog, store: CheckpointStore) -> None:
    """Probe the frozen encoder in one process: its mean-pooled tokens, and all of them if asked to.

    After a kill, the training of the attentive probe resumes; the rest is done again.
    """
    began = time.perf_counter()
    job = Job[ProbeStage].model_validate(raw_job)
    config = job.config
    train = labelled(job.manifest("train"), config.labels_per_class, config.seed)
    test = labelled(job.manifest("test"))
    with fresh_weights(config.seed):
        model = VideoClassifier(config.model, config.clip, len(train.classes))
    matched = load_encoder(model.encoder, job.inputs.get("encoder"), events)
    if matched:
        events.params(matched)
    model.to(world.device)
    manifests, options = (train, test), clip_options(config.clip, config.data)
    results = pooled_probes(model, config, manifests, options, world, events, store)
    if config.attentive is not None:
        results |= attentive_probe(
            model.encoder, config, config.attentive, manifests, options, world, events, store
        )
    events.metrics(1, results)
    described = {
        "benchmark": config.benchmark,
        "init": config.init,
        "clips": len(test),
        "labels": len(train),
        "seconds": time.perf_counter() - began,
        **train.absence(),
        **test.absence(),
    }
    write_result(Path(job.out), results | described)


def pooled_probes(
    model: VideoClassifier,
    config: ProbeStage,
    manifests: tuple[Manifest, Manifest],
    options: ClipOptions,
    world: World,
    events: EventLog,
    store: CheckpointStore,
) -> dict[str, float]:
    """Linear and kNN probe of the mean-pooled tokens of one central clip a video, and their rank."""
    halves: list[tuple[Tensor, Tensor]] = []
    with evaluating(model), world.autocast(config.precision):
        # Some training videos may be unreadable, as in every training; the test needs all of its videos.
        unreadable: dict[str, str] = {}
        for manifest, skipped in zip(manifests, (unreadable, None), strict=True):
            features, labels = [], []
            batches = eval_views(
                manifest, options, clips=1, crops=1, batch_size=config.batch_size, unreadable=skipped
            )
            for batch in store.until_stopped(batches):
                features.append(model.features(batch.normalised(world.device)[:, 0]).float().cpu())
                labels.append(batch.label_B)
            halves.append((torch.cat(features), torch.cat(labels)))
    note_unreadable(unreadable, events)
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
    config: ProbeStage,
    attentive: AttentiveConfig,
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
        batch_size=min(attentive.batch, len(train)),
        seed=config.seed,
        samples_per_clip=attentive.clips,
        purpose="finetune",
    )

    def training_tokens(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in loader.epoch(epoch):
            # The clips of a video are adjacent.
            video_BCTHW = batch.normalised(world.device)
            views_BVCTHW = video_BCTHW.view(-1, attentive.clips, *video_BCTHW.shape[1:])
            tokens_BND = tokens_of(encoder, views_BVCTHW, config.precision, world)
            yield tokens_BND, batch.label_B[:: attentive.clips].to(world.device)

    probe = probes.fit_attentive(
        attentive,
        width=config.model.width,
        heads=config.model.heads,
        classes=len(train.classes),
        batches=training_tokens,
        steps=loader.steps,
        seed=config.seed,
        device=world.device,
        events=events,
        store=store,
    )
    loader.close()
    note_unreadable(loader.unreadable, events)
    views = eval_views(test, options, clips=attentive.clips, crops=1, batch_size=config.batch_size)
    tested = (
        (tokens_of(encoder, batch.normalised(world.device), config.precision, world), batch.label_B)
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

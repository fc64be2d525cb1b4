"""Probes of a frozen encoder, pre-trained or fresh: linear, kNN and others (`training.probes`).

Axes: B clips, V clips of a video, C=3 channels (classes, in scores), T frames, H W pixels, N tokens, D width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, Field, create_model
from torch import Tensor

from tats_core.data.loaders import ClipOptions, TrainLoader, eval_views
from tats_core.data.manifest import Manifest
from tats_core.errors import SpecError
from tats_core.models.classifier import VideoClassifier
from tats_core.models.tokens import patchify
from tats_core.models.vit import VideoViT
from tats_core.report.metrics import METRICS, Metric
from tats_core.specs import NotIdentity
from tats_core.stages import jobs
from tats_core.stages.base import StageContext
from tats_core.stages.configs import EncoderKind, Initialised
from tats_core.training import metrics
from tats_core.training.checkpoint import CheckpointStore
from tats_core.training.events import EventLog
from tats_core.training.optim import evaluating, fresh_weights
from tats_core.training.probes import PROBES, Frozen, ProbeConfig
from tats_core.training.probes.base import Pooled, Tokens
from tats_core.training.world import Precision, World


class _Probing(Initialised):
    """Which encoder, how many labels, and which probes."""

    batch_size: Annotated[int, NotIdentity] = Field(32, ge=1, description="clips encoded together")
    precision: Precision = Field("fp32", description="of the encoder; bf16: its matrix products in bfloat16")
    seed: int = Field(
        0, ge=0, description="labels chosen, weights of a fresh encoder, training of the attentive probe"
    )

    @property
    def probes(self) -> dict[str, ProbeConfig]:
        """The probes to measure, by name."""
        return {name: probe for name in PROBES if (probe := getattr(self, name, None)) is not None}


def _key(name: str) -> Any:
    """Return the field of a probe; of a plugin that cannot be imported, one that only null fits."""
    try:
        probe = PROBES[name]
    except SpecError as error:
        broken = str(error)

        def refuse(value: object) -> None:
            if value is not None:
                raise ValueError(broken)

        return Annotated[None, BeforeValidator(refuse)], Field(None, description=f"Not usable: {broken}.")
    default = {"default_factory": probe} if probe.by_default else {"default": None}
    return probe | None, Field(
        **default, description=f"{{}}: with its defaults; null: not. {probe.metric.meaning}"
    )


ProbeStage = create_model(
    "ProbeStage",
    __base__=_Probing,
    __module__=__name__,
    **{name: _key(name) for name in PROBES},
)
"""The keys of the stage; each probe's are under its name."""


class Probe(EncoderKind[_Probing]):
    """Output: `result.json` (top-1 of each probe, effective rank)."""

    name = "probe"
    Config = ProbeStage
    reports = frozenset(
        {"clips", "effective_rank", "labels", "seconds", *(f"{name}_top1" for name in PROBES)}
    )

    def tabled(self, config: _Probing) -> tuple[Metric, ...]:
        """Return those of probes that not every table knows."""
        metrics = (probe.metric for probe in config.probes.values())
        return tuple(metric for metric in metrics if metric.key not in METRICS)

    def gpus(self, config: _Probing) -> int:
        return int(config.gpu)

    def run(self, config: _Probing, ctx: StageContext) -> None:
        inputs = {"data": ctx.input("data").path, "encoder": self.encoder(config, ctx)}
        jobs.run_workers(probe_encoder, config, inputs, ctx, workers=int(config.gpu))


# --- in a worker ---------------------------------------------------------------------------------------


def probe_encoder(raw_job: Mapping[str, Any], world: World, events: EventLog, store: CheckpointStore) -> None:
    """Probe the frozen encoder in one process.

    After a kill, the training of a probe that has checkpoints resumes; the rest is done again.
    """
    began = time.perf_counter()
    job = jobs.Job[ProbeStage].model_validate(raw_job)
    config: _Probing = job.config
    train = jobs.labelled(job.manifest("train"), config.labels_per_class, config.seed)
    test = jobs.labelled(job.manifest("test"))
    with fresh_weights(config.seed):
        model = VideoClassifier(config.model, config.clip, len(train.classes))
    matched = jobs.load_encoder(model.encoder, job.inputs.get("encoder"), events)
    if matched:
        events.params(matched)
    model.to(world.device)
    encoder = Encoder(model, config, train, test, world, events, store)
    results = {}
    for name, probe in config.probes.items():
        scores_BC, label_B = probe.score(encoder.frozen(name))
        results[probe.metric.key] = metrics.top_k_percent(scores_BC, label_B, 1)
        encoder.close()
    results["effective_rank"] = metrics.effective_rank(encoder.pooled.test_BD)
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
    jobs.write_result(Path(job.out), results | described)


@dataclass
class Encoder:
    """The frozen encoder, and the videos that it encodes for the probes."""

    model: VideoClassifier
    config: _Probing
    train: Manifest
    test: Manifest
    world: World
    events: EventLog
    store: CheckpointStore
    loaders: list[TrainLoader] = field(default_factory=list)

    @cached_property
    def options(self) -> ClipOptions:
        """How clips are cut out of videos."""
        return jobs.clip_options(self.config.clip, self.config.data)

    def frozen(self, name: str) -> Frozen:
        """Return what the probe `name` gets."""
        return Frozen(
            classes=len(self.train.classes),
            width=self.config.model.width,
            heads=self.config.model.heads,
            seed=self.config.seed,
            device=self.world.device,
            events=self.events,
            store=self.store.below(name),
            pool=lambda: self.pooled,
            training_tokens=self.training_tokens,
            test_tokens=self.test_tokens,
        )

    def close(self) -> None:
        """End what the last probe has read."""
        while self.loaders:
            loader = self.loaders.pop()
            loader.close()
            jobs.note_unreadable(loader.unreadable, self.events)

    @cached_property
    def pooled(self) -> Pooled:
        """The features of one central clip of each video."""
        halves: list[tuple[Tensor, Tensor]] = []
        with evaluating(self.model), self.world.autocast(self.config.precision):
            # Some training videos may be unreadable, as in every training; the test needs all of its videos.
            unreadable: dict[str, str] = {}
            for manifest, skipped in ((self.train, unreadable), (self.test, None)):
                features, labels = [], []
                batches = eval_views(
                    manifest,
                    self.options,
                    clips=1,
                    crops=1,
                    batch_size=self.config.batch_size,
                    unreadable=skipped,
                )
                for batch in self.store.until_stopped(batches):
                    clip_BCTHW = batch.normalised(self.world.device)[:, 0]
                    features.append(self.model.features(clip_BCTHW).float().cpu())
                    labels.append(batch.label_B)
                halves.append((torch.cat(features), torch.cat(labels)))
        jobs.note_unreadable(unreadable, self.events)
        return Pooled(*halves[0], *halves[1])

    def training_tokens(self, batch: int, clips: int) -> tuple[int, Callable[[int], Tokens]]:
        """Return steps of an epoch, and epoch → batches of tokens with fine-tuning's augmentation."""
        loader = TrainLoader(
            self.train,
            self.options,
            batch_size=min(batch, len(self.train)),
            seed=self.config.seed,
            samples_per_clip=clips,
            purpose="finetune",
            device=self.world.device,
        )

        self.loaders.append(loader)

        def tokens(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
            for part in loader.epoch(epoch):
                # The clips of a video are adjacent.
                video_BCTHW = part.normalised(self.world.device)
                views_BVCTHW = video_BCTHW.view(-1, clips, *video_BCTHW.shape[1:])
                yield self._tokens(views_BVCTHW), part.label_B[::clips].to(self.world.device)

        return loader.steps, tokens

    def test_tokens(self, clips: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the tokens of evenly spread clips of each test video."""
        batch_size = self.config.batch_size
        for batch in eval_views(self.test, self.options, clips=clips, crops=1, batch_size=batch_size):
            yield self._tokens(batch.normalised(self.world.device)), batch.label_B

    def _tokens(self, views_BVCTHW: Tensor) -> Tensor:
        return tokens_of(self.model.encoder, views_BVCTHW, self.config.precision, self.world)


def tokens_of(encoder: VideoViT, views_BVCTHW: Tensor, precision: Precision, world: World) -> Tensor:
    """Return the frozen encoder's tokens `[B, V*N, D]` of all clips of each video."""
    with evaluating(encoder), world.autocast(precision):
        patches_XNP = patchify(views_BVCTHW.flatten(0, 1), encoder.clip)
        tokens_XND: Tensor = encoder(patches_XNP)
    return tokens_XND.reshape(len(views_BVCTHW), -1, tokens_XND.shape[-1])


KIND = Probe()

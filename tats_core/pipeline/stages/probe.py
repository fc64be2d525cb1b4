"""Linear, kNN and attentive probe of a frozen encoder, pre-trained or fresh."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from tats_core.models.tokens import ClipConfig
from tats_core.models.vit import ViTConfig
from tats_core.pipeline.stages import outside
from tats_core.pipeline.stages.base import Preflight, StageContext, StageKind
from tats_core.pipeline.stages.training import KEY_EXCLUDES, Placed, run_here
from tats_core.training.jobs import probe
from tats_core.training.jobs.probe import ProbeJob
from tats_core.training.probes import AttentiveConfig
from tats_core.training.world import Precision


class ProbeStage(Placed):
    """Which encoder, and how many labels."""

    model: ViTConfig = Field(default_factory=lambda: ViTConfig.model_validate("vit_base"))
    clip: ClipConfig = Field(default_factory=ClipConfig)
    init: Literal["pretrained", "scratch"] = Field("pretrained", description="which encoder is probed")
    encoder: str | None = Field(
        None, description="as of a fine-tuning: a checkpoint from outside the pipeline; not used from scratch"
    )
    labels_per_class: int | None = Field(None, ge=1, description="labelled videos of each class; null: all")
    batch_size: int = Field(32, ge=1, description="clips encoded together")
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
    key_excludes = KEY_EXCLUDES | {"batch_size", "encoder"}  # an encoder comes back in `external`
    code = ("tats_core.training.jobs.probe",)
    reports = frozenset(
        {"attentive_top1", "clips", "effective_rank", "knn_top1", "labels", "linear_top1", "seconds"}
    )

    def reads(self, config: ProbeStage) -> tuple[str, ...]:
        """A fresh encoder, or one from outside, does not wait for a pre-training."""
        return ("data", "pretrain") if config.init == "pretrained" and not config.encoder else ("data",)

    def preflight(self, config: ProbeStage, ctx: Preflight) -> list[str]:
        """A checkpoint from outside must be there and fit."""
        return outside.faults("encoder", config.outside, config.model, config.clip)

    def external(self, config: ProbeStage) -> Mapping[str, str]:
        """Return the digest of a checkpoint from outside."""
        return outside.digest("encoder", config.outside)

    def gpus(self, config: ProbeStage) -> int:
        """One, if at all."""
        return int(config.gpu)

    def run(self, config: ProbeStage, ctx: StageContext) -> None:
        """Probe on a worker with a GPU, or here."""
        data = ctx.input("data").path
        encoder = str(outside.place(config.outside)) if config.outside else None
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
            run_here(probe.run, job, ctx)
            return
        ctx.fit(
            "tats_core.training.jobs.probe:run", job, workers=1, gpu=True, max_failures=config.max_failures
        )


KIND = Probe()

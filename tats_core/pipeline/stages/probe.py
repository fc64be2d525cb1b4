"""Linear and kNN probe of a frozen encoder, pre-trained or fresh."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tats_core.models.tokens import ClipConfig
from tats_core.models.vit import ViTConfig
from tats_core.pipeline.stages.base import StageContext, StageKind
from tats_core.pipeline.stages.training import KEY_EXCLUDES, Placed, run_here
from tats_core.training.jobs import probe
from tats_core.training.jobs.probe import ProbeJob


class ProbeStage(Placed):
    """Which encoder, and how many labels."""

    model: ViTConfig = Field(default_factory=lambda: ViTConfig.model_validate("vit_base"))
    clip: ClipConfig = Field(default_factory=ClipConfig)
    init: Literal["pretrained", "scratch"] = Field("pretrained", description="which encoder is probed")
    labels_per_class: int | None = Field(None, ge=1, description="labelled videos of each class; null: all")
    batch_size: int = Field(32, ge=1, description="clips encoded together")
    seed: int = Field(0, ge=0, description="labels chosen, and weights of a fresh encoder")


class Probe(StageKind[ProbeStage]):
    """Output: `result.json` (linear and kNN top-1, effective rank)."""

    name = "probe"
    Config = ProbeStage
    key_excludes = KEY_EXCLUDES | {"batch_size"}
    code = ("tats_core.training.jobs.probe",)

    def reads(self, config: ProbeStage) -> tuple[str, ...]:
        """A fresh encoder does not wait for a pre-training."""
        return ("data", "pretrain") if config.init == "pretrained" else ("data",)

    def run(self, config: ProbeStage, ctx: StageContext) -> None:
        """Encode once, solve in closed form."""
        data = ctx.input("data").path
        job = ProbeJob(
            model=config.model,
            clip=config.clip,
            data=config.data,
            train=str(data / f"{config.benchmark}.train.json"),
            test=str(data / f"{config.benchmark}.test.json"),
            labels_per_class=config.labels_per_class,
            encoder=str(ctx.input("pretrain").path) if config.init == "pretrained" else None,
            batch_size=config.batch_size,
            seed=config.seed,
            benchmark=config.benchmark,
            init=config.init,
            out=str(ctx.out),
        )
        run_here(probe.run, job.model_dump(mode="json", exclude_unset=True), ctx)


KIND = Probe()

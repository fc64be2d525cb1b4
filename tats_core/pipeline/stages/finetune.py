"""Fine-tuning on one benchmark, from a pre-trained encoder or from scratch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tats_core.pipeline.stages.base import StageContext, StageKind
from tats_core.pipeline.stages.training import KEY_EXCLUDES, Placed
from tats_core.training.finetune import FinetuneConfig
from tats_core.training.jobs.finetune import FinetuneJob


class FinetuneStage(Placed, FinetuneConfig):
    """A recipe, its start, and where it runs."""

    init: Literal["pretrained", "scratch"] = Field("pretrained", description="what the encoder starts from")
    labels_per_class: int | None = Field(None, ge=1, description="labelled videos of each class; null: all")
    workers: int = Field(1, ge=1, description="data-parallel workers, each one CPU or one GPU")

    @property
    def recipe(self) -> FinetuneConfig:
        """The recipe alone."""
        return FinetuneConfig.model_validate(self.model_dump(include=set(FinetuneConfig.model_fields)))


class Finetune(StageKind[FinetuneStage]):
    """Output: `model.safetensors` with `model.json` (classes, size) and `result.json`."""

    name = "finetune"
    Config = FinetuneStage
    key_excludes = KEY_EXCLUDES
    code = ("tats_core.training.jobs.finetune",)

    def reads(self, config: FinetuneStage) -> tuple[str, ...]:
        """From scratch it does not wait for a pre-training."""
        return ("data", "pretrain") if config.init == "pretrained" else ("data",)

    def cpus(self, config: FinetuneStage) -> int:
        """One a worker."""
        return config.workers

    def gpus(self, config: FinetuneStage) -> int:
        """One a worker, if at all."""
        return config.workers if config.gpu else 0

    def run(self, config: FinetuneStage, ctx: StageContext) -> None:
        """Train on Ray Train's workers."""
        data = ctx.input("data").path
        encoder = str(ctx.input("pretrain").path) if config.init == "pretrained" else None
        job = FinetuneJob(
            recipe=config.recipe,
            data=config.data,
            train=str(data / f"{config.benchmark}.train.json"),
            labels_per_class=config.labels_per_class,
            encoder=encoder,
            benchmark=config.benchmark,
            init=config.init,
            out=str(ctx.out),
        )
        ctx.fit(
            "tats_core.training.jobs.finetune:run",
            job.model_dump(mode="json", exclude_unset=True),
            workers=config.workers,
            gpu=config.gpu,
            max_failures=config.max_failures,
        )


KIND = Finetune()

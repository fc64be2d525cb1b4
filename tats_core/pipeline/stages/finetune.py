"""Fine-tuning on one benchmark, from a pre-trained encoder or from scratch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tats_core.pipeline.stages.base import StageContext
from tats_core.pipeline.stages.training import Trained, TrainedKind
from tats_core.training.finetune import FinetuneConfig
from tats_core.training.jobs.finetune import FinetuneJob


class FinetuneStage(Trained, FinetuneConfig):
    """A recipe, its start, and where it runs."""

    init: Literal["pretrained", "scratch"] = Field("pretrained", description="what the encoder starts from")
    labels_per_class: int | None = Field(None, ge=1, description="labelled videos of each class; null: all")

    @property
    def recipe(self) -> FinetuneConfig:
        """The recipe alone."""
        return FinetuneConfig.model_validate(self.model_dump(include=set(FinetuneConfig.model_fields)))


class Finetune(TrainedKind[FinetuneStage]):
    """Output: `model.safetensors` with `model.json` (classes, size) and `result.json`."""

    name = "finetune"
    Config = FinetuneStage
    code = ("tats_core.training.jobs.finetune",)

    def reads(self, config: FinetuneStage) -> tuple[str, ...]:
        """From scratch it does not wait for a pre-training."""
        return ("data", "pretrain") if config.init == "pretrained" else ("data",)

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
        self.fit("tats_core.training.jobs.finetune:run", job, config, ctx)


KIND = Finetune()

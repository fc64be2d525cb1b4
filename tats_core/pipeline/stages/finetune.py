"""Fine-tuning on one benchmark, from a pre-trained encoder or from scratch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from tats_core.pipeline.stages import outside
from tats_core.pipeline.stages.base import Preflight, StageContext
from tats_core.pipeline.stages.training import KEY_EXCLUDES, Trained, TrainedKind
from tats_core.training.finetune import FinetuneConfig
from tats_core.training.jobs.finetune import FinetuneJob


class FinetuneStage(Trained, FinetuneConfig):
    """A recipe, its start, and where it runs."""

    init: Literal["pretrained", "scratch"] = Field("pretrained", description="what the encoder starts from")
    encoder: str | None = Field(
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
    key_excludes = KEY_EXCLUDES | {"encoder"}  # it comes back in `external`, by its content
    code = ("tats_core.training.jobs.finetune",)
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
        found = outside.faults("encoder", config.outside, config.model, config.clip)
        return found + super().preflight(config, ctx)

    def external(self, config: FinetuneStage) -> Mapping[str, str]:
        """Return the digest of a checkpoint from outside."""
        return outside.digest("encoder", config.outside)

    def run(self, config: FinetuneStage, ctx: StageContext) -> None:
        """Train on Ray Train's workers."""
        data = ctx.input("data").path
        encoder = str(outside.place(config.outside)) if config.outside else None
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
        self.fit("tats_core.training.jobs.finetune:run", job, config, ctx)


KIND = Finetune()

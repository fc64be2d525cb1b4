"""Joint pre-training of masked autoencoder and sampler on one benchmark's videos."""

from __future__ import annotations

from pydantic import Field

from tats_core.pipeline.stages.base import StageContext
from tats_core.pipeline.stages.training import Trained, TrainedKind
from tats_core.training.jobs.pretrain import PretrainJob
from tats_core.training.pretrain import PretrainConfig

_HEALTH = frozenset(
    {
        "between_clip_variance",
        "coverage",
        "effective_rank",
        "entropy_share",
        "knn_top1",
        "linear_top1",
        "motion_lift",
        "pixel_motion_lift",
        "random_lift",
    }
)
"""What a look at features and policy finds (`training.health`)."""


class PretrainStage(Trained, PretrainConfig):
    """A recipe, and where it runs."""

    health_clips: int = Field(256, ge=1, description="clips looked at in a health check")

    @property
    def recipe(self) -> PretrainConfig:
        """The recipe alone."""
        return PretrainConfig.model_validate(self.model_dump(include=set(PretrainConfig.model_fields)))


class Pretrain(TrainedKind[PretrainStage]):
    """Output: `model.safetensors`, `sampler.safetensors`, pictures and `result.json`."""

    name = "pretrain"
    Config = PretrainStage
    # Its benchmark is its own: a matrix over benchmarks varies what follows.
    follows = frozenset()
    code = ("tats_core.training.jobs.pretrain",)
    curves = _HEALTH | {"loss", "clips_per_second"}
    reports = _HEALTH | {
        "loss",
        "parameters",
        "peak_memory_mb",
        "probe_chance",
        "seconds",
        "skipped_steps",
        "steps",
        "unreadable_videos",
        "visible",
    }

    def reads(self, config: PretrainStage) -> tuple[str, ...]:
        """It reads the manifests."""
        return ("data",)

    def run(self, config: PretrainStage, ctx: StageContext) -> None:
        """Train on Ray Train's workers."""
        data = ctx.input("data").path
        job = PretrainJob(
            recipe=config.recipe,
            data=config.data,
            train=str(data / f"{config.benchmark}.train.json"),
            held_out=str(data / f"{config.benchmark}.test.json"),
            health_clips=config.health_clips,
            out=str(ctx.out),
        )
        self.fit("tats_core.training.jobs.pretrain:run", job, config, ctx)


KIND = Pretrain()

"""Joint pre-training of masked autoencoder and sampler on one benchmark's videos."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from tats_core.pipeline.stages import outside
from tats_core.pipeline.stages.base import Preflight, StageContext
from tats_core.pipeline.stages.training import KEY_EXCLUDES, Trained, TrainedKind
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

    start: str | None = Field(
        None,
        description="file or folder of a checkpoint to start from (VideoMAE's, AdaMAE's, Hugging Face's or "
        "ours): encoder and decoder where it has both, else the encoder alone; null: fresh weights",
    )
    health_clips: int = Field(256, ge=1, description="clips looked at in a health check")
    health_pictures: int = Field(4, ge=0, description="clips that are drawn in a health check")

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
    key_excludes = KEY_EXCLUDES | {"start"}  # it comes back in `external`, by its content
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

    def preflight(self, config: PretrainStage, ctx: Preflight) -> list[str]:
        """A checkpoint to start from must be there and fit, its decoder too."""
        found = outside.faults("start", config.start, config.model, config.clip, config.mae)
        return found + super().preflight(config, ctx)

    def external(self, config: PretrainStage) -> Mapping[str, str]:
        """Return the digest of a checkpoint to start from."""
        return outside.digest("start", config.start)

    def run(self, config: PretrainStage, ctx: StageContext) -> None:
        """Train on Ray Train's workers, from where the first epochs of the same training ended if any did."""
        shorter = (config.beginning(until) for until in range(config.last_epoch - 1, 0, -1))
        before = next((found for one in shorter if (found := ctx.output_of(one))), None)
        data = ctx.input("data").path
        job = PretrainJob(
            recipe=config.recipe,
            data=config.data,
            train=str(data / f"{config.benchmark}.train.json"),
            held_out=str(data / f"{config.benchmark}.test.json"),
            start=str(outside.place(config.start)) if config.start else None,
            health_clips=config.health_clips,
            workers=config.workers,
            before=str(before) if before else None,
            health_pictures=config.health_pictures,
            out=str(ctx.out),
        )
        self.fit("tats_core.training.jobs.pretrain:run", job, config, ctx)


KIND = Pretrain()

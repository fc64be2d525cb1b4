"""Joint pre-training of masked autoencoder and sampler on one benchmark's videos."""

from __future__ import annotations

from pydantic import Field

from tats_core.pipeline.stages.base import StageContext, StageKind
from tats_core.pipeline.stages.training import KEY_EXCLUDES, Placed
from tats_core.training.jobs.pretrain import PretrainJob
from tats_core.training.pretrain import PretrainConfig


class PretrainStage(Placed, PretrainConfig):
    """A recipe, and where it runs."""

    health_clips: int = Field(256, ge=1, description="clips looked at in a health check")
    workers: int = Field(1, ge=1, description="data-parallel workers, each one CPU or one GPU")

    @property
    def recipe(self) -> PretrainConfig:
        """The recipe alone."""
        return PretrainConfig.model_validate(self.model_dump(include=set(PretrainConfig.model_fields)))


class Pretrain(StageKind[PretrainStage]):
    """Output: `model.safetensors`, `sampler.safetensors`, pictures and `result.json`."""

    name = "pretrain"
    Config = PretrainStage
    # Its benchmark is its own: a matrix over benchmarks varies what follows.
    follows = frozenset()
    key_excludes = KEY_EXCLUDES
    code = ("tats_core.training.jobs.pretrain",)

    def reads(self, config: PretrainStage) -> tuple[str, ...]:
        """It reads the manifests."""
        return ("data",)

    def cpus(self, config: PretrainStage) -> int:
        """One a worker."""
        return config.workers

    def gpus(self, config: PretrainStage) -> int:
        """One a worker, if at all."""
        return config.workers if config.gpu else 0

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
        ctx.fit(
            "tats_core.training.jobs.pretrain:run",
            job.model_dump(mode="json", exclude_unset=True),
            workers=config.workers,
            gpu=config.gpu,
            max_failures=config.max_failures,
        )


KIND = Pretrain()

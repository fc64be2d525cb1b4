"""What the stages that train or test a model have in common."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from typing import Annotated, Any, Self, TypeVar

from pydantic import Field, field_validator, model_validator

from tats_core.data import benchmarks
from tats_core.data.loaders import ClipOptions
from tats_core.errors import DataError, SpecError
from tats_core.specs import NotIdentity, StrictModel
from tats_core.stages.base import Preflight, StageContext, StageKind
from tats_core.store.layout import CHECKPOINTS
from tats_core.training.checkpoint import FolderStore
from tats_core.training.world import StepConfig, World


class Placed(StrictModel):
    """Which videos, and where the work is done."""

    benchmark: str = Field(description="whose videos")
    data: ClipOptions = Field(default_factory=ClipOptions, description="how clips are cut out of videos")
    gpu: Annotated[bool, NotIdentity] = Field(False, description="each worker takes a GPU")
    max_failures: Annotated[int, NotIdentity] = Field(
        2, ge=0, description="lost workers that are replaced before the stage fails"
    )

    @field_validator("benchmark")
    @classmethod
    def _known_benchmark(cls, name: str) -> str:
        try:
            benchmarks.find(name)
        except DataError as error:
            raise ValueError(str(error)) from error
        return name


class Trained(Placed, ABC):
    """A stage whose recipe runs on data-parallel workers."""

    workers: int = Field(1, ge=1, description="data-parallel workers, each one CPU or one GPU")
    min_workers: int | None = Field(
        None,
        ge=1,
        description="as few go on where machines are taken away, and more again when they come back; the "
        "step stays the same but for rounding, and fine-tuning's mixing; null: always all",
    )

    @property
    @abstractmethod
    def recipe(self) -> StepConfig:
        """The recipe alone."""

    @property
    def fewer(self) -> tuple[int, ...]:
        """The numbers of workers below `workers` that do the same step, ascending."""
        return tuple(
            n for n in range(self.min_workers or self.workers, self.workers) if self._shared(n) is None
        )

    def _shared(self, workers: int) -> str | None:
        """Return why so many workers cannot do the recipe's step, or None."""
        try:
            self.recipe.per_worker(self.workers)
            self.recipe.among(workers, self.workers)
        except SpecError as error:
            return str(error)
        return None

    @model_validator(mode="after")
    def _workers_share_the_batch_evenly(self) -> Self:
        fewest = self.workers if self.min_workers is None else self.min_workers
        if fewest > self.workers:
            raise ValueError(f"min_workers ({fewest}) is more than workers ({self.workers})")
        fault = self._shared(fewest)
        if fault is not None:
            raise ValueError(fault if self.min_workers is None else f"min_workers: {fault}")
        return self


Config = TypeVar("Config", bound=Trained)


class TrainedKind(StageKind[Config]):
    """What pre-training and fine-tuning share: workers, and what is left out of their keys."""

    def cpus(self, config: Config) -> int:
        """One a worker."""
        return config.min_workers or config.workers

    def gpus(self, config: Config) -> int:
        """One a worker, if at all."""
        return self.cpus(config) if config.gpu else 0

    def spare(self, config: Config) -> int:
        """The workers that may be missing."""
        return config.workers - self.cpus(config)

    def preflight(self, config: Config, ctx: Preflight) -> list[str]:
        """On CPUs, torch.compile needs a compiler."""
        if config.recipe.compile and not config.gpu and not any(map(shutil.which, ("c++", "g++", "clang++"))):
            return [
                f"{ctx.name}.compile: torch.compile needs a C++ compiler, and there is none; leave it out"
            ]
        return []

    def fit(self, entry: str, job: StrictModel, config: Config, ctx: StageContext) -> None:
        """Run `entry` ("module:function") with `job` on Ray Train's workers."""
        ctx.fit(
            entry,
            job.model_dump(mode="json", exclude_unset=True),
            workers=config.workers,
            fewer=config.fewer,
            gpu=config.gpu,
            max_failures=config.max_failures,
        )


def run_here(entry: Any, job: dict[str, Any], ctx: StageContext) -> None:
    """Run a job in this process, on the CPU: for what is short beside the start of workers.

    Raises:
        Stopped: the person asked to stop; the newest state is kept, if the job keeps any.
    """
    store = FolderStore(ctx.out / CHECKPOINTS / "here", stop=ctx.stop.is_set, say=ctx.events.note)
    entry(job, World(), ctx.events, store)

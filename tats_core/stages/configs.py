"""The configurations of the stages that train or test a model, and what these stages need and read."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self, TypeVar, get_args

import torch
from pydantic import Field, model_validator

from tats_core.data import benchmarks
from tats_core.data.benchmarks import Split
from tats_core.data.loaders import ClipOptions
from tats_core.errors import SpecError
from tats_core.models.tokens import ClipConfig
from tats_core.models.vit import ViTConfig
from tats_core.specs import NotIdentity, StrictModel
from tats_core.stages import checkpoint_input
from tats_core.stages.base import Preflight, StageContext, StageKind
from tats_core.training import arithmetic
from tats_core.training.world import StepConfig

Init = Literal["pretrained", "scratch"]


class Placed(StrictModel):
    """Which videos a stage uses, and on what hardware."""

    benchmark: Annotated[str, benchmarks.BENCHMARKS] = Field(description="whose videos")
    data: ClipOptions = Field(default_factory=ClipOptions, description="how clips are cut out of videos")
    gpu: Annotated[bool, NotIdentity] = Field(False, description="each worker takes a GPU")
    max_workers: int | None = Field(
        None,
        ge=1,
        description="start no more workers, so that a recipe runs on fewer GPUs: each does more parts of the "
        "same step (`accumulate`); null: as many as the recipe says",
    )
    max_failures: Annotated[int, NotIdentity] = Field(
        2, ge=0, description="lost workers that are replaced before the stage fails"
    )
    max_preemptions: Annotated[int, NotIdentity] = Field(
        100, ge=0, description="announced losses of a machine after which workers resume elsewhere"
    )
    splits: ClassVar[frozenset[Split]] = frozenset(get_args(Split))
    """The lists of videos without which the stage cannot run."""


# --- stages that train ---------------------------------------------------------------------------------


class Fork(StrictModel):
    """A checkpoint of another run."""

    run: Annotated[str, NotIdentity] = Field(description="the run's id")
    stage: Annotated[str, NotIdentity] = Field(description="its stage")
    key: str = Field(pattern="^[0-9a-f]{64}$", description="the key of that stage")
    step: int = Field(ge=0, description="the step of the checkpoint")


class Trained(Placed, ABC):
    """A stage whose recipe runs on data-parallel workers."""

    workers: int = Field(1, ge=1, description="data-parallel workers, each one CPU or one GPU")
    min_workers: int | None = Field(
        None,
        ge=1,
        description="resume with as few where machines are taken away, and with more when they are back; "
        "the step stays the same but for rounding, and fine-tuning's mixing; null: always all",
    )

    fork: Fork | None = Field(
        None,
        description="resume from a checkpoint of another run with the settings given here (`--fork`)",
    )

    @property
    @abstractmethod
    def recipe(self) -> StepConfig:
        """The recipe alone."""

    @property
    def started(self) -> int:
        """How many workers are started."""
        return min(self.workers, self.max_workers or self.workers)

    @property
    def fewer(self) -> tuple[int, ...]:
        """The numbers of workers below `started` that do the same step, ascending."""
        fewest = self.min_workers or self.started
        return tuple(n for n in range(fewest, self.started) if self._misfit(n) is None)

    def _misfit(self, workers: int) -> str | None:
        """Return why so many workers cannot do the recipe's step, or None."""
        try:
            self.recipe.per_worker(self.workers)
            self.recipe.among(workers, self.workers)
        except SpecError as error:
            return str(error)
        return None

    @model_validator(mode="after")
    def _workers_share_the_batch_evenly(self) -> Self:
        fewest = self.min_workers or self.started
        if fewest > self.started:
            raise ValueError(f"min_workers ({fewest}) is more than workers ({self.started})")
        misfit = self._misfit(fewest)
        if misfit is not None:
            key = "min_workers: " if self.min_workers else "max_workers: " * (self.started < self.workers)
            raise ValueError(key + misfit)
        return self


TrainedConfig = TypeVar("TrainedConfig", bound=Trained)


class TrainedKind(StageKind[TrainedConfig]):
    """Pre-training and fine-tuning: they run on `config.workers` workers."""

    curves = frozenset({"loss", "clips_per_second"})
    reports: ClassVar[frozenset[str]] = frozenset(
        {"loss", "parameters", "peak_memory_mb", "seconds", "skipped_steps", "unreadable_videos"}
    )

    def cpus(self, config: TrainedConfig) -> int:
        return config.min_workers or config.started

    def gpus(self, config: TrainedConfig) -> int:
        return self.cpus(config) if config.gpu else 0

    def spare(self, config: TrainedConfig) -> int:
        """The workers that may be missing."""
        return config.started - self.cpus(config)

    def preflight(self, config: TrainedConfig, ctx: Preflight) -> list[str]:
        """On CPUs, torch.compile needs a compiler; a GPU of this machine must have room for a step."""
        recipe = config.recipe.among(config.started, config.workers)
        if config.gpu and torch.cuda.is_available() and isinstance(recipe, arithmetic.Recipe):
            room = torch.cuda.get_device_properties(0).total_memory
            classes = benchmarks.BENCHMARKS[config.benchmark].classes
            misfit = arithmetic.misfit(recipe, config.started, classes, room)
            if misfit:
                return [f"{ctx.name}: {misfit}"]
        if config.recipe.compile and not config.gpu and not any(map(shutil.which, ("c++", "g++", "clang++"))):
            return [
                f"{ctx.name}.compile: torch.compile needs a C++ compiler, and there is none; leave it out"
            ]
        return []


# --- stages that read an encoder -----------------------------------------------------------------------


class Initialised(Placed):
    """A stage whose encoder is pre-trained, here or elsewhere, or initialised from scratch."""

    model: ViTConfig = Field(default_factory=lambda: ViTConfig.model_validate("vit_base"))
    clip: ClipConfig = Field(default_factory=ClipConfig)
    init: Init = Field("pretrained", description="where the encoder's weights come from")
    encoder: Annotated[str | None, NotIdentity] = Field(  # its content is in `external`
        None,
        description="file or folder of a checkpoint to initialise from instead of a pre-training of this "
        "pipeline (VideoMAE's, AdaMAE's, Hugging Face's or ours); not used from scratch",
    )
    labels_per_class: int | None = Field(None, ge=1, description="labelled videos of each class; null: all")

    @property
    def external_encoder(self) -> str | None:
        """The checkpoint from outside the pipeline, if it is used."""
        return self.encoder if self.init == "pretrained" else None


EncoderConfig = TypeVar("EncoderConfig", bound=Initialised)


class EncoderKind(StageKind[EncoderConfig]):
    """Fine-tuning and probing: they read an encoder."""

    def reads(self, config: EncoderConfig) -> tuple[str, ...]:
        """From scratch, or from a checkpoint, it does not wait for a pre-training."""
        return ("data", "pretrain") if config.init == "pretrained" and not config.encoder else ("data",)

    def preflight(self, config: EncoderConfig, ctx: Preflight) -> list[str]:
        """A checkpoint must exist and fit."""
        faults = checkpoint_input.faults("encoder", config.external_encoder, config.model, config.clip)
        return faults + super().preflight(config, ctx)

    def external(self, config: EncoderConfig) -> Mapping[str, str]:
        return checkpoint_input.digest("encoder", config.external_encoder)

    def encoder(self, config: EncoderConfig, ctx: StageContext) -> Path | None:
        """Return the file or folder of the encoder's weights; None from scratch."""
        if config.external_encoder:
            return checkpoint_input.path_of(config.external_encoder)
        return ctx.input("pretrain").path if config.init == "pretrained" else None

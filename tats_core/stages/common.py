"""Shared by the stages that train or test a model: configuration, workers, labels, results."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, Protocol, Self, TypeVar

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from tats_core.data import benchmarks
from tats_core.data.benchmarks.base import Split
from tats_core.data.loaders import ClipOptions
from tats_core.data.manifest import UNLABELLED, Manifest
from tats_core.errors import DataError, SpecError, TrainingError
from tats_core.files import write_json
from tats_core.models.tokens import ClipConfig
from tats_core.models.vit import VideoViT, ViTConfig
from tats_core.specs import NotIdentity, StrictModel
from tats_core.stages import checkpoint_input
from tats_core.stages.base import Preflight, StageContext, StageKind
from tats_core.store.layout import CHECKPOINTS, RESULT
from tats_core.training import weights
from tats_core.training.checkpoint import CheckpointStore
from tats_core.training.events import EventLog
from tats_core.training.world import StepConfig, World

Init = Literal["pretrained", "scratch"]


class Placed(StrictModel):
    """Which videos a stage uses, and on what hardware."""

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


Config = TypeVar("Config", bound=Placed)


class Job(StrictModel, Generic[Config]):
    """The input of a worker: the stage's configuration, and where to read and write."""

    config: Config
    inputs: dict[str, str] = Field(default_factory=dict, description="folder of each input, by its role")
    out: str

    def manifest(self, split: Split) -> Manifest:
        """Return the benchmark's list of videos."""
        return Manifest.load(Path(self.inputs["data"]) / f"{self.config.benchmark}.{split}.json")


Entry = Callable[[Mapping[str, Any], World, EventLog, CheckpointStore], None]
"""A function that each worker of a stage calls; the mapping is a `Job`."""


def run_workers(
    entry: Entry,
    config: Placed,
    inputs: Mapping[str, Path | str | None],
    ctx: StageContext,
    *,
    workers: int,
    fewer: tuple[int, ...] = (),
) -> None:
    """Call `entry` with the stage's job in `workers` processes, or for 0 in this one, on the CPU.

    Args:
        inputs: folders by role; those that are None are left out.
        fewer: other numbers of workers that work, see `Fit`.

    Raises:
        Stopped: the user asked to stop; the newest checkpoint remains, if the entry saves any.
    """
    folders = {role: str(path) for role, path in inputs.items() if path is not None}
    settings = config.model_dump(mode="json", exclude_unset=True)
    job = {"config": settings, "inputs": folders, "out": str(ctx.out)}
    if not workers:
        store = CheckpointStore(ctx.out / CHECKPOINTS / "here", stop=ctx.stop.is_set, say=ctx.events.note)
        entry(job, World(), ctx.events, store)
        return
    ctx.fit(
        f"{entry.__module__}:{entry.__name__}",
        job,
        workers=workers,
        fewer=fewer,
        gpu=config.gpu,
        max_failures=config.max_failures,
    )


# --- stages that train ---------------------------------------------------------------------------------


class Trained(Placed, ABC):
    """A stage whose recipe runs on data-parallel workers."""

    workers: int = Field(1, ge=1, description="data-parallel workers, each one CPU or one GPU")
    min_workers: int | None = Field(
        None,
        ge=1,
        description="resume with as few where machines are taken away, and with more when they are back; "
        "the step stays the same but for rounding, and fine-tuning's mixing; null: always all",
    )

    @property
    @abstractmethod
    def recipe(self) -> StepConfig:
        """The recipe alone."""

    @property
    def fewer(self) -> tuple[int, ...]:
        """The numbers of workers below `workers` that do the same step, ascending."""
        return tuple(
            n for n in range(self.min_workers or self.workers, self.workers) if self._misfit(n) is None
        )

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
        fewest = self.workers if self.min_workers is None else self.min_workers
        if fewest > self.workers:
            raise ValueError(f"min_workers ({fewest}) is more than workers ({self.workers})")
        misfit = self._misfit(fewest)
        if misfit is not None:
            raise ValueError(misfit if self.min_workers is None else f"min_workers: {misfit}")
        return self


TrainedConfig = TypeVar("TrainedConfig", bound=Trained)


class TrainedKind(StageKind[TrainedConfig]):
    """Pre-training and fine-tuning: they run on `config.workers` workers."""

    def cpus(self, config: TrainedConfig) -> int:
        """One a worker."""
        return config.min_workers or config.workers

    def gpus(self, config: TrainedConfig) -> int:
        """One a worker, if at all."""
        return self.cpus(config) if config.gpu else 0

    def spare(self, config: TrainedConfig) -> int:
        """The workers that may be missing."""
        return config.workers - self.cpus(config)

    def preflight(self, config: TrainedConfig, ctx: Preflight) -> list[str]:
        """On CPUs, torch.compile needs a compiler."""
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
        """Return the digest of a checkpoint."""
        return checkpoint_input.digest("encoder", config.external_encoder)

    def encoder(self, config: EncoderConfig, ctx: StageContext) -> Path | None:
        """Return the file or folder of the encoder's weights; None from scratch."""
        if config.external_encoder:
            return checkpoint_input.path_of(config.external_encoder)
        return ctx.input("pretrain").path if config.init == "pretrained" else None


def load_encoder(encoder: VideoViT, path: str | None, events: EventLog) -> dict[str, str]:
    """Load the encoder of the model in `path`, if any; return what matched, as a parameter.

    Raises:
        WeightsError: it does not fit.
    """
    if path is None:
        return {}
    match = weights.load_encoder(encoder, Path(path))
    if match.layout == "TATS" and not match.adapted:
        return {}  # our own, as it was trained: nothing to report
    events.note(f"encoder from {path}: {match.sentence()}")
    return {"encoder": match.sentence()}


# --- in the workers ------------------------------------------------------------------------------------


def clip_options(clip: ClipConfig, data: ClipOptions) -> ClipOptions:
    """Give the loader the model's clip: frames and size are set in one place, `clip`."""
    for name in ("frames", "size"):
        if name in data.model_fields_set and getattr(data, name) != getattr(clip, name):
            raise SpecError(f"data.{name} contradicts clip.{name}: leave it out and set clip.{name}")
    return data.model_copy(update={"frames": clip.frames, "size": clip.size})


def labelled(manifest: Manifest, per_class: int | None = None, seed: int = 0) -> Manifest:
    """Return `per_class` videos of each class (all for None), the same ones for the same seed.

    Raises:
        DataError: one of them has no label; names it.
    """
    chosen = manifest if per_class is None else manifest.few_labels(per_class, seed)
    without = [video.id for video in chosen.videos if video.label == UNLABELLED]
    if without:
        raise DataError(
            f"{chosen.benchmark} ({chosen.split}): {len(without)} of {len(chosen)} have no "
            f"label (the first is '{without[0]}'), which is enough for pre-training only; give each a class"
        )
    return chosen


def note_unreadable(unreadable: Mapping[str, str], events: EventLog) -> None:
    """Log the videos that were skipped, given as path → reason."""
    for path, reason in unreadable.items():
        events.note(f"skipped a video that cannot be read: {path}: {reason}")


class Dumpable(Protocol):
    """A trainer whose state can be saved when it fails."""

    last_index_B: Tensor | None
    """Indices of the last batch's videos in the manifest."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        ...


@contextmanager
def dump_on_failure(trainer: Dumpable, manifest: Manifest, out: Path, world: World) -> Iterator[None]:
    """Where training fails, save its state and the paths of its last videos, to be examined.

    Raises:
        TrainingError: the one that was raised inside, with the folder of the dump.
    """
    try:
        yield
    except TrainingError as error:
        folder = out / "dump"
        folder.mkdir(parents=True, exist_ok=True)
        if world.is_first:  # all workers hold the same, which is gigabytes
            torch.save(trainer.state_dict(), folder / "state.pt")
        last = trainer.last_index_B.tolist() if trainer.last_index_B is not None else []
        write_json(folder / f"videos-{world.rank}.json", [manifest.videos[index].path for index in last])
        raise TrainingError(f"{error}; state and last videos are in {folder}") from error


def write_result(out: Path, result: Mapping[str, Any]) -> None:
    """Write the stage's metrics, for reports and sweeps."""
    write_json(out / RESULT, dict(result))

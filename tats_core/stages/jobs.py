"""The work of a stage's workers: what they are given, how they are started, what they all do."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from pydantic import Field

from tats_core.data.benchmarks.base import Split
from tats_core.data.loaders import ClipOptions
from tats_core.data.manifest import UNLABELLED, Manifest
from tats_core.errors import DataError, SpecError, StoreError, TrainingError
from tats_core.files import write_json
from tats_core.machine import available_cpus
from tats_core.models import checkpoints_io
from tats_core.models.tokens import ClipConfig
from tats_core.models.vit import VideoViT
from tats_core.report.units import size
from tats_core.specs import StrictModel
from tats_core.stages.base import ParallelWork, StageContext
from tats_core.stages.configs import Fork, Placed, Trained
from tats_core.store import forks
from tats_core.store.layout import CHECKPOINTS, DUMP, RESULT
from tats_core.training import arithmetic, replay
from tats_core.training.checkpoint import CheckpointStore, checkpoint_fault
from tats_core.training.events import EventLog
from tats_core.training.loop import Watch
from tats_core.training.world import World

Config = TypeVar("Config", bound=Placed)


class Job(StrictModel, Generic[Config]):
    """The input of a worker: the stage's configuration, and where to read and write."""

    config: Config
    inputs: dict[str, str] = Field(default_factory=dict, description="folder of each input, by its role")
    out: str

    def manifest(self, split: Split) -> Manifest:
        """Return the benchmark's list of videos."""
        return Manifest.load(self._path(split))

    def has(self, split: Split) -> bool:
        """Return whether the data set has a list of this split."""
        return self._path(split).exists()

    def _path(self, split: Split) -> Path:
        return Path(self.inputs["data"]) / f"{self.config.benchmark}.{split}.json"


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
        fewer: see `ParallelWork`.

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
    name = f"{entry.__module__}:{entry.__name__}"
    ctx.fit(ParallelWork(name, job, workers, fewer, config.gpu, config.max_failures, config.max_preemptions))


def copy_fork(kind: str, fork: Fork | None, out: Path) -> None:
    """Put the checkpoint that a training forks from where it resumes, unless it has saved its own since.

    Raises:
        StoreError: it is gone, or corrupt.
    """
    target = out / CHECKPOINTS / forks.FIRST_FIT
    if fork is None or any(not folder.suffix for folder in target.glob("step-*")):
        return
    saved = forks.checkpoints(out.parents[1], kind, fork.key).get(fork.step)
    what = f"the checkpoint of step {fork.step} of {fork.stage} of {fork.run}"
    if saved is None:
        raise StoreError(f"{what} is gone; fork from another (--fork)")
    copied = target / f"{saved.name}.tmp"
    shutil.rmtree(copied, ignore_errors=True)
    shutil.copytree(saved, copied)
    fault = checkpoint_fault(copied)
    if fault is not None:
        raise StoreError(f"{what} is corrupt ({fault}); fork from another (--fork)")
    copied.rename(target / saved.name)


def load_encoder(encoder: VideoViT, path: str | None, events: EventLog) -> dict[str, str]:
    """Load the encoder of the model in `path`, if any; return what matched, as a parameter.

    Raises:
        WeightsError: it does not fit.
    """
    if path is None:
        return {}
    match = checkpoints_io.load(encoder, checkpoints_io.read(Path(path)))
    if match.layout == "TATS" and not match.adapted:
        return {}  # our own, as it was trained: nothing to report
    events.note(f"encoder from {path}: {match.sentence()}")
    return {"encoder": match.sentence()}


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


@contextmanager
def dump_on_failure(trainer: replay.Trainer, manifest: Manifest, out: Path, world: World) -> Iterator[None]:
    """Where training fails, save what a replay of its last step needs; an earlier dump is replaced.

    Raises:
        TrainingError: the one that was raised inside, with the folder of the dump and its size.
    """
    try:
        yield
    except TrainingError as error:
        if trainer.last is None:
            raise
        folder = out / DUMP
        videos = [manifest.videos[index].path for index in trainer.last.batch.index_B.tolist()]
        written = replay.dump(trainer, videos, folder, world)
        raise TrainingError(
            f"{error}; its last step is in {folder} ({size(written)} of this worker): "
            f"`tats replay {folder}` names what went non-finite first"
        ) from error


def watch_of(config: Trained, world: World) -> Watch:
    """Return what a training reports of its speed, and says where data are too slow for it."""
    recipe, options = config.recipe, config.data
    assert isinstance(recipe, arithmetic.Recipe)
    name = torch.cuda.get_device_name(world.device).lower() if world.device.type == "cuda" else ""
    gpu = next((gpu for key, gpu in arithmetic.GPUS.items() if key in name), None)
    advice = ""
    if world.device.type == "cuda" or available_cpus() > world.size:  # there are cores that could decode
        advice = f"raise data.decode_workers (it is {options.decode_workers}), or shrink the videos"
    peak = gpu.peak(recipe.precision) * world.size if gpu else 0.0
    return Watch(arithmetic.step_flops(recipe), peak, world.device, advice)


def write_result(out: Path, result: Mapping[str, Any]) -> None:
    """Write the stage's metrics, for reports and sweeps."""
    write_json(out / RESULT, dict(result))

"""What the jobs share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from tats_core.data.loaders import ClipOptions
from tats_core.data.manifest import UNLABELLED, Manifest
from tats_core.errors import DataError, SpecError, TrainingError
from tats_core.files import write_json
from tats_core.models.mae import VideoMAE
from tats_core.models.tokens import ClipConfig
from tats_core.models.vit import VideoViT
from tats_core.training import weights
from tats_core.training.events import EventLog
from tats_core.training.world import World


def clip_options(clip: ClipConfig, data: ClipOptions) -> ClipOptions:
    """Give the loader the model's clip: frames and size have one home, `clip`."""
    for name in ("frames", "size"):
        if name in data.model_fields_set and getattr(data, name) != getattr(clip, name):
            raise SpecError(f"data.{name} contradicts clip.{name}: leave it out and set clip.{name}")
    return data.model_copy(update={"frames": clip.frames, "size": clip.size})


def few_labels(manifest: Manifest, per_class: int | None, seed: int) -> Manifest:
    """Keep `per_class` videos of each class (all for None), the same ones for the same seed."""
    return manifest if per_class is None else manifest.few_labels(per_class, seed)


def labelled(manifest: Manifest) -> Manifest:
    """Return the manifest itself, if every video in it has a class to be learnt or tested.

    Raises:
        DataError: one has none; names it.
    """
    without = [video.id for video in manifest.videos if video.label == UNLABELLED]
    if without:
        raise DataError(
            f"{manifest.benchmark} ({manifest.split}): {len(without)} of {len(manifest)} have no "
            f"label (the first is '{without[0]}'), which is enough for pre-training only; give each a class"
        )
    return manifest


def start_encoder(encoder: VideoViT, place: str | None, events: EventLog) -> dict[str, str]:
    """Load the encoder of the model in `place`, if any; return what matched, as a parameter.

    Raises:
        WeightsError: it does not fit.
    """
    if place is None:
        return {}
    match = weights.load_encoder(encoder, Path(place))
    if match.layout == "TATS":
        return {}  # our own names: there is nothing to tell
    events.note(f"encoder from {place}: {match.sentence()}")
    return {"encoder": match.sentence()}


def start_mae(mae: VideoMAE, place: str | None, events: EventLog) -> dict[str, str]:
    """Start a pre-training from the model in `place`, if any; return what matched, as a parameter.

    Raises:
        WeightsError: it does not fit.
    """
    if place is None:
        return {}
    match = weights.start_mae(mae, Path(place))
    events.note(f"start from {place}: {match.sentence()}")
    return {"start": match.sentence()}


def say_unreadable(unreadable: Mapping[str, str], events: EventLog) -> None:
    """Name the videos that were passed over, given by path with the reason."""
    for path, reason in unreadable.items():
        events.note(f"skipped a video that cannot be read: {path}: {reason}")


class Dumpable(Protocol):
    """What training leaves behind when it fails."""

    last_index_B: Tensor | None
    """Places of the last batch's videos in the manifest."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        ...


@contextmanager
def dump_on_failure(trainer: Dumpable, manifest: Manifest, out: Path, world: World) -> Iterator[None]:
    """Where training cannot go on, leave its state and its last videos for a person to look at.

    Raises:
        TrainingError: the one that was raised inside, with the dump's place.
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


def write_result(out: Path, figures: Mapping[str, Any]) -> None:
    write_json(out / "result.json", dict(figures))

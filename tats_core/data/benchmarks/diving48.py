"""Diving48 as distributed (Li et al., ECCV 2018; the cleaned labels V2): each dive is a segment of a file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Final

from pydantic import BaseModel, Field

from tats_core.data.benchmarks.base import (
    Benchmark,
    Listing,
    NoListError,
    Split,
    first_existing,
    json_of,
    walk,
)
from tats_core.data.clips import Segment
from tats_core.data.manifest import VideoRecord
from tats_core.errors import DataError

VIDEOS: Final = ("rgb", "videos")
_FOLDERS: Final = ("", "annotations/", "labels/")
_CLASSES: Final = 48
_LAYOUT: Final = (
    "'rgb/{vid_name}.mp4' (or 'videos/') and 'Diving48_V2_train.json', 'Diving48_V2_test.json' beside it (or "
    "in 'annotations/', 'labels/'); 'Diving48_vocab.json' names the classes"
)


class _Dive(BaseModel):
    vid_name: str
    label: int = Field(ge=0, lt=_CLASSES)
    start_frame: int = Field(ge=0)
    end_frame: int


def lists(root: Path, split: Split, fold: int) -> Listing:
    """Read `Diving48_V2_train.json` or `Diving48_V2_test.json`. One fold.

    A dive has the frames from `start_frame` to `end_frame`, both included. Without
    `Diving48_vocab.json`, the classes are named by their numbers.

    Raises:
        NoListError: the list is missing.
        DataError: the folder is missing, or a row is not as it must be.
    """
    del fold
    listing = _file(root, f"Diving48_V2_{split}.json")
    folder = first_existing(root, VIDEOS, "folder of videos", "diving48", _LAYOUT)
    dives = json_of(listing, list[_Dive])
    dives_of = Counter(dive.vid_name for dive in dives)
    files = {path.stem: path for path in walk(folder, (".mp4",))}
    videos: list[VideoRecord] = []
    absent: list[str] = []
    for number, dive in enumerate(dives, start=1):
        name, start, last = dive.vid_name, dive.start_frame, dive.end_frame
        if last < start:
            raise DataError(f"{listing}, entry {number}: '{name}' ends ({last}) before it starts ({start})")
        if name in files:
            video_id = name if dives_of[name] == 1 else f"{name}_{start:06d}"
            videos.append(VideoRecord(video_id, str(files[name]), dive.label, Segment(start, last + 1)))
        else:
            absent.append(name)
    return Listing(_classes(root), tuple(videos), folder, tuple(absent))


def _file(root: Path, name: str) -> Path:
    choices = [f"{folder}{name}" for folder in _FOLDERS]
    return first_existing(root, choices, name, "diving48", _LAYOUT, NoListError)


def _classes(root: Path) -> tuple[str, ...]:
    try:
        path = _file(root, "Diving48_vocab.json")
    except NoListError:
        return tuple(map(str, range(_CLASSES)))
    names = tuple("-".join(parts) for parts in json_of(path, list[list[str]]))
    if len(names) != _CLASSES:
        raise DataError(f"{path}: names {len(names)} classes, and there are {_CLASSES}")
    return names


DIVING48: Final = Benchmark(
    name="diving48",
    title="Diving48",
    classes=_CLASSES,
    expected={"train": (15_027,), "test": (1_970,)},
    flip=True,  # no class tells left from right
    sampling="uniform",  # a class is the sequence of a whole dive
    stride=2,
    pretrain_stride=2,
    test_clips=2,
    test_crops=3,
    layout=_LAYOUT,
    lists=lists,
)

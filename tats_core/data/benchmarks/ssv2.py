"""Something-Something v2 as distributed by its authors: `{id}.webm` (VP9) and JSON label files."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pydantic import BaseModel

from tats_core.data.benchmarks.base import (
    Benchmark,
    Listing,
    NoListError,
    Split,
    first_existing,
    json_of,
    walk,
)
from tats_core.data.manifest import VideoRecord
from tats_core.errors import DataError

VIDEOS: Final = "20bn-something-something-v2"
_LAYOUT: Final = (
    f"'{VIDEOS}/{{id}}.webm' (or 'videos/') and 'labels/labels.json', 'labels/train.json', "
    "'labels/validation.json' (or beside the videos' folder; older copies name them "
    "'something-something-v2-*.json')"
)


def class_of(template: str) -> str:
    """Return the class name of a row's template: the same text without the brackets of its placeholders."""
    return template.replace("[", "").replace("]", "")


def lists(root: Path, split: Split, fold: int) -> Listing:
    """Read `train.json`, or `validation.json` as "test": the split that papers report, since the labels of
    the official test split came late. There is one fold.

    Raises:
        NoListError: a list is missing.
        DataError: the folder is missing, or a template is no class.
    """
    del fold
    labels_json = _file(root, "labels")
    index = json_of(labels_json, dict[str, int])
    if sorted(index.values()) != list(range(len(index))):
        raise DataError(f"{labels_json}: must number the classes 0 to {len(index) - 1}, each once")
    listing = _file(root, "train" if split == "train" else "validation")
    folder = first_existing(root, (VIDEOS, "videos"), "folder of videos", "ssv2", _LAYOUT)
    files = {path.stem: path for path in walk(folder, (".webm", ".mp4"))}
    videos: list[VideoRecord] = []
    absent: list[str] = []
    for row in json_of(listing, list[_Row]):
        video_id, name = str(row.id), class_of(row.template)
        if name not in index:
            raise DataError(f"{listing}: video '{video_id}' has the class '{name}', which labels.json lacks")
        if video_id in files:
            videos.append(VideoRecord(video_id, str(files[video_id]), index[name]))
        else:
            absent.append(video_id)
    return Listing(tuple(sorted(index, key=index.__getitem__)), tuple(videos), folder, tuple(absent))


def _file(root: Path, name: str) -> Path:
    stems = (name, f"something-something-v2-{name}")
    choices = [f"{prefix}{stem}.json" for prefix in ("labels/", "", "annotations/") for stem in stems]
    return first_existing(root, choices, f"{name}.json", "ssv2", _LAYOUT, NoListError)


class _Row(BaseModel):
    id: int | str
    template: str


SSV2: Final = Benchmark(
    name="ssv2",
    title="Something-Something v2",
    classes=174,
    expected={"train": (168_913,), "test": (24_777,)},
    flip=False,
    sampling="uniform",
    stride=2,
    pretrain_stride=2,
    test_clips=2,
    test_crops=3,
    layout=_LAYOUT,
    lists=lists,
)

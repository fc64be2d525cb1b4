"""Kinetics-400 as its copies come: mp4 files, flat or in class folders, and the official CSV lists."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Final

from tats_core.data.benchmarks.base import Benchmark, Split, first_existing, walk
from tats_core.data.manifest import Manifest, VideoRecord
from tats_core.errors import DataError

_LAYOUT: Final = (
    "'annotations/train.csv' and 'annotations/val.csv' (or 'validate.csv', or beside the folders; header "
    "label,youtube_id,time_start,time_end,split) and 'train/', 'val/' (or one 'videos/') with "
    "'{youtube_id}_{start:06d}_{end:06d}.mp4', flat or in class folders"
)
_LISTS: Final[dict[Split, tuple[str, ...]]] = {
    "train": ("train.csv", "kinetics400_train.csv", "kinetics_train.csv"),
    "test": ("val.csv", "validate.csv", "validation.csv", "kinetics400_val.csv", "kinetics_val.csv"),
}
_FOLDERS: Final[dict[Split, tuple[str, ...]]] = {
    "train": ("train", "videos/train", "videos"),
    "test": ("val", "validate", "validation", "videos/val", "videos"),
}
_COLUMNS: Final = ("label", "youtube_id", "time_start", "time_end")


def read(root: Path, split: Split, fold: int = 1) -> Manifest:
    """Read the training list, or the validation list as "test": the split that papers report. One fold.

    Classes are numbered in the sorted order of their names in the *training* list, whichever split is read.
    Copies of this data set differ, because videos vanish: what is not on disk is left out and counted in
    `Manifest.absent`, never replaced.

    Raises:
        DataError: a list or folder is missing, a list lacks a column, or no listed video is on disk.
    """
    del fold
    train = _rows(_list(root, "train"))
    classes = tuple(sorted({row["label"] for row in train}))
    index = {name: number for number, name in enumerate(classes)}
    listed = train if split == "train" else _rows(_list(root, split))
    folder = first_existing(root, _FOLDERS[split], f"folder of {split} videos", "kinetics400", _LAYOUT)
    files = {path.stem: path for path in walk(folder, (".mp4", ".mkv", ".webm"))}
    videos, absent = [], 0
    for row in listed:
        if row["label"] not in index:
            raise DataError(f"{_list(root, split)}: the class '{row['label']}' is not in the training list")
        name = clip_name(row["youtube_id"], int(row["time_start"]), int(row["time_end"]))
        # Some copies name the file by the bare YouTube id.
        path = files.get(name) or files.get(row["youtube_id"])
        if path is None:
            absent += 1
        else:
            videos.append(VideoRecord(name, str(path), index[row["label"]]))
    if not videos:
        raise DataError(
            f"kinetics400 ({split}): none of the {len(listed)} listed videos is in {folder}; "
            f"expected layout: {_LAYOUT}"
        )
    return Manifest("kinetics400", split, classes, root, tuple(videos), absent)


def clip_name(youtube_id: str, start: int, end: int) -> str:
    """Return the official file stem of a clip between two seconds of a video."""
    return f"{youtube_id}_{start:06d}_{end:06d}"


def _list(root: Path, split: Split) -> Path:
    choices = [f"{folder}{name}" for folder in ("annotations/", "") for name in _LISTS[split]]
    return first_existing(root, choices, f"{split} list", "kinetics400", _LAYOUT)


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            lacking = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
            if lacking:
                raise DataError(f"{path}: the header must name {', '.join(_COLUMNS)}; it lacks {lacking[0]}")
            rows = list(reader)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error
    for number, row in enumerate(rows, start=2):
        start, end = row["time_start"], row["time_end"]
        if not row["label"] or not row["youtube_id"] or not f"{start}{end}".isdigit():
            raise DataError(f"{path}, row {number}: needs a label, a YouTube id and two whole seconds")
    return rows


KINETICS400: Final = Benchmark(
    name="kinetics400",
    title="Kinetics-400",
    classes=400,
    expected={"train": (240_436,), "test": (19_796,)},
    flip=True,
    sampling="dense",
    stride=4,
    pretrain_stride=4,
    test_clips=5,
    test_crops=3,
    layout=_LAYOUT,
    read=read,
)

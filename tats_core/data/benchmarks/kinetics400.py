"""Kinetics-400 as its copies come: mp4 files, flat or in class folders, and the official CSV lists."""

from __future__ import annotations

import csv
import io
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tats_core.data.benchmarks.base import (
    Benchmark,
    Listing,
    NoListError,
    Split,
    first_existing,
    text_of,
    walk,
    whole_number,
)
from tats_core.data.manifest import VideoRecord
from tats_core.errors import DataError

_LAYOUT: Final = (
    "'annotations/train.csv' and 'annotations/val.csv' (or 'validate.csv', or beside the folders; header "
    "label,youtube_id,time_start,time_end,split) and 'train/', 'val/' (or one 'videos/') with "
    "'{youtube_id}_{start:06d}_{end:06d}.mp4', flat or in class folders"
)
_STEMS: Final = ("", "kinetics-400_", "kinetics400_", "kinetics_", "k400_")
"""Of a list's name; "kinetics-400_" is ActivityNet's."""
_LISTS: Final[dict[Split, tuple[str, ...]]] = {
    "train": tuple(f"{stem}train.csv" for stem in _STEMS),
    "test": tuple(f"{stem}{name}.csv" for stem in _STEMS for name in ("val", "validate", "validation")),
}
_FOLDERS: Final[dict[Split, tuple[str, ...]]] = {
    "train": ("train", "videos/train", "videos"),
    "test": ("val", "validate", "validation", "videos/val", "videos"),
}
_COLUMNS: Final = ("label", "youtube_id", "time_start", "time_end")


def lists(root: Path, split: Split, fold: int) -> Listing:
    """Read the training list, or the validation list as "test": the split that papers report. One fold.

    Classes are numbered in the sorted order of their names in the *training* list, whichever split is read;
    without one, of those in the list that is read. Copies of this data set differ, because videos vanish:
    what is not on disk is left out and counted in `Manifest.absent`, never replaced.

    Raises:
        NoListError: the list of `split` is missing.
        DataError: a folder is missing, or a list lacks a column.
    """
    del fold
    listing = _list(root, split)
    clips, notes = _clips(listing), []
    opposite: Split = "test" if split == "train" else "train"
    other: list[_Clip] = []
    with suppress(NoListError):
        other = _clips(_list(root, opposite))
    training = clips if split == "train" else other
    classes = tuple(sorted({clip.label for clip in training or clips}))
    if not training:
        notes.append(f"{listing}: there is no training list; the classes are numbered as in this list")
    index = {name: number for number, name in enumerate(classes)}
    folder = _folder(root, split)
    files = {path.stem: path for path in walk(folder, (".mp4", ".mkv", ".webm"))}
    rivals = other if other and _folder(root, opposite) == folder else []
    # Some copies name the file by the bare YouTube id: of two segments of a video, it may be either.
    claims = Counter(clip.youtube_id for clip in (*clips, *rivals) if clip.name not in files)
    videos: list[VideoRecord] = []
    absent: list[str] = []
    unclear: list[str] = []
    for clip in clips:
        if clip.label not in index:
            raise DataError(
                f"{listing}, line {clip.line}: the class '{clip.label}' is not in the training list"
            )
        path = files.get(clip.name, files.get(clip.youtube_id))
        if path is not None and path.stem != clip.name and claims[clip.youtube_id] > 1:
            unclear.append(clip.name)
            path = None
        if path is None:
            absent.append(clip.name)
        else:
            videos.append(VideoRecord(clip.name, str(path), index[clip.label]))
    if unclear:
        notes.append(
            f"{listing}: {len(unclear)} clips are segments of videos with several, whose only file has the "
            f"bare YouTube id as its name; it may be any of them, so it is used for none (the first is "
            f"'{unclear[0]}')"
        )
    return Listing(classes, tuple(videos), folder, tuple(absent), notes=tuple(notes))


def clip_name(youtube_id: str, start: int, end: int) -> str:
    """Return the official file stem of a clip between two seconds of a video."""
    return f"{youtube_id}_{start:06d}_{end:06d}"


def _list(root: Path, split: Split) -> Path:
    choices = [f"{folder}{name}" for folder in ("annotations/", "") for name in _LISTS[split]]
    return first_existing(root, choices, f"{split} list", "kinetics400", _LAYOUT, NoListError)


def _folder(root: Path, split: Split) -> Path:
    return first_existing(root, _FOLDERS[split], f"folder of {split} videos", "kinetics400", _LAYOUT)


@dataclass(frozen=True)
class _Clip:
    line: int
    label: str
    youtube_id: str
    name: str


def _clips(path: Path) -> list[_Clip]:
    text = text_of(path)
    delimiter = max(",\t;", key=text.partition("\n")[0].count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    clips = []
    try:
        lacking = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
        if lacking:
            raise DataError(f"{path}: the header must name {', '.join(_COLUMNS)}; it lacks {lacking[0]}")
        for row in reader:
            label, youtube_id, start, end = ((row[name] or "").strip() for name in _COLUMNS)
            first, last = whole_number(start), whole_number(end)
            if not label or not youtube_id or first is None or last is None:
                raise DataError(
                    f"{path}, line {reader.line_num}: needs a label, a YouTube id and two whole seconds"
                )
            clips.append(_Clip(reader.line_num, label, youtube_id, clip_name(youtube_id, first, last)))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: is not CSV ({error})") from error
    return clips


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
    lists=lists,
    missing="allow",
)

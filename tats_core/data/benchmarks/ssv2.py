"""Something-Something v2 as distributed by its authors: `{id}.webm` (VP9) and JSON label files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from tats_core.data.benchmarks.base import Benchmark, Split, absent_error, first_existing, walk
from tats_core.data.manifest import Manifest, VideoRecord
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


def read(root: Path, split: Split, fold: int = 1) -> Manifest:
    """Read `train.json`, or `validation.json` as "test": the split that papers report, since the labels of
    the official test split came late. There is one fold.

    Raises:
        DataError: a file or folder is missing, a template is no class, or videos are not on disk.
    """
    del fold
    index = {name: int(label) for name, label in _json(_labels(root, "labels"), dict).items()}
    if sorted(index.values()) != list(range(len(index))):
        raise DataError(
            f"{_labels(root, 'labels')}: must number the classes 0 to {len(index) - 1}, each once"
        )
    listing = _labels(root, "train" if split == "train" else "validation")
    folder = first_existing(root, (VIDEOS, "videos"), "folder of videos", "ssv2", _LAYOUT)
    files = {path.stem: path for path in walk(folder, (".webm", ".mp4"))}
    videos, absent = [], []
    listed = _json(listing, list)
    for row in listed:
        video_id, name = _row(row, listing)
        if name not in index:
            raise DataError(f"{listing}: video '{video_id}' has the class '{name}', which labels.json lacks")
        if video_id in files:
            videos.append(VideoRecord(video_id, str(files[video_id]), index[name]))
        else:
            absent.append(video_id)
    if absent:
        raise absent_error("ssv2", split, absent, len(listed), folder)
    return Manifest("ssv2", split, tuple(sorted(index, key=index.__getitem__)), root, tuple(videos))


def _labels(root: Path, name: str) -> Path:
    prefixes = ("labels/", "", "annotations/")
    stems = (name, f"something-something-v2-{name}")
    choices = [f"{prefix}{stem}.json" for prefix in prefixes for stem in stems]
    return first_existing(root, choices, f"{name}.json", "ssv2", _LAYOUT)


def _json(path: Path, kind: type[Any]) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); download it again") from error
    if not isinstance(content, kind):
        raise DataError(f"{path}: must hold a JSON {kind.__name__}, not a {type(content).__name__}")
    return content


def _row(row: Any, listing: Path) -> tuple[str, str]:
    if not isinstance(row, dict) or "id" not in row or "template" not in row:
        raise DataError(f"{listing}: each row must have 'id' and 'template', but one is {str(row)[:80]}")
    return str(row["id"]), class_of(row["template"])


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
    read=read,
)

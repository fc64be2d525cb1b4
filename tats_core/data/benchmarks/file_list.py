"""Any videos, given by a list of `path label` rows: the form that VideoMAE, VideoMAE v2 and others use.

Rows accepted (`#` starts a comment line)::

    path label              blank between, as in VideoMAE; the path may hold blanks
    path<TAB>label          as in TATS
    path 0 -1               as in VideoMAE v2's pre-training lists: a whole video without a label
    path                    a video without a label
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tats_core.data.benchmarks.base import Benchmark, Split, first_existing, rows
from tats_core.data.manifest import UNLABELLED, Manifest, VideoRecord
from tats_core.errors import DataError

_LAYOUT: Final = (
    "'train.txt' and 'test.txt' (or '.csv', '.tsv'; 'val' for 'test') with rows 'path label', paths absolute "
    "or relative to the list, and, if classes have names, 'classes.txt' with one name a line"
)


def read(root: Path, split: Split, fold: int = 1) -> Manifest:
    """Read the list of `split` in the folder `root`, with the class names of `classes.txt` if there is one.

    Raises:
        DataError: no list, or a row of it is not valid.
    """
    del fold
    stems = ("train",) if split == "train" else ("test", "val", "validation")
    choices = [f"{stem}{suffix}" for stem in stems for suffix in (".txt", ".csv", ".tsv")]
    listing = first_existing(root, choices, f"{split} list", "file_list", _LAYOUT)
    names = root / "classes.txt"
    classes = tuple(line.strip() for _, line in rows(names)) if names.exists() else None
    return read_list(listing, split, classes)


def read_list(listing: Path, split: Split, classes: tuple[str, ...] | None = None) -> Manifest:
    """Read one list; without `classes` they are named by their numbers, 0 to the largest in the list.

    Raises:
        DataError: a row is not valid or names a class beyond `classes`, or a file is not on disk.
    """
    root = listing.absolute().parent
    parsed = [_row(line, listing, number) for number, line in rows(listing) if not line.startswith("#")]
    if classes is None:
        classes = tuple(str(label) for label in range(max((label for _, label in parsed), default=-1) + 1))
    videos = []
    for name, label in parsed:
        path = root / name
        if not path.is_file():
            raise DataError(f"{listing}: '{name}' is not a file (looked for {path})")
        if label >= len(classes):
            raise DataError(f"{listing}: '{name}' has label {label}, but classes.txt names {len(classes)}")
        videos.append(VideoRecord(name, str(path), label))
    return Manifest("file_list", split, classes, root, tuple(videos))


def _row(line: str, listing: Path, number: int) -> tuple[str, int]:
    separator = "\t" if "\t" in line else " "
    words = line.strip().split(separator)
    if len(words) >= 3 and words[-2:] == ["0", "-1"]:
        return separator.join(words[:-2]), UNLABELLED
    if len(words) == 1:
        return words[0], UNLABELLED
    if not words[-1].isdigit():
        raise DataError(
            f"{listing}, line {number}: must be 'path label', the label a whole number, is '{line.strip()}'"
        )
    return separator.join(words[:-1]).strip(), int(words[-1])


FILE_LIST: Final = Benchmark(
    name="file_list",
    title="a list of files",
    classes=0,
    expected={"train": (0,), "test": (0,)},
    flip=True,
    sampling="dense",
    stride=4,
    pretrain_stride=4,
    test_clips=5,
    test_crops=3,
    layout=_LAYOUT,
    read=read,
)

"""Your own videos: a folder of clips, with lists or without.

Without lists, the folders of the classes are the labels, and a folder without such has no labels. Where there
are folders `train` and `test` (or `val`), they are the splits; else one video in five of each class is
for the test, drawn by the number of the fold.

Lists have rows `path label`, the form that VideoMAE, VideoMAE v2 and others use. Accepted are::

    path label              blank between, as in VideoMAE; the path may hold blanks
    path<TAB>label          as in TATS
    path,label
    path 0 -1               as in VideoMAE v2's pre-training lists: a whole video without a label
    path                    a video without a label
    # comment               unless it is the row of a file with such a name

Labels count from 0, or as `classes.txt` numbers its classes.
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from tats_core.data import shards
from tats_core.data.benchmarks.base import (
    VIDEO_SUFFIXES,
    Benchmark,
    Listing,
    NoListError,
    Split,
    first_existing,
    rows,
    walk,
    whole_number,
)
from tats_core.data.manifest import UNLABELLED, VideoRecord, rank
from tats_core.errors import DataError

_LAYOUT: Final = (
    "videos, in a folder for each class if they have labels, in 'train/' and 'test/' if they are divided; or "
    "'train.txt' and 'test.txt' (or '.csv', '.tsv'; 'val' for 'test') with rows 'path label', paths absolute "
    "or relative to the list, and, if classes have names, 'classes.txt' with one name a line"
)
_TEST_SHARE: Final = 0.2
"""Of the videos of a class, where nothing says which are for the test."""
_STEMS: Final[dict[Split, tuple[str, ...]]] = {"train": ("train",), "test": ("test", "val", "validation")}
_LISTS: Final[dict[Split, tuple[str, ...]]] = {
    split: tuple(f"{stem}{suffix}" for stem in stems for suffix in (".txt", ".csv", ".tsv"))
    for split, stems in _STEMS.items()
}
_MOST_CLASSES: Final = 100_000
"""A label from here on is another column, and as many names would fill the memory."""
_NUMBERED: Final = (
    re.compile(r"(?P<number>\d+)[\s,:.)-]+(?P<name>.+)"),
    re.compile(r"(?P<name>.+?)[\s,:]+(?P<number>\d+)"),
)


class _Row(NamedTuple):
    line: int
    name: str
    label: int


class _Classes(NamedTuple):
    names: tuple[str, ...]
    first: int = 0
    """The label of the first class."""
    note: str = ""


def lists(root: Path, split: Split, fold: int) -> Listing:
    """Read the list of `split` in the folder `root`, or where there is none of either split, its folders.

    Raises:
        NoListError: no list of this split, but one of the other.
        DataError: no video, or a row of the list is not valid.
    """
    return _listed("own", root, split) if _has_lists(root) else _in_folders(root, split, fold)


def _has_lists(folder: Path) -> bool:
    return any((folder / name).exists() for names in _LISTS.values() for name in names)


# ------------------------------------------------------------------------------------------- folders


def _in_folders(root: Path, split: Split, seed: int) -> Listing:
    base = root
    while len(parts := _by_folder(base)) == 1 and "" not in parts:
        base /= next(iter(parts))
        if _has_lists(base):
            return _listed("own", base, split)
    if not parts:
        raise DataError(f"own: no video in {root} ({', '.join(VIDEO_SUFFIXES)}); expected layout: {_LAYOUT}")
    if {name.lower() for name in parts} <= {stem for stems in _STEMS.values() for stem in stems}:
        both = {name: _by_folder(base / name) for name in parts}
        folders = [name for name in parts if name.lower() in _STEMS[split]]
        if not folders:
            raise NoListError(f"own: {base} has no folder of {split} videos, but '{next(iter(parts))}'")
        if folders[1:]:
            raise DataError(f"own: {base} has both '{folders[0]}' and '{folders[1]}'; remove one")
        chosen, named = both[folders[0]], set().union(*both.values())
    else:
        named = set(parts)
        chosen = {name: _drawn(paths, root, split, seed) for name, paths in parts.items()}
    notes = []
    if "" in named and len(named) > 1:
        notes.append(
            f"{base}: some videos lie beside the folders, so the folders are taken for no classes, and the "
            "videos have no labels"
        )
    classes = () if "" in named else tuple(sorted(named))
    records = (
        VideoRecord(str(path.relative_to(root)), str(path), classes.index(name) if classes else UNLABELLED)
        for name, paths in sorted(chosen.items())
        for path in paths
    )
    return Listing(classes, tuple(records), base, notes=tuple(notes))


def _by_folder(base: Path) -> dict[str, list[Path]]:
    """Return the videos of each folder in `base`, in it or below it; those in `base` itself under ""."""
    parts: dict[str, list[Path]] = {}
    for path in walk(base):
        inner = path.relative_to(base).parts
        parts.setdefault(inner[0] if inner[1:] else "", []).append(path)
    return parts


def _drawn(paths: list[Path], root: Path, split: Split, seed: int) -> list[Path]:
    """Return the share of `split`; which videos it has depends on their names and the seed alone."""
    order = sorted(paths, key=lambda path: rank(seed, path.relative_to(root).as_posix()))
    n_test = max(round(_TEST_SHARE * len(paths)), 1) if len(paths) > 1 else 0
    chosen = set(order[:n_test] if split == "test" else order[n_test:])
    return [path for path in paths if path in chosen]


# --------------------------------------------------------------------------------------------- lists


def _listed(name: str, root: Path, split: Split, fold: int = 1) -> Listing:
    """Read the list of `split`, with the class names of `classes.txt` if there is one.

    Without it, classes are named by their numbers, 0 to the largest in the lists of both splits.
    """
    del fold
    listing = _list(name, root, split)
    parsed = _rows(listing)
    if (root / "classes.txt").exists():
        classes = _named(root / "classes.txt")
    else:
        labels = {row.label for row in parsed}
        with suppress(NoListError):
            labels |= {row.label for row in _rows(_list(name, root, "test" if split == "train" else "train"))}
        classes = _by_number(labels, root)
    videos: list[VideoRecord] = []
    absent: list[str] = []
    repeated = 0
    seen: dict[str, _Row] = {}
    for row in parsed:
        label = _label(row, classes, listing)
        path = root.absolute() / row.name
        real = _real(path)
        if real is None:
            absent.append(row.name)
            continue
        before = seen.setdefault(real, row)
        if before.label != row.label:
            raise DataError(
                f"{listing}, line {row.line}: '{row.name}' is the file of line {before.line} "
                f"('{before.name}'), with another label ({row.label}, there {before.label}); remove one"
            )
        if before is row:
            videos.append(VideoRecord(row.name, str(path), label))
        else:
            repeated += 1
    notes = [classes.note] if classes.note else []
    if repeated:
        notes.append(f"{listing}: {repeated} rows name a file again, which counts as one video")
    return Listing(classes.names, tuple(videos), root, tuple(absent), notes=tuple(notes))


def _list(name: str, root: Path, split: Split) -> Path:
    return first_existing(root, _LISTS[split], f"{split} list", name, _LAYOUT, NoListError)


def _real(path: Path) -> str | None:
    """Return the path that is the same for all spellings of a file's path, or None where there is no file.

    Not the file's number, which some network disks do not have.
    """
    try:
        return os.path.realpath(path) if path.is_file() or shards.find(path) else None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # a row that is no path
            return None
        raise DataError(f"{path} cannot be read ({error.strerror})") from error


def _rows(listing: Path) -> list[_Row]:
    parsed = []
    for line, text in rows(listing, file_names=True):
        name, label = _split(text)
        if re.match(r"#(\s|$)", text) and (label is None or _real(listing.parent / name) is None):
            continue
        if label is None:
            hint = "; a comment begins with '# '" if text.startswith("#") else ""
            raise DataError(
                f"{listing}, line {line}: must be 'path label', the label a whole number below "
                f"{_MOST_CLASSES:,}, is '{text}'{hint}"
            )
        parsed.append(_Row(line, name, label))
    return parsed


def _split(text: str) -> tuple[str, int | None]:
    """Return path and label of a row; None for a label that is no number."""
    separator = "\t" if "\t" in text else "," if re.search(r",\s*[0-9]+$", text) else " "
    words = text.split(separator)
    if words[-2:] == ["0", "-1"] and len(words) > 2:
        return separator.join(words[:-2]).strip(), UNLABELLED
    if len(words) == 1:
        return text, UNLABELLED
    label = whole_number(words[-1].strip())
    if label is not None and label >= _MOST_CLASSES:
        label = None
    return separator.join(words[:-1]).strip(), label


def _named(path: Path) -> _Classes:
    """Read the names of the classes; numbers before or after all of them tell how labels count."""
    lines = [text for _, text in rows(path)]
    if not lines:
        raise DataError(f"{path} is empty; write one name a line, or remove the file")
    for form in _NUMBERED:
        parts = [form.fullmatch(line) for line in lines]
        numbers = [int(part["number"]) for part in parts if part]
        names = tuple(part["name"].strip(" \t\"'") for part in parts if part)
        # Of "gesture 1" and "gesture 2" the number is a part of the name.
        different = len(set(names)) == len(lines) > 1
        if different and numbers == list(range(numbers[0], numbers[0] + len(lines))):
            note = f"{path} numbers its classes: label {numbers[0]} is read as '{names[0]}', and so on"
            return _Classes(names, numbers[0], note)
    return _Classes(tuple(lines))


def _by_number(labels: set[int], root: Path) -> _Classes:
    """Name the classes by their numbers, 0 to the largest of `labels`."""
    most = max(labels, default=UNLABELLED) + 1
    empty = sorted(set(range(most)) - labels)
    note = ""
    if empty == [0]:
        note = (
            f"{root}: the labels are 1 to {most - 1}, none is 0; they seem to count from 1, and TATS counts "
            "from 0: class '0' has no video. Subtract 1 from each, or name the classes in 'classes.txt'"
        )
    elif empty:
        note = f"{root}: {len(empty)} of the classes 0 to {most - 1} have no video (the first is {empty[0]})"
    return _Classes(tuple(map(str, range(most))), note=note)


def _label(row: _Row, classes: _Classes, listing: Path) -> int:
    if row.label == UNLABELLED:
        return UNLABELLED
    label = row.label - classes.first
    if not 0 <= label < len(classes.names):
        last = classes.first + len(classes.names) - 1
        hint = "; labels count from 0" if row.label == last + 1 and classes.first == 0 else ""
        raise DataError(
            f"{listing}, line {row.line}: '{row.name}' has label {row.label}, but classes.txt names the "
            f"{len(classes.names)} classes {classes.first} to {last}{hint}"
        )
    return label


OWN: Final = Benchmark(
    name="own",
    title="your own videos",
    classes=0,
    expected={"train": (0,), "test": (0,)},
    flip=True,
    sampling="dense",
    stride=4,
    pretrain_stride=4,
    test_clips=5,
    test_crops=3,
    layout=_LAYOUT,
    lists=lists,
)

FILE_LIST: Final = replace(
    OWN, name="file_list", title="a list of files", lists=partial(_listed, "file_list")
)
"""The same by lists alone, which must be there."""

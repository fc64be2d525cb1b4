"""HMDB51 as distributed, unpacked: avi files in class folders and `testTrainMulti_7030_splits`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

from tats_core.data.benchmarks.base import (
    Benchmark,
    Listing,
    NoListError,
    Split,
    first_existing,
    rows,
    walk,
)
from tats_core.data.manifest import VideoRecord
from tats_core.errors import DataError

VIDEOS: Final = "hmdb51_org"
LISTS: Final = "testTrainMulti_7030_splits"
_LAYOUT: Final = (
    f"'{VIDEOS}/{{class}}/*.avi' (or 'videos/'; the rar files unpacked) and "
    f"'{LISTS}/{{class}}_test_split{{1,2,3}}.txt'"
)
FLAGS: Final[dict[Split, str]] = {"train": "1", "test": "2"}
"""Second column of a list; "0" marks a video that this split leaves unused."""


def class_lists(
    name: str, videos: Sequence[str], lists: Sequence[str], layout: str, root: Path, split: Split, fold: int
) -> Listing:
    """Read the rows of all `{class}_test_split{fold}.txt` that are flagged as `split`.

    The classes are those that have a list of any fold.

    Args:
        videos, lists: where the class folders and the lists may be.

    Raises:
        NoListError: no list of this fold.
        DataError: a folder or the list of a class is missing, or a row is not `name.avi flag`.
    """
    folder = first_existing(root, videos, "folder of videos", name, layout)
    list_folder = first_existing(root, lists, "folder of lists", name, layout, NoListError)
    by_fold: dict[str, dict[str, Path]] = defaultdict(dict)
    for listing in sorted(list_folder.iterdir()):
        if match := re.fullmatch(r"(.+)_test_split(\d+)\.txt", listing.name):
            by_fold[match[2]][match[1]] = listing
    by_class = by_fold[str(fold)]
    if not by_class:
        raise NoListError(f"{name}: no '*_test_split{fold}.txt' in {list_folder}; expected layout: {layout}")
    # In the order of the files' names, in which "kick_ball_test" is before "kick_test".
    classes = sorted({label for named in by_fold.values() for label in named}, key="{}_test".format)
    records: list[VideoRecord] = []
    absent: list[str] = []
    files: dict[str, dict[str, Path]] = defaultdict(dict)
    for path in walk(folder, (".avi",)):
        # Some copies keep the archive's own folder, so that it is class/class/name.avi.
        files[path.relative_to(folder).parts[0]][path.name] = path
    for class_name, listing in by_class.items():
        for number, line in rows(listing, file_names=True):
            # File names of this data set may hold blanks and odd characters; the flag is the last word.
            file_name, flag = (*line.rsplit(None, 1), "")[:2]
            if flag not in ("0", "1", "2"):
                raise DataError(f"{listing}, line {number}: must be 'name.avi flag', is '{line}'")
            if flag != FLAGS[split]:
                continue
            if file_name in files[class_name]:
                path = files[class_name][file_name]
                records.append(VideoRecord(path.stem, str(path), classes.index(class_name)))
            else:
                absent.append(f"{class_name}/{file_name}")
    with_videos = {name for name, videos_of in files.items() if videos_of and (folder / name).is_dir()}
    unlisted = sorted((set(classes) | with_videos) - by_class.keys())
    if unlisted:
        more = f" (and {len(unlisted) - 1} more such)" if unlisted[1:] else ""
        raise DataError(
            f"{name}: {list_folder} has no list '{unlisted[0]}_test_split{fold}.txt', though there are "
            f"videos or other lists of this class{more}; complete the lists, or remove the class everywhere"
        )
    return Listing(tuple(classes), tuple(records), folder, tuple(absent))


HMDB51: Final = Benchmark(
    name="hmdb51",
    title="HMDB51",
    classes=51,
    expected={"train": (3_570, 3_570, 3_570), "test": (1_530, 1_530, 1_530)},
    flip=True,
    sampling="dense",
    stride=2,
    pretrain_stride=2,
    test_clips=10,
    test_crops=3,
    layout=_LAYOUT,
    lists=partial(class_lists, "hmdb51", (VIDEOS, "videos", "hmdb51"), (LISTS, "splits"), _LAYOUT),
)

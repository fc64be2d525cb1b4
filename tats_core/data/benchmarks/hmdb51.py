"""HMDB51 as distributed, unpacked: avi files in class folders and `testTrainMulti_7030_splits`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from tats_core.data.benchmarks.base import Benchmark, Split, absent_error, first_existing, rows, walk
from tats_core.data.manifest import Manifest, VideoRecord
from tats_core.errors import DataError

VIDEOS: Final = "hmdb51_org"
LISTS: Final = "testTrainMulti_7030_splits"
_LAYOUT: Final = (
    f"'{VIDEOS}/{{class}}/*.avi' (or 'videos/'; the rar files unpacked) and "
    f"'{LISTS}/{{class}}_test_split{{1,2,3}}.txt'"
)
FLAGS: Final[dict[Split, str]] = {"train": "1", "test": "2"}
"""Second column of a list; "0" marks a video that this split leaves unused."""


def read(root: Path, split: Split, fold: int = 1) -> Manifest:
    """Read the rows of all `{class}_test_split{fold}.txt` that are flagged as `split`.

    Raises:
        DataError: lists or folder are missing, a row is not `name.avi flag`, or videos are not on disk.
    """
    folder = first_existing(root, (VIDEOS, "videos", "hmdb51"), "folder of videos", "hmdb51", _LAYOUT)
    lists = first_existing(root, (LISTS, "splits"), "folder of lists", "hmdb51", _LAYOUT)
    by_class = {
        match[1]: listing
        for listing in sorted(lists.iterdir())
        if (match := re.fullmatch(rf"(.+)_test_split{fold}\.txt", listing.name))
    }
    if not by_class:
        raise DataError(f"hmdb51: no '*_test_split{fold}.txt' in {lists}; expected layout: {_LAYOUT}")
    videos, absent = [], []
    for label, (class_name, listing) in enumerate(by_class.items()):
        # Some copies keep the archive's own folder, so that it is class/class/name.avi.
        files = {path.name: path for path in walk(folder / class_name, (".avi",))}
        for number, line in rows(listing):
            # File names of this data set may hold blanks and odd characters; the flag is the last word.
            name, _, flag = (word.strip() for word in line.strip().rpartition(" "))
            if flag not in ("0", "1", "2") or not name:
                raise DataError(f"{listing}, line {number}: must be 'name.avi flag', is '{line.strip()}'")
            if flag != FLAGS[split]:
                continue
            if name in files:
                videos.append(VideoRecord(files[name].stem, str(files[name]), label))
            else:
                absent.append(f"{class_name}/{name}")
    if absent:
        raise absent_error("hmdb51", f"{split}, fold {fold}", absent, len(absent) + len(videos), folder)
    return Manifest("hmdb51", split, tuple(by_class), root, tuple(videos))


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
    read=read,
)

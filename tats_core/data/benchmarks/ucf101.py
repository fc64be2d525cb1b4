"""UCF101 as distributed: avi files in class folders and the lists of `ucfTrainTestlist`."""

from __future__ import annotations

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
    whole_number,
)
from tats_core.data.manifest import VideoRecord
from tats_core.errors import DataError

VIDEOS: Final = "UCF-101"
LISTS: Final = "ucfTrainTestlist"
_LAYOUT: Final = (
    f"'{VIDEOS}/{{Class}}/v_*.avi' (or 'videos/') and '{LISTS}/classInd.txt', '{LISTS}/trainlist0N.txt', "
    f"'{LISTS}/testlist0N.txt' for N = 1, 2, 3"
)


def lists(root: Path, split: Split, fold: int) -> Listing:
    """Read `trainlist0N.txt` or `testlist0N.txt` of `fold` N.

    The label is the folder's line in `classInd.txt`: the test lists carry none, and where a training list
    carries one it must agree. Upper and lower case are taken as equal, since copies differ in
    "HandstandPushups".

    Raises:
        NoListError: a list is missing.
        DataError: the folder is missing, or a class is unknown.
    """
    folder = first_existing(root, (VIDEOS, "videos"), "folder of videos", "ucf101", _LAYOUT)
    choices = [f"{LISTS}/classInd.txt", "splits/classInd.txt", "classInd.txt"]
    class_list = first_existing(root, choices, "class list", "ucf101", _LAYOUT, NoListError)
    classes = _classes(class_list)
    index = {name.lower(): number for number, name in enumerate(classes)}
    files = {path.relative_to(folder).as_posix().lower(): path for path in walk(folder, (".avi",))}
    listing = class_list.with_name(f"{split}list{fold:02d}.txt")
    videos: list[VideoRecord] = []
    absent: list[str] = []
    for number, line in rows(listing):
        listed, label = (*line.rsplit(None, 1), "")[:2]
        if label and whole_number(label) is None:
            listed, label = line, ""
        class_name, _, file_name = listed.replace("\\", "/").partition("/")
        if class_name.lower() not in index or not file_name:
            raise DataError(f"{listing}, line {number}: '{listed}' is not 'Class/video.avi' of a known class")
        known = index[class_name.lower()]
        if label and whole_number(label) != known + 1:
            raise DataError(f"{listing}, line {number}: label {label}, but classInd.txt says {known + 1}")
        path = files.get(f"{class_name}/{file_name}".lower())
        if path is None:
            absent.append(listed)
        else:
            videos.append(VideoRecord(Path(file_name).stem, str(path), known))
    return Listing(classes, tuple(videos), folder, tuple(absent))


def _classes(path: Path) -> tuple[str, ...]:
    classes: list[str] = []
    for number, line in rows(path):
        label, name = (*line.split(None, 1), "")[:2]
        expected = len(classes) + 1
        if whole_number(label) != expected or not name:
            raise DataError(f"{path}, line {number}: must be '{expected} ClassName', is '{line}'")
        classes.append(name)
    return tuple(classes)


UCF101: Final = Benchmark(
    name="ucf101",
    title="UCF101",
    classes=101,
    expected={"train": (9_537, 9_586, 9_624), "test": (3_783, 3_734, 3_696)},
    flip=True,
    sampling="dense",
    stride=4,
    pretrain_stride=4,
    test_clips=5,
    test_crops=3,
    layout=_LAYOUT,
    lists=lists,
    group=r"v_(.+_g\d+)_c\d+",
)

"""UCF101 as distributed: avi files in class folders and the lists of `ucfTrainTestlist`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tats_core.data.benchmarks.base import Benchmark, Split, absent_error, first_existing, rows, walk
from tats_core.data.manifest import Manifest, VideoRecord
from tats_core.errors import DataError

VIDEOS: Final = "UCF-101"
LISTS: Final = "ucfTrainTestlist"
_LAYOUT: Final = (
    f"'{VIDEOS}/{{Class}}/v_*.avi' (or 'videos/') and '{LISTS}/classInd.txt', '{LISTS}/trainlist0N.txt', "
    f"'{LISTS}/testlist0N.txt' for N = 1, 2, 3"
)


def read(root: Path, split: Split, fold: int = 1) -> Manifest:
    """Read `trainlist0N.txt` or `testlist0N.txt` of `fold` N.

    The label is the folder's line in `classInd.txt`: the test lists carry none, and where a training list
    carries one it must agree. Upper and lower case are taken as equal, since copies differ in
    "HandStandPushups".

    Raises:
        DataError: a list or folder is missing, a class is unknown, or videos are not on disk.
    """
    folder = first_existing(root, (VIDEOS, "videos"), "folder of videos", "ucf101", _LAYOUT)
    lists = first_existing(root, (LISTS, "splits", "."), "folder of lists", "ucf101", _LAYOUT)
    classes = _classes(lists / "classInd.txt")
    index = {name.lower(): number for number, name in enumerate(classes)}
    files = {path.relative_to(folder).as_posix().lower(): path for path in walk(folder, (".avi",))}
    listing = lists / f"{split}list{fold:02d}.txt"
    videos, absent = [], []
    for number, line in rows(listing):
        listed, _, label = line.strip().partition(" ")
        class_name, _, file_name = listed.partition("/")
        if class_name.lower() not in index or not file_name:
            raise DataError(f"{listing}, line {number}: '{listed}' is not 'Class/video.avi' of a known class")
        known = index[class_name.lower()]
        if label and label.strip() != str(known + 1):
            raise DataError(
                f"{listing}, line {number}: label {label.strip()}, but classInd.txt says {known + 1}"
            )
        path = files.get(listed.lower())
        if path is None:
            absent.append(listed)
        else:
            videos.append(VideoRecord(Path(file_name).stem, str(path), known))
    if absent:
        raise absent_error("ucf101", f"{split}, fold {fold}", absent, len(absent) + len(videos), folder)
    return Manifest("ucf101", split, classes, root, tuple(videos))


def _classes(path: Path) -> tuple[str, ...]:
    classes: list[str] = []
    for number, line in rows(path):
        label, _, name = line.strip().partition(" ")
        expected = len(classes) + 1
        if label != str(expected) or not name:
            raise DataError(f"{path}, line {number}: must be '{expected} ClassName', is '{line.strip()}'")
        classes.append(name.strip())
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
    read=read,
)

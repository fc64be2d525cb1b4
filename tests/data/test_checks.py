"""What `tats data check` finds in a copy of UCF101 with one fault of each kind."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from tats_core.data import checks
from tats_core.data.benchmarks import BENCHMARKS
from tats_core.data.checks import Copy

LISTS = "ucfTrainTestlist"


@pytest.fixture
def copy(tiny_root: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_root / "ucf101", tmp_path / "ucf101")


def check(root: Path, decode: int = 0) -> Copy:
    return checks.check(BENCHMARKS["ucf101"], root, None, decode, lambda *_: None, workers=1)


def listed(root: Path, split: str, fold: int = 1) -> list[str]:
    return [
        line.split()[0] for line in (root / LISTS / f"{split}list{fold:02d}.txt").read_text().splitlines()
    ]


def test_a_sound_copy_has_counts_and_no_finding(copy: Path) -> None:
    checked = check(copy, decode=1)
    assert checked.findings == ()
    assert checked.counts[0] == "train 1: 16 videos (official 9537), 8 classes (official 101)"
    assert len(checked.counts) == 6
    # One of each split of the first fold was decoded, the others are known by their bytes.
    assert checked.index.table["fault"].drop_null().to_pylist() == ["", ""]
    assert checked.index.table["head"].null_count == 0


def test_each_kind_of_fault_is_a_finding_with_its_videos(copy: Path) -> None:
    train, test = listed(copy, "train"), listed(copy, "test")
    videos = copy / "UCF-101"
    # One is missing, with a file of nearly its name; one is a link from training to test; one is in both
    # lists; one is damaged; and the groups of the generated clips are taken for recordings.
    shutil.rmtree(copy / "ground_truth_motion")
    (videos / train[0]).rename(videos / train[0].replace("v_", "v-"))
    (videos / train[1]).unlink()
    (videos / train[1]).symlink_to(videos / test[0])
    with (copy / LISTS / "testlist01.txt").open("a") as lines:
        lines.write(f"{train[3]}\n")
    (videos / train[4]).write_bytes(b"no video")
    found = {}
    for finding in check(copy, decode=100).findings:
        found.setdefault(finding.kind, []).append(finding)
    assert found.keys() == {"missing", "overlap", "recording", "damaged", "duplicate"}

    missing = found["missing"][0]
    assert missing.is_problem
    assert missing.text.startswith("ucf101 (train, fold 1): 1 of the 16 listed videos are not in ")
    assert missing.text.endswith("set 'missing: allow' in the data stage, which marks every table")
    near = videos / train[0].replace("v_", "v-")
    assert missing.rows == (("train 1", train[0], "", f"not on disk; near: {near}"),)

    (overlap,) = found["overlap"]
    assert overlap.text.startswith("fold 1: ucf101: the training list has 1 of the ")
    assert [row.id for row in overlap.rows] == [Path(train[3]).stem]

    recordings = found["recording"][0]
    assert recordings.text.startswith("fold 1: ucf101: 8 recordings have clips in both lists (the first is ")
    assert {row.id for row in recordings.rows} == {Path(name).stem for name in [*test, train[3]]}

    (damaged,) = found["damaged"]
    assert damaged.is_problem
    assert [row.id for row in damaged.rows] == [Path(train[4]).stem]

    (duplicate,) = found["duplicate"]
    assert {duplicate.rows[0].id} < {Path(train[1]).stem, Path(test[0]).stem}
    assert duplicate.text.endswith("; 1 lie in the training and in the test of a split")

    rows = list(csv.DictReader(checks.ledger({"ucf101": check(copy, decode=100)}).splitlines()))
    assert {row["finding"] for row in rows} == found.keys()
    assert sum(row["finding"] == "damaged" for row in rows) == 1


def test_short_videos_and_lists_that_are_missing_are_warnings(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "SHORT", 21)
    (copy / LISTS / "testlist03.txt").unlink()
    found = {finding.kind: finding for finding in check(copy, decode=1).findings}
    assert found["short"].text.startswith("2 videos have fewer than 21 frames (the first is UCF-101/")
    assert found["list"].text.startswith("1 of the 6 lists of ucf101 are missing: ")
    assert not any(finding.is_problem for finding in found.values())
    shutil.rmtree(copy / LISTS)
    (finding,) = check(copy).findings
    assert finding.is_problem

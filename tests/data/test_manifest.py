from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tats_core.data.clips import Segment
from tats_core.data.manifest import UNLABELLED, Manifest, VideoRecord
from tats_core.errors import DataError


def manifest(root: Path, per_class: int = 5, classes: tuple[str, ...] = ("left", "right", "up")) -> Manifest:
    videos = tuple(
        VideoRecord(f"{name}{number}", str(root / name / f"{number}.avi"), label)
        for number in range(per_class)
        for label, name in enumerate(classes)
    )
    return Manifest("ucf101", "train", classes, root, videos)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    saved = replace(manifest(tmp_path / "elsewhere"), absent=3)
    saved.save(tmp_path / "lists" / "ucf101.train.json")
    assert Manifest.load(tmp_path / "lists" / "ucf101.train.json") == saved


def test_a_folder_with_manifest_and_videos_can_be_moved(tmp_path: Path) -> None:
    before = tmp_path / "stage.partial"
    manifest(before / "ucf101").save(before / "ucf101.train.json")
    shutil.move(before, tmp_path / "stage")
    loaded = Manifest.load(tmp_path / "stage" / "ucf101.train.json")
    assert loaded.root == tmp_path / "stage" / "ucf101"
    assert loaded.videos[0].path == str(tmp_path / "stage" / "ucf101" / "left" / "0.avi")


def test_a_file_name_that_is_not_text_survives(tmp_path: Path) -> None:
    video = VideoRecord("odd", str(tmp_path / "odd\udcff.avi"), 0)
    Manifest("hmdb51", "train", ("a",), tmp_path, (video,)).save(tmp_path / "m.json")
    assert Manifest.load(tmp_path / "m.json").videos == (video,)


def test_a_segment_of_a_file_survives_and_counts(tmp_path: Path) -> None:
    whole = VideoRecord("a", str(tmp_path / "a.mp4"), 0)
    parts = [replace(whole, segment=part) for part in (Segment(3, 9), Segment(1.5, None, "second"))]
    digests = set()
    for video in (whole, *parts):
        manifest = Manifest("diving48", "train", ("x",), tmp_path, (video,))
        manifest.save(tmp_path / "m.json")
        assert Manifest.load(tmp_path / "m.json") == manifest
        digests.add(manifest.digest())
    assert len(digests) == 3


def test_the_digest_depends_on_what_is_listed_and_not_on_where_it_lies(tmp_path: Path) -> None:
    here = manifest(tmp_path / "a")
    assert here.digest() == manifest(tmp_path / "b").digest()
    relabelled = (replace(here.videos[0], label=2), *here.videos[1:])
    for other in (
        replace(here, videos=relabelled),
        replace(here, videos=here.videos[1:]),
        replace(here, split="test"),
        replace(here, classes=("left", "right", "down")),
    ):
        assert other.digest() != here.digest()


def test_few_labels_are_balanced_nested_and_independent_of_the_order(tmp_path: Path) -> None:
    whole = manifest(tmp_path, per_class=20)
    two, four = whole.few_labels(2, seed=1), whole.few_labels(4, seed=1)
    assert sorted(two.labels()) == [0, 0, 1, 1, 2, 2]
    assert set(two.videos) < set(four.videos)
    backwards = replace(whole, videos=whole.videos[::-1])
    assert set(backwards.few_labels(2, seed=1).videos) == set(two.videos)
    assert set(whole.few_labels(2, seed=2).videos) != set(two.videos)


def test_a_spread_of_a_sorted_list_takes_the_same_number_of_each_class(tmp_path: Path) -> None:
    whole = manifest(tmp_path, per_class=6)
    by_class = replace(whole, videos=tuple(sorted(whole.videos, key=lambda video: video.label)))
    assert by_class.spread(6).labels() == [0, 0, 1, 1, 2, 2]
    assert [video.label for video in by_class.videos[:6]] == [0] * 6
    assert by_class.spread(18) is by_class.spread(50) is by_class


def test_more_labels_than_there_are_is_an_error_that_names_the_class(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="class 'left' has 5 videos, fewer than the 6"):
        manifest(tmp_path).few_labels(6, seed=0)


def test_a_manifest_refuses_what_makes_no_sense(tmp_path: Path) -> None:
    good = manifest(tmp_path)
    with pytest.raises(DataError, match="no video is listed"):
        replace(good, videos=())
    with pytest.raises(DataError, match="'left0' has label 3, but there are 3 classes"):
        replace(good, videos=(replace(good.videos[0], label=3),))
    with pytest.raises(DataError, match="two classes are called 'up'"):
        replace(good, classes=("up", "left", "up"))
    with pytest.raises(DataError, match="'left0' is listed twice"):
        replace(good, videos=(good.videos[0], good.videos[0]))
    assert replace(good, videos=(replace(good.videos[0], label=UNLABELLED),)).labels() == [-1]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is not JSON"),
        ("{}", "is not a manifest of format 1"),
        ('{"format": 2}', "is not a manifest of format 1"),
    ],
)
def test_a_file_that_is_no_manifest_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(DataError, match=f"m.json.*{sentence}"):
        Manifest.load(tmp_path / "m.json")
    with pytest.raises(DataError, match="cannot be read"):
        Manifest.load(tmp_path / "none.json")

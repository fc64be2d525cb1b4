"""The index of a data set: what is in it, when it is brought up to date, what it notices."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from tats_core.data import index
from tats_core.data.benchmarks import BENCHMARKS
from tats_core.data.clips import Segment
from tats_core.data.index import Index
from tats_core.data.manifest import Manifest, VideoRecord
from tats_core.errors import DataError, Stopped


def paths_of(*manifests: Manifest) -> set[str]:
    return {video.path for manifest in manifests for video in manifest.videos}


@pytest.fixture
def copy(tiny_root: Path, tmp_path: Path) -> Path:
    """A copy of the generated UCF101 that a test may change."""
    return shutil.copytree(tiny_root / "ucf101", tmp_path / "ucf101")


def test_a_row_has_what_the_lists_and_a_decode_of_the_file_say(tiny_root: Path, tmp_path: Path) -> None:
    listed = index.listed("ucf101", tiny_root / "ucf101")
    assert [name for name, _ in listed] == [f"{split} {n}" for n in (1, 2, 3) for split in ("train", "test")]
    store = tmp_path / "ucf101.parquet"
    made = index.update(store, listed, decode=paths_of(*(manifest for _, manifest in listed)), workers=1)
    rows = {row["id"]: row for row in made.table.to_pylist()}
    train = listed[0][1]
    assert len(rows) == len(made) == 24  # three clips of each of eight classes, each once though in all folds
    video = train.videos[0]
    row = rows[video.id]
    assert (row["path"], row["label"], row["class"]) == (
        str(Path(video.path).relative_to(tiny_root / "ucf101")),
        video.label,
        train.classes[video.label],
    )
    assert row["splits"].split(",")[0] == "train 1"
    assert row["bytes"] == Path(video.path).stat().st_size
    assert (row["fault"], row["declared"], row["frames"], row["decodable"]) == ("", 20, 20, 20)
    assert (row["corrupt"], row["height"], row["width"], row["rotation"]) == ([], 32, 32, 0)
    assert (row["codec"], row["pixel_format"]) == ("mpeg4", "yuv420p")
    # Groups of 12 frames, the anchors before their B-frames: I0 P3 B1 B2 P6 B4 B5 P9 B7 B8 I12.
    assert row["key_frames"] == [0, 10]
    assert (row["start"], row["end"], row["unit"]) == (None, None, None)
    assert Index.load(store).table.equals(made.table)
    assert Index.load(store).digest() == made.digest()


def test_only_what_is_new_changed_or_not_decoded_yet_is_examined(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "index.parquet"
    listed = index.listed("ucf101", copy)
    train, test = listed[0][1], listed[1][1]
    examined: list[str] = []
    facts = index._facts

    def counted(file: tuple[str, str, bool]) -> object:
        examined.append(file[1])
        return facts(file)

    monkeypatch.setattr(index, "_facts", counted)

    def update(*decoded: Manifest) -> list[str]:
        examined.clear()
        index.update(store, listed, decode=paths_of(*decoded), workers=1)
        return examined

    assert len(update()) == 24
    assert Index.load(store).table["fault"].null_count == 24
    assert set(update(test)) == paths_of(test)
    assert update() == update(test) == []
    os.utime(test.videos[0].path)
    Path(train.videos[1].path).write_bytes(b"another")
    assert set(update(test)) == {test.videos[0].path, train.videos[1].path}
    # Rows of what is no longer listed go, and come back examined anew.
    examined.clear()
    assert len(index.update(store, listed[:1], workers=1)) == len(train)
    assert (len(update()), examined) == (24 - len(train), examined)


def test_a_replaced_file_changes_the_digests_and_a_touched_or_moved_one_does_not(
    copy: Path, tmp_path: Path
) -> None:
    def digests(root: Path) -> tuple[str, str]:
        listed = index.listed("ucf101", root)
        made = index.update(None, listed, workers=1)
        return made.digest(), replace(listed[0][1], content=made.content(listed[0][1])).digest()

    before = digests(copy)
    video = BENCHMARKS["ucf101"].read(copy, "train").videos[3].path
    os.utime(video, (0, 0))
    copy.rename(tmp_path / "moved")
    assert digests(tmp_path / "moved") == before
    moved = Path(video.replace(str(copy), str(tmp_path / "moved")))
    moved.write_bytes(moved.read_bytes()[:-1] + b"x")
    after = digests(tmp_path / "moved")
    assert all(new != old for new, old in zip(after, before, strict=True))


def test_a_listed_file_that_cannot_be_opened_is_part_of_the_digest(
    tiny: dict[str, Manifest], tmp_path: Path
) -> None:
    (tmp_path / "gone.webm").symlink_to(tmp_path / "nowhere")
    videos = (replace(tiny["ssv2"].videos[0], path=str(tmp_path / "gone.webm")), *tiny["ssv2"].videos[1:])
    manifest = replace(tiny["ssv2"], videos=videos)
    content = index.update(None, [("train", manifest)], workers=1).content(manifest)
    assert content != index.update(None, [("train", tiny["ssv2"])], workers=1).content(tiny["ssv2"])


@pytest.mark.parametrize("workers", [1, 2])
def test_damaged_files_are_named_in_the_manifests_order(
    tiny: dict[str, Manifest], tmp_path: Path, workers: int
) -> None:
    videos = list(tiny["ssv2"].videos)  # 20: two pieces of work
    for number, content in ((17, b"no video"), (2, Path(videos[2].path).read_bytes()[:-900])):
        path = tmp_path / f"damaged{number}.webm"
        path.write_bytes(content)
        videos[number] = replace(videos[number], path=str(path))
    manifest = replace(tiny["ssv2"], videos=tuple(videos))
    calls: list[tuple[int, int]] = []
    made = index.update(
        None,
        [("train", manifest)],
        decode=paths_of(manifest),
        progress=lambda *done: calls.append(done),
        workers=workers,
    )
    faults = made.faults(manifest)
    assert list(faults) == [videos[2].id, videos[17].id]
    assert faults[videos[2].id].startswith(f"{tmp_path}/damaged2.webm: is damaged (20 frames declared, ")
    assert faults[videos[17].id].startswith(f"{tmp_path}/damaged17.webm: cannot be read")
    assert calls[-1] == (20, 20)


def test_an_index_that_is_stopped_resumes(tiny: dict[str, Manifest], tmp_path: Path) -> None:
    manifest, store = tiny["ssv2"], tmp_path / "index.parquet"

    def stop(done: int, total: int) -> None:
        if done == 5:
            raise Stopped

    decode = paths_of(manifest)
    with pytest.raises(Stopped):
        index.update(store, [("train", manifest)], decode=decode, progress=stop, workers=1)
    assert Index.load(store).table["head"].null_count == 20 - 5
    left: list[int] = []
    made = index.update(
        store, [("train", manifest)], decode=decode, progress=lambda done, _: left.append(done), workers=1
    )
    assert left == list(range(6, 21))
    assert made.faults(manifest) == {}


def test_segments_of_a_file_are_rows_and_names_that_are_no_text_are_spelt(tmp_path: Path) -> None:
    path = tmp_path / "odd\udcff.mp4"
    path.write_bytes(b"no video")
    videos = tuple(VideoRecord(f"{n}", str(path), -1, Segment(n, n + 1, "second")) for n in range(2))
    manifest = Manifest("own", "train", (), tmp_path, videos)
    made = index.update(tmp_path / "i.parquet", [("train", manifest)], decode={str(path)}, workers=1)
    assert made.table["path"].to_pylist() == [r"odd\xff.mp4"] * 2
    assert made.table["start"].to_pylist() == [0, 1]
    assert made.table["class"].to_pylist() == [None, None]
    assert len(made.faults(manifest)) == 2
    assert len(made.content(manifest)) == 64


def test_what_is_no_index_is_named(tmp_path: Path) -> None:
    (tmp_path / "i.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"the index .*i\.parquet cannot be read .*; make it again"):
        Index.load(tmp_path / "i.parquet")
    parquet.write_table(pa.table({"id": ["a"]}), tmp_path / "i.parquet")
    with pytest.raises(DataError, match=r"is not an index of this version"):
        Index.load(tmp_path / "i.parquet")

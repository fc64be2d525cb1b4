"""A file is read from end to end once; then only where it is needed, and never wrongly."""

from __future__ import annotations

import os
from array import array
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tats_core.data import packets, readers
from tats_core.data.generate import Encoding, encode
from tats_core.data.video import opened
from tats_core.errors import VideoError
from tests.data.films import film

ENCODINGS = {
    "mp4": Encoding("mp4", "libx264", {"g": "10", "bf": "2"}),
    "matroska": Encoding("matroska", "libx264", {"g": "10", "bf": "2"}),
    "webm": Encoding("webm", "libvpx-vp9", {"g": "10"}),
    "avi": Encoding("avi", "mpeg4", {"g": "10", "bf": "2", "qmin": "2", "qmax": "4"}),
}
FRAMES = 60


@pytest.fixture(params=ENCODINGS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"video.{request.param}"
    encode(path, film(FRAMES, 48, 64), 25, ENCODINGS[request.param])
    return path


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The positions of the packets that are read from files."""
    positions: list[int] = []
    demuxed = packets.Packets._demuxed

    def counted(self):
        for packet in demuxed(self):
            positions.append(packet.pos)
            yield packet

    monkeypatch.setattr(packets.Packets, "_demuxed", counted)
    return positions


def frames(path: Path, *indices: int) -> NDArray[np.uint8]:
    return readers.read_clip(path, lambda _: np.array(indices))


def scan_of(path: Path) -> packets.Scan:
    with opened(path, 60) as video:
        return video._packets.scan


def test_the_second_time_only_what_is_near_to_the_wanted_frames_is_read(path: Path, read: list[int]) -> None:
    all_THWC = readers.read_all(path)
    assert len(read) == FRAMES
    for wanted in ((57, 58), (31,), (2, 44)):
        read.clear()
        assert np.array_equal(frames(path, *wanted), all_THWC[[*wanted]])
        assert 0 < len(read) <= 15 * len({index // 10 for index in wanted})


def test_a_file_that_changed_is_read_from_end_to_end_again(path: Path, read: list[int]) -> None:
    readers.read_all(path)
    encode(path, film(FRAMES, 48, 64)[::-1], 25, ENCODINGS[path.suffix[1:]])
    os.utime(path, ns=(1, 1))
    read.clear()
    after_THWC = frames(path, 57)
    assert len(read) == FRAMES
    assert np.array_equal(after_THWC, readers.read_all(path)[[57]])


def test_an_index_that_leads_to_an_earlier_packet_costs_time_alone(path: Path) -> None:
    all_THWC = readers.read_all(path)
    scan = scan_of(path)
    scan.seeks = dict.fromkeys(scan.seeks, scan.seeks[0])
    assert np.array_equal(frames(path, 3, 33, 58), all_THWC[[3, 33, 58]])


def test_an_index_that_leads_astray_is_not_followed(path: Path, read: list[int]) -> None:
    all_THWC = readers.read_all(path)
    scan = scan_of(path)
    scan.seeks = dict.fromkeys(scan.seeks, max(scan.seeks.values()))
    read.clear()
    assert np.array_equal(frames(path, 3, 33, 58), all_THWC[[3, 33, 58]])
    assert len(read) > FRAMES


def test_other_content_of_the_same_size_and_time_is_noticed(path: Path) -> None:
    scan = scan_of(path)
    scan.positions = array("q", (position + 1 for position in scan.positions))
    with pytest.raises(VideoError, match="changed while it was read"):
        frames(path, 33)


def test_what_is_remembered_is_bounded_and_the_scan_used_longest_ago_goes(
    monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    scan = scan_of(path)
    monkeypatch.setattr(packets, "_REMEMBERED_BYTES", 3 * packets._bytes(scan))
    memory = packets._Memory()
    keys = [(name, 0, 0) for name in "abcd"]
    for key in keys[:3]:
        memory.put(key, scan)
    memory.put(keys[2], scan)  # again: counted once
    assert memory.get(keys[0]) is scan
    memory.put(keys[3], scan)
    assert [memory.get(key) is scan for key in keys] == [True, False, True, True]

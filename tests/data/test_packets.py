"""A file is read from end to end once; then only where it is needed, and never wrongly."""

from __future__ import annotations

import os
from array import array
from pathlib import Path
from typing import Any

import av
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


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_headers_in_the_first_packet_alone_hold_however_often_a_file_is_read(
    tmp_path: Path, container: str
) -> None:
    """And not those of the container, which are of another encoding: only colours would differ."""
    shifted, path = tmp_path / "shifted", tmp_path / "video"
    for name, offset in ((path, 0), (shifted, 8)):
        options = {"g": "10", "qp": "20", "x264-params": f"chroma-qp-offset={offset}"}
        encode(name, film(FRAMES, 48, 64), 25, Encoding(container, "libx264", options))
    all_THWC = readers.read_all(path)
    with av.open(path) as source, av.open(shifted) as other:
        (stream,), (template,) = source.streams.video, other.streams.video
        pieces = [packet for packet in source.demux(stream) if packet.size]
        first = _parameter_sets(stream.codec_context.extradata) + bytes(pieces[0])
        with av.open(tmp_path / "mixed", "w", format=container) as mixed:
            target = mixed.add_stream_from_template(template)
            for content, piece in zip([first, *map(bytes, pieces[1:])], pieces, strict=True):
                packet = av.Packet(content)
                packet.pts, packet.dts, packet.time_base = piece.pts, piece.dts, piece.time_base
                packet.is_keyframe, packet.stream = piece.is_keyframe, target
                mixed.mux(packet)
    assert np.array_equal(readers.read_all(tmp_path / "mixed"), all_THWC)
    assert 30 in scan_of(tmp_path / "mixed").seeks
    assert np.array_equal(frames(tmp_path / "mixed", 31, 58), all_THWC[[31, 58]])


def _parameter_sets(header: bytes) -> bytes:
    """Return both sets of an avcC as units with lengths of four bytes (ISO/IEC 14496-15, 5.3.3.1)."""
    end = 8 + int.from_bytes(header[6:8])
    length = int.from_bytes(header[end + 1 : end + 3])
    sets = (header[8:end], header[end + 3 : end + 3 + length])
    return b"".join(len(content).to_bytes(4) + content for content in sets)


def test_a_damaged_file_gives_the_same_frames_each_time(tmp_path: Path) -> None:
    """Which frames MPEG-4's decoder completes, and which it flags, depends on what it has decoded before."""
    sound, path = tmp_path / "sound.avi", tmp_path / "damaged.avi"
    encode(sound, film(FRAMES, 48, 64), 25, ENCODINGS["avi"])
    content, scan = sound.read_bytes(), scan_of(sound)
    for start in scan.seeks:
        at = scan.positions[start] + 76
        path.write_bytes(content[:at] + content[at + 4 :])
        os.utime(path, ns=(start, start))
        for index in range(start, min(start + 6, FRAMES - 1)):
            packets._memory._scans.clear()
            readings = [frames(path, index) for _ in range(2)]
            assert np.array_equal(*readings), (start, index)


def test_packets_that_begin_at_the_same_byte_are_never_sought(
    monkeypatch: pytest.MonkeyPatch, path: Path, read: list[int]
) -> None:
    monkeypatch.setattr(packets, "_positions", lambda all_packets: array("q", [7] * len(all_packets)))
    all_THWC = readers.read_all(path)
    read.clear()
    assert np.array_equal(frames(path, 57), all_THWC[[57]])
    assert len(read) == FRAMES


def test_a_file_that_is_replaced_while_it_is_opened_is_not_taken_for_the_new_one(
    monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    new = path.with_name("new")
    encode(new, film(FRAMES, 48, 64)[::-1], 25, ENCODINGS[path.suffix[1:]])
    expected_THWC = readers.read_all(new)
    av_open = av.open

    def replaced(*arguments: Any, **options: Any) -> Any:
        container = av_open(*arguments, **options)
        if new.exists():
            new.replace(path)
        return container

    monkeypatch.setattr(av, "open", replaced)
    frames(path, 57)
    assert np.array_equal(frames(path, 57), expected_THWC[[57]])


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

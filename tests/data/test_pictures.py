"""Packets made by hand: bytes of a few headers, and the numbers that follow from them."""

from __future__ import annotations

import av
import pytest

from tats_core.data.pictures import Numbering, number

MP4 = "mov,mp4,m4a,3gp,3g2,mj2"
AVCC = bytes([1, 100, 0, 31, 0xFF, 0xE1])  # lengths of four bytes
IDR, SLICE, SPS = b"\x65", b"\x41", b"\x67"
KEY, INTER, HIDDEN, REPEAT = b"\x82", b"\x86", b"\x84", b"\x88"  # VP9 headers


def unit(*units: bytes) -> bytes:
    return b"".join(len(data).to_bytes(4) + data for data in units)


def vop(kind: str, size: int = 20, before: bytes = b"") -> bytes:
    return before + b"\x00\x00\x01\xb6" + bytes(["IPBS".index(kind) << 6]) + bytes(size)


def numbered(
    codec: str,
    *packets: bytes | tuple[bytes, int | None],
    container: str = MP4,
    extradata: bytes | None = AVCC,
) -> Numbering | None:
    made = []
    for count, given in enumerate(packets):
        data, time = given if isinstance(given, tuple) else (given, count)
        packet = av.Packet(data)
        packet.pts = time
        made.append(packet)
    return number(made, container, codec, extradata)  # type: ignore[arg-type]


def test_h264_is_numbered_by_time_and_started_at_pictures_that_refresh_the_decoder() -> None:
    # In the file I0 P3 B1 B2 | I4 P5: the second group needs nothing of the first.
    times = [(IDR, 0), (SLICE, 30), (SLICE, 10), (SLICE, 20), (IDR, 40), (SLICE, 50)]
    numbering = numbered("h264", *((unit(data), time) for data, time in times))
    assert numbering == Numbering(frames=(0, 3, 1, 2, 4, 5), starts=(0, 4))
    assert [numbering.start_for(frame) for frame in range(6)] == [0, 0, 0, 0, 4, 4]


def test_a_key_frame_that_does_not_part_the_film_is_no_start() -> None:
    # The last picture is shown before the second IDR picture, which precedes it in the file.
    late = numbered("h264", (unit(IDR), 0), (unit(IDR), 20), (unit(SLICE), 10))
    assert late == Numbering(frames=(0, 2, 1), starts=(0,))
    # A recovery point is a key frame of the container and no IDR picture: it is not even looked at.
    assert numbered("h264", (unit(IDR), 0), (unit(SLICE), 1)).starts == (0,)  # type: ignore[union-attr]


def test_a_stream_with_start_codes_instead_of_lengths_is_read_too() -> None:
    packets = [b"\x00\x00\x00\x01" + IDR + b"a", b"\x00\x00\x01" + SLICE + b"b"]
    numbering = numbered("h264", *packets, container="matroska,webm", extradata=None)
    assert numbering == Numbering(frames=(0, 1), starts=(0,))


@pytest.mark.parametrize(
    ("packets", "why"),
    [
        ([(unit(IDR), 0), (unit(SLICE), 0)], "two have the same time"),
        ([(unit(IDR), 0), (unit(SLICE), None)], "one has no time"),
        ([(unit(SLICE), 0), (unit(IDR), 1)], "the first one cannot be decoded"),
        ([(unit(IDR), 0), (unit(SPS), 1)], "one holds no picture"),
        ([(unit(IDR), 0), (unit(b"\x42"), 1)], "one is partitioned"),
        ([(unit(SPS + b"1", IDR), 0), (unit(SPS + b"2", IDR), 1)], "headers change"),
        ([(unit(IDR), 0), (unit(SPS + b"2", IDR), 1)], "headers come on the way"),
        ([], "there is none"),
    ],
)
def test_h264_in_doubt_is_not_numbered(packets: list[tuple[bytes, int | None]], why: str) -> None:
    assert numbered("h264", *packets) is None, why


def test_repeated_headers_are_no_doubt() -> None:
    packets = [(unit(SPS + b"1", IDR), 0), (unit(SLICE), 1), (unit(SPS + b"1", IDR), 2), (unit(IDR), 3)]
    assert numbered("h264", *packets) == Numbering(frames=(0, 1, 2, 3), starts=(0, 2, 3))


def test_avi_states_no_times_that_h264_could_be_numbered_by() -> None:
    assert numbered("h264", (unit(IDR), 0), (unit(SLICE), 1), container="avi") is None


def test_vp9_is_numbered_if_every_packet_shows_one_frame() -> None:
    # Two frames in one packet, of which the first is hidden; the index at the end gives their lengths.
    index = bytes([0b11000001, 3, 2, 0b11000001])
    pair = HIDDEN + b"aa" + INTER + b"b" + index
    numbering = numbered("vp9", KEY + b"a", pair, REPEAT, KEY + b"c")
    assert numbering == Numbering(frames=(0, 1, 2, 3), starts=(0, 3))
    assert numbered("vp9", KEY + b"a", HIDDEN + b"a") is None
    assert numbered("vp9", KEY + b"a", INTER + b"aa" + INTER + b"b" + index) is None
    assert numbered("vp9", KEY + b"a", b"\x00") is None


def test_mpeg4_is_numbered_by_the_kinds_of_its_pictures_and_may_start_at_any_i() -> None:
    # In the file I P B B I B P: shown I B B P B I P. The B after the second I is shown before it.
    numbering = numbered("mpeg4", *(vop(kind) for kind in "IPBBIBP"), container="avi")
    assert numbering == Numbering(frames=(0, 3, 1, 2, 5, 4, 6), starts=(0, 4))
    assert [numbering.start_for(frame) for frame in range(7)] == [0, 0, 0, 0, 0, 4, 4]


@pytest.mark.parametrize(
    "packet",
    [
        vop("P", size=2),  # may be "not coded", which shows nothing
        vop("P") + vop("B"),  # DivX packs two into one packet
        b"\x00\x00\x01\xb0",
        vop("I", before=b"\x00\x00\x01\x20another layer"),
    ],
)
def test_mpeg4_in_doubt_is_not_numbered(packet: bytes) -> None:
    assert numbered("mpeg4", vop("I"), packet, container="avi") is None


def test_another_codec_is_not_numbered() -> None:
    assert numbered("hevc", (unit(IDR), 0)) is None

"""Which picture each packet of a video stream holds, where that can be told without decoding.

With it a reader knows the number of frames before it decodes the first one, enters a stream at the nearest
key frame, skips what no wanted frame refers to, and still gives the frames of a decode from the start. A
stream for which any doubt remains has no such numbers and is decoded from the start:

* H.264 (ITU-T H.264, 7.3.1, 7.4.1) in mp4 or Matroska, which give every picture its time: each packet must
  hold a coded slice, no two the same time. A decoder may start at an IDR picture that all others of the file
  precede or follow in both orders. A key frame of a container may be less: after a recovery point, the first
  frames are wrong.
* VP9 (bitstream specification 6.2, annex B), likewise: each packet must show one frame; key frames start.
* MPEG-4 part 2 (ISO/IEC 14496-2, 6.2.5): each packet must hold one coded VOP. Times are not needed, since a
  B-VOP is shown before the anchor that precedes it in the file, and never referred to: any I-VOP may start.
"""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, NamedTuple, TypeAlias

import av
import numpy as np

Packet: TypeAlias = "av.Packet[av.VideoStream]"


@dataclass(frozen=True, slots=True)
class Numbering:
    """The pictures of a stream, numbered as they are shown."""

    frames: tuple[int, ...]
    """Of each packet, the index of its frame."""
    starts: tuple[int, ...]
    """Packets, ascending, from which a decoder gives the frame of that packet and all later ones."""

    def start_for(self, frame: int) -> int:
        """Return the last packet from which on a decoder gives `frame`."""
        return self.starts[bisect(self.starts, frame, key=self.frames.__getitem__) - 1]


class _Picture(NamedTuple):
    """What the bytes of one packet say."""

    starts: bool
    """A decoder that has seen the first packet can start here."""
    anchor: bool = True
    """Others may refer to it."""
    setup: bytes = b""
    """Headers that hold from here on."""


_Parse = Callable[[bytes], _Picture | None]
"""From the bytes of a packet to its picture; None if it is not plainly one picture."""

_TIMED: Final = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}
"""Containers that store the time at which each picture is shown."""


def number(
    packets: Sequence[Packet], container: str, codec: str, extradata: bytes | None
) -> Numbering | None:
    """Return the numbers of the pictures of a stream, or None if some doubt remains.

    Args:
        packets: all packets of the stream, in the order of the file.
        container, codec: their names, as FFmpeg calls them.
    """
    timed = codec != "mpeg4"
    parse = _parser(codec, extradata) if container in _TIMED or not timed else None
    if parse is None:
        return None
    pictures: list[_Picture] = []
    times: list[int] = []
    for packet in packets:
        picture = parse(bytes(packet))
        odd = packet.is_discard or packet.is_corrupt or packet.has_sidedata("new_extradata")
        if picture is None or odd or (timed and packet.pts is None):
            return None
        pictures.append(picture)
        times.append(packet.pts or 0)
    setups = [picture.setup for picture in pictures if picture.setup]
    # Headers that change on the way, or first come on the way, hold for a part of the pictures only.
    if len(set(setups)) > 1 or (setups and not pictures[0].setup):
        return None
    if timed and len(set(times)) < len(times):
        return None
    order = np.argsort(times) if timed else _order_of_anchors(pictures)
    frames = np.argsort(order).tolist()
    starts = _starts(pictures, frames)
    return Numbering(tuple(frames), starts) if starts[:1] == (0,) else None


def _order_of_anchors(pictures: Sequence[_Picture]) -> list[int]:
    order: list[int] = []
    waiting: list[int] = []  # the last anchor, until the next one comes
    for packet, picture in enumerate(pictures):
        if picture.anchor:
            order += waiting
            waiting = [packet]
        else:
            order.append(packet)
    return order + waiting


def _starts(pictures: Sequence[_Picture], frames: Sequence[int]) -> tuple[int, ...]:
    highest_before = [-1, *accumulate(frames, max)]
    # What nothing refers to may follow the start and be shown before it: another start serves it.
    after = [
        index if picture.anchor else len(frames) for index, picture in zip(frames, pictures, strict=True)
    ]
    lowest_after = [*accumulate(reversed(after), min, initial=len(frames))][-2::-1]
    return tuple(
        packet
        for packet, picture in enumerate(pictures)
        if picture.starts and highest_before[packet] < frames[packet] < lowest_after[packet]
    )


# ---------------------------------------------------------------------------------------------- codecs


def _parser(codec: str, extradata: bytes | None) -> _Parse | None:
    if codec == "h264":
        # The header of the stream (avcC) says in how many bytes a unit's length is given; without it, start
        # codes separate the units.
        lengths = (extradata[4] & 3) + 1 if extradata and len(extradata) > 4 and extradata[0] == 1 else None
        return lambda data: _h264(data, lengths)
    return {"vp9": _vp9, "mpeg4": _mpeg4}.get(codec)


_SLICE: Final = 1
_PARTITIONS: Final = {2, 3, 4}
_IDR_SLICE: Final = 5
_PARAMETER_SETS: Final = {7, 8}
_START_CODE: Final = re.compile(rb"\x00\x00\x01")


def _h264(data: bytes, length_bytes: int | None) -> _Picture | None:
    units = [(unit[0] & 0x1F, unit) for unit in _h264_units(data, length_bytes) if unit]
    kinds = {kind for kind, _ in units}
    if kinds & _PARTITIONS or not kinds & {_SLICE, _IDR_SLICE}:
        return None
    setup = b"".join(unit for kind, unit in units if kind in _PARAMETER_SETS)
    return _Picture(starts=_IDR_SLICE in kinds, setup=setup)


def _h264_units(data: bytes, length_bytes: int | None) -> list[bytes]:
    if length_bytes is None:
        return _START_CODE.split(data)[1:]
    units, at = [], 0
    while at + length_bytes < len(data):
        end = at + length_bytes + int.from_bytes(data[at : at + length_bytes])
        units.append(data[at + length_bytes : end])
        at = end
    return units


def _vp9(data: bytes) -> _Picture | None:
    headers = [data[at] for at in _vp9_frames(data)]
    # The first byte of a header: marker 10, profile (3 has another header), shows an earlier frame, follows
    # others, is shown.
    if any(header >> 6 != 2 or header & 0x30 == 0x30 for header in headers):
        return None
    if sum(bool(header & 0b1010) for header in headers) != 1:
        return None
    return _Picture(starts=not headers[0] & 0b1100)


def _vp9_frames(data: bytes) -> list[int]:
    """Return where each frame of a packet begins: the index at its end, if any, gives their lengths."""
    last = data[-1]
    count, size_bytes = (last & 7) + 1, (last >> 3 & 3) + 1
    index_bytes = 2 + count * size_bytes
    if last & 0xE0 != 0xC0 or len(data) < index_bytes or data[-index_bytes] != last:
        return [0]
    index = data[-index_bytes + 1 : -1]
    sizes = [int.from_bytes(index[at : at + size_bytes], "little") for at in range(0, len(index), size_bytes)]
    begins = [*accumulate(sizes[:-1], initial=0)]
    return [at for at in begins if at < len(data)]


_VOP: Final = re.compile(rb"\x00\x00\x01\xb6(.)", re.DOTALL)
_LAYER: Final = re.compile(rb"\x00\x00\x01[\x20-\x2f].*?(?=\x00\x00\x01)", re.DOTALL)
_FEWEST_BYTES: Final = 9  # of a VOP; below it may be one that is "not coded", which gives no frame


def _mpeg4(data: bytes) -> _Picture | None:
    vops = list(_VOP.finditer(data))
    if len(vops) != 1 or len(data) - vops[0].end() < _FEWEST_BYTES:
        return None
    kind = vops[0][1][0] >> 6  # I, P, B, S
    return _Picture(starts=kind == 0, anchor=kind != 2, setup=b"".join(_LAYER.findall(data)))

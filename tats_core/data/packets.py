"""The packets of a video stream: read from end to end once, and afterwards only where they are needed.

What a reading of all packets teaches (`Scan`) is remembered by the process while the file remains the same.
When the file is opened again, its first packet is read, and others from the nearest start of its numbering.
Each has to lie where the scan saw it; else the file is read from end to end after all.
"""

from __future__ import annotations

import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Final, cast

import av
import numpy as np
from av.container import InputContainer
from numpy.typing import NDArray

from tats_core.data import pictures
from tats_core.data.pictures import Numbering, Packet
from tats_core.errors import VideoError

_SEEKABLE: Final = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi"}
"""Containers with an index of their own."""

_REMEMBERED_BYTES: Final = 64 * 2**20
# Of memory that a scan takes, for each packet, and for each key frame.
_SCAN_BYTES: Final = 2048
_PACKET_BYTES: Final = 48
_KEY_FRAME_BYTES: Final = 112


class MovedError(Exception):
    """After a seek, packets are not where the scan saw them: the container's index is damaged."""


@dataclass(slots=True)
class Scan:
    """What a reading of all packets teaches about a stream."""

    key_frames: tuple[int, ...]
    """Packets that the container calls key frames; a decoder may start at fewer (`numbering`)."""
    hidden: int
    """How many packets an edit list hides."""
    repeats: int
    """How many frames an AVI shows again, by empty chunks."""
    times: NDArray[np.int64]
    """When frames are shown, ascending, in the stream's units; those of packets that say so."""
    numbering: Numbering | None
    positions: array[int]
    """Of each packet, the byte of the file at which it begins."""
    seeks: dict[int, int]
    """Of each start of the numbering, the time to seek; empty if the file is read from its beginning."""


class _Memory:
    """The scans used last, by path, size and time of change of their files."""

    def __init__(self) -> None:
        self._scans: OrderedDict[tuple[str, int, int], Scan] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: tuple[str, int, int]) -> Scan | None:
        with self._lock:
            if key in self._scans:
                self._scans.move_to_end(key)
            return self._scans.get(key)

    def put(self, key: tuple[str, int, int], scan: Scan) -> None:
        with self._lock:
            self._bytes += _bytes(scan)
            if key in self._scans:
                self._bytes -= _bytes(self._scans.pop(key))
            self._scans[key] = scan
            while self._bytes > _REMEMBERED_BYTES:
                self._bytes -= _bytes(self._scans.popitem(last=False)[1])


def _bytes(scan: Scan) -> int:
    key_frames = _KEY_FRAME_BYTES * len(scan.key_frames)
    return _SCAN_BYTES + _PACKET_BYTES * len(scan.positions) + key_frames


def _positions(packets: Sequence[Packet]) -> array[int]:
    return array("q", (-1 if packet.pos is None else packet.pos for packet in packets))


_memory: Final = _Memory()


class Packets:
    """The packets of the stream of an open file.

    Args:
        stamp: its size and time of change before it was opened.
        check_time: called before each packet; raises when reading has taken too long.
    """

    def __init__(
        self,
        path: str,
        stamp: tuple[int, int],
        container: InputContainer,
        stream: av.VideoStream,
        check_time: Callable[[], None],
    ) -> None:
        self._path, self._container, self._stream, self._check_time = path, container, stream, check_time
        self._key = (path, *stamp)
        self._all: list[Packet] | None = None
        self.scan = _memory.get(self._key) or self._scanned()

    def __len__(self) -> int:
        return len(self.scan.positions)

    def all(self) -> list[Packet]:
        """Return all packets; where the scan was remembered, the file is read again.

        Raises:
            VideoError: it is another file by now.
        """
        if self._all is None:
            self._container.seek(0)
            self._all = [*self._demuxed()]
            if _positions(self._all) != self.scan.positions:
                raise VideoError(f"{self._path}: changed while it was read")
        return self._all

    def after(self, start: int) -> Iterator[Packet]:
        """Yield the packets from one of the numbering's starts on.

        Raises:
            MovedError: a packet is not where the scan saw it.
        """
        if self._all is not None:
            yield from self._all[start:]
            return
        self._container.seek(self.scan.seeks[start], stream=self._stream)
        packets = self._demuxed()
        for number in range(start, len(self)):
            packet = next(packets, None)
            while packet is not None and number == start and packet.pos != self.scan.positions[start]:
                packet = next(packets, None)  # the index has fewer entries: it led to an earlier one
            if packet is None or packet.pos != self.scan.positions[number]:
                raise MovedError
            yield packet

    def _scanned(self) -> Scan:
        packets = self._all = [*self._demuxed()]
        container, codec = self._container.format.name, self._stream.codec_context
        numbering = pictures.number(packets, container, codec.name, codec.extradata)
        # An empty chunk of an AVI shows the frame before it again. FFmpeg leaves it out, and numbers those
        # that follow (`dts`) as if it were there.
        last = packets[-1].dts if packets and container == "avi" else None
        scan = Scan(
            key_frames=tuple(number for number, packet in enumerate(packets) if packet.is_keyframe),
            hidden=sum(packet.is_discard for packet in packets),
            repeats=0 if last is None else max(0, last + 1 - len(packets)),
            times=np.sort(np.array([packet.pts for packet in packets if packet.pts is not None], np.int64)),
            numbering=numbering,
            positions=_positions(packets),
            seeks={},
        )
        starts = numbering.starts if numbering is not None and container in _SEEKABLE else ()
        times = (packets[start].dts if packets[start].pts is None else packets[start].pts for start in starts)
        seeks = {start: time for start, time in zip(starts, times, strict=True) if time is not None}
        # Packets are known by where they begin, which those of one block of Matroska (laced) have in common.
        are_known = min(scan.positions, default=-1) >= 0 and len({*scan.positions}) == len(packets)
        if seeks and len(seeks) == len(starts) and are_known:
            scan.seeks = seeks
            _memory.put(self._key, scan)
        return scan

    def _demuxed(self) -> Iterator[Packet]:
        # A generator of PyAV that is dropped before its end, unclosed, never frees what it holds.
        with closing(cast("Generator[Packet]", self._container.demux(self._stream))) as packets:
            while True:
                self._check_time()
                try:
                    packet = next(packets)
                except (StopIteration, av.InvalidDataError):  # what follows in the file cannot be found
                    return
                if packet.size:
                    yield packet

"""One video file as FFmpeg decodes it (through PyAV): the definition of its frames, and of its damage.

* The stream is the first video stream that the container marks as default, else its first one. A cover
  picture, a thumbnail or a still is no video.
* The frames are those that a decode from the first packet on gives, in one thread: FFmpeg's threads fill the
  gaps of a damaged stream in another way. Where the packets number the pictures (`pictures`), a frame that
  cannot be decoded repeats the one before it (the first ones the next), so that the others have their
  numbers; elsewhere there are as many frames as come out.
* What a decoder cannot read is skipped, in every container alike, and counted (`Condition`). A picture of
  which a part is missing is completed by the decoder, flagged, and used.

The packets of a file are read from end to end once in a process, then where they are needed (`packets`).
"""

from __future__ import annotations

import os
import time
from bisect import bisect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Final, NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from numpy.typing import NDArray

from tats_core.data import shards
from tats_core.data.clips import Indices, Segment
from tats_core.data.packets import MovedError, Packets
from tats_core.data.pictures import Numbering, Packet
from tats_core.data.pixels import Converter, Geometry
from tats_core.errors import ResourceError, VideoError

Frames = NDArray[np.uint8]
Choose = Callable[[int], Indices]
"""From the number of frames of a video to the indices of those wanted; repeats are fine."""

_NO_VIDEO: Final = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image

_IO_LIMIT: Final = 600.0  # seconds that FFmpeg may wait for a disk

_VARIABLE: Final = 1.5  # times as long as the stated rate has it, half of the pictures or more are shown

_TICK: Final = 1e-6  # seconds: far less than a frame, more than what rounding does to its time

_HOLD_BYTES: Final = 512 * 2**20  # of decoded frames, while it is not known which are wanted


@dataclass(frozen=True, slots=True)
class Condition:
    """What a complete decode says about a file."""

    frames: int
    """Frames that reading gives."""
    declared: int | None
    """Frames that the header promises; None if it says nothing."""
    missing: tuple[int, ...]
    """Indices of frames that repeat another, because they cannot be decoded."""
    corrupt: tuple[int, ...]
    """Indices of frames of which the decoder completed a part."""
    refused: int
    """Packets that the decoder could not use."""

    @property
    def decodable(self) -> int:
        """Frames that are decoded, complete or not."""
        return self.frames - len(self.missing)

    @property
    def is_sound(self) -> bool:
        """Whether nothing is damaged and the file is complete; headers are often a frame or two off."""
        cut_off = self.declared is not None and self.decodable < 0.98 * self.declared - 2
        return not (self.missing or self.corrupt or self.refused or cut_off)

    def __str__(self) -> str:
        """Return the numbers in words: "100 frames declared, 62 decodable, 1 of them corrupt (61)"."""
        declared = "" if self.declared is None else f"{self.declared} frames declared, "
        text = f"{declared}{self.decodable} decodable"
        if self.corrupt:
            text += f", {len(self.corrupt)} of them corrupt ({_ranges(self.corrupt)})"
        if self.missing:
            text += f", {len(self.missing)} missing ({_ranges(self.missing)})"
        if self.refused:
            text += f", {self.refused} {'packet' if self.refused == 1 else 'packets'} unreadable"
        return text


class Properties(NamedTuple):
    """What a file says of its video."""

    fps: float | None
    height: int | None
    """As displayed; None if the first frame does not decode alone."""
    width: int | None
    codec: str
    pixel_format: str | None
    rotation: int | None
    """Degrees, of the display matrix."""
    key_frames: tuple[int, ...]
    """Packets at which a decoder may start."""


def _ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers in short: "3, 7-9", the first ten ranges of them."""
    texts = []
    for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        first, *others = (number for _, number in run)
        texts.append(f"{first}-{others[-1]}" if others else str(first))
    return ", ".join(texts[:10]) + (", …" if len(texts) > 10 else "")


@contextmanager
def opened(path: str | Path, time_limit: float) -> Iterator[Video]:
    """Yield the video in a file; every error of FFmpeg becomes a VideoError.

    Args:
        time_limit: seconds that this thread may compute until the file is closed.

    Raises:
        VideoError: the file cannot be opened, or holds no video.
        ResourceError: there is not enough memory, which is not the fault of the file.
    """
    path = os.fspath(path)
    try:
        # An absolute path is never taken for a protocol, whatever characters the name holds.
        packed = shards.find(path)
        # Before it is opened: what is learnt of a file must never be remembered of the one that replaces it.
        stamp = shards.stamp(packed or path)
        file = Path(path).absolute() if packed is None else packed.opened()
        with av.open(file, "r", timeout=_IO_LIMIT, metadata_errors="replace") as container:
            video = Video(path, stamp, container, _stream(path, container), time_limit)
            try:
                yield video
            finally:
                vars(video).clear()  # its streams point into memory that closing the container frees
    except MemoryError as error:
        raise ResourceError(f"{path}: there is not enough memory to decode it") from error
    except (av.FFmpegError, OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        if isinstance(error, av.InvalidDataError) and _lacks_index(path):
            reason = (
                "it is cut off: its index, the 'moov' box at the end of an mp4, is missing; copy it again"
            )
        raise VideoError(f"{path}: cannot be read ({reason})") from error


def _stream(path: str, container: InputContainer) -> av.VideoStream:
    name = container.format.name
    streams = [stream for stream in container.streams.video if not stream.disposition & _NO_VIDEO]
    if not streams or name == "image2" or name.endswith("_pipe"):
        raise VideoError(f"{path}: holds no video stream")
    stream = next((stream for stream in streams if stream.disposition & Disposition.default), streams[0])
    if stream.codec_context is None:
        raise VideoError(f"{path}: its video is of a codec that is not known")
    # One thread, by the definition; the parallelism is over videos.
    stream.codec_context.thread_count = 1
    return stream


def _lacks_index(path: str) -> bool:
    """Return whether an mp4 file ends before its index: a list of boxes, each with its size and its name."""
    names, at, size = [], 0, shards.stamp(path)[0]
    with shards.opened(path) as file:
        while at + 8 <= size:
            file.seek(at)
            header = file.read(16)
            names.append(header[4:8])
            length = int.from_bytes(header[:4])
            if length == 1:
                length = int.from_bytes(header[8:16])
            if names[0] != b"ftyp" or length < len(header[:8]):  # 0: to the end of the file; else damage
                break
            at += length
    return names[:1] == [b"ftyp"] and b"moov" not in names


class Video:
    """An open file; see `opened`. Each of its methods decodes anew."""

    def __init__(
        self,
        path: str,
        stamp: tuple[int, int],
        container: InputContainer,
        stream: av.VideoStream,
        time_limit: float,
    ) -> None:
        self.path, self.container, self.stream = path, container, stream
        self._codec = stream.codec_context
        # Of the time that this thread computes: how busy the machine is does not matter.
        self._time_limit, self._end = time_limit, time.thread_time() + time_limit
        self._packets = Packets(path, stamp, container, stream, self._check_time)
        self._fed = -1  # the last packet that the decoder got
        self._refused = 0  # packets that it could not use since it was started

    @property
    def n_packets(self) -> int:
        """Packets of the stream: as many as frames, if nothing is damaged."""
        return len(self._packets)

    @property
    def numbering(self) -> Numbering | None:
        """The pictures that the packets hold, where they say so."""
        return self._packets.scan.numbering

    @property
    def key_frames(self) -> tuple[int, ...]:
        """Packets that the container calls key frames; a decoder may start at fewer (`numbering`)."""
        return self._packets.scan.key_frames

    def frames(self, choose: Choose) -> Frames:
        """Return the frames `choose(number of frames)` as `frames_THWC`, uint8, RGB.

        Raises:
            VideoError: no frame can be decoded, none was chosen, or the time is over.
        """
        numbering = self.numbering
        if numbering is None:
            return self._counted(choose)
        wanted_T = choose(self.n_packets)
        # Not remembered: the decoder keeps headers of the first packet, which may be those of all others,
        # and of a damaged file it gives other frames after another beginning.
        first = self.first()
        if first is None:
            return self._with_repeats(wanted_T)
        geometry = self._geometry_by(first)
        try:
            frames = self._near_starts(numbering, wanted_T)
        except MovedError:
            self._packets.all()
            frames = self._near_starts(numbering, wanted_T)
        return self._with_repeats(wanted_T) if frames is None else self._converted(wanted_T, frames, geometry)

    def within(self, segment: Segment | None, choose: Choose) -> Choose:
        """Return what chooses frames of the file as `choose` chooses frames of the segment."""
        if segment is None:
            return choose

        def chosen(n_frames: int) -> Indices:
            first, last = self._bounds(segment, n_frames)
            return choose(last - first) + first

        return chosen

    def _bounds(self, segment: Segment, n_frames: int) -> tuple[int, int]:
        """Return the first frame of a segment and the frame after its last."""
        end = np.inf if segment.end is None else segment.end
        if segment.unit == "frame":
            first, last = int(segment.start), int(min(end, n_frames))
        else:
            first, last = np.searchsorted(self._seconds(n_frames), (segment.start, end)).tolist()
        if not first < last <= n_frames:
            raise VideoError(
                f"{self.path}: has no frame from {segment.start:g} to {end:g} ({segment.unit}s); "
                f"the file has {n_frames} frames"
            )
        return first, last

    def _seconds(self, n_frames: int) -> NDArray[np.float64]:
        """Return when each frame is shown after the first: as its packet says, else by the stated rate."""
        times = self._packets.scan.times
        if len(times) == n_frames and self.stream.time_base:
            seconds_T: NDArray[np.float64] = (times - times[0]) * float(self.stream.time_base)
        elif self.stream.average_rate:
            seconds_T = np.arange(n_frames) / float(self.stream.average_rate)
        else:
            raise VideoError(f"{self.path}: does not say when its frames are shown")
        return seconds_T + _TICK  # a frame that is shown at the very start of a segment is in it

    def first(self) -> av.VideoFrame | None:
        """Return the first frame, which decides how all are converted; None if it does not decode alone."""
        if self.numbering is None:
            return next(self._decoded(), None)
        self._start()
        try:
            packet = next(self._packets.after(0))
        except MovedError:
            packet = self._packets.all()[0]
        frames = [*self._fed_with(packet), *self._fed_with(None)]
        return frames[0] if frames else None

    def _geometry_by(self, first: av.VideoFrame) -> Geometry:
        return Geometry.of(first, self.stream.sample_aspect_ratio)

    def properties(self) -> Properties:
        """Return what the headers and the first frame say."""
        first, rate = self.first(), self.stream.average_rate
        starts = self.numbering.starts if self.numbering else self.key_frames
        shape = self._geometry_by(first).shape if first else (None, None)
        return Properties(
            fps=float(rate) if rate else None,
            height=shape[0],
            width=shape[1],
            codec=self._codec.name,
            pixel_format=self._codec.pix_fmt,
            rotation=first.rotation if first else None,
            key_frames=starts,
        )

    def condition(self) -> Condition:
        """Decode everything and return what is damaged.

        Raises:
            VideoError: no frame can be decoded, or the time is over.
        """
        corrupt: set[int] = set()
        present: set[int] = set()
        for count, frame in enumerate(self._decoded()):
            index = count if self.numbering is None else _index(frame)
            present.add(index)
            if frame.is_corrupt:
                corrupt.add(index)
        if not present:
            raise self._no_frame()
        frames = len(present) if self.numbering is None else self.n_packets
        missing = sorted({*range(frames)} - present)
        return Condition(frames, self._declared(), tuple(missing), tuple(sorted(corrupt)), self._refused)

    # --- three ways to the same frames ---

    def _near_starts(self, numbering: Numbering, wanted_T: Indices) -> dict[int, av.VideoFrame] | None:
        """Return the wanted frames by index, decoding little more than them; None if something is damaged."""
        wanted = {*wanted_T.tolist()}
        frames: dict[int, av.VideoFrame] = {}
        decoded: Iterator[av.VideoFrame] = iter(())
        self._fed = -1
        for index in sorted(wanted):
            start = numbering.start_for(index)
            if start > self._fed:
                if self._is_damaged(self._fed_with(None)):
                    return None
                decoded = self._decoded(start, wanted)
            while index not in frames:
                frame = next(decoded, None)
                if frame is None or self._is_damaged([frame]):
                    return None
                if frame.pts in wanted:
                    frames[_index(frame)] = frame
        return None if self._is_damaged(self._fed_with(None)) else frames

    def _is_damaged(self, frames: Iterable[av.VideoFrame]) -> bool:
        """Return whether something is damaged among `frames` or the packets that the decoder got so far.

        What waits in the decoder matters too: a wanted frame may refer to it, and how its gaps are filled
        depends on the frames that were skipped.
        """
        return self._refused > 0 or any(frame.is_corrupt for frame in frames)

    def _with_repeats(self, wanted_T: Indices) -> Frames:
        """Return the wanted frames of a damaged stream; a missing one repeats the frame before it."""
        present = sorted({_index(frame) for frame in self._decoded()})
        if not present:
            raise self._no_frame()
        source = {index: present[max(0, bisect(present, index) - 1)] for index in wanted_T.tolist()}
        needed = {present[0], *source.values()}
        frames = {_index(frame): frame for frame in self._decoded() if frame.pts in needed}
        sources_T = np.array([source[index] for index in wanted_T.tolist()], np.int64)
        return self._converted(sources_T, frames, self._geometry_by(frames[present[0]]))

    def _counted(self, choose: Choose) -> Frames:
        """Return the wanted frames of a stream whose frames are only known by decoding all."""
        held: list[av.VideoFrame] | None = []
        count, size = 0, 0
        for frame in self._decoded():
            count += 1
            size += frame.width * frame.height * 3 // 2
            if held is not None and size <= _HOLD_BYTES:
                held.append(frame)
            else:
                held = None  # a long video is decoded again, once the indices are known
        if not count:
            raise self._no_frame()
        wanted_T = choose(count)
        needed = {0, *wanted_T.tolist()}
        source = enumerate(self._decoded() if held is None else held)
        frames = {index: frame for index, frame in source if index in needed}
        return self._converted(wanted_T, frames, self._geometry_by(frames[0]))

    def in_order(self, piece_bytes: int) -> Iterator[Frames]:
        """Yield all frames of a stream without numbers, decoded once, up to `piece_bytes` at a time.

        Raises:
            VideoError: no frame can be decoded, or the time is over.
        """
        converter: Converter | None = None
        held: list[Frames] = []
        for frame in self._decoded():
            converter = converter or Converter(self._geometry_by(frame))
            held.append(converter.rgb(frame))
            if len(held) * held[0].nbytes >= piece_bytes:
                yield np.stack(held)
                held = []
        if converter is None:
            raise self._no_frame()
        if held:
            yield np.stack(held)

    # --- shared ---

    def _check_time(self) -> None:
        if time.thread_time() > self._end:
            raise VideoError(
                f"{self.path}: decoding took longer than its time limit ({self._time_limit:g} s)"
            )

    def _start(self) -> None:
        """Make the decoder forget all but the headers of the stream."""
        if self._codec.is_open:
            self._codec.flush_buffers()
        self._codec.skip_frame = "DEFAULT"
        self._refused = 0

    def _decoded(self, start: int = 0, wanted: Collection[int] | None = None) -> Iterator[av.VideoFrame]:
        """Yield the frames that the packets from `start` on give; with numbers, `pts` is a frame's index.

        Args:
            wanted: the indices of the frames that are wanted, or None for all; another one comes only if a
                wanted one may refer to it.
        """
        self._start()
        # Everything is decoded of the packets in the order of the file, whatever the container's index says.
        packets = self._packets.all() if wanted is None else self._packets.after(start)
        for number, packet in enumerate(packets, start):
            self._check_time()
            self._fed = number
            if self.numbering is not None:
                packet.pts, packet.dts = self.numbering.frames[number], None
                if wanted is not None:
                    # The decoder then skips the pictures that no other one refers to.
                    self._codec.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
            yield from self._fed_with(packet)
        yield from self._fed_with(None)

    def _fed_with(self, packet: Packet | None) -> list[av.VideoFrame]:
        try:
            return self._codec.decode(packet)
        except av.EOFError:
            return []  # it has given all that it had
        except MemoryError:  # FFmpeg's too; no damage
            raise
        except av.FFmpegError:
            self._refused += 1
            return []

    def _converted(
        self, wanted_T: Indices, frames: Mapping[int, av.VideoFrame], geometry: Geometry
    ) -> Frames:
        if not wanted_T.size:
            raise VideoError(f"{self.path}: no frame was chosen")
        converter = Converter(geometry)
        frames_THWC = np.empty((len(wanted_T), *geometry.shape), np.uint8)
        for index in np.unique(wanted_T).tolist():
            frames_THWC[wanted_T == index] = converter.rgb(frames[index])
        return frames_THWC

    def _declared(self) -> int | None:
        """Return the number of frames by the header: stored, or by duration and rate."""
        stream, scan = self.stream, self._packets.scan
        if stream.frames:
            return stream.frames - scan.hidden - scan.repeats
        if not stream.average_rate or not stream.time_base or not len(scan.times):
            return None
        rate = float(stream.average_rate)
        if stream.duration:
            seconds = float(stream.duration * stream.time_base)
        else:
            end = _end(stream)
            if end is None and len(self.container.streams) == 1 and self.container.duration:
                end = self.container.duration / av.time_base
            if end is None:
                return None
            seconds = end - float(int(scan.times[0]) * stream.time_base)
        # Matroska states one rate for videos of a variable one too.
        steps = np.diff(scan.times)
        usual = float(np.median(steps) * float(stream.time_base)) if steps.size else 0.0
        if usual * rate > _VARIABLE:
            rate = 1 / usual
        return round(seconds * rate)

    def _no_frame(self) -> VideoError:
        return VideoError(f"{self.path}: holds no frame that can be decoded")


def _end(stream: av.VideoStream) -> float | None:
    """Return when a stream of Matroska ends, in seconds; it has that as a text, "00:00:04.000000000"."""
    parts = stream.metadata.get("DURATION", "").split(":")
    try:
        hours, minutes, seconds = map(float, parts)
    except ValueError:
        return None  # no such text
    return 3600 * hours + 60 * minutes + seconds


def _index(frame: av.VideoFrame) -> int:
    assert frame.pts is not None, "a numbered packet gave a frame without its number"
    return frame.pts

"""Frames of a video file, exactly as a sequential decode gives them.

Two readers have one interface. decord jumps to the wanted frames, which is fast for long videos, but for
some streams it returns wrong frames without an error. Seen with decord 0.6.0 against a sequential
decode (tests/data/test_readers.py has a case of each):

* MPEG-4 with B-frames in avi: most frames are not the ones asked for;
* H.264 with open groups of pictures: some frames after a jump are wrong;
* H.264 cut without re-encoding (an edit list, or no key frame at the start): more frames than there are.

So decord reads a file only if it was seen to be exact for container and codec, and its packets show none of
these; everything else is decoded from the first frame on by PyAV. If decord fails on a file, PyAV reads it.

Frames are `frames_THWC`, uint8, RGB.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from tats_core.data.clips import Indices
from tats_core.errors import VideoError

Frames = NDArray[np.uint8]
Choose = Callable[[int], Indices]
"""From the number of frames of a video to the indices of those wanted; repeats are fine."""

ReaderName = Literal["auto", "decord", "pyav"]
Reader = Callable[[str, Choose, float], Frames]
"""Gets the chosen frames out of the file at a path within a time limit, or raises VideoError."""

TIME_LIMIT: Final = 60.0
"""Seconds that one file may take. Some files make a decoder hang for ever."""

_TRUSTED: Final = {("mov,mp4,m4a,3gp,3g2,mj2", "h264"), ("matroska,webm", "vp9")}  # container and codec

_DECORD_LIMIT: Final = 20.0  # seconds after which PyAV gets a file on which decord may hang

_decord_failed: set[str] = set()  # by path; else every epoch would wait for the same file again

_KEEP_BYTES: Final = 512 * 2**20  # of decoded frames (YUV), while PyAV's reader learns how many there are


def count_frames(path: str | Path, time_limit: float = TIME_LIMIT) -> int:
    """Return the number of frames that a sequential decode gives; the header's number is not trusted.

    Raises:
        VideoError: the file cannot be read within `time_limit` seconds.
    """
    return sum(1 for _ in _decode(os.fspath(path), time.monotonic() + time_limit))


def read_clip(
    path: str | Path, choose: Choose, reader: ReaderName = "auto", time_limit: float = TIME_LIMIT
) -> Frames:
    """Return the frames `choose(number of frames)` as `frames_THWC`, opening the file once.

    Raises:
        VideoError: the file cannot be read within `time_limit` seconds.
    """
    return READERS[reader](os.fspath(path), choose, time_limit)


def read_all(path: str | Path, reader: ReaderName = "auto", time_limit: float = TIME_LIMIT) -> Frames:
    """Return all frames; see `read_clip`."""
    return read_clip(path, np.arange, reader, time_limit)


# ---------------------------------------------------------------------------------------------- PyAV


@contextmanager
def _opened(path: str, time_limit: float) -> Iterator[tuple[InputContainer, av.VideoStream]]:
    """Yield `(container, video stream)`, closed afterwards; every error of FFmpeg becomes a VideoError."""
    try:
        # An absolute path is never taken for a protocol, whatever characters the name holds.
        with av.open(Path(path).absolute(), timeout=time_limit, metadata_errors="replace") as container:
            if not container.streams.video:
                raise VideoError(f"{path}: holds no video stream")
            stream = container.streams.video[0]
            # One thread: the parallelism is over videos, and starting threads costs more than a small clip.
            stream.codec_context.thread_count = 1
            yield container, stream
    except (av.FFmpegError, OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise VideoError(f"{path}: cannot be read ({reason})") from error


def _decode(path: str, deadline: float) -> Iterator[av.VideoFrame]:
    with _opened(path, max(deadline - time.monotonic(), 0.1)) as (container, stream):
        count = 0
        for frame in container.decode(stream):
            if time.monotonic() > deadline:
                raise VideoError(
                    f"{path}: reading took longer than its time limit (frame {count} was reached)"
                )
            count += 1
            yield frame
    if not count:
        raise VideoError(f"{path}: holds no frame")


def _pyav(path: str, choose: Choose, time_limit: float) -> Frames:
    deadline = time.monotonic() + time_limit
    decoded: list[av.VideoFrame] = []
    count, size = 0, 0
    for frame in _decode(path, deadline):
        count += 1
        size += frame.width * frame.height * 3 // 2
        if size <= _KEEP_BYTES:
            decoded.append(frame)
        else:
            decoded.clear()  # a long video in high resolution is decoded again, once the indices are known
    wanted_T = choose(count)
    if not wanted_T.size:
        raise VideoError(f"{path}: no frame was chosen")
    needed = set(wanted_T.tolist())
    source = enumerate(decoded or _decode(path, deadline))
    frames = {index: frame for index, frame in source if index in needed}
    # A stream may change its size on the way; a clip has one.
    first = frames[min(frames)]
    result = np.empty((len(wanted_T), first.height, first.width, 3), np.uint8)
    convert = VideoReformatter()
    for index, frame in frames.items():
        rgb = convert.reformat(frame, first.width, first.height, "rgb24", threads=1)
        result[wanted_T == index] = rgb.to_ndarray()
    return result


# ---------------------------------------------------------------------------------------------- decord


@functools.cache
def has_decord() -> bool:
    """Return whether decord is installed; it has no wheels for some platforms."""
    return importlib.util.find_spec("decord") is not None


def _decord(path: str, choose: Choose, time_limit: float) -> Frames:
    if not has_decord():
        raise VideoError(f"{path}: the reader 'decord' is not installed; use the reader 'pyav' or 'auto'")
    outcome: list[Frames | BaseException] = []

    def work() -> None:
        try:
            outcome.append(_decord_read(path, choose))
        except BaseException as error:  # noqa: BLE001 - it is raised in the caller's thread
            outcome.append(error)

    # decord cannot be interrupted: a file that makes it hang costs a thread that never ends.
    thread = threading.Thread(target=work, name=f"decord {Path(path).name}", daemon=True)
    thread.start()
    thread.join(time_limit)
    if not outcome:
        raise VideoError(f"{path}: decord did not finish within {time_limit:g} s")
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def _decord_read(path: str, choose: Choose) -> Frames:
    import decord

    decord.logging.set_level(decord.logging.FATAL)
    try:
        video = decord.VideoReader(path, num_threads=1)
        wanted_T = choose(len(video))
        needed, inverse_T = np.unique(wanted_T, return_inverse=True)
        frames: Frames = video.get_batch(needed.tolist()).asnumpy()
    except (decord.DECORDError, RuntimeError, UnicodeError) as error:
        raise VideoError(f"{path}: decord cannot read it ({str(error).splitlines()[0]})") from error
    return frames if np.array_equal(needed, wanted_T) else frames[inverse_T]


# ---------------------------------------------------------------------------------------------- choice


def is_trusted(path: str | Path, time_limit: float = TIME_LIMIT) -> bool:
    """Return whether decord gives the exact frames of this file; reads its packets, decodes none.

    Raises:
        VideoError: the file cannot be opened.
    """
    with _opened(os.fspath(path), time_limit) as (container, stream):
        kind = (container.format.name, stream.codec_context.name)
        return kind in _TRUSTED and _jumps_safely(container.demux(stream))


def _jumps_safely(packets: Iterable[av.Packet[av.VideoStream]]) -> bool:
    """Return whether decoding may start at any key frame and gives every frame of the file from there on."""
    key_frame_time = None
    for packet in packets:
        if not packet.size:
            continue  # the empty packet that ends a stream
        if packet.is_discard or packet.is_corrupt or packet.pts is None:
            return False  # hidden by an edit list, or without a time
        if packet.is_keyframe:
            key_frame_time = packet.pts
        elif key_frame_time is None or packet.pts < key_frame_time:
            # Shown before the key frame that precedes it in the file: it needs frames from before that one.
            return False
    return key_frame_time is not None


def _auto(path: str, choose: Choose, time_limit: float) -> Frames:
    if has_decord() and path not in _decord_failed and is_trusted(path, time_limit):
        try:
            return _decord(path, choose, min(time_limit, _DECORD_LIMIT))
        except VideoError:
            # If PyAV cannot read the file either, the caller gets PyAV's reason.
            _decord_failed.add(path)
    return _pyav(path, choose, time_limit)


READERS: Final[dict[ReaderName, Reader]] = {"auto": _auto, "decord": _decord, "pyav": _pyav}
"""Readers by the name that a configuration gives."""

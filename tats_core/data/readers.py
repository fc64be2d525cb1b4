"""Frames of a video file by the name of a reader; every reader gives the same frames, bit for bit.

`pyav` decodes with FFmpeg and defines the frames (`video`, `pixels`); `auto` is the same. `decord` is there
for comparisons, and slower: it decodes the kinds of file (`is_proven`) of which it was seen to give the same
frames, and PyAV all others. decord 0.6.0 errs without saying so (tests/data/test_readers.py):

* MPEG-4 with B-frames in avi: most frames are not the ones asked for;
* H.264 with open groups of pictures: some frames after a jump are wrong;
* H.264 cut without re-encoding (an edit list, or no key frame at the start): more frames than there are;
* 10-bit and interlaced video, several video streams: other pixels, another stream.

decord does not say that a frame is damaged, and fills gaps in its own way: of a damaged file, its frames may
differ.

Frames are `frames_THWC`, uint8, RGB.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal

import numpy as np

from tats_core.data import shards
from tats_core.data.clips import Indices, Segment
from tats_core.data.pixels import Converter
from tats_core.data.video import Choose, Condition, Frames, Video, opened
from tats_core.errors import DataError, VideoError

ReaderName = Literal["auto", "decord", "pyav"]
Reader = Callable[[str, Choose, float, Segment | None], Frames]
"""Gets the chosen frames out of a segment of the file at a path within a time limit, or raises VideoError."""

TIME_LIMIT: Final = 60.0
"""Seconds of computing that one file may take."""


_LIMIT_PER_BYTE: Final = 10 / 2**20
"""Seconds for each byte of a file that is decoded from end to end, beside `TIME_LIMIT`."""

_PIECE_BYTES: Final = 128 * 2**20


def read_clip(
    path: str | Path,
    choose: Choose,
    reader: ReaderName = "auto",
    time_limit: float = TIME_LIMIT,
    segment: Segment | None = None,
) -> Frames:
    """Return the frames `choose(number of frames)` as `frames_THWC`, opening the file once.

    Args:
        segment: the part of the file that is the video.

    Raises:
        VideoError: the file cannot be read, or takes more than `time_limit` seconds of computing.
    """
    return READERS[reader](os.fspath(path), choose, time_limit, segment)


def read_all(path: str | Path, reader: ReaderName = "auto", time_limit: float = TIME_LIMIT) -> Frames:
    """Return all frames; see `read_clip`."""
    return read_clip(path, np.arange, reader, time_limit)


def pieces(path: str | Path, segment: Segment | None = None) -> Iterator[Frames]:
    """Yield all frames of a video in order, up to 128 MiB at a time; see `read_clip`."""
    with opened(path, whole_limit(path)) as video:
        if video.numbering is None and segment is None:
            yield from video.in_order(_PIECE_BYTES)
            return
        counted: list[int] = []

        def first(n_frames: int) -> Indices:
            counted.append(n_frames)
            return np.zeros(1, np.int64)

        length = max(1, _PIECE_BYTES // video.frames(video.within(segment, first)).nbytes)
        for start in range(0, counted[0], length):
            piece_T = np.arange(start, min(start + length, counted[0]))
            yield video.frames(video.within(segment, _always(piece_T)))


def _always(indices_T: Indices) -> Choose:
    return lambda n_frames: indices_T


def whole_limit(path: str | Path) -> float:
    """Return the seconds of computing that a file may take which is decoded from end to end."""
    size, _ = shards.stamp(path)
    return TIME_LIMIT + _LIMIT_PER_BYTE * max(0, size)  # opening it says what is wrong


def check(path: str | Path) -> Condition:
    """Decode a file from end to end and return what is damaged.

    Raises:
        VideoError: the file cannot be read, or takes far longer than its size explains.
    """
    with opened(path, whole_limit(path)) as video:
        return video.condition()


def _pyav(path: str, choose: Choose, time_limit: float, segment: Segment | None) -> Frames:
    with opened(path, time_limit) as video:
        return video.frames(video.within(segment, choose))


# ---------------------------------------------------------------------------------------------- decord

_PROVEN: Final = {("mov,mp4,m4a,3gp,3g2,mj2", "h264"), ("matroska,webm", "vp9")}  # container and codec


@functools.cache
def has_decord() -> bool:
    """Return whether decord is installed; it has no wheels for some platforms."""
    return importlib.util.find_spec("decord") is not None


def is_proven(video: Video) -> bool:
    """Return whether decord was seen to give the exact frames of this kind of file, if nothing is damaged."""
    first = video.first()
    if first is None or video.numbering is None:
        return False
    return (
        (video.container.format.name, video.stream.codec_context.name) in _PROVEN
        and video.key_frames <= {*video.numbering.starts}  # decord jumps to any of them
        and len(video.container.streams.video) == 1
        and first.format.name == "yuv420p"
        and not first.interlaced_frame
        and Converter(first, video.stream.sample_aspect_ratio).keeps_layout
    )


def _decord(path: str, choose: Choose, time_limit: float, segment: Segment | None) -> Frames:
    if not has_decord():
        raise DataError("the reader 'decord' is not installed; use the reader 'pyav' or 'auto'")
    with opened(path, time_limit) as video:
        choose = video.within(segment, choose)
        if not is_proven(video):
            return video.frames(choose)
    chosen: list[Indices] = []

    def once(n_frames: int) -> Indices:
        if not chosen:
            chosen.append(choose(n_frames))  # which may draw at random
        return chosen[0]

    try:
        return _decord_within(path, once, time_limit)
    except VideoError:  # it cannot read some sizes, such as a width of 72
        return _pyav(path, once, time_limit, None)


def _decord_within(path: str, choose: Choose, time_limit: float) -> Frames:
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
        # Not a VideoError, for which training takes the next video: what is read never depends on the clock.
        raise DataError(f"{path}: decord did not finish within {time_limit:g} s; use the reader 'auto'")
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def _decord_read(path: str, choose: Choose) -> Frames:
    import decord

    decord.logging.set_level(decord.logging.FATAL)
    try:
        place = shards.find(path)
        video = decord.VideoReader(path if place is None else place.opened(), num_threads=1)
        wanted_T = choose(len(video))
        needed, inverse_T = np.unique(wanted_T, return_inverse=True)
        frames: Frames = video.get_batch(needed.tolist()).asnumpy()
    except (decord.DECORDError, RuntimeError, UnicodeError) as error:
        raise VideoError(f"{path}: decord cannot read it ({str(error).splitlines()[0]})") from error
    return frames if np.array_equal(needed, wanted_T) else frames[inverse_T]


READERS: Final[dict[ReaderName, Reader]] = {"auto": _pyav, "decord": _decord, "pyav": _pyav}
"""Readers by the name that a configuration gives."""

"""Frames of a video file by the name of a reader; every reader gives the same frames, bit for bit.

`auto` is what is best for training: PyAV. To add one, write its file and its name in `READERS`.

Frames are `frames_THWC`, uint8, RGB.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Final

import numpy as np

from tats_core.data import shards
from tats_core.data.clips import Indices, Segment
from tats_core.data.video import Choose, Condition, Frames, opened
from tats_core.registry import Registry

Reader = Callable[[str, Choose, float, Segment | None], Frames]
"""Gets the chosen frames out of a segment of the file at a path within a time limit, or raises VideoError."""

READERS: Final[Registry[Reader]] = Registry(
    "reader",
    "tats.readers",
    FunctionType,
    {
        "auto": "tats_core.data.readers.pyav:read",
        "decord": "tats_core.data.readers.decord:read",
        "pyav": "tats_core.data.readers.pyav:read",
    },
)
"""Readers by the name that a configuration gives."""

TIME_LIMIT: Final = 60.0
"""Seconds of computing that one file may take."""


_LIMIT_PER_BYTE: Final = 10 / 2**20
"""Seconds for each byte of a file that is decoded from end to end, beside `TIME_LIMIT`."""

_PIECE_BYTES: Final = 128 * 2**20


def read_clip(
    path: str | Path,
    choose: Choose,
    reader: str = "auto",
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


def read_all(path: str | Path, reader: str = "auto", time_limit: float = TIME_LIMIT) -> Frames:
    """Return all frames; see `read_clip`."""
    return read_clip(path, np.arange, reader, time_limit)


def pieces(path: str | Path, segment: Segment | None = None) -> Iterator[Frames]:
    """Yield all frames of a video in order, up to 128 MiB at a time; see `read_clip`."""
    with opened(path, whole_limit(path)) as video:
        if video.numbering is None and segment is None:
            yield from video.in_order(_PIECE_BYTES)
            return
        n_frames = 0

        def first(count: int) -> Indices:
            nonlocal n_frames
            n_frames = count
            return np.zeros(1, np.int64)

        length = max(1, _PIECE_BYTES // video.frames(video.within(segment, first)).nbytes)
        for start in range(0, n_frames, length):
            piece_T = np.arange(start, min(start + length, n_frames))
            yield video.frames(video.within(segment, lambda _: piece_T))  # noqa: B023 (called at once)


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

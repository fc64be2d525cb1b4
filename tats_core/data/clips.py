"""Which frames of a video make a clip. All functions return indices into the video, first frame 0.

Axes: V views, T frames of a clip. A video that is too short repeats its last frame.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def dense_indices(
    n_frames: int, frames: int, stride: int, rng: np.random.Generator | None = None, position: float = 0.5
) -> Indices:
    """Return every `stride`-th frame from one start on.

    Args:
        n_frames: length of the video.
        frames: length T of the clip.
        rng: draws the start; without it the clip lies at `position`, 0 (as early as possible) to 1 (as late).

    Returns:
        `indices_T`, never decreasing.
    """
    latest = max(n_frames - ((frames - 1) * stride + 1), 0)
    start = int(rng.integers(latest + 1)) if rng is not None else round(position * latest)
    return np.minimum(start + stride * np.arange(frames, dtype=np.int64), n_frames - 1)


def uniform_indices(
    n_frames: int, frames: int, rng: np.random.Generator | None = None, position: float = 0.5
) -> Indices:
    """Return one frame of each of `frames` equal segments (TSN, arXiv 1608.00859).

    Args:
        rng: draws each segment's frame by itself; without it the frame lies at `position` of every segment.

    Returns:
        `indices_T`, never decreasing.
    """
    place_T = rng.random(frames) if rng is not None else np.full(frames, position)
    found_T = np.floor((np.arange(frames) + place_T) * (n_frames / frames)).astype(np.int64)
    return np.minimum(found_T, n_frames - 1)


def train_indices(
    n_frames: int, frames: int, sampling: Literal["uniform", "dense"], stride: int, rng: np.random.Generator
) -> Indices:
    """Return `indices_T` of a random clip."""
    if sampling == "uniform":
        return uniform_indices(n_frames, frames, rng)
    return dense_indices(n_frames, frames, stride, rng)


def view_indices(
    n_frames: int, frames: int, sampling: Literal["uniform", "dense"], stride: int, clips: int
) -> NDArray[np.int64]:
    """Return `indices_VT` of `clips` temporal views that cover the video evenly; a single one is central.

    Dense views start at equal distances from the first to the last possible start. Uniform views take
    each segment at the middle of its 1st, 2nd, … `clips`-th part, so that no two are equal.
    """
    if sampling == "uniform":
        places = [(view + 0.5) / clips for view in range(clips)]
        return np.stack([uniform_indices(n_frames, frames, position=place) for place in places])
    places = [view / (clips - 1) if clips > 1 else 0.5 for view in range(clips)]
    return np.stack([dense_indices(n_frames, frames, stride, position=place) for place in places])

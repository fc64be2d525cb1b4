"""Clips: which frames of a video they take, how batches travel, and how a model sees them.

Axes: B clips, V views of a clip, C colours (RGB), T frames, H × W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tats_core.imagenet import MEAN, STD, vector

Purpose = Literal["pretrain", "finetune"]
Sampling = Literal["uniform", "dense"]
Protocol = Literal["ours", "published"]

Indices = NDArray[np.int64]
"""Frames of a video, from 0; a video that is too short repeats its last one."""


class Segment(NamedTuple):
    """A part of a file that is a video of its own: from `start` to before `end`; None: to the file's end."""

    start: float
    end: float | None = None
    unit: Literal["frame", "second"] = "frame"
    """Frames count from 0; seconds from when the first frame is shown."""


class Erased(NamedTuple):
    """A box of one clip that random erasing fills with noise, once the clip is normalised."""

    clip: int
    rows: slice
    columns: slice
    noise_CTHW: Tensor


class Batch(NamedTuple):
    """Clips as a loader yields them: bytes, a quarter of what they are as the model's numbers."""

    video_BCTHW: Tensor
    """uint8; test views are `views_BVCTHW`."""
    label_B: Tensor
    index_B: Tensor
    """Indices of the videos in the manifest."""
    erased: Sequence[Erased] = ()

    def normalised(self, device: torch.device) -> Tensor:
        """Return the model's input on `device`: float32, normalised, with the noise of random erasing."""
        video_BCTHW = normalise(self.video_BCTHW.to(device, non_blocking=True))
        for clip, rows, columns, noise_CTHW in self.erased:
            video_BCTHW[clip, :, :, rows, columns].copy_(noise_CTHW, non_blocking=True)
        return video_BCTHW


def normalise(video_CTHW: Tensor) -> Tensor:
    """Return grey levels `[..., C, T, H, W]`, 0 to 255, as ImageNet's deviations from its mean, float32."""
    # Tensors, not numbers: a GPU divides by a number by way of its reciprocal, which rounds differently.
    scale, mean_C111, std_C111 = (
        vector(values, video_CTHW.device).view(-1, 1, 1, 1) for values in ((255.0,), MEAN, STD)
    )
    return video_CTHW.to(torch.float32, copy=True).div_(scale).sub_(mean_C111).div_(std_C111)


def dense_indices(
    n_frames: int, frames: int, stride: int, rng: np.random.Generator | None = None, position: float = 0.5
) -> Indices:
    """Return every `stride`-th frame from a start on.

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
    position_T = rng.random(frames) if rng is not None else np.full(frames, position)
    indices_T = np.floor((np.arange(frames) + position_T) * (n_frames / frames)).astype(np.int64)
    return np.minimum(indices_T, n_frames - 1)


def train_indices(
    n_frames: int,
    frames: int,
    sampling: Sampling,
    stride: int,
    rng: np.random.Generator,
    published: Purpose | None = None,
) -> Indices:
    """Return `indices_T` of a random clip; with `published`, as VideoMAE's code for this purpose."""
    if published is not None:
        return _published_indices(n_frames, frames, sampling, stride, rng, published)
    if sampling == "uniform":
        return uniform_indices(n_frames, frames, rng)
    return dense_indices(n_frames, frames, stride, rng)


def _published_indices(
    n_frames: int, frames: int, sampling: Sampling, stride: int, rng: np.random.Generator, purpose: Purpose
) -> Indices:
    """Return `indices_T` as kinetics.py and ssv2.py of VideoMAE's code do (docs/method.md: how ours differ).

    Uniform: segments of whole frames, so up to T - 1 frames at the end are never seen, and of a video that is
    shorter than T the first frame alone. Dense: a clip spans T times the stride; fine-tuning spreads its T
    frames over all of it, so that they lie T / (T - 1) strides apart.
    """
    number_T = np.arange(frames, dtype=np.int64)
    if sampling == "uniform":
        segment = n_frames // frames
        return segment * number_T + rng.integers(segment, size=frames) if segment else 0 * number_T
    span = frames * stride
    if purpose == "pretrain":
        start = int(rng.integers(max(n_frames - span, 0) + 1))
        return start + stride * np.minimum(number_T, max(n_frames - 2 - start, 0) // stride)
    if n_frames > span:
        end = int(rng.integers(span, n_frames))
        index_T = np.linspace(end - span, end, frames).clip(end - span, end - 1)
    else:
        index_T = np.full(frames, n_frames - 1.0)
        taken = n_frames // stride
        index_T[:taken] = np.linspace(0, n_frames, taken).clip(0, n_frames - 1)
    return index_T.astype(np.int64)


def view_indices(
    n_frames: int,
    frames: int,
    sampling: Sampling,
    stride: int,
    clips: int,
    published: bool = False,
) -> NDArray[np.int64]:
    """Return `indices_VT` of `clips` temporal views that cover the video evenly; a single view is central.

    Dense views start at equal distances from the first to the last possible start. Uniform views take
    each segment at the middle of its 1st, 2nd, … `clips`-th part, so that no two are equal.

    With `published` and several views, as VideoMAE's code: uniform views take each segment at the beginning
    of these parts; dense ones start at a multiple of the stride, a short video repeats its last such frame.
    """
    published = published and clips > 1
    if sampling == "uniform":
        into = 0.0 if published else 0.5
        return np.stack(
            [uniform_indices(n_frames, frames, position=(view + into) / clips) for view in range(clips)]
        )
    if published:
        taken = -(-n_frames // stride)
        latest = max(taken - frames, 0)
        starts_V1 = (np.arange(clips) * latest / (clips - 1)).astype(np.int64)[:, None]
        number_VT: NDArray[np.int64] = np.minimum(starts_V1 + np.arange(frames), taken - 1)
        return stride * number_VT
    positions = [view / (clips - 1) if clips > 1 else 0.5 for view in range(clips)]
    return np.stack([dense_indices(n_frames, frames, stride, position=position) for position in positions])

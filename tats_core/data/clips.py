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

from tats_core.imagenet import MEAN, STD

Indices = NDArray[np.int64]
"""Frames of a video, from 0; a video that is too short repeats its last one."""


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
        torch.tensor(values, device=video_CTHW.device).view(-1, 1, 1, 1) for values in ((255.0,), MEAN, STD)
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
    n_frames: int, frames: int, sampling: Literal["uniform", "dense"], stride: int, rng: np.random.Generator
) -> Indices:
    """Return `indices_T` of a random clip."""
    if sampling == "uniform":
        return uniform_indices(n_frames, frames, rng)
    return dense_indices(n_frames, frames, stride, rng)


def view_indices(
    n_frames: int, frames: int, sampling: Literal["uniform", "dense"], stride: int, clips: int
) -> NDArray[np.int64]:
    """Return `indices_VT` of `clips` temporal views that cover the video evenly; a single view is central.

    Dense views start at equal distances from the first to the last possible start. Uniform views take
    each segment at the middle of its 1st, 2nd, … `clips`-th part, so that no two are equal.
    """
    if sampling == "uniform":
        return np.stack(
            [uniform_indices(n_frames, frames, position=(view + 0.5) / clips) for view in range(clips)]
        )
    positions = [view / (clips - 1) if clips > 1 else 0.5 for view in range(clips)]
    return np.stack([dense_indices(n_frames, frames, stride, position=position) for position in positions])

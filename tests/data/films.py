"""What several tests of this folder decode, and with which readers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tats_core.data import readers
from tats_core.data.readers import decord

READERS = [name for name in readers.READERS if name != "decord" or decord.is_installed()]
"""Those that this platform has: decord has no wheel for some."""


def film(
    frames: int, height: int, width: int, block: int = 8, rng: np.random.Generator | None = None
) -> NDArray[np.uint8]:
    """A texture that moves two pixels a frame, so that no two frames are equal."""
    shape = (-(-height // block), -(-width // block), 3)
    texture = (rng or np.random.default_rng(0)).integers(0, 256, shape).repeat(block, 0).repeat(block, 1)
    moving = [np.roll(texture, (frame, 2 * frame), (0, 1)) for frame in range(frames)]
    return np.stack(moving)[:, :height, :width].astype(np.uint8)

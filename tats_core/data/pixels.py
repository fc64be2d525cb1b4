"""From decoded frames to RGB: one conversion, whichever reader decodes.

* Colours by the matrix and the range that the frame states; BT.601 and limited range where it states none.
* 8-bit 4:2:0 progressive frames, which nearly all are, by libswscale's plain conversion, where two by two
  pixels share their chroma. All others (10 bits, 4:2:2, interlaced, …) by its accurate one: bicubic, chroma
  interpolated from where it was sampled, each field of an interlaced frame by itself.
* Square pixels: a frame whose pixels are wider than high becomes wider, as players show it.
* Upright: turned and mirrored as the display matrix says, to the nearest quarter turn.

All frames of a video have the size and the direction of its first one.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import Final, NamedTuple, cast

import av
import numpy as np
from av.sidedata.sidedata import SideData, Type
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

_ACCURATE: Final = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT

_OBLONG: Final = 4  # how much longer than wide a pixel may be; beyond it the number is damage


class Geometry(NamedTuple):
    """How the frames of a video lie, which its first one decides."""

    width: int
    """Of square pixels, before frames are turned."""
    height: int
    is_widened: bool
    is_swapped: bool
    """Whether rows become columns."""
    steps: tuple[int, int]
    """1 or -1, down and to the right."""

    @classmethod
    def of(cls, first: av.VideoFrame, aspect: Fraction | None) -> Geometry:
        """Return that of a video by its first frame and a pixel's width divided by its height."""
        if not aspect or not Fraction(1, _OBLONG) <= aspect <= _OBLONG:
            aspect = Fraction(1)
        width = max(1, round(first.width * aspect))
        return cls(width, first.height, width != first.width, *_direction(first))

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(H, W, 3)` of a frame."""
        height, width = (self.width, self.height) if self.is_swapped else (self.height, self.width)
        return height, width, 3

    @property
    def keeps_layout(self) -> bool:
        """Whether frames are neither turned, mirrored nor widened."""
        return not self.is_swapped and self.steps == (1, 1) and not self.is_widened


class Converter:
    """Converts the frames of a video."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self._reformat = VideoReformatter()

    def rgb(self, frame: av.VideoFrame) -> NDArray[np.uint8]:
        """Return `frame_HWC`, uint8."""
        width, height = self._geometry.width, self._geometry.height
        resized = (frame.width, frame.height) != (width, height)
        flags = None if is_plain(frame) and not resized else _ACCURATE
        converted = self._reformat.reformat(frame, width, height, "rgb24", interpolation=flags, threads=1)
        frame_HWC = np.asarray(converted.to_ndarray(), np.uint8)
        if self._geometry.is_swapped:
            frame_HWC = frame_HWC.transpose(1, 0, 2)
        down, right = self._geometry.steps
        return frame_HWC[::down, ::right]


def is_plain(frame: av.VideoFrame) -> bool:
    """Return whether a frame is 8-bit 4:2:0 and progressive."""
    return frame.format.name in ("yuv420p", "yuvj420p") and not frame.interlaced_frame


def _direction(frame: av.VideoFrame) -> tuple[bool, tuple[int, int]]:
    """Return whether rows become columns, and then the steps, 1 or -1, down and to the right."""
    # A mapping whose iteration gives the values; PyAV's types say the names.
    side_data = cast("Iterable[SideData]", frame.side_data)
    matrix = next((data for data in side_data if data.type == Type.DISPLAYMATRIX), None)
    if matrix is None:
        return False, (1, 1)
    # ISO/IEC 14496-12, 8.2.2: x' = a x + c y, y' = b x + d y; 32-bit integers, with u and v between.
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    swapped = abs(a) + abs(d) < abs(b) + abs(c)
    right, down = (c, b) if swapped else (a, d)
    return swapped, (-1 if down < 0 else 1, -1 if right < 0 else 1)

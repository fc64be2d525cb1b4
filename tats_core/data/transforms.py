"""From decoded frames to the pixels of a clip: crop, resize, flip, colour, erase.

What is random is drawn first, from a `numpy.random.Generator`, into plain values (a box, a matrix); the
operations on pixels are then deterministic.

Axes: B clips, C colours (RGB), T frames, H × W pixels. Decoded frames are uint8 and end in C, the layout
of the decoders, for which torch's antialiased resize is several times faster than in float.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from tats_core.imagenet import MEAN, STD
from tats_core.specs import Size, sides

MULTI_SCALES: Final = (1.0, 0.875, 0.75, 0.66)
"""Crop sizes of VideoMAE's pre-training, as shares of the largest crop."""

_LUMA: Final = (0.299, 0.587, 0.114)

# A crop's offset (x, y) in quarters, in whole pixels, of what is left of the frame (TSN, arXiv 1608.00859).
_OFFSETS: Final = (
    *((0, 0), (4, 0), (0, 4), (4, 4), (2, 2), (0, 2), (4, 2), (2, 4), (2, 0)),
    *((1, 1), (3, 1), (1, 3), (3, 3)),
)


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


# ------------------------------------------------------------------------------------------ drawing


def largest(height: int, width: int, size: Size) -> tuple[int, int]:
    """Return height and width of the largest crop of a frame that has the proportions of `size`."""
    high, wide = sides(size)
    if width * high >= height * wide:
        return height, height * wide // high
    return width * high // wide, width


def central_box(height: int, width: int, size: Size = 1) -> Box:
    """Return the largest central crop of the proportions of `size`."""
    crop_height, crop_width = largest(height, width, size)
    return Box((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width)


def multi_scale_box(
    height: int, width: int, size: Size, scales: tuple[float, ...], rng: np.random.Generator
) -> Box:
    """Return a crop whose sides are shares of the largest one's, at one of TSN's 13 positions.

    All pairs of sides that differ by at most one step in `scales` are equally likely, which also varies the
    aspect ratio a little. A side within two pixels of the clip's, `size`, becomes that, if it fits.
    """

    def near(most: int, clip: int) -> list[int]:
        shares = [int(most * scale) for scale in scales]
        return [clip if abs(share - clip) <= 2 and clip <= most else share for share in shares]

    heights, widths = map(near, largest(height, width, size), sides(size))
    pairs = [
        (high, wide) for step, high in enumerate(heights) for wide in widths[max(step - 1, 0) : step + 2]
    ]
    crop_height, crop_width = pairs[rng.integers(len(pairs))]
    across, down = _OFFSETS[rng.integers(len(_OFFSETS))]
    top, left = (height - crop_height) // 4 * down, (width - crop_width) // 4 * across
    return Box(top, left, crop_height, crop_width)


def random_resized_box(
    height: int,
    width: int,
    area: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
    size: Size = 1,
) -> Box:
    """Return a crop of random position, area (share of the frame) and aspect ratio.

    After ten draws that do not fit it returns the largest central crop (Inception's rule).

    Args:
        ratio: smallest and largest width / height, in proportion to those of the clip, `size`.
    """
    high, wide = sides(size)
    for _ in range(10):
        pixels = rng.uniform(*area) * height * width
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1]))) * (wide / high)
        crop_height, crop_width = round(math.sqrt(pixels / aspect)), round(math.sqrt(pixels * aspect))
        if 0 < crop_height <= height and 0 < crop_width <= width:
            top = int(rng.integers(height - crop_height + 1))
            left = int(rng.integers(width - crop_width + 1))
            return Box(top, left, crop_height, crop_width)
    return central_box(height, width, size)


def view_boxes(height: int, width: int, size: Size, crops: int) -> list[Box]:
    """Return `crops` of the largest crops, evenly from one end of the frame to the other."""
    high, wide = largest(height, width, size)
    shares = [index / (crops - 1) if crops > 1 else 0.5 for index in range(crops)]
    return [Box(int((height - high) * at), int((width - wide) * at), high, wide) for at in shares]


@dataclass(frozen=True, slots=True)
class Colour:
    """A change of colour of one clip: `rgb @ matrix`, then contrast around the clip's mean grey."""

    matrix: NDArray[np.float64]
    contrast: float


def draw_colour(jitter: float, hue: float, rng: np.random.Generator) -> Colour:
    """Draw a change of colour.

    Args:
        jitter: brightness, saturation and contrast are each multiplied by a factor of `1 ± jitter`.
        hue: colours turn around the grey axis by up to ± this share of the circle (0.5: any hue).
    """
    brightness, saturation, contrast = 1 + jitter * rng.uniform(-1, 1, 3)
    angle = 2 * math.pi * hue * rng.uniform(-1, 1)
    grey = np.outer(_LUMA, np.ones(3))
    saturate = saturation * np.eye(3) + (1 - saturation) * grey
    return Colour(brightness * saturate @ _turn(angle), contrast)


def _turn(angle: float) -> NDArray[np.float64]:
    """Return the rotation of RGB space around its grey axis (1, 1, 1): it changes hue and leaves greys."""
    across = np.array([[0, 1, -1], [-1, 0, 1], [1, -1, 0]]) / math.sqrt(3)
    # Rodrigues' formula, transposed for row vectors: a positive angle goes from red to green.
    turn: NDArray[np.float64] = (
        math.cos(angle) * np.eye(3) + math.sin(angle) * across + (1 - math.cos(angle)) / 3 * np.ones((3, 3))
    )
    return turn


def draw_erased(size: Size, probability: float, rng: np.random.Generator) -> Box | None:
    """Draw the box that random erasing fills with noise in all frames (arXiv 1708.04896), or None.

    Its area is 2 to 33% of the frame and its aspect ratio 0.3 to 3.3, as in VideoMAE's fine-tuning, where the
    probability is 0.25.
    """
    if rng.random() >= probability:
        return None
    box = random_resized_box(*sides(size), (0.02, 1 / 3), (0.3, 1 / 0.3), rng)
    # A draw without a fitting box returns the largest square; then nothing is erased.
    return None if box.height == min(sides(size)) else box


# ------------------------------------------------------------------------------------------- pixels


def crop_resize(
    frames_THWC: Tensor, box: Box, size: Size, flip: bool = False, antialias: bool = True
) -> Tensor:
    """Cut `box` out of uint8 frames and resize it to `size` (bilinear).

    Returns:
        uint8 `frames_THWC`; mirrored left to right if `flip`.
    """
    cut_THWC = _resized(frames_THWC[:, *box.slices], *sides(size), antialias)
    return cut_THWC.flip(2) if flip else cut_THWC


def crops_of_test(frames_THWC: Tensor, size: Size, crops: int, antialias: bool = True) -> list[Tensor]:
    """Resize uint8 frames until they just cover `size`, then cut `crops` clips along what is left over.

    In this order, and rounded down, as in VideoMAE's test and Hugging Face's preprocessor: clips that are
    cut before they are resized lie up to a pixel beside these. The preprocessor antialiases, VideoMAE's test
    does not.

    Returns:
        uint8 `frames_THWC` of `size`, whose memory has the channels first and is shared by all crops.
    """
    height, width = frames_THWC.shape[1:3]
    high, wide = sides(size)
    if width * high >= height * wide:
        height, width = high, high * width // height
    else:
        height, width = wide * height // width, wide
    resized_THWC = _resized(frames_THWC, height, width, antialias)
    # Turned once, here, instead of in each of the crops and clips that a frame is in.
    resized_THWC = resized_THWC.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    return [resized_THWC[:, *box.slices] for box in view_boxes(height, width, size, crops)]


def _resized(frames_THWC: Tensor, height: int, width: int, antialias: bool = True) -> Tensor:
    if frames_THWC.shape[1:3] == (height, width):
        return frames_THWC
    # A view in channels-last order, which is what makes the uint8 kernel fast. Only CPUs have that kernel.
    frames_TCHW = frames_THWC.permute(0, 3, 1, 2)
    if frames_TCHW.device.type != "cpu":
        frames_TCHW = frames_TCHW.float()
    resized_TCHW = interpolate(frames_TCHW, (height, width), mode="bilinear", antialias=antialias)
    return in_bytes(resized_TCHW).permute(0, 2, 3, 1)


def in_bytes(levels: Tensor) -> Tensor:
    """Return grey levels as uint8, rounded."""
    return levels if levels.dtype == torch.uint8 else levels.round().clamp(0, 255).to(torch.uint8)


def shrink(frames_THWC: Tensor, short_side: int | None) -> Tensor:
    """Reduce uint8 frames to a shorter side of `short_side` (bilinear, antialiased); smaller ones stay."""
    height, width = frames_THWC.shape[1:3]
    if short_side is None or min(height, width) <= short_side:
        return frames_THWC
    scale = short_side / min(height, width)
    return _resized(frames_THWC, round(height * scale), round(width * scale))


def channels_first(clips_THWC: Iterable[Tensor]) -> Tensor:
    """Return clips of frames as uint8 `video_BCTHW`, contiguous, each copied once."""
    return torch.stack([clip_THWC.permute(3, 0, 1, 2) for clip_THWC in clips_THWC])


def recolour(video_BCTHW: Tensor, colours: list[Colour]) -> Tensor:
    """Change the colours of uint8 clips, each by its entry of `colours`; one affine map a clip.

    Returns:
        uint8 `video_BCTHW`, rounded to the nearest grey level as PIL and VideoMAE do.
    """
    pixels_BCP, device = video_BCTHW.float().flatten(2).div_(255), video_BCTHW.device
    # torch applies matrices from the left: the transpose of the row-vector form of `Colour`.
    matrix_BCC = torch.from_numpy(np.ascontiguousarray([colour.matrix.T for colour in colours])).float()
    matrix_BCC = matrix_BCC.to(device)
    contrasts = [colour.contrast for colour in colours]
    contrast_B11 = torch.tensor(contrasts, dtype=torch.float32, device=device).view(-1, 1, 1)
    luma_11C = torch.tensor(_LUMA, device=device).view(1, 1, -1)
    grey_B11 = luma_11C @ matrix_BCC @ pixels_BCP.mean(2, keepdim=True)
    shift_BC1 = ((1 - contrast_B11) * grey_B11).expand(-1, len(_LUMA), 1).contiguous()
    recoloured_BCP = torch.baddbmm(shift_BC1, contrast_B11 * matrix_BCC, pixels_BCP).clamp_(0, 1)
    return recoloured_BCP.mul_(255).round_().to(torch.uint8).view_as(video_BCTHW)


def to_display(video_BCTHW: Tensor) -> Tensor:
    """Undo the normalisation: the same axes, values in [0, 1]."""
    mean = torch.tensor(MEAN, device=video_BCTHW.device).view(3, 1, 1, 1)
    std = torch.tensor(STD, device=video_BCTHW.device).view(3, 1, 1, 1)
    return (video_BCTHW * std + mean).clamp(0, 1)

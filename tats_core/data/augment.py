"""timm's RandAugment (arXiv 1909.13719), the same operations on every frame of a clip.

`on_cpu` has timm apply them, a frame at a time, with Pillow. `on_device` computes what Pillow computes from
tensors, on any device: on CPUs the same bytes (tests/data/test_augment.py), several times as slowly; on a GPU
it is what keeps the CPUs free for decoding. Both draw the same operations from a seed.

Frames are `frames_THWC`, uint8. What a rotation, a shear or a shift uncovers is grey; pixels between pixels
are bicubic, as in VideoMAE's fine-tuning, whose description for timm is `rand-m7-n4-mstd0.5-inc1`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

GREY: Final = 128
"""What is uncovered; timm's default."""


RandAugment = Callable[[Tensor, str, int], Tensor]
"""From frames, the description of a policy and a seed to frames."""


class Operation(NamedTuple):
    """One operation: the name of timm's function, and how strong it is."""

    name: str
    arguments: tuple[float, ...]


def on_cpu(frames_THWC: Tensor, policy: str, seed: int) -> Tensor:
    """Apply a policy by timm and Pillow."""
    augment = _policy(policy)
    augmented = []
    for frame_HWC in frames_THWC.numpy():
        with _seeded(seed):
            augmented.append(np.asarray(augment(Image.fromarray(frame_HWC))))
    return torch.from_numpy(np.stack(augmented))


def on_device(frames_THWC: Tensor, policy: str, seed: int) -> Tensor:
    """Apply a policy by torch, where the frames are."""
    for operation in operations(policy, seed):
        frames_THWC = _APPLY[operation.name](frames_THWC, *operation.arguments)
    return frames_THWC


def operations(policy: str, seed: int) -> list[Operation]:
    """Return what a policy draws from a seed."""
    augment = _policy(policy)
    drawn: list[Operation] = []

    def noted(frame: None, *arguments: float, name: str, **_: object) -> None:
        drawn.append(Operation(name, arguments))

    for operation in augment.ops:
        operation.aug_fn = partial(noted, name=operation.aug_fn.__name__)
    with _seeded(seed):
        augment(None)
    return drawn


def _policy(policy: str) -> Any:
    # Here, since timm takes seconds to import and only long recipes use it.
    from timm.data import auto_augment

    augment = auto_augment.rand_augment_transform(policy, {"interpolation": Image.Resampling.BICUBIC})
    for operation in augment.ops:
        if operation.aug_fn is auto_augment.posterize:
            operation.aug_fn = posterize
    return augment


def posterize(frame: Image.Image, bits: int, **_: object) -> Image.Image:
    """Do timm's `posterize`, which may draw no bits at all: Pillow no longer takes that for black."""
    return ImageOps.posterize(frame, bits) if bits else Image.new(frame.mode, frame.size)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of Python and numpy, from which timm draws, and restore them afterwards."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002


# -------------------------------------------------------------------------------- grey levels, by tables


def _looked_up(frames_THWC: Tensor, table: Sequence[int]) -> Tensor:
    return torch.tensor(table, dtype=torch.uint8, device=frames_THWC.device)[frames_THWC.int()]


def _invert(frames_THWC: Tensor) -> Tensor:
    return ~frames_THWC


def _posterize(frames_THWC: Tensor, bits: float) -> Tensor:
    return frames_THWC.bitwise_and(256 - 2 ** (8 - int(bits)))


def _solarize(frames_THWC: Tensor, threshold: float) -> Tensor:
    return _looked_up(frames_THWC, [level if level < threshold else 255 - level for level in range(256)])


def _solarize_add(frames_THWC: Tensor, add: float) -> Tensor:
    table = [min(255, level + int(add)) if level < 128 else level for level in range(256)]
    return _looked_up(frames_THWC, table)


def _auto_contrast(frames_THWC: Tensor) -> Tensor:
    low_T11C, high_T11C = (
        extreme(frames_THWC, (1, 2), keepdim=True).double() for extreme in (torch.amin, torch.amax)
    )
    # Not `255 / …`, which torch computes as 255 times a reciprocal.
    scale_T11C = torch.full_like(low_T11C, 255).div_(high_T11C - low_T11C)
    stretched_THWC = (frames_THWC * scale_T11C - low_T11C * scale_T11C).clamp(0, 255).to(torch.uint8)
    return torch.where(high_T11C > low_T11C, stretched_THWC, frames_THWC)


def _equalize(frames_THWC: Tensor) -> Tensor:
    levels_TCP = frames_THWC.permute(0, 3, 1, 2).flatten(2).long()
    histogram_TCL = levels_TCP.new_zeros(*levels_TCP.shape[:2], 256)
    histogram_TCL.scatter_add_(2, levels_TCP, torch.ones_like(levels_TCP))
    brightest_TC1 = levels_TCP.amax(2, keepdim=True)
    step_TC1 = (levels_TCP.shape[2] - histogram_TCL.gather(2, brightest_TC1)) // 255
    darker_TCL = histogram_TCL.cumsum(2) - histogram_TCL
    table_TCL = ((darker_TCL + step_TC1 // 2) // step_TC1.clamp(min=1)).clamp(max=255)
    # Where there is one level, or nearly, Pillow leaves the channel as it is.
    table_TCL = torch.where(step_TC1 > 0, table_TCL, torch.arange(256, device=frames_THWC.device))
    equal_TCP = table_TCL.gather(2, levels_TCP).to(torch.uint8)
    return equal_TCP.view(frames_THWC.permute(0, 3, 1, 2).shape).permute(0, 2, 3, 1)


# ------------------------------------------------------------------- between a frame and a duller version


def _blended(dull_THWC: Tensor, frames_THWC: Tensor, factor: float) -> Tensor:
    """Go from a dull version (0) to the frames (1) and beyond; cut off below the point, as Pillow does."""
    if factor in (0, 1):
        return frames_THWC if factor else dull_THWC.expand_as(frames_THWC)
    blended_THWC = dull_THWC + factor * (frames_THWC.float() - dull_THWC)
    return blended_THWC.clamp(0, 255).to(torch.uint8)


def _luma(frames_THWC: Tensor) -> Tensor:
    """Return Pillow's `luma_THW1`, uint8: ITU-R 601 in sixteenths of 4,096."""
    red_THW, green_THW, blue_THW = frames_THWC.int().unbind(3)
    luma_THW = (19595 * red_THW + 38470 * green_THW + 7471 * blue_THW + 0x8000) >> 16
    return luma_THW.to(torch.uint8).unsqueeze(3)


def _brightness(frames_THWC: Tensor, factor: float) -> Tensor:
    return _blended(torch.zeros_like(frames_THWC), frames_THWC, factor)


def _colour(frames_THWC: Tensor, factor: float) -> Tensor:
    return _blended(_luma(frames_THWC), frames_THWC, factor)


def _contrast(frames_THWC: Tensor, factor: float) -> Tensor:
    mean_T111 = (_luma(frames_THWC).double().mean((1, 2, 3), keepdim=True) + 0.5).to(torch.uint8)
    return _blended(mean_T111, frames_THWC, factor)


def _sharpness(frames_THWC: Tensor, factor: float) -> Tensor:
    levels_THWC = frames_THWC.int()
    height, width = frames_THWC.shape[1:3]
    dull_THWC = frames_THWC.clone()
    if min(height, width) >= 3:
        total_THWC = 4 * levels_THWC[:, 1:-1, 1:-1]
        for down in range(3):
            for right in range(3):
                total_THWC = total_THWC + levels_THWC[:, down : height - 2 + down, right : width - 2 + right]
        dull_THWC[:, 1:-1, 1:-1] = ((2 * total_THWC + 13) // 26).to(torch.uint8)  # a thirteenth, rounded
    return _blended(dull_THWC, frames_THWC, factor)


# -------------------------------------------------------------------------------------------- geometry

_Matrix = tuple[float, float, float, float, float, float]


def _affine(frames_THWC: Tensor, matrix: _Matrix) -> Tensor:
    """Take each pixel (x, y) from (a x + b y + c, d x + e y + f), bicubic, as Pillow's `transform`."""
    height, width = frames_THWC.shape[1:3]
    a, b, c, d, e, f = matrix
    x_1W, y_H1 = (
        torch.arange(count, dtype=torch.float64, device=frames_THWC.device).view(shape) + 0.5
        for count, shape in ((width, (1, -1)), (height, (-1, 1)))
    )
    x_HW, y_HW = a * x_1W + b * y_H1 + c, d * x_1W + e * y_H1 + f
    inside_HW = (x_HW >= 0) & (x_HW < width) & (y_HW >= 0) & (y_HW < height)
    left_HW, top_HW = (x_HW - 0.5).floor(), (y_HW - 0.5).floor()
    right_HW1, down_HW1 = ((x_HW - 0.5) - left_HW).unsqueeze(2), ((y_HW - 0.5) - top_HW).unsqueeze(2)
    columns = [(left_HW.long() + step).clamp(0, width - 1) for step in range(-1, 3)]
    rows = [(top_HW.long() + step).clamp(0, height - 1) for step in range(-1, 3)]
    moved_THWC = _cubic(
        [_cubic([frames_THWC[:, row, column].double() for column in columns], right_HW1) for row in rows],
        down_HW1,
    )
    return torch.where(inside_HW.unsqueeze(2), moved_THWC.clamp(0, 255), GREY).to(torch.uint8)


def _cubic(values: Sequence[Tensor], at: Tensor) -> Tensor:
    """Return Pillow's cubic through four values (tension -1), at 0 to 1 between the middle two."""
    before, first, second, after = values
    slope, bend = second - before, 2 * (before - first) + second - after
    return first + at * (slope + at * (bend + at * (first - before - second + after)))


def _rotate(frames_THWC: Tensor, degrees: float) -> Tensor:
    height, width = frames_THWC.shape[1:3]
    angle = -math.radians(degrees % 360)
    a, b, d = round(math.cos(angle), 15), round(math.sin(angle), 15), round(-math.sin(angle), 15)
    x, y = width / 2, height / 2
    return _affine(frames_THWC, (a, b, a * -x + b * -y + x, d, a, d * -x + a * -y + y))


def _shear_x(frames_THWC: Tensor, factor: float) -> Tensor:
    return _affine(frames_THWC, (1, factor, 0, 0, 1, 0))


def _shear_y(frames_THWC: Tensor, factor: float) -> Tensor:
    return _affine(frames_THWC, (1, 0, 0, factor, 1, 0))


def _translate_x(frames_THWC: Tensor, share: float) -> Tensor:
    return _affine(frames_THWC, (1, 0, share * frames_THWC.shape[2], 0, 1, 0))


def _translate_y(frames_THWC: Tensor, share: float) -> Tensor:
    return _affine(frames_THWC, (1, 0, 0, 0, 1, share * frames_THWC.shape[1]))


_APPLY: Final[dict[str, Callable[..., Tensor]]] = {
    "auto_contrast": _auto_contrast,
    "brightness": _brightness,
    "color": _colour,
    "contrast": _contrast,
    "equalize": _equalize,
    "invert": _invert,
    "posterize": _posterize,
    "rotate": _rotate,
    "sharpness": _sharpness,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "translate_x_rel": _translate_x,
    "translate_y_rel": _translate_y,
}
"""By the names of timm's functions: all that `rand-…` policies draw."""

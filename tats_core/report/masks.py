"""Mask pictures: what a sampler shows of a clip, why, and what the autoencoder makes of it.

Axes: T frames, H × W pixels of a frame, C = 3 colours (RGB). A map `_THW` may be coarser than the video:
one value a token is spread over the frames and pixels that the token covers.

Maps are coloured so that colour-blind readers see their order: cividis (motion), viridis (policy) and magma
(error) rise in lightness, purple to orange (value) is lightest at 0. Each has its scale beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Pixels: TypeAlias = NDArray[np.uint8]
Map: TypeAlias = NDArray[Any]

_SHOWN_FRAMES = 8
_FRAME_PIXELS = 112  # a frame is enlarged by whole pixels until it is at least this wide
_GAP = 4
_LABELS = 156  # width of the labels left of a grid
_TOP = 64
_BAR = (112, 8)  # width and height of a colour scale
_HIDDEN = 58  # grey of a token that the encoder does not see
_NOTHING = 128  # grey where a map has no value
_GREY = "#5A5A5A"
_GIF_STEPS = 40  # of a GIF's 256 colours, for each colour scale
_GIF_GREYS = 16  # for letters
_GIF_MILLISECONDS = 180  # how long a frame stays


@dataclass(frozen=True)
class Picture:
    """One clip with all that is drawn of it; what a sampler does not have is None and gets no row."""

    frames_THWC: Pixels
    """The video, uint8 RGB."""
    visible_THW: Map
    """True where the encoder saw the token."""
    prediction_THWC: Map
    """What the decoder painted, visible tokens as they are: uint8, or float in [0, 1] (clipped)."""
    error_THW: Map
    """Mean absolute error of a token's pixels in [0, 1]; NaN where there is none."""
    policy_THW: Map | None = None
    """The sampler's probabilities, in units of blind drawing: 1 is 1/N."""
    value_THW: Map | None = None
    """The critic's, in deviations of the reward. A clip's value is the mean over its tokens, and the map is
    what each adds to it."""
    motion_THW: Map | None = None
    """How much each pixel moves, in the unit that `motion_remarks` say."""
    motion_remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Scale:
    """The colour scale of a map."""

    colours: str
    low: float
    high: float

    def paint(self, values_X: Map) -> Pixels:
        """`values_X` as RGB `[..., 3]`; NaN becomes mid grey."""
        known_X = np.isfinite(values_X)
        span = self.high - self.low or 1.0
        share_X = (np.where(known_X, values_X, self.low) - self.low) / span
        import matplotlib as mpl  # here: a plan does without it, and it takes 1 s to import

        colours_XC = mpl.colormaps[self.colours](share_X.clip(0, 1))[..., :3]
        pixels_XC: Pixels = (colours_XC * 255).round().astype(np.uint8)
        pixels_XC[~known_X] = _NOTHING
        return pixels_XC


@dataclass(frozen=True)
class _Row:
    """A view of the clip; `pixels_THWC` has the video's size."""

    label: str
    remarks: tuple[str, ...]
    pixels_THWC: Pixels
    scale: _Scale | None = None

    @classmethod
    def of_map(
        cls, label: str, remarks: tuple[str, ...], values_THW: Map, colours: str, *, signed: bool = False
    ) -> _Row:
        """Return the view of a map; colours begin at 0, or have 0 in the middle."""
        known = np.abs(values_THW[np.isfinite(values_THW)])
        high = float(known.max()) if known.size else 0.0
        scale = _Scale(colours, -high if signed else 0.0, high)
        return cls(label, remarks, scale.paint(values_THW), scale)


def mask_grid(picture: Picture, *, title: str, remark: str = "") -> Image.Image:
    """Draw a clip as a grid: video, motion, visible tokens, policy, value, prediction, error by frame.

    At most eight frames are shown, evenly spread. Frames are enlarged by whole pixels.

    Args:
        title: on top; `remark` stands under it, smaller.

    Raises:
        ValueError: a map whose axes do not divide the video's.
    """
    rows = _rows(picture)
    frames = len(picture.frames_THWC)
    columns = np.unique(np.linspace(0, frames - 1, min(frames, _SHOWN_FRAMES)).round().astype(int))
    scale = _enlargement(picture.frames_THWC)
    height, width = (scale * side for side in picture.frames_THWC.shape[1:3])
    grid = _canvas(_LABELS + len(columns) * (width + _GAP), _TOP + len(rows) * (height + _GAP), title, remark)
    draw = ImageDraw.Draw(grid)
    for column, frame in enumerate(columns):
        x = _LABELS + column * (width + _GAP)
        draw.text((x + 1, _TOP - 17), f"frame {frame}", fill=_GREY, font=_font(11))
    for line, row in enumerate(rows):
        y = _TOP + line * (height + _GAP)
        _describe(draw, grid, row, y + height // 2)
        for column, frame in enumerate(columns):
            tile = _enlarged(row.pixels_THWC[frame], scale)
            grid.paste(tile, (_LABELS + column * (width + _GAP), y))
    return grid


def mask_gif(picture: Picture, path: Path, *, title: str, remark: str = "") -> None:
    """Write the same pictures side by side as an endless GIF, one video frame after the other.

    Arguments as for `mask_grid`.
    """
    rows = _rows(picture)
    scale = _enlargement(picture.frames_THWC)
    height, width = (scale * side for side in picture.frames_THWC.shape[1:3])
    # The static parts are drawn once.
    still = _canvas(len(rows) * (width + _GAP) - _GAP, _TOP + height + 34, title, remark)
    draw = ImageDraw.Draw(still)
    for column, row in enumerate(rows):
        x = column * (width + _GAP)
        draw.text((x + 2, _TOP - 20), row.label, fill="black", font=_font(12, bold=True))
        if row.scale is not None:
            _bar(draw, still, row.scale, x + 2, _TOP + height + 6)
        else:
            draw.text((x + 2, _TOP + height + 4), row.remarks[0], fill=_GREY, font=_font(10))
    palette = _palette(rows)
    pictures = []
    for frame in range(len(picture.frames_THWC)):
        canvas = still.copy()
        for column, row in enumerate(rows):
            canvas.paste(_enlarged(row.pixels_THWC[frame], scale), (column * (width + _GAP), _TOP))
        pictures.append(canvas.quantize(palette=palette, dither=Image.Dither.NONE))
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=_GIF_MILLISECONDS, loop=0)


def _palette(rows: Sequence[_Row]) -> Image.Image:
    """Return the 256 colours of an animation: steps of each scale, greys, and the rest for the video's own.

    Pillow would choose a palette for each frame, in which the scales have about ten colours that change from
    frame to frame.
    """
    steps = [
        row.scale.paint(np.linspace(row.scale.low, row.scale.high, _GIF_STEPS))
        for row in rows
        if row.scale is not None
    ]
    letters = np.linspace(0, 255, _GIF_GREYS).round()
    greys_X = np.array([*letters, _HIDDEN, _NOTHING], np.uint8)
    fixed_XC = np.concatenate([*steps, np.repeat(greys_X[:, None], 3, axis=1)])
    videos = [row.pixels_THWC.reshape(1, -1, 3) for row in rows if row.scale is None]
    rest = Image.fromarray(np.concatenate(videos, axis=1)).quantize(256 - len(fixed_XC)).getpalette()
    assert rest is not None, "a quantised picture has a palette"
    palette = Image.new("P", (1, 1))
    palette.putpalette([*fixed_XC.flatten().tolist(), *rest])
    return palette


def _rows(picture: Picture) -> list[_Row]:
    frames_THWC = picture.frames_THWC
    shape = frames_THWC.shape[:3]
    rows = [_Row("video", (f"{shape[0]} × {shape[1]} × {shape[2]}",), frames_THWC)]
    if picture.motion_THW is not None:
        motion_THW = _spread(picture.motion_THW, shape, "motion_THW")
        rows.append(_Row.of_map("motion", picture.motion_remarks, motion_THW, "cividis"))
    visible_THW = _spread(picture.visible_THW.astype(bool), shape, "visible_THW")
    seen_THWC = np.where(visible_THW[..., None], frames_THWC, np.uint8(_HIDDEN))
    rows.append(_Row("visible", (f"{100 * visible_THW.mean():.0f}% of tokens",), seen_THWC))
    if picture.policy_THW is not None:
        policy_THW = _spread(picture.policy_THW, shape, "policy_THW")
        remarks: tuple[str, ...] = ("probability ÷ (1/N)", "1: blind drawing")
        rows.append(_Row.of_map("policy", remarks, policy_THW, "viridis"))
    if picture.value_THW is not None:
        value_THW = _spread(picture.value_THW, shape, "value_THW")
        remarks = ("the critic's, by token", f"of the clip: {_short(float(value_THW.mean()))}")
        rows.append(_Row.of_map("value", remarks, value_THW, "PuOr_r", signed=True))
    prediction_THWC = _as_pixels(picture.prediction_THWC, frames_THWC)
    rows.append(_Row("prediction", ("masked: by the decoder",), prediction_THWC))
    error_THW = _spread(picture.error_THW, shape, "error_THW")
    remarks = ("mean |difference|", "grey: visible")
    return [*rows, _Row.of_map("error", remarks, error_THW, "magma")]


def _spread(values_THW: Map, shape: Sequence[int], name: str) -> Map:
    """Repeat each value over the frames and pixels it stands for."""
    for axis, (have, want) in enumerate(zip(values_THW.shape, shape, strict=True)):
        if want % have:
            raise ValueError(f"{name} has shape {values_THW.shape}, which does not divide {tuple(shape)}")
        values_THW = np.repeat(values_THW, want // have, axis=axis)
    return values_THW


def _as_pixels(prediction_THWC: Map, frames_THWC: Pixels) -> Pixels:
    if prediction_THWC.shape != frames_THWC.shape:
        raise ValueError(f"prediction has shape {prediction_THWC.shape}, the video {frames_THWC.shape}")
    if prediction_THWC.dtype == np.uint8:
        return prediction_THWC
    pixels: Pixels = (prediction_THWC.clip(0, 1) * 255).round().astype(np.uint8)
    return pixels


def _canvas(width: int, height: int, title: str, remark: str) -> Image.Image:
    """White paper with its heading, wide enough for it."""
    heading = [(6, title, _font(14, bold=True), "black"), (24, remark, _font(11), _GREY)]
    needed = max(math.ceil(font.getlength(text)) + 12 for _, text, font, _ in heading)
    canvas = Image.new("RGB", (max(width, needed), height), "white")
    draw = ImageDraw.Draw(canvas)
    for y, text, font, colour in heading:
        draw.text((6, y), text, fill=colour, font=font)
    return canvas


def _describe(draw: ImageDraw.ImageDraw, grid: Image.Image, row: _Row, middle: int) -> None:
    """Write a row's label, remarks and colour scale, centred around the height `middle`."""
    y = middle - (19 + 13 * len(row.remarks) + (26 if row.scale is not None else 0)) // 2
    draw.text((6, y), row.label, fill="black", font=_font(13, bold=True))
    y += 19
    for remark in row.remarks:
        draw.text((6, y), remark, fill=_GREY, font=_font(10))
        y += 13
    if row.scale is not None:
        _bar(draw, grid, row.scale, 6, y + 4)


def _bar(draw: ImageDraw.ImageDraw, canvas: Image.Image, scale: _Scale, x: int, y: int) -> None:
    width, height = _BAR
    colours = scale.paint(np.linspace(scale.low, scale.high, width))
    canvas.paste(Image.fromarray(np.repeat(colours[None], height, axis=0)), (x, y))
    middle = [(0.5, "ma", 0.0)] if scale.low < 0 else []
    for share, anchor, value in ((0.0, "la", scale.low), *middle, (1.0, "ra", scale.high)):
        corner = (x + share * width, y + height + 2)
        draw.text(corner, _short(value), fill=_GREY, font=_font(10), anchor=anchor)


def _short(value: float) -> str:
    return f"{value:.2g}".replace("-", "−")


def _enlargement(frames_THWC: Pixels) -> int:
    return max(1, math.ceil(_FRAME_PIXELS / int(frames_THWC.shape[2])))


def _enlarged(frame_HWC: Pixels, scale: int) -> Image.Image:
    # Nearest neighbour: each pixel and each token border stays what it is.
    return Image.fromarray(np.repeat(np.repeat(frame_HWC, scale, axis=0), scale, axis=1))


@cache
def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    import matplotlib as mpl

    # Pillow's own font has neither × nor −; matplotlib's wheel carries DejaVu, which has both.
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(mpl.get_data_path()) / "fonts" / "ttf" / name, size)

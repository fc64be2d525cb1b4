"""Pictures: what a sampler sees of a clip, curves, results. Arrays in, a picture out; nothing is written
unless the function is given a path.

Axes: T frames, H × W pixels of a frame, C = 3 colours (RGB). A map `_THW` may be coarser than the video:
one value a token is spread over the frames and pixels that the token covers.

Colours are told apart by colour-blind readers (Okabe and Ito's blue and orange; the maps viridis and
magma, whose lightness alone orders the values) and never carry a meaning alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tats_core.report.tables import Row, by_benchmark

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

# Importing matplotlib's drawing part takes 0.3 s; a training worker, which makes mask pictures only, and a
# run that reuses everything do without it. So the functions that draw charts import it.

Pixels: TypeAlias = NDArray[np.uint8]
Map: TypeAlias = NDArray[Any]

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#6B6B6B"
_BARS = {"pretrained": ("pre-trained", BLUE, ""), "scratch": ("from scratch", ORANGE, "///")}
_PROBE: dict[str, Any] = {
    "marker": "D", "markersize": 6, "markeredgecolor": "black", "color": "white", "linestyle": "none",
}  # fmt: skip
_STYLES = ((BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), ("#CC79A7", ":"), ("#000000", "-"))

_SHOWN_FRAMES = 8
_FRAME_PIXELS = 112  # a frame is enlarged by whole pixels until it is at least this wide
_GAP = 4
_LABELS = 124
_HIDDEN = 58  # grey of a token that the encoder does not see


def mask_grid(
    frames_THWC: Pixels,
    visible_THW: Map,
    policy_THW: Map,
    prediction_THWC: Map,
    error_THW: Map,
    *,
    title: str,
) -> Image.Image:
    """Draw a clip as a grid: video, visible tokens, policy, prediction, error, one column a frame.

    At most eight frames are shown, evenly spread. Frames are enlarged by whole pixels.

    Args:
        frames_THWC: the video, uint8 RGB.
        visible_THW: True where the encoder saw the token.
        policy_THW: the sampler's probabilities in any unit; one scale from 0 for all frames.
        prediction_THWC: what the decoder painted: uint8, or float in [0, 1] (clipped).
        error_THW: reconstruction error, any unit, not negative; NaN where there is none.

    Raises:
        ValueError: a map whose axes do not divide the video's.
    """
    rows = _rows(frames_THWC, visible_THW, policy_THW, prediction_THWC, error_THW)
    frames = len(frames_THWC)
    shown = np.unique(np.linspace(0, frames - 1, min(frames, _SHOWN_FRAMES)).round().astype(int))
    scale = _scale(frames_THWC)
    height, width = (scale * side for side in frames_THWC.shape[1:3])
    top = 44
    grid = Image.new(
        "RGB",
        (_LABELS + len(shown) * (width + _GAP), top + len(rows) * (height + _GAP)),
        "white",
    )
    draw = ImageDraw.Draw(grid)
    draw.text((6, 4), title, fill="black", font=_font(14))
    for column, frame in enumerate(shown):
        x = _LABELS + column * (width + _GAP)
        draw.text((x + 2, top - 16), f"frame {frame}", fill=GREY, font=_font(11))
    for line, (label, remark, pixels_THWC) in enumerate(rows):
        y = top + line * (height + _GAP)
        draw.text((6, y + height // 2 - 17), label, fill="black", font=_font(13))
        draw.text((6, y + height // 2 + 2), remark, fill=GREY, font=_font(10))
        for column, frame in enumerate(shown):
            grid.paste(_enlarged(pixels_THWC[frame], scale), (_LABELS + column * (width + _GAP), y))
    return grid


def mask_gif(
    frames_THWC: Pixels,
    visible_THW: Map,
    policy_THW: Map,
    prediction_THWC: Map,
    error_THW: Map,
    path: Path,
    *,
    title: str,
    milliseconds: int = 180,
) -> None:
    """Write the same five pictures side by side as an endless GIF, one video frame after the other.

    Arguments as for `mask_grid`; `milliseconds` is how long a frame stays.
    """
    rows = _rows(frames_THWC, visible_THW, policy_THW, prediction_THWC, error_THW)
    scale = _scale(frames_THWC)
    height, width = (scale * side for side in frames_THWC.shape[1:3])
    pictures = []
    for frame in range(len(frames_THWC)):
        picture = Image.new("RGB", (len(rows) * (width + _GAP) - _GAP, height + 44), "white")
        draw = ImageDraw.Draw(picture)
        draw.text((4, 3), title, fill="black", font=_font(12))
        for column, (label, _, pixels_THWC) in enumerate(rows):
            x = column * (width + _GAP)
            draw.text((x + 4, 24), label, fill="black", font=_font(12))
            picture.paste(_enlarged(pixels_THWC[frame], scale), (x, 44))
        pictures.append(picture)
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0)


def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    y_label: str,
    references: Mapping[str, float] | None = None,
    x_label: str = "step",
) -> Figure:
    """Draw one line for each entry of `series` (name → x values, y values).

    `references` are horizontal lines with a name (`{"random sampling": 1.0}`).
    """
    figure, axes = _axes(7.0, 3.8, title)
    for (name, (x, y)), (colour, style) in zip(series.items(), _cycled(len(series)), strict=True):
        axes.plot(x, y, style, color=colour, linewidth=1.8, label=name)
    for name, value in (references or {}).items():
        axes.axhline(value, color=GREY, linewidth=1, linestyle=(0, (1, 2)))
        axes.annotate(
            name, (1, value), xycoords=("axes fraction", "data"), xytext=(-2, 3),
            textcoords="offset points", ha="right", fontsize=9, color=GREY,
        )  # fmt: skip
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=9)
    return figure


def results_chart(rows: Sequence[Row]) -> Figure:
    """Draw top-1 of each benchmark as bars with 95% intervals, pre-trained beside scratch.

    A dashed line a benchmark is chance, a diamond the linear probe on frozen features. `rows` as in
    `tats_core.report.tables`.
    """
    figure, axes = _axes(7.0, 4.0, "Top-1 on the test clips, with 95% intervals")
    grouped = by_benchmark(rows)
    wide = 0.36
    for side, (init, (_, colour, hatch)) in enumerate(_BARS.items()):
        for place, pair in enumerate(grouped.values()):
            if init not in pair:
                continue
            x = place + (side - 0.5) * (wide + 0.02)
            _bar(axes, x, wide, pair[init], colour, hatch)
    for place, pair in enumerate(grouped.values()):
        chance = next(iter(pair.values())).get("chance")
        if chance is not None:
            axes.plot([place - 0.46, place + 0.46], [chance, chance], "--", color="black", linewidth=1.2)
    axes.set_xticks(range(len(grouped)), list(grouped))
    axes.set_ylabel("percent of clips")
    axes.set_ylim(0, 100)
    axes.legend(
        handles=_handles(rows),
        frameon=False,
        fontsize=9,
        ncols=4,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.1),
    )
    return figure


def _handles(rows: Sequence[Row]) -> list[Artist]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    measured = {row["init"] for row in rows}
    handles: list[Artist] = [
        Patch(facecolor=colour, hatch=hatch, edgecolor="white", label=label)
        for init, (label, colour, hatch) in _BARS.items()
        if init in measured
    ]
    if any(row.get("linear_top1") is not None for row in rows):
        handles.append(Line2D([], [], **_PROBE, label="linear probe"))
    if any(row.get("chance") is not None for row in rows):
        handles.append(Line2D([], [], linestyle="--", color="black", linewidth=1.2, label="chance"))
    return handles


def _bar(axes: Any, x: float, wide: float, row: Row, colour: str, hatch: str) -> None:
    top1 = row["top1"]
    axes.bar(x, top1, wide, color=colour, hatch=hatch, edgecolor="white", linewidth=0)
    if row.get("low") is not None and row.get("high") is not None:
        axes.errorbar(
            x, top1, [[top1 - row["low"]], [row["high"] - top1]],
            color="black", capsize=4, linewidth=1.3,
        )  # fmt: skip
    if row.get("linear_top1") is not None:
        axes.plot([x], [row["linear_top1"]], **_PROBE)


def _axes(wide: float, high: float, title: str) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    # A Figure of its own instead of pyplot's: no global state, no display, safe in threads.
    figure = Figure(figsize=(wide, high), dpi=140, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _cycled(count: int) -> list[tuple[str, str]]:
    return [_STYLES[place % len(_STYLES)] for place in range(count)]


def _rows(
    frames_THWC: Pixels, visible_THW: Map, policy_THW: Map, prediction_THWC: Map, error_THW: Map
) -> list[tuple[str, str, Pixels]]:
    """Return `(label, remark, pixels_THWC)` for each row of the picture, all of the video's size."""
    shape = frames_THWC.shape[:3]
    visible = _spread(visible_THW.astype(bool), shape, "visible_THW")
    seen_THWC = np.where(visible[..., None], frames_THWC, np.uint8(_HIDDEN))
    policy_THWC, policy_top = _heat(_spread(policy_THW, shape, "policy_THW"), "viridis")
    error_THWC, error_top = _heat(_spread(error_THW, shape, "error_THW"), "magma")
    return [
        ("video", f"{shape[0]} × {shape[1]} × {shape[2]}", frames_THWC),
        ("visible", f"{100 * visible.mean():.0f}% of tokens", seen_THWC),
        ("policy", f"0 to {policy_top:.2g}", policy_THWC),
        ("prediction", "by the decoder", _as_pixels(prediction_THWC, frames_THWC)),
        ("error", f"0 to {error_top:.2g}", error_THWC),
    ]


def _spread(values_THW: Map, shape: Sequence[int], name: str) -> Map:
    """Repeat each value over the frames and pixels it stands for."""
    for axis, (have, want) in enumerate(zip(values_THW.shape, shape, strict=True)):
        if want % have:
            raise ValueError(f"{name} has shape {values_THW.shape}, which does not divide {tuple(shape)}")
        values_THW = np.repeat(values_THW, want // have, axis=axis)
    return values_THW


def _heat(values_THW: Map, colours: str) -> tuple[Pixels, float]:
    """Colour `values_THW` from 0 to its largest value; NaN becomes mid grey."""
    known = np.isfinite(values_THW)
    largest = float(values_THW[known].max()) if known.any() else 0.0
    share_THW = np.where(known, values_THW, 0) / (largest or 1.0)
    colours_THWC = mpl.colormaps[colours](share_THW.clip(0, 1))[..., :3]
    pixels_THWC = (colours_THWC * 255).round().astype(np.uint8)
    pixels_THWC[~known] = 128
    return pixels_THWC, largest


def _as_pixels(prediction_THWC: Map, frames_THWC: Pixels) -> Pixels:
    if prediction_THWC.shape != frames_THWC.shape:
        raise ValueError(f"prediction has shape {prediction_THWC.shape}, the video {frames_THWC.shape}")
    if prediction_THWC.dtype == np.uint8:
        return prediction_THWC
    pixels: Pixels = (prediction_THWC.clip(0, 1) * 255).round().astype(np.uint8)
    return pixels


def _scale(frames_THWC: Pixels) -> int:
    return max(1, math.ceil(_FRAME_PIXELS / int(frames_THWC.shape[2])))


def _enlarged(frame_HWC: Pixels, scale: int) -> Image.Image:
    # Nearest neighbour: each pixel and each token border stays what it is.
    return Image.fromarray(np.repeat(np.repeat(frame_HWC, scale, axis=0), scale, axis=1))


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # Pillow's own font has neither × nor ρ; matplotlib's wheel carries DejaVu, which has both.
    return ImageFont.truetype(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)

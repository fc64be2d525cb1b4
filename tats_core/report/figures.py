"""Charts: results, classes, calibration. Numbers in, a figure out; nothing is written.

Axes: C classes, K bins of confidence.

Colours are told apart by colour-blind readers (Okabe and Ito's blue and orange; single-hue maps, whose
lightness alone orders the values) and never carry a meaning alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tats_core.report.classes import Counts, most_confused
from tats_core.report.tables import Row, by_benchmark

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

# Importing matplotlib's drawing part takes 0.3 s; a run that reuses everything does without it. So the
# functions that draw import it.

BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#6B6B6B"
_BARS = {"pretrained": ("pre-trained", BLUE, ""), "scratch": ("from scratch", ORANGE, "///")}
_LINES: tuple[tuple[str, Any], ...] = (
    (BLUE, "-"),
    (ORANGE, "--"),
    ("#009E73", "-."),
    ("#CC79A7", ":"),
    ("black", (0, (5, 1, 1, 1, 1, 1))),
)
_PROBE: dict[str, Any] = {
    "marker": "D", "markersize": 6, "markeredgecolor": "black", "color": "white", "linestyle": "none",
}  # fmt: skip

_COUNTED_CLASSES = 16  # up to here each cell of a confusion matrix has room for its number
_NAMED_CLASSES = 110  # and up to here each row for its class's name
_NAME_LENGTH = 44
_WORST_PAIRS = 20


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


def confusion_matrix(confusion_CC: Counts, classes: Sequence[str], title: str) -> Figure:
    """Draw the share of each true class (row) that was predicted as each class (column).

    Few classes have their numbers in the cells, up to a hundred have their names at the rows and columns;
    more are numbered, and the pairs that are confused most are listed by name beside the matrix.

    Args:
        confusion_CC: clips by true and predicted class, as `training.metrics.confusion` counts them.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    count = len(classes)
    named, points = count <= _NAMED_CLASSES, 8 if count <= _COUNTED_CLASSES else 6
    # In inches: the matrix, names (of letters 0.6 as wide as high) or numbers beside it, the list of pairs.
    longest = min(_NAME_LENGTH, max(map(len, classes)))
    side, names, pairs = 10.0, 0.6, 4.0
    if named:
        side, names, pairs = max(3.4, 0.155 * count), 0.3 + longest * 0.6 * points / 72, 0.0
    size = (side + names + 1.0 + pairs, side + names + 0.6)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    if named:
        axes = figure.add_subplot()
    else:
        axes, listed = figure.subplots(1, 2, width_ratios=(side, pairs))
        _list_pairs(listed, confusion_CC, classes)
    share_CC = 100 * confusion_CC / confusion_CC.sum(1, keepdims=True).clip(1)
    # The root of the share: a class that takes 5% of another's clips is to be seen beside a diagonal of 90%.
    image = axes.imshow(share_CC, cmap="Blues", norm=PowerNorm(0.5, 0, 100), interpolation="nearest")
    bar = figure.colorbar(image, ax=axes, shrink=0.6, pad=0.02, ticks=(0, 5, 10, 25, 50, 75, 100))
    bar.set_label("percent of the true class's clips", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("predicted", fontsize=9)
    axes.set_ylabel("true", fontsize=9)
    axes.tick_params(labelsize=points, length=2)
    _label_classes(axes, classes, named)
    if count <= _COUNTED_CLASSES:
        for row, column in np.argwhere(confusion_CC > 0):
            axes.text(
                column, row, f"{confusion_CC[row, column]}", ha="center", va="center", fontsize=7,
                color="white" if share_CC[row, column] > 30 else "black",
            )  # fmt: skip
    return figure


def _label_classes(axes: Any, classes: Sequence[str], named: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    if named:
        short = [_cut(name) for name in classes]
        axes.set_xticks(range(len(classes)), short, rotation=90)
        axes.set_yticks(range(len(classes)), short)
        return
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=10))


def _list_pairs(axes: Any, confusion_CC: Counts, classes: Sequence[str]) -> None:
    lines = ["Confused most: true → predicted", ""]
    for true, predicted, clips, of in most_confused(confusion_CC, _WORST_PAIRS):
        lines.append(f"{clips} of {of}:  {true} {_cut(classes[true])}")
        lines.append(f"     → {predicted} {_cut(classes[predicted])}")
    axes.axis("off")
    axes.text(0, 1, "\n".join(lines), va="top", fontsize=8, linespacing=1.5, transform=axes.transAxes)


def reliability(
    clips_K: Sequence[float], confidence_K: Sequence[float], accuracy_K: Sequence[float], ece: float
) -> Figure:
    """Draw how often a model is right when it is how sure, and how often it is so sure.

    Args:
        clips_K, confidence_K, accuracy_K: of the bins of `training.metrics.calibration`; percent.
        ece: expected calibration error, percent.
    """
    from matplotlib.figure import Figure

    bins = len(clips_K)
    middle_K = (np.arange(bins) + 0.5) * 100 / bins
    held_K = np.array(clips_K) > 0
    figure = Figure(figsize=(4.6, 5.4), dpi=140, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for axes in (upper, lower):
        _plain(axes)
    upper.set_title(f"Calibration: expected error {ece:.1f} points", loc="left", fontsize=11)
    upper.bar(
        middle_K[held_K], np.array(accuracy_K)[held_K], 92 / bins,
        color=BLUE, label="right, of the clips in the bin",
    )  # fmt: skip
    upper.plot(
        np.array(confidence_K)[held_K], np.array(confidence_K)[held_K],
        color=ORANGE, marker="o", markeredgecolor="black", markersize=5, linestyle="none",
        label="as sure as the model was",
    )  # fmt: skip
    upper.plot([0, 100], [0, 100], "--", color="black", linewidth=1, label="sure and right alike")
    upper.set_ylabel("percent right")
    upper.set_ylim(0, 100)
    upper.set_xlim(0, 100)
    upper.legend(frameon=False, fontsize=8, loc="upper left")
    lower.bar(middle_K, 100 * np.array(clips_K) / max(sum(clips_K), 1), 92 / bins, color=GREY)
    lower.set_ylabel("percent of clips")
    lower.set_xlabel("confidence: probability of the likeliest class, percent")
    return figure


def curves(
    panels: Mapping[str, Sequence[Mapping[int, float] | None]], names: Sequence[str], metric: str
) -> Figure:
    """Draw a curve of several runs side by side: one panel a stage, one line a run.

    Args:
        panels: stage → one curve a run (step → value), None where a run has none.
        names: what each run is called in the legend.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    size = (max(7.0, 4.2 * columns), 2.9 * lines + 0.4 + 0.2 * len(names))
    figure = Figure(figsize=size, dpi=140, layout="constrained")
    places = figure.subplots(lines, columns, squeeze=False).flat
    for axes, (stage, each) in zip(places, panels.items(), strict=False):
        _plain(axes)
        axes.set_title(stage, loc="left", fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        axes.set_ylabel(metric, fontsize=8)
        axes.tick_params(labelsize=7)
        for curve, (colour, line) in zip(each, _LINES, strict=False):
            if curve:
                steps = sorted(curve)
                marker = "o" if len(steps) == 1 else None
                values = [curve[step] for step in steps]
                axes.plot(steps, values, linestyle=line, color=colour, marker=marker, linewidth=1.4)
    for axes in places:
        axes.set_axis_off()
    figure.legend(handles=_line_handles(names), frameon=False, fontsize=8, loc="outside lower left")
    return figure


def _line_handles(names: Sequence[str]) -> list[Artist]:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=colour, linestyle=line, linewidth=1.4, label=name)
        for name, (colour, line) in zip(names, _LINES, strict=False)
    ]


def _cut(name: str) -> str:
    return name if len(name) <= _NAME_LENGTH else name[: _NAME_LENGTH - 1] + "…"


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
    _plain(axes)
    return figure, axes


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)

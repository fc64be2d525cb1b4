"""All charts: values in, a matplotlib figure out, in one theme; `svg` and `png` write it.

Axes: C classes, K bins of confidence. Series differ in colour (Okabe and Ito's), dash and marker at once;
where colour stands for a number, lightness alone orders the numbers.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np
from markupsafe import Markup, escape

from tats_core.files import replacing
from tats_core.report import theme
from tats_core.report.classes import Counts, most_confused
from tats_core.report.metrics import Metric
from tats_core.report.results import STARTS, by_benchmark
from tats_core.report.results import Row as Result
from tats_core.report.sweeps import Row
from tats_core.report.units import DASH, cut, is_number, short, value_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The functions that draw import matplotlib, which takes 0.3 s: a run without charts does without.

DPI: Final = 140
SERIES: Final = 6
"""How many series of a chart have a style of their own."""
_DASHES: Final[tuple[Any, ...]] = (
    "-", "--", (0, (1, 1)), "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (3, 3)),
)  # fmt: skip
_MARKERS: Final = "os^DvP"
_COLOURS: Final = ("blue", "orange", "green", "violet", "gold", "red")
_C: Final = {name: light for name, (light, _) in theme.COLOURS.items()}

_COUNTED_CLASSES = 16  # with more, a cell of a confusion matrix has no room for its number
_NAMED_CLASSES = 110  # with more, a row has no room for its class's name
_NAME_LENGTH = 44
_WORST_PAIRS = 20
_BUCKETS = 90  # of a long curve, each drawn by its lowest and highest point
_LOG_SPREAD = 50  # a key whose values span more than this factor stands on a logarithmic axis


@dataclass(frozen=True)
class Curve:
    """One line: steps that rise and a value for each; `series` tells lines apart.

    A `reference` is something to compare with (chance, random sampling): drawn thin and grey.
    """

    series: object
    steps: Sequence[float]
    values: Sequence[float]
    reference: bool = False

    @classmethod
    def of(cls, series: object, points: Mapping[int, float], *, reference: bool = False) -> Curve:
        """Return the curve through `points`, step → value."""
        steps = sorted(points)
        return cls(series, steps, [points[step] for step in steps], reference)


@dataclass(frozen=True)
class Key:
    """A key of a sweep's points with its title and its listed values, () of a range.

    Where lines are told apart by a key, the position of its value decides a line's style.
    """

    name: str
    title: str
    values: tuple[object, ...] = ()


ALL: Final = Key("", "", (None,))
"""In place of a key by which lines are told apart: no point has it, so that all are alike."""


# --- writing ---------------------------------------------------------------------------------------------


def save(figure: Figure, path: Path) -> None:
    """Write a figure in the format that the suffix of `path` names."""
    with replacing(path) as temporary:
        write(figure, temporary, path.suffix[1:])


def write(figure: Figure, out: Path | IO[Any], form: str, **options: Any) -> None:
    """Write a figure in a format of matplotlib's, each text as it is: a `$` in a name begins no formula."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
    figure.savefig(out, format=form, **options)


def png(figure: Figure) -> bytes:
    """Return a figure as a picture of 256 colours, a third of the size."""
    from PIL import Image

    drawn, out = io.BytesIO(), io.BytesIO()
    write(figure, drawn, "png")
    with Image.open(drawn) as picture:
        reduced = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    reduced.save(out, "PNG", dpi=(DPI, DPI))
    return out.getvalue()


def svg(figure: Figure, description: str) -> Markup:
    """Return a figure for a page: its colours are the page's variables, so it is light and dark alike.

    Args:
        description: what it shows, for those who cannot see it.
    """
    import matplotlib as mpl

    out = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": description, "svg.image_inline": True}):
        write(figure, out, "svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = out.getvalue()
    # Its style element would apply to the whole page.
    rest = r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>|<defs>\s*</defs>|\n\s*"
    text = re.sub(rest, "", text[text.index("<svg") :], flags=re.DOTALL)
    unused = r' (?:id="\w+_\d+"|xmlns:xlink="[^"]*"|transform="rotate\(-0 [^"]*")|font-family: [^;]*;'
    text = re.sub(unused, "", text)
    text = text.replace("xlink:href", "href")
    for name, (light, _) in theme.COLOURS.items():
        text = text.replace(light, f"var(--{name})")
    words = escape(description)
    text = text.replace("<svg ", f'<svg role="img" aria-label="{words}" ', 1)
    return Markup(text.replace(">", f"><title>{words}</title>", 1))


# --- results ---------------------------------------------------------------------------------------------


def results(rows: Sequence[Result]) -> Figure:
    """Draw top-1 of each benchmark as bars with 95% intervals, pre-trained beside scratch.

    A dashed line a benchmark is chance, a diamond the linear probe on frozen features.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    figure, (axes,) = _figure(7.0, 4.0, "Top-1 on the test clips, with 95% intervals")
    grouped = by_benchmark(rows)
    probe: dict[str, Any] = {**_line("ink", "none"), "marker": "D", "markerfacecolor": _C["paper"]}
    chance = _line("ink", "--", linewidth=1.2)
    handles: list[Any] = []
    for side, (init, colour, hatch) in enumerate((("pretrained", "blue", ""), ("scratch", "orange", "///"))):
        style: dict[str, Any] = {
            "facecolor": _C[colour],
            "hatch": hatch,
            "edgecolor": _C["paper"],
            "linewidth": 0,
        }
        for index, starts in enumerate(grouped.values()):
            if init in starts:
                _bar(axes, index + (side - 0.5) * 0.38, starts[init], style, probe)
        if any(row["init"] == init for row in rows):
            handles.append(Patch(**style, label=STARTS[init]))
    for index, starts in enumerate(grouped.values()):
        level = next(iter(starts.values())).get("chance")
        if level is not None:
            axes.plot([index - 0.46, index + 0.46], [level, level], **chance)
    for key, label, style_of_key in (("linear_top1", "linear probe", probe), ("chance", "chance", chance)):
        if any(row.get(key) is not None for row in rows):
            handles.append(Line2D([], [], **style_of_key, label=label))
    axes.set_xticks(range(len(grouped)), list(grouped))
    axes.set_ylabel("percent of clips")
    axes.set_ylim(0, 100)
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def _bar(axes: Axes, x: float, row: Result, style: Mapping[str, Any], probe: Mapping[str, Any]) -> None:
    axes.bar(x, row["top1"], 0.36, **style)
    if row.get("low") is not None and row.get("high") is not None:
        ends = [[row["top1"] - row["low"]], [row["high"] - row["top1"]]]
        axes.errorbar(x, row["top1"], ends, color=_C["ink"], capsize=4, linewidth=1.3)
    if row.get("linear_top1") is not None:
        axes.plot([x], [row["linear_top1"]], **probe)


def confusion(confusion_CC: Counts, classes: Sequence[str], title: str) -> Figure:
    """Draw the share of each true class (row) that was predicted as each class (column).

    Few classes have their numbers in the cells, up to a hundred have their names at the rows and columns;
    more are numbered, and the pairs that are confused most are listed by name beside the matrix.

    Args:
        confusion_CC: clips by true and predicted class, as `training.metrics.confusion` counts them.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.ticker import MaxNLocator

    count, names = len(classes), [cut(name, _NAME_LENGTH) for name in classes]
    named, points = count <= _NAMED_CLASSES, 8 if count <= _COUNTED_CLASSES else 6
    # In inches: the matrix; names (letters are 0.6 as wide as high) or numbers beside it; the list of pairs.
    side, beside, pairs = 10.0, 0.6, 4.0
    if named:
        side, beside, pairs = max(3.4, 0.155 * count), 0.3 + max(map(len, names)) * 0.6 * points / 72, 0.0
    widths = (side,) if named else (side, pairs)
    figure, (axes, *rest) = _figure(
        side + beside + 1.0 + pairs, side + beside + 0.6, title,
        columns=len(widths), width_ratios=widths, dpi=120,
    )  # fmt: skip
    share_CC = 100 * confusion_CC / confusion_CC.sum(1, keepdims=True).clip(1)
    # The root of the share makes a confusion of 5% visible beside a diagonal of 90%.
    image = axes.imshow(share_CC, cmap="Blues", norm=PowerNorm(0.5, 0, 100), interpolation="nearest")
    bar = figure.colorbar(image, ax=axes, shrink=0.6, pad=0.02, ticks=(0, 5, 10, 25, 50, 75, 100))
    bar.set_label("percent of the true class's clips", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    axes.grid(visible=False)
    axes.spines[:].set_visible(True)
    axes.set(xlabel="predicted", ylabel="true")
    axes.tick_params(labelsize=points, length=2)
    if named:
        axes.set_xticks(range(count), names, rotation=90)
        axes.set_yticks(range(count), names)
    else:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True, nbins=10))
        lines = ["Confused most: true → predicted", ""]
        for true, predicted, clips, of in most_confused(confusion_CC, _WORST_PAIRS):
            lines.append(f"{clips} of {of}:  {true} {names[true]}\n     → {predicted} {names[predicted]}")
        rest[0].axis("off")
        style: dict[str, Any] = {"va": "top", "linespacing": 1.5, "transform": rest[0].transAxes}
        rest[0].text(0, 1, "\n".join(lines), fontsize=8, **style)
    for row, column in np.argwhere(confusion_CC > 0) if count <= _COUNTED_CLASSES else ():
        colour = "white" if share_CC[row, column] > 30 else "black"
        words = f"{confusion_CC[row, column]}"
        axes.text(column, row, words, ha="center", va="center", fontsize=7, color=colour)
    return figure


def reliability(
    clips_K: Sequence[float], confidence_K: Sequence[float], accuracy_K: Sequence[float], ece: float
) -> Figure:
    """Draw how often a model is right when it is how sure, and how often it is so sure.

    Args:
        clips_K, confidence_K, accuracy_K: of the bins of `training.metrics.calibration`; percent.
        ece: expected calibration error, percent.
    """
    bins = len(clips_K)
    middle_K, held_K = (np.arange(bins) + 0.5) * 100 / bins, np.array(clips_K) > 0
    confidence_H, accuracy_H = np.array(confidence_K)[held_K], np.array(accuracy_K)[held_K]
    title = f"Calibration: expected error {ece:.1f} points"
    figure, (upper, lower) = _figure(4.6, 5.4, title, rows=2, sharex=True, height_ratios=(3, 1))
    upper.bar(
        middle_K[held_K], accuracy_H, 92 / bins, color=_C["blue"], label="right, of the clips in the bin"
    )
    dots = _line("orange", "none", marker="o", markeredgecolor=_C["ink"])
    upper.plot(confidence_H, confidence_H, **dots, label="as sure as the model was")
    upper.plot([0, 100], [0, 100], **_line("ink", "--", linewidth=1), label="sure and right alike")
    upper.set(ylabel="percent right", ylim=(0, 100), xlim=(0, 100))
    upper.legend(frameon=False, fontsize=8, loc="upper left")
    lower.bar(middle_K, 100 * np.array(clips_K) / max(sum(clips_K), 1), 92 / bins, color=_C["soft"])
    lower.set(ylabel="percent of clips", xlabel="confidence: probability of the likeliest class, percent")
    return figure


# --- curves ----------------------------------------------------------------------------------------------


def learning(
    panels: Mapping[str, Sequence[Curve]], names: Sequence[object], *, ylabel: str = "", stacked: bool = False
) -> Figure:
    """Draw curves, a panel a title; a curve's style is that of its series among `names`.

    Args:
        stacked: whether the legend has a line for each name.
    """
    figure, all_axes = _panels(len(panels), more=0.4 + 0.2 * len(names) * stacked)
    for axes, (title, curves) in zip(all_axes, panels.items(), strict=True):
        _plain(axes, title)
        axes.set(xlabel="step", ylabel=ylabel)
        faint = 1.0 if len(curves) <= 6 else 0.65 if len(curves) <= 40 else 0.35
        for curve in curves:
            style = _style(names.index(curve.series), linewidth=1.2, markersize=3, alpha=faint)
            axes.plot(curve.steps, curve.values, **style | ({"marker": ""} if len(curve.steps) > 12 else {}))
    _legend(figure, names, ncols=1 if stacked else 6)
    return figure


def panel(title: str, curves: Sequence[Curve]) -> Markup:
    """Return a small chart for a page, so that many can stand side by side.

    The last value of each curve stands above it; the description says how each goes.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.transforms import Affine2D

    curves = [curve for curve in curves if len(curve.values)]
    ticks = round_ticks([value for curve in curves for value in curve.values])
    first = min((curve.steps[0] for curve in curves), default=0.0)
    last = max((curve.steps[-1] for curve in curves), default=1.0)
    figure = Figure(figsize=(260 / 72, 150 / 72))  # of 72 points, as SVG counts them
    figure.patch.set_visible(False)
    # Lines and words of the figure, in points, instead of axes: those take five times as long, 45 ms each.
    points = Affine2D().scale(1 / 260, 1 / 150) + figure.transFigure

    def line(steps: Iterable[float], values: Iterable[float], **style: Any) -> None:
        xs = [40 + 212 * (step - first) / ((last - first) or 1) for step in steps]
        ys = [20 + 106 * (value - ticks[0]) / (ticks[-1] - ticks[0]) for value in values]
        figure.add_artist(Line2D(xs, ys, transform=points, **style))

    def words(x: float, y: float, text: str, **style: Any) -> None:
        figure.text(x, y, text, **{"fontsize": 10, "color": _C["soft"], "transform": points, **style})

    for tick in ticks:
        line((first, last or 1), (tick, tick), color=_C["line"], linewidth=0.8)
        height = 20 + 106 * (tick - ticks[0]) / (ticks[-1] - ticks[0])
        words(35, height - 3.5, short(tick), ha="right")
    words(40, 5, f"step {short(first)}")
    words(252, 5, short(last), ha="right")
    words(0, 137, title, fontsize=12, fontweight="bold", color=_C["ink"])
    measured = [curve for curve in curves if not curve.reference]
    for curve in curves:
        if curve.reference:
            line(curve.steps, curve.values, **_line("soft", (0, (1, 3)), linewidth=1.5))
    right = 252.0
    for index, curve in reversed(list(enumerate(measured))):
        style = _style(index, linewidth=1.8) | ({} if len(curve.values) == 1 else {"marker": ""})
        line(*zip(*thin(curve.steps, curve.values), strict=True), **style)
        value = short(curve.values[-1])
        words(right, 137, value, ha="right", fontsize=12, fontweight="bold", color=style["color"])
        right -= 7.2 * len(value) + 8
    ends = [f"{curve.series} {_at(curve, 0)}, {_at(curve, -1)}" for curve in curves]
    return svg(figure, f"{title}: {'; '.join(ends)}")


def _at(curve: Curve, index: int) -> str:
    return f"{short(curve.values[index])} at step {short(curve.steps[index])}"


def thin(steps: Sequence[float], values: Sequence[float]) -> list[tuple[float, float]]:
    """Return the lowest and the highest point of each stretch of a long curve: no spike is lost."""
    indices: Iterable[int] = range(len(values))
    if len(values) > 2 * _BUCKETS:
        ends = {0, len(values) - 1}
        for bucket in np.array_split(np.arange(len(values)), _BUCKETS):
            stretch = np.asarray(values[bucket[0] : bucket[-1] + 1])
            ends |= {int(bucket[0] + stretch.argmin()), int(bucket[0] + stretch.argmax())}
        indices = sorted(ends)
    return [(steps[index], values[index]) for index in indices]


def round_ticks(values: Sequence[float]) -> list[float]:
    """Return two to five round numbers between whose ends all values lie."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if high == low:
        low, high = min(low, 0.0), max(high, 0.0) or float(low == 0)
    rough = (high - low) / 3
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * times for times in (1, 2, 2.5, 5, 10) if power * times >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


# --- sweeps ----------------------------------------------------------------------------------------------


def against(rows: Sequence[Row], x: Key, series: Key, metrics: Sequence[Metric]) -> Figure:
    """Draw each metric against a numeric key, one line a value of `series`, with 95% intervals over seeds."""
    figure, all_axes = _panels(len(metrics))
    xs = sorted({float(row.point[x.name]) for row in rows if x.name in row.point})
    for axes, metric in zip(all_axes, metrics, strict=True):
        _plain(axes, metric.title)
        axes.set_xlabel(x.title)
        for index, of_series in enumerate(_by_series(_measured(rows, metric), series)):
            points = sorted(
                (float(row.point[x.name]), row.values[metric.key]) for row in of_series if x.name in row.point
            )
            if points:
                # Shifted sideways, since overlapping intervals cannot be told apart.
                shift = 0.012 * (xs[-1] - xs[0]) * (index - (len(series.values) - 1) / 2)
                at = [position + shift for position, _ in points]
                means = [estimate.mean for _, estimate in points]
                halves = [estimate.half or 0 for _, estimate in points]
                axes.errorbar(at, means, halves, capsize=3, elinewidth=1, **_style(index))
        axes.set_xticks(xs, [value_text(position) for position in xs])
    _legend(figure, series.values)
    return figure


def parallel(rows: Sequence[Row], keys: Sequence[Key], metrics: Sequence[Metric], best: Metric) -> Figure:
    """Draw one line a point, which has all metrics, through its values; `best` colours it."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    rows = sorted(
        rows, key=lambda row: row.values[best.key].mean, reverse=best.better == "less"
    )  # worst first
    columns = [_column([row.point.get(key.name, _ABSENT) for row in rows]) for key in keys]
    columns += [_column([row.values[metric.key].mean for row in rows]) for metric in metrics]
    figure, (axes,) = _figure(max(6.5, 1.25 * len(columns) + 1), 4.0)
    objective = [row.values[best.key].mean for row in rows]
    norm = Normalize(min(objective), max(objective))
    # The part of viridis that is visible on light and on dark paper.
    scale = ListedColormap(colormaps["viridis"](np.linspace(0.25, 0.88, 48)))
    scale = scale.reversed() if best.better == "less" else scale
    for index, value in enumerate(objective):
        heights = [column[index] for column, _ in columns]
        axes.plot(heights, color=scale(norm(value)), linewidth=1.2, alpha=0.9 if len(rows) <= 30 else 0.6)
    box = {"facecolor": _C["paper"], "edgecolor": "none", "pad": 0.6, "alpha": 0.9}
    for index, (_, ticks) in enumerate(columns):
        axes.axvline(index, color=_C["soft"], linewidth=0.8)
        for height, words in ticks:
            axes.annotate(
                words, (index, height), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8,
                color=_C["ink"], bbox=box,
            )  # fmt: skip
    titles = [*(key.title for key in keys), *(metric.title for metric in metrics)]
    axes.set_xticks(range(len(columns)), [_broken(title) for title in titles])
    axes.tick_params(axis="x", length=0, labelsize=8.5)
    axes.set(yticks=[], xlim=(-0.1, len(columns) - 0.55))
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(ScalarMappable(norm, scale), ax=axes, pad=0.01, aspect=30)
    bar.set_label(best.title, color=_C["ink"], fontsize=9)
    bar.ax.tick_params(labelsize=8, colors=_C["ink"])
    bar.outline.set_edgecolor(_C["line"])
    return figure


def importance(shares: Mapping[str, float]) -> Figure:
    """Draw shares of 1 by key as bars, the largest on top."""
    ordered = dict(sorted(shares.items(), key=lambda item: item[1]))
    figure, (axes,) = _figure(6.5, 1.0 + 0.34 * len(ordered))
    axes.grid(visible=False)
    bars = axes.barh(list(ordered), [100 * share for share in ordered.values()], color=_C["blue"])
    axes.bar_label(bars, [f"{100 * share:.0f}%" for share in ordered.values()], padding=4, color=_C["ink"])
    axes.set(xlim=(0, 112), xticks=range(0, 101, 25), xlabel="percent of what the keys explain")
    return figure


def pareto(rows: Sequence[Row], first: Metric, second: Metric, series: Key) -> Figure:
    """Draw the points by two metrics, and the front: those that no other beats in both."""
    figure, (axes,) = _figure(6.5, 4.2)
    ends = front(rows, first, second)
    # Steps, since a point between two points of the front is no better than either.
    edge = sorted((row.values[second.key].mean, row.values[first.key].mean) for row in ends)
    if len(edge) > 1:
        after = second.better != first.better
        axes.step(
            *zip(*edge, strict=True),
            where="post" if after else "pre",
            color=_C["soft"],
            linewidth=1.2,
            zorder=1,
        )
    for index, of_series in enumerate(_by_series(_measured(rows, first, second), series)):
        style = _style(index, linestyle="none", markersize=7)
        for row in of_series:
            x, y = row.values[second.key], row.values[first.key]
            fill = style["color"] if row in ends else _C["paper"]
            bars: dict[str, Any] = {"elinewidth": 0.7, "capsize": 2, "markerfacecolor": fill}
            axes.errorbar(x.mean, y.mean, y.half or 0, x.half or 0, **bars, **style)
    axes.set_xlabel(f"{second.title} ({second.better} is better)")
    axes.set_ylabel(f"{first.title} ({first.better} is better)")
    _legend(figure, series.values)
    return figure


def front(rows: Sequence[Row], first: Metric, second: Metric) -> list[Row]:
    """Return the rows that no other row beats: as good in both metrics and better in one."""
    known = _measured(rows, first, second)
    signs = {metric.key: 1 if metric.better == "more" else -1 for metric in (first, second)}
    scores = [tuple(sign * row.values[key].mean for key, sign in signs.items()) for row in known]

    def is_beaten(score: tuple[float, ...]) -> bool:
        return any(
            other != score and all(a >= b for a, b in zip(other, score, strict=True)) for other in scores
        )

    return [row for row, score in zip(known, scores, strict=True) if not is_beaten(score)]


_ABSENT: Final = object()
"""Stands for a key that means nothing at this point; it is drawn below all values."""


def are_numbers(values: Iterable[object]) -> bool:
    """Return whether all values are numbers."""
    return all(map(is_number, values))


def _column(values: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Return where values lie on an upright axis from 0 to 1, and what is written where.

    Numbers lie on a scale, anything else side by side.
    """
    known = [value for value in values if value is not _ABSENT]
    numeric = are_numbers(known)
    marked = [float(min(known)), float(max(known))] if numeric else list(known)
    marked = list(dict.fromkeys(marked))
    low, high = (marked[0], marked[-1]) if numeric else (0, len(marked) - 1)
    log = low > 0 and high / low > _LOG_SPREAD

    def height(value: Any) -> float:
        if value is _ABSENT or low == high:
            return -0.15 if value is _ABSENT else 0.5
        position = value if numeric else marked.index(value)
        return float(math.log(position / low, high / low) if log else (position - low) / (high - low))

    ticks = [(height(value), value_text(value)) for value in marked]
    gap = [(height(_ABSENT), DASH)] if len(known) < len(values) else []
    return [height(value) for value in values], [*gap, *ticks]


def _measured(rows: Sequence[Row], *metrics: Metric) -> list[Row]:
    """Return the rows that have all metrics."""
    return [row for row in rows if all(metric.key in row.values for metric in metrics)]


def _by_series(rows: Sequence[Row], series: Key) -> list[list[Row]]:
    """Return the rows with each value of the series."""
    return [[row for row in rows if row.point.get(series.name) == value] for value in series.values]


# --- the theme -------------------------------------------------------------------------------------------


def _figure(
    width: float,
    height: float,
    title: str = "",
    *,
    rows: int = 1,
    columns: int = 1,
    dpi: int = DPI,
    **more: Any,
) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    # A Figure of its own instead of pyplot's: no global state, no display, safe in threads.
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained", facecolor=_C["paper"])
    all_axes: list[Axes] = list(figure.subplots(rows, columns, squeeze=False, **more).flat)
    for axes in all_axes:
        _plain(axes, title if axes is all_axes[0] else "", 11)
    return figure, all_axes


def _panels(count: int, more: float = 0.4) -> tuple[Figure, list[Axes]]:
    columns = min(3, count)
    rows = -(-count // columns)
    figure, all_axes = _figure(max(6.5, 3.4 * columns), 2.8 * rows + more, rows=rows, columns=columns)
    for axes in all_axes[count:]:
        axes.set_axis_off()
    return figure, all_axes[:count]


def _plain(axes: Axes, title: str = "", size: float = 10) -> None:
    axes.set_facecolor(_C["paper"])
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(_C["soft"])
    axes.grid(axis="y", color=_C["line"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_C["ink"], labelsize=8)
    axes.set_title(title, loc="left", fontsize=size, color=_C["ink"])
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(color=_C["ink"], fontsize=9)


def _line(colour: str, dash: Any, **more: Any) -> dict[str, Any]:
    return {"color": _C[colour], "linestyle": dash, "markersize": 5, "linewidth": 1.6, **more}


def _style(index: int, **more: Any) -> dict[str, Any]:
    """Return how the series at `index` is drawn, as matplotlib's arguments."""
    index %= SERIES
    return {**_line(_COLOURS[index], _DASHES[index], marker=_MARKERS[index]), **more}


def _legend(figure: Figure, names: Iterable[object], ncols: int = 6, **more: Any) -> None:
    from matplotlib.lines import Line2D

    labels = [name for name in names if name is not None]
    handles = [Line2D([], [], label=value_text(name), **_style(i, **more)) for i, name in enumerate(labels)]
    if handles:
        figure.legend(
            handles=handles, frameon=False, fontsize=9, loc="outside lower left", labelcolor=_C["ink"],
            ncols=min(len(handles), ncols), handlelength=3,
        )  # fmt: skip


def _broken(title: str) -> str:
    return title.replace(".", ".\n").replace("_", "_\n") if len(title) > 14 else title

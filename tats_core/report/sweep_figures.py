"""Charts of a sweep: values in, a figure out; nothing is written.

Each is drawn in the colours of one side, light or dark. Series differ in colour (Okabe and Ito's), dash and
marker at once; where colour stands for a number, its lightness alone orders the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tats_core.report import theme
from tats_core.report.sweeps import Row, value_text
from tats_core.report.tables import DASH

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Importing matplotlib's drawing part takes 0.3 s; so the functions that draw import it.

_STYLES: Final[tuple[tuple[str, Any, str], ...]] = (
    ("blue", "-", "o"),
    ("orange", "--", "s"),
    ("green", (0, (1, 1)), "^"),
    ("violet", "-.", "D"),
    ("gold", (0, (5, 1, 1, 1, 1, 1)), "v"),
    ("red", (0, (3, 3)), "P"),
)
STYLES: Final = len(_STYLES)
"""How many series have a style of their own."""

DPI: Final = 140
_LOG_SPREAD = 50  # a key whose values span more than this factor stands on a logarithmic axis


@dataclass(frozen=True)
class Named:
    """A key or a metric, and what it is called."""

    key: str
    title: str
    mode: str | None = None
    """Of a metric: which is better."""


@dataclass(frozen=True)
class Series:
    """A key by whose values lines are told apart; the place of a value decides how it is drawn."""

    key: str
    title: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Curve:
    """One trial's curve; `series` is the value by which curves are told apart."""

    series: Any
    steps: Sequence[float]
    values: Sequence[float]


class Look:
    """The colours of one side of the theme."""

    def __init__(self, *, dark: bool) -> None:
        self.dark = dark
        self.colours = {name: pair[int(dark)] for name, pair in theme.COLOURS.items()}

    def __getitem__(self, name: str) -> str:
        return self.colours[name]

    def style(self, place: int) -> dict[str, Any]:
        """Return how the series at `place` is drawn, as matplotlib's arguments."""
        colour, line, marker = _STYLES[place % STYLES]
        return {"color": self[colour], "linestyle": line, "marker": marker, "markersize": 5, "linewidth": 1.6}

    def scale(self) -> Any:
        """Return a map from 0 … 1 to colours that are all seen on this side's paper."""
        from matplotlib import colormaps
        from matplotlib.colors import ListedColormap

        low, high = (0.25, 1.0) if self.dark else (0.0, 0.85)
        whole = colormaps["viridis"]
        return ListedColormap([whole(low + (high - low) * place / 255) for place in range(256)])


def against(
    rows: Sequence[Row], x: Named, series: Series | None, metrics: Sequence[Named], look: Look
) -> Figure:
    """Draw each metric against a numeric key, one line a value of `series`, with 95% intervals over seeds."""
    figure, panels = _panels(len(metrics), look)
    names = series.values if series else (None,)
    xs = sorted({float(row.point[x.key]) for row in rows if x.key in row.point})
    nudge = 0.012 * (xs[-1] - xs[0])
    for axes, metric in zip(panels, metrics, strict=True):
        axes.set_title(metric.title, loc="left", fontsize=10, color=look["ink"])
        axes.set_xlabel(x.title, fontsize=9)
        for place, name in enumerate(names):
            points = sorted(
                (float(row.point[x.key]), row.values[metric.key])
                for row in rows
                if x.key in row.point and metric.key in row.values and _is_of(row, series, name)
            )
            if not points:
                continue
            # Beside one another: intervals on top of one another cannot be told apart.
            shift = nudge * (place - (len(names) - 1) / 2)
            axes.errorbar(
                [at + shift for at, _ in points], [one.mean for _, one in points],
                [one.half or 0 for _, one in points], capsize=3, elinewidth=1, **look.style(place),
            )  # fmt: skip
        axes.set_xticks(xs, [value_text(at) for at in xs])
    _legend(figure, names, look)
    return figure


def learning(panels: Mapping[str, Sequence[Curve]], series: Series | None, look: Look) -> Figure:
    """Draw the curves of all trials, a panel a number."""
    figure, places = _panels(len(panels), look)
    names = series.values if series else (None,)
    for axes, (title, curves) in zip(places, panels.items(), strict=True):
        axes.set_title(title, loc="left", fontsize=10, color=look["ink"])
        axes.set_xlabel("step", fontsize=9)
        faint = 1.0 if len(curves) <= 6 else 0.65 if len(curves) <= 40 else 0.35
        for one in curves:
            style = look.style(names.index(one.series)) | {"linewidth": 1.1, "markersize": 3, "alpha": faint}
            if len(one.steps) > 12:
                style["marker"] = ""
            axes.plot(one.steps, one.values, **style)
    _legend(figure, names, look)
    return figure


def parallel(
    rows: Sequence[Row], keys: Sequence[Named], metrics: Sequence[Named], best: Named, look: Look
) -> Figure:
    """Draw one line a point through all its values and metrics, coloured by the metric `best`."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    columns = [_Column.of(one, [row.point.get(one.key, _ABSENT) for row in rows]) for one in keys]
    measured = [row for row in rows if all(one.key in row.values for one in metrics)]
    columns += [_Column.of(one, [row.values[one.key].mean for row in measured]) for one in metrics]
    figure, axes = _single(max(6.5, 1.25 * len(columns) + 1), 4.0, look)
    axes.grid(visible=False)
    objective = [row.values[best.key].mean for row in measured]
    norm = Normalize(min(objective), max(objective))
    faint = 0.9 if len(measured) <= 30 else 0.6
    scale = look.scale() if best.mode != "min" else look.scale().reversed()
    # The best ones last, on top of the others.
    for row in sorted(measured, key=lambda row: row.values[best.key].mean, reverse=best.mode == "min"):
        values = [row.point.get(one.key, _ABSENT) for one in keys]
        values += [row.values[one.key].mean for one in metrics]
        heights = [column.height(value) for column, value in zip(columns, values, strict=True)]
        colour = scale(norm(row.values[best.key].mean))
        axes.plot(range(len(columns)), heights, color=colour, linewidth=1.2, alpha=faint)
    for place, column in enumerate(columns):
        axes.axvline(place, color=look["soft"], linewidth=0.8)
        for height, words in column.ticks:
            axes.annotate(
                words, (place, height), xytext=(4, 0), textcoords="offset points", va="center",
                fontsize=8, color=look["ink"],
                bbox={"facecolor": look["paper"], "edgecolor": "none", "pad": 0.6, "alpha": 0.9},
            )  # fmt: skip
    axes.set_xticks(range(len(columns)), [_broken(column.title) for column in columns])
    axes.tick_params(axis="x", length=0, labelsize=8.5)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_xlim(-0.1, len(columns) - 0.55)
    bar = figure.colorbar(ScalarMappable(norm, scale), ax=axes, pad=0.01, aspect=30)
    bar.set_label(best.title, color=look["ink"], fontsize=9)
    bar.ax.tick_params(labelsize=8, colors=look["ink"])
    bar.outline.set_edgecolor(look["line"])
    return figure


def importance(shares: Mapping[str, float], look: Look) -> Figure:
    """Draw shares of 1 by key as bars, the largest on top."""
    ordered = sorted(shares.items(), key=lambda item: item[1])
    figure, axes = _single(6.5, 1.0 + 0.34 * len(ordered), look)
    axes.grid(visible=False)
    bars = axes.barh([name for name, _ in ordered], [100 * share for _, share in ordered], color=look["blue"])
    axes.bar_label(bars, [f"{100 * share:.0f}%" for _, share in ordered], padding=4, color=look["ink"])
    axes.set_xlim(0, 112)
    axes.set_xticks(range(0, 101, 25))
    axes.set_xlabel("percent of what the keys explain", fontsize=9)
    return figure


def pareto(rows: Sequence[Row], first: Named, second: Named, series: Series | None, look: Look) -> Figure:
    """Draw the points by two metrics, and the front: those that no other beats in both."""
    figure, axes = _single(6.5, 4.2, look)
    names = series.values if series else (None,)
    ends = front(rows, first, second)
    # Drawn as steps: between two points of the front lies what is no better than either.
    edge = sorted((row.values[second.key].mean, row.values[first.key].mean) for row in ends)
    if len(edge) > 1:
        where = "post" if (second.mode == "min") == (first.mode == "max") else "pre"
        axes.step(*zip(*edge, strict=True), where=where, color=look["soft"], linewidth=1.2, zorder=1)
    for place, name in enumerate(names):
        mine = [
            row
            for row in rows
            if first.key in row.values and second.key in row.values and _is_of(row, series, name)
        ]
        style = look.style(place) | {"linestyle": "none", "markersize": 7}
        for row in mine:
            x, y = row.values[second.key], row.values[first.key]
            axes.errorbar(
                x.mean, y.mean, y.half or 0, x.half or 0, elinewidth=0.7, capsize=2,
                markerfacecolor=style["color"] if row in ends else look["paper"], **style,
            )  # fmt: skip
    axes.set_xlabel(f"{second.title} ({_better(second)})", fontsize=9)
    axes.set_ylabel(f"{first.title} ({_better(first)})", fontsize=9)
    _legend(figure, names, look)
    return figure


def front(rows: Sequence[Row], first: Named, second: Named) -> list[Row]:
    """Return the rows that no other one beats: as good in both metrics and better in one."""
    signs = {one.key: 1 if one.mode == "max" else -1 for one in (first, second)}
    known = [row for row in rows if all(key in row.values for key in signs)]

    def score(row: Row) -> tuple[float, ...]:
        return tuple(sign * row.values[key].mean for key, sign in signs.items())

    def beaten(one: Row) -> bool:
        mine = score(one)
        return any(
            all(a >= b for a, b in zip(score(other), mine, strict=True)) and score(other) != mine
            for other in known
        )

    return [row for row in known if not beaten(row)]


# --- columns of the parallel coordinates -----------------------------------------------------------------

_ABSENT: Final = object()
"""A key that means nothing at this point."""


@dataclass(frozen=True)
class _Column:
    """One upright axis: where its values lie between 0 and 1, and what is written at it."""

    title: str
    places: Mapping[Any, float] | None
    low: float
    high: float
    log: bool
    gap: bool

    @classmethod
    def of(cls, named: Named, values: Sequence[Any]) -> _Column:
        """Return the axis of these values: numbers on a scale, anything else side by side."""
        there = [one for one in values if one is not _ABSENT]
        gap = len(there) < len(values)
        if not all(_is_number(one) for one in there):
            names = list(dict.fromkeys(there))
            step = 1 / max(len(names) - 1, 1)
            places = {name: place * step if len(names) > 1 else 0.5 for place, name in enumerate(names)}
            return cls(named.title, places, 0, 1, log=False, gap=gap)
        low, high = min(there), max(there)
        return cls(named.title, None, low, high, log=low > 0 and high / low > _LOG_SPREAD, gap=gap)

    def height(self, value: Any) -> float:
        """Return where a value lies; one that is not there lies below all others."""
        if value is _ABSENT:
            return -0.15
        if self.places is not None:
            return self.places[value]
        if self.high == self.low:
            return 0.5
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return float((value - self.low) / (self.high - self.low))

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """What is written where."""
        absent = [(-0.15, DASH)] if self.gap else []
        if self.places is not None:
            return [*absent, *((place, value_text(name)) for name, place in self.places.items())]
        return absent + [
            (self.height(one), value_text(float(one))) for one in dict.fromkeys((self.low, self.high))
        ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _broken(title: str) -> str:
    return title.replace(".", ".\n").replace("_", "_\n") if len(title) > 14 else title


def _better(metric: Named) -> str:
    return "more is better" if metric.mode == "max" else "less is better"


def _is_of(row: Row, series: Series | None, value: Any) -> bool:
    return series is None or row.point.get(series.key) == value


# --- figures ---------------------------------------------------------------------------------------------


def _panels(count: int, look: Look) -> tuple[Figure, list[Any]]:
    columns = min(3, count)
    lines = -(-count // columns)
    figure = _figure((max(6.5, 3.4 * columns), 2.8 * lines + 0.4), look)
    every = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes in every[count:]:
        axes.set_axis_off()
    for axes in every[:count]:
        _plain(axes, look)
    return figure, every[:count]


def _single(wide: float, high: float, look: Look) -> tuple[Figure, Any]:
    figure = _figure((wide, high), look)
    axes = figure.add_subplot()
    _plain(axes, look)
    return figure, axes


def _figure(size: tuple[float, float], look: Look) -> Figure:
    from matplotlib.figure import Figure

    # A Figure of its own instead of pyplot's: no global state, no display, safe in threads.
    return Figure(figsize=size, dpi=DPI, layout="constrained", facecolor=look["paper"])


def _plain(axes: Any, look: Look) -> None:
    axes.set_facecolor(look["paper"])
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(look["soft"])
    axes.grid(axis="y", color=look["line"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=look["ink"], labelsize=8)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_color(look["ink"])


def _legend(figure: Figure, names: Iterable[Any], look: Look) -> None:
    from matplotlib.lines import Line2D

    shown = [name for name in names if name is not None]
    if not shown:
        return
    handles = [
        Line2D([], [], label=value_text(name), **look.style(place)) for place, name in enumerate(shown)
    ]
    figure.legend(
        handles=handles, frameon=False, fontsize=9, loc="outside lower left", labelcolor=look["ink"],
        ncols=min(len(handles), 6), handlelength=3,
    )  # fmt: skip

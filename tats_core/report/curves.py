"""Curves as small inline drawings that share one style, so that many can stand side by side."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from tats_core.report import theme

_WIDTH, _HEIGHT = 260, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 8, 24, 20
_BUCKETS = 90  # of a long curve, each drawn by its lowest and highest point


@dataclass(frozen=True)
class Series:
    """One curve: steps that rise, and a value for each."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    reference: bool = False
    """Something to compare with (chance, random sampling): drawn thin and grey."""


def chart(title: str, series: Sequence[Series]) -> str:
    """Return one chart as SVG for a page with the style of `theme.drawing_css`.

    The last value of each curve stands above it; the words for those who cannot see it say how each goes.
    """
    known = [one for one in series if len(one.values)]
    low, high, ticks = _scale([value for one in known for value in one.values])
    first = min((one.steps[0] for one in known), default=0.0)
    last = max((one.steps[-1] for one in known), default=1.0)
    wide, high_px = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x(step: float) -> float:
        return _LEFT + wide * (step - first) / ((last - first) or 1)

    def y(value: float) -> float:
        return _TOP + high_px * (high - value) / ((high - low) or 1)

    parts = []
    for tick in ticks:
        parts.append(f'<path class="t-grid" d="M{_LEFT} {y(tick):.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(_words(_LEFT - 5, y(tick) + 3.5, short(tick), "t-soft", "end", 10))
    parts.append(_words(_LEFT, _HEIGHT - 5, f"step {short(first)}", "t-soft", "start", 10))
    parts.append(_words(_WIDTH - _RIGHT, _HEIGHT - 5, short(last), "t-soft", "end", 10))
    parts.append(_words(0, 13, title, "t-text", "start", 12, bold=True))
    end = float(_WIDTH - _RIGHT)
    place = 0
    drawn = []
    for one in known:
        points = [(x(step), y(value)) for step, value in thin(one.steps, one.values)]
        look = "t-ref" if one.reference else f"t-s{place % theme.SERIES}"
        path = "L".join(f"{px:.1f} {py:.1f}" for px, py in points)
        if len(points) == 1:
            px, py = points[0]
            drawn.append(f'<circle class="t-d{place % theme.SERIES}" cx="{px:.1f}" cy="{py:.1f}" r="2.5"/>')
        else:
            drawn.append(f'<path class="{look}" d="M{path}" stroke-width="{1.5 if one.reference else 1.8}"/>')
        place += not one.reference
    for place, one in reversed([*enumerate(one for one in known if not one.reference)]):
        shown = short(one.values[-1])
        parts.append(_words(end, 13, shown, f"t-d{place % theme.SERIES}", "end", 12, bold=True))
        end -= 7.2 * len(shown) + 8
    said = html.escape(f"{title}: " + "; ".join(_told(one) for one in known))
    body = "".join([*parts, *drawn])
    return (
        f'<svg role="img" aria-label="{said}" viewBox="0 0 {_WIDTH} {_HEIGHT}">'
        f"<title>{said}</title>{body}</svg>"
    )


def _told(one: Series) -> str:
    return (
        f"{one.name} {short(one.values[0])} at step {short(one.steps[0])}, "
        f"{short(one.values[-1])} at step {short(one.steps[-1])}"
    )


def _words(x: float, y: float, words: str, look: str, anchor: str, size: int, *, bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text class="{look}" x="{x:.0f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"{weight}>'
        f"{html.escape(words)}</text>"
    )


def thin(steps: Sequence[float], values: Sequence[float]) -> list[tuple[float, float]]:
    """Return the points of a curve, or of a long one the extremes of each stretch: no spike is lost."""
    points = list(zip(steps, values, strict=True))
    if len(points) <= 2 * _BUCKETS:
        return points
    kept = {0, len(points) - 1}
    for bucket in range(_BUCKETS):
        places = range(bucket * len(points) // _BUCKETS, (bucket + 1) * len(points) // _BUCKETS)
        kept |= {min(places, key=values.__getitem__), max(places, key=values.__getitem__)}
    return [points[place] for place in sorted(kept)]


def _scale(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """Return the ends of the axis and two to five round numbers on it."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if high == low:
        low, high = min(low, 0.0), max(high, 0.0) or float(low == 0)
    rough = (high - low) / 3
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * times for times in (1, 2, 2.5, 5, 10) if power * times >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return first * step, last * step, [place * step for place in range(first, last + 1)]


def short(value: float) -> str:
    """Return a number with three figures: `0.523`, `12.5`, `1,200`, `4e-5`."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 0.001:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{float(f'{value:.3g}'):g}"

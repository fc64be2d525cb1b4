"""The charts of a sweep: the right points, intervals, styles and fronts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tats_core.report import sweep_figures as figures
from tats_core.report import sweeps
from tats_core.report.sweep_figures import Curve, Look, Named, Series

LIGHT = Look(dark=False)
RATIO, KIND = Named("s.ratio", "ratio"), Series("s.kind", "kind", ("random", "tats"))
TOP1, SECONDS = Named("top1", "top-1", "max"), Named("seconds", "s a step", "min")


def row(ratio: float, kind: str, top1: float, seconds: float, **more: Any) -> sweeps.Row:
    trials = [
        {
            "point": {"s.ratio": ratio, "s.kind": kind, **more},
            "seed": seed,
            "status": "finished",
            "metrics": {"top1": top1 + seed, "seconds": seconds},
        }
        for seed in (0, 1)
    ]
    return sweeps.rows(trials, ["top1", "seconds"], {})[0]


ROWS = [
    row(0.9, "random", 10, 1),
    row(0.95, "random", 20, 2),
    row(0.9, "tats", 30, 4),
    row(0.95, "tats", 25, 5),
]


def test_metrics_stand_against_the_ratio_with_a_line_for_each_sampler() -> None:
    first, second = figures.against(ROWS, RATIO, KIND, [TOP1, SECONDS], LIGHT).axes
    assert (first.get_title("left"), second.get_title("left")) == ("top-1", "s a step")
    lines = [bars.lines[0] for bars in first.containers]  # type: ignore[attr-defined]
    assert [list(line.get_ydata()) for line in lines] == [[10.5, 20.5], [30.5, 25.5]]
    assert np.allclose([line.get_xdata() for line in lines], [[0.9, 0.95]] * 2, atol=0.001)


def test_an_interval_is_as_long_as_students_t_says() -> None:
    (axes,) = figures.against(ROWS[:1], RATIO, None, [TOP1], LIGHT).axes
    (bars,) = axes.containers[0].lines[2]  # type: ignore[attr-defined]
    low, high = bars.get_segments()[0][:, 1]
    # Two seeds, 1 apart: t(1) = 12.706, s = 1 / sqrt(2), so half the interval is 12.706 / 2.
    assert high - low == pytest.approx(12.706)


def test_series_differ_in_colour_dash_and_marker() -> None:
    styles = [LIGHT.style(place) for place in range(figures.STYLES)]
    for key in ("color", "linestyle", "marker"):
        assert len({str(style[key]) for style in styles}) == figures.STYLES


def test_a_value_has_the_same_style_in_every_chart() -> None:
    curves = {"loss": [Curve("tats", [1, 2], [3, 4]), Curve("random", [1, 2], [5, 6])]}
    (axes,) = figures.learning(curves, KIND, LIGHT).axes
    assert [line.get_color() for line in axes.lines] == [LIGHT["orange"], LIGHT["blue"]]


def test_both_sides_are_drawn_in_their_own_colours() -> None:
    light, dark = (figures.importance({"a": 0.7, "b": 0.3}, Look(dark=dark)) for dark in (False, True))
    assert light.get_facecolor() != dark.get_facecolor()
    assert [bar.get_width() for bar in light.axes[0].patches] == pytest.approx([30, 70])


def test_the_front_holds_what_no_other_point_beats_in_both() -> None:
    ends = figures.front(ROWS, TOP1, SECONDS)
    assert [one.point["s.ratio"] for one in ends] == [0.9, 0.95, 0.9]
    assert ROWS[3] not in ends, "slower and worse than the third"
    assert figures.front(ROWS, TOP1, Named("seconds", "", "max")) == [ROWS[2], ROWS[3]]


def test_points_of_the_front_are_filled() -> None:
    (axes,) = figures.pareto(ROWS, TOP1, SECONDS, KIND, LIGHT).axes
    marked = [bars.lines[0] for bars in axes.containers]  # type: ignore[attr-defined]
    filled = [line.get_markerfacecolor() != LIGHT["paper"] for line in marked]
    assert filled == [True, True, True, False]


def test_parallel_coordinates_have_a_line_a_point_and_a_place_for_keys_that_do_not_apply() -> None:
    rows = [ROWS[0], row(0.95, "tats", 30, 4, **{"s.clip": 0.2})]
    keys = [RATIO, Named("s.kind", "kind"), Named("s.clip", "clip")]
    axes, _ = figures.parallel(rows, keys, [TOP1], TOP1, LIGHT).axes
    heights = [list(line.get_ydata()) for line in axes.lines if len(line.get_ydata()) == 4]
    assert heights == [[0, 0, -0.15, 0], [1, 1, 0.5, 1]], "the worst first, below the best"


def test_a_key_over_many_powers_of_ten_stands_on_a_logarithmic_axis() -> None:
    rows = [row(rate, "tats", 10 * i, 1) for i, rate in enumerate((1e-4, 1e-3, 1e-2))]
    axes, _ = figures.parallel(rows, [RATIO], [TOP1], TOP1, LIGHT).axes
    heights = [line.get_ydata()[0] for line in axes.lines if len(line.get_ydata()) == 2][:3]
    assert heights == pytest.approx([0, 0.5, 1])

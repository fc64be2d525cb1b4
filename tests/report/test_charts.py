"""The charts: the right heights, curves, intervals, styles and names, and colours of the page."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest

from tats_core.report import charts, sweeps, theme
from tats_core.report.charts import ALL, Curve, Key
from tats_core.report.metrics import Metric

SVG = "{http://www.w3.org/2000/svg}"


def light(name: str) -> str:
    return theme.COLOURS[name][0]


# --- results ------------------------------------------------------------------------------------------------

RESULTS = [
    {"benchmark": "ssv2", "init": "pretrained", "top1": 50.0, "low": 40.0, "high": 61.0, "chance": 10.0},
    {"benchmark": "ssv2", "init": "scratch", "top1": 30.0, "low": 22.0, "high": 40.0, "chance": 10.0},
    {"benchmark": "ucf101", "init": "scratch", "top1": 20.0, "chance": 12.5, "linear_top1": 15.0},
]


def test_the_chart_has_a_bar_of_the_right_height_for_every_row() -> None:
    (axes,) = charts.results(RESULTS).axes
    assert sorted(bar.get_height() for bar in axes.patches) == [20.0, 30.0, 50.0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["ssv2", "ucf101"]


def test_the_chart_has_an_interval_only_where_one_was_measured() -> None:
    (axes,) = charts.results(RESULTS).axes
    ends = sorted(
        tuple(segment[:, 1])
        for bars in axes.collections
        for segment in bars.get_segments()  # type: ignore[attr-defined]
    )
    assert ends == [(22.0, 40.0), (40.0, 61.0)]


def test_the_chart_explains_only_what_it_shows() -> None:
    (axes,) = charts.results(RESULTS[:2]).axes
    assert [text.get_text() for text in axes.figure.legends[0].get_texts()] == [
        "pre-trained",
        "from scratch",
        "chance",
    ]


CONFUSION = np.array([[8, 2, 0], [0, 10, 0], [5, 0, 5]])
CLASSES = ["run", "walk", "swim"]


def test_a_confusion_matrix_shows_each_true_classs_clips_in_percent() -> None:
    axes, bar = charts.confusion(CONFUSION, CLASSES, "a test").axes
    np.testing.assert_array_equal(axes.images[0].get_array(), [[80, 20, 0], [0, 100, 0], [50, 0, 50]])
    assert [label.get_text() for label in axes.get_yticklabels()] == CLASSES
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title("left")) == ("predicted", "true", "a test")
    assert bar.get_ylabel() == "percent of the true class's clips"


def test_few_classes_have_their_counts_in_the_cells_and_none_where_there_is_no_clip() -> None:
    axes, _ = charts.confusion(CONFUSION, CLASSES, "").axes
    written = {tuple(map(int, text.get_position())): text.get_text() for text in axes.texts}
    # Positions are (column, row).
    assert written == {(0, 0): "8", (1, 0): "2", (1, 1): "10", (0, 2): "5", (2, 2): "5"}


def test_a_class_without_clips_is_an_empty_row() -> None:
    axes, _ = charts.confusion(np.array([[0, 0], [1, 1]]), ["a", "b"], "").axes
    np.testing.assert_array_equal(axes.images[0].get_array(), [[0, 0], [50, 50]])


@pytest.mark.parametrize(("count", "named", "counted"), [(8, True, True), (51, True, False)])
def test_up_to_a_hundred_classes_are_named(count: int, named: bool, counted: bool) -> None:
    names = [f"class {index}" for index in range(count)]
    axes, _ = charts.confusion(np.eye(count, dtype=np.int64), names, "").axes
    assert ([label.get_text() for label in axes.get_xticklabels()] == names) is named
    assert bool(axes.texts) is counted


def test_of_more_classes_the_pairs_confused_most_are_listed_by_name() -> None:
    confusion = 9 * np.eye(400, dtype=np.int64)
    confusion[3, 7], confusion[399, 0] = 4, 6
    names = [f"class {index}" for index in range(400)]
    matrix, listed, _ = charts.confusion(confusion, names, "").axes
    assert "class" not in "".join(label.get_text() for label in matrix.get_xticklabels())
    assert listed.texts[0].get_text().splitlines()[2:] == [
        "6 of 15:  399 class 399",
        "     → 0 class 0",
        "4 of 13:  3 class 3",
        "     → 7 class 7",
    ]


def test_the_reliability_diagram_leaves_bins_without_clips_empty() -> None:
    upper, lower = charts.reliability([0, 6, 2], [0, 50, 90], [0, 100 / 3, 100], ece=15.0).axes
    assert [bar.get_height() for bar in upper.patches] == pytest.approx([100 / 3, 100])
    assert [bar.get_x() + bar.get_width() / 2 for bar in upper.patches] == pytest.approx([50, 500 / 6])
    assert [bar.get_height() for bar in lower.patches] == [0, 75, 25]
    assert upper.get_title("left") == "Calibration: expected error 15.0 points"


# --- curves -------------------------------------------------------------------------------------------------


def test_a_chart_tells_how_each_curve_goes_and_shows_its_last_value() -> None:
    drawn = charts.panel(
        "loss <1>", [Curve("a & b", [1, 2], [2.0, 0.5]), Curve("chance", [1, 2], [1, 1], reference=True)]
    )
    root = ET.fromstring(drawn)
    assert (
        root.attrib["aria-label"]
        == "loss <1>: a & b 2 at step 1, 0.5 at step 2; chance 1 at step 1, 1 at step 2"
    )
    assert [text.text for text in root.iter(f"{SVG}text")][-1] == "0.5"
    styles = [path.attrib["style"].partition("stroke: ")[2] for path in root.iter(f"{SVG}path")]
    strokes = [style.partition(";")[0] for style in styles]
    assert [stroke for stroke in strokes if stroke != "var(--line)"] == ["var(--soft)", "var(--blue)"]


def test_a_name_with_dollars_is_no_formula(tmp_path) -> None:
    name = r"$\frac of $5"
    assert name in charts.panel(name, [Curve.of(name, {1: 1.0})])
    assert charts.png(charts.learning({name: [Curve.of(name, {1: 1.0, 2: 2.0})]}, [name], ylabel=name))
    charts.save(charts.confusion(np.eye(2, dtype=int), [name, "b"], name), tmp_path / "confusion.svg")
    charts.png(charts.importance({name: 1.0}))


def test_a_curve_without_points_leaves_an_empty_chart() -> None:
    assert ET.fromstring(charts.panel("kl", [Curve("a", [], [])])).findtext(f"{SVG}title") == "kl: "


def test_a_spike_in_a_long_curve_is_kept() -> None:
    values = [0.0] * 10_000
    values[4321] = 7.0
    values[4322] = -7.0
    thinned = charts.thin(range(10_000), values)
    assert len(thinned) <= 2 * 90 + 2
    assert {(4321, 7.0), (4322, -7.0)} <= set(thinned)
    assert (thinned[0][0], thinned[-1][0]) == (0, 9999)
    assert [step for step, _ in thinned] == sorted(step for step, _ in thinned)


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.2, 1.65], [0, 0.5, 1, 1.5, 2]),
        ([3.0, 3.0], [0, 1, 2, 3]),
        ([0.0, 0.0], [0, 0.5, 1]),
        ([-0.15, 0.6], [-0.25, 0, 0.25, 0.5, 0.75]),
        ([1e-9, 5e-4], [0, 2e-4, 4e-4, 6e-4]),
    ],
)
def test_the_numbers_on_an_axis_are_round_and_hold_all_values(
    values: list[float], ticks: list[float]
) -> None:
    assert charts.round_ticks(values) == pytest.approx(ticks)


# --- sweeps -------------------------------------------------------------------------------------------------

RATIO, KIND = Key("s.ratio", "ratio"), Key("s.kind", "kind", ("random", "tats"))
TOP1, SECONDS = Metric("top1", "top-1", better="more"), Metric("seconds", "s a step", better="less")


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
    first, second = charts.against(ROWS, RATIO, KIND, [TOP1, SECONDS]).axes
    assert (first.get_title("left"), second.get_title("left")) == ("top-1", "s a step")
    lines = [bars.lines[0] for bars in first.containers]  # type: ignore[attr-defined]
    assert [list(line.get_ydata()) for line in lines] == [[10.5, 20.5], [30.5, 25.5]]
    assert np.allclose([line.get_xdata() for line in lines], [[0.9, 0.95]] * 2, atol=0.001)


def test_an_interval_is_as_long_as_students_t_says() -> None:
    (axes,) = charts.against(ROWS[:1], RATIO, ALL, [TOP1]).axes
    (bars,) = axes.containers[0].lines[2]  # type: ignore[attr-defined]
    low, high = bars.get_segments()[0][:, 1]
    # Two seeds, 1 apart: t(1) = 12.7062, s = 1 / sqrt(2), so half the interval is 12.7062 / 2.
    assert high - low == pytest.approx(12.7062)


def test_series_differ_in_colour_dash_and_marker() -> None:
    styles = [charts._style(index) for index in range(charts.SERIES)]
    for key in ("color", "linestyle", "marker"):
        assert len({str(style[key]) for style in styles}) == charts.SERIES


def test_a_value_has_the_same_style_in_every_chart() -> None:
    curves = {"loss": [Curve("tats", [1, 2], [3, 4]), Curve("random", [1, 2], [5, 6])]}
    (axes,) = charts.learning(curves, KIND.values).axes
    assert [line.get_color() for line in axes.lines] == [light("orange"), light("blue")]


def test_the_bars_of_importance_are_the_shares_the_largest_on_top() -> None:
    figure = charts.importance({"a": 0.7, "b": 0.3})
    assert [bar.get_width() for bar in figure.axes[0].patches] == pytest.approx([30, 70])


def test_a_drawing_on_a_page_has_the_pages_colours_and_stands_alone() -> None:
    drawn = charts.svg(charts.pareto(ROWS, TOP1, SECONDS, KIND), 'a "front" & more')
    root = ET.fromstring(drawn)
    assert root.attrib["aria-label"] == 'a "front" & more'
    assert drawn.count("var(--blue)") >= 2
    assert not [light for light, _ in theme.COLOURS.values() if light in drawn], "or it would stay light"
    assert "<style" not in drawn, "it would hold for the whole page"
    assert "xlink" not in drawn


def test_the_front_holds_what_no_other_point_beats_in_both() -> None:
    ends = charts.front(ROWS, TOP1, SECONDS)
    assert [row.point["s.ratio"] for row in ends] == [0.9, 0.95, 0.9]
    assert ROWS[3] not in ends, "slower and worse than the third"
    assert charts.front(ROWS, TOP1, Metric("seconds", "", better="more")) == [ROWS[2], ROWS[3]]


def test_points_of_the_front_are_filled() -> None:
    (axes,) = charts.pareto(ROWS, TOP1, SECONDS, KIND).axes
    marked = [bars.lines[0] for bars in axes.containers]  # type: ignore[attr-defined]
    filled = [line.get_markerfacecolor() != light("paper") for line in marked]
    assert filled == [True, True, True, False]


def test_parallel_coordinates_have_a_line_a_point_and_a_place_for_keys_that_do_not_apply() -> None:
    rows = [ROWS[0], row(0.95, "tats", 30, 4, **{"s.clip": 0.2})]
    keys = [RATIO, KIND, Key("s.clip", "clip")]
    axes, _ = charts.parallel(rows, keys, [TOP1], TOP1).axes
    heights = [list(line.get_ydata()) for line in axes.lines if len(line.get_ydata()) == 4]
    assert heights == [[0, 0, -0.15, 0], [1, 1, 0.5, 1]], "the worst first, below the best"


def test_a_key_over_many_powers_of_ten_stands_on_a_logarithmic_axis() -> None:
    rows = [row(rate, "tats", 10 * i, 1) for i, rate in enumerate((1e-4, 1e-3, 1e-2))]
    axes, _ = charts.parallel(rows, [RATIO], [TOP1], TOP1).axes
    heights = [line.get_ydata()[0] for line in axes.lines if len(line.get_ydata()) == 2][:3]
    assert heights == pytest.approx([0, 0.5, 1])

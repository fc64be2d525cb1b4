"""The charts: the right heights, colours and names."""

from __future__ import annotations

import numpy as np
import pytest

from tats_core.report import figures

ROWS = [
    {"benchmark": "ssv2", "init": "pretrained", "top1": 50.0, "low": 40.0, "high": 61.0, "chance": 10.0},
    {"benchmark": "ssv2", "init": "scratch", "top1": 30.0, "low": 22.0, "high": 40.0, "chance": 10.0},
    {"benchmark": "ucf101", "init": "scratch", "top1": 20.0, "chance": 12.5, "linear_top1": 15.0},
]


def test_the_chart_has_a_bar_of_the_right_height_for_every_row() -> None:
    (axes,) = figures.results_chart(ROWS).axes
    assert sorted(bar.get_height() for bar in axes.patches) == [20.0, 30.0, 50.0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["ssv2", "ucf101"]


def test_the_chart_has_an_interval_only_where_one_was_measured() -> None:
    (axes,) = figures.results_chart(ROWS).axes
    ends = sorted(
        tuple(segment[:, 1])
        for bars in axes.collections
        for segment in bars.get_segments()  # type: ignore[attr-defined]
    )
    assert ends == [(22.0, 40.0), (40.0, 61.0)]


def test_the_chart_explains_only_what_it_shows() -> None:
    (axes,) = figures.results_chart(ROWS[:2]).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "pre-trained",
        "from scratch",
        "chance",
    ]


CONFUSION = np.array([[8, 2, 0], [0, 10, 0], [5, 0, 5]])
CLASSES = ["run", "walk", "swim"]


def test_a_confusion_matrix_shows_each_true_classs_clips_in_percent() -> None:
    axes, bar = figures.confusion_matrix(CONFUSION, CLASSES, "a test").axes
    np.testing.assert_array_equal(axes.images[0].get_array(), [[80, 20, 0], [0, 100, 0], [50, 0, 50]])
    assert [label.get_text() for label in axes.get_yticklabels()] == CLASSES
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title("left")) == ("predicted", "true", "a test")
    assert bar.get_ylabel() == "percent of the true class's clips"


def test_few_classes_have_their_counts_in_the_cells_and_none_where_there_is_no_clip() -> None:
    axes, _ = figures.confusion_matrix(CONFUSION, CLASSES, "").axes
    written = {tuple(map(int, text.get_position())): text.get_text() for text in axes.texts}
    # Positions are (column, row).
    assert written == {(0, 0): "8", (1, 0): "2", (1, 1): "10", (0, 2): "5", (2, 2): "5"}


def test_a_class_without_clips_is_an_empty_row() -> None:
    axes, _ = figures.confusion_matrix(np.array([[0, 0], [1, 1]]), ["a", "b"], "").axes
    np.testing.assert_array_equal(axes.images[0].get_array(), [[0, 0], [50, 50]])


@pytest.mark.parametrize(("count", "named", "counted"), [(8, True, True), (51, True, False)])
def test_up_to_a_hundred_classes_are_named(count: int, named: bool, counted: bool) -> None:
    names = [f"class {place}" for place in range(count)]
    axes, _ = figures.confusion_matrix(np.eye(count, dtype=np.int64), names, "").axes
    assert ([label.get_text() for label in axes.get_xticklabels()] == names) is named
    assert bool(axes.texts) is counted


def test_of_more_classes_the_pairs_confused_most_are_listed_by_name() -> None:
    confusion = 9 * np.eye(400, dtype=np.int64)
    confusion[3, 7], confusion[399, 0] = 4, 6
    names = [f"class {place}" for place in range(400)]
    matrix, listed, _ = figures.confusion_matrix(confusion, names, "").axes
    assert "class" not in "".join(label.get_text() for label in matrix.get_xticklabels())
    assert listed.texts[0].get_text().splitlines()[2:] == [
        "6 of 15:  399 class 399",
        "     → 0 class 0",
        "4 of 13:  3 class 3",
        "     → 7 class 7",
    ]


def test_the_reliability_diagram_leaves_bins_without_clips_empty() -> None:
    upper, lower = figures.reliability([0, 6, 2], [0, 50, 90], [0, 100 / 3, 100], ece=15.0).axes
    assert [bar.get_height() for bar in upper.patches] == pytest.approx([100 / 3, 100])
    assert [bar.get_x() + bar.get_width() / 2 for bar in upper.patches] == pytest.approx([50, 500 / 6])
    assert [bar.get_height() for bar in lower.patches] == [0, 75, 25]
    assert upper.get_title("left") == "Calibration: expected error 15.0 points"

"""Curves: what is kept of a long one, the numbers on the axis, and what is said in words."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from tats_core.report import curves
from tats_core.report.curves import Series


def test_a_chart_tells_how_each_curve_goes_and_shows_its_last_value() -> None:
    chart = curves.chart(
        "loss <1>", [Series("a & b", [1, 2], [2.0, 0.5]), Series("chance", [1, 2], [1, 1], reference=True)]
    )
    root = ET.fromstring(chart)
    assert (
        root.attrib["aria-label"]
        == "loss <1>: a & b 2 at step 1, 0.5 at step 2; chance 1 at step 1, 1 at step 2"
    )
    assert [one.text for one in root.findall("text")][-1] == "0.5"
    assert [one.attrib["class"] for one in root.findall("path") if "stroke-width" in one.attrib] == [
        "t-s0",
        "t-ref",
    ]


def test_a_curve_without_points_leaves_an_empty_chart() -> None:
    assert ET.fromstring(curves.chart("kl", [Series("a", [], [])])).findtext("title") == "kl: "


def test_a_spike_in_a_long_curve_is_kept() -> None:
    values = [0.0] * 10_000
    values[4321] = 7.0
    values[4322] = -7.0
    kept = curves.thin(range(10_000), values)
    assert len(kept) <= 2 * 90 + 2
    assert {(4321, 7.0), (4322, -7.0)} <= set(kept)
    assert (kept[0][0], kept[-1][0]) == (0, 9999)
    assert [step for step, _ in kept] == sorted(step for step, _ in kept)


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
    low, high, found = curves._scale(values)
    assert found == pytest.approx(ticks)
    assert (low, high) == pytest.approx((ticks[0], ticks[-1]))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (0.5234, "0.523"),
        (12.5, "12.5"),
        (1234.5, "1,234"),
        (4e-5, "4e-5"),
        (-1.25e-7, "-1.2e-7"),
        (100, "100"),
    ],
)
def test_a_number_is_short(value: float, shown: str) -> None:
    assert curves.short(value) == shown

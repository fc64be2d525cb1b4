"""Times as people write them."""

from __future__ import annotations

import pytest

from tats_core.report.units import duration, moment, short, size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"), (9.94, "9.9 s"), (59.4, "59 s"), (59.6, "1 min"), (200, "3 min 20 s"),
        (18_120, "5 h 2 min"), (183_600, "2 d 3 h"), (3600, "1 h"), (-3.0, "0.0 s"),
    ],
)  # fmt: skip
def test_a_duration_has_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB")])
def test_a_size_has_one_unit(count: int, text: str) -> None:
    assert size(count) == text


def test_a_moment_is_told_in_utc() -> None:
    assert moment(0) == "1970-01-01 00:00 UTC"


@pytest.mark.parametrize(
    ("value", "text"),
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
def test_a_number_is_short(value: float, text: str) -> None:
    assert short(value) == text

"""Numbers, times and names as people read them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final, TypeGuard

DASH: Final = "–"
"""Stands where nothing was measured."""


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether a value of JSON or YAML is a number: `true` is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def number(value: float | None, digits: int = 1) -> str:
    """Return `value` with `digits` decimals, or a dash where nothing was measured."""
    return DASH if value is None else f"{value:.{digits}f}"


def short(value: float) -> str:
    """Return a number with three significant digits: `0.523`, `12.5`, `1,200`, `4e-5`."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 0.001:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{float(f'{value:.3g}'):g}"


def value_text(value: object) -> str:
    """Return a configured value as tables show it."""
    if value is None:
        return DASH
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def cut(words: str, letters: int) -> str:
    """Return at most so many letters of a text."""
    return words if len(words) <= letters else words[: letters - 1] + "…"


def duration(seconds: float) -> str:
    """Return a length of time in its two largest units: `0.4 s`, `3 min 20 s`, `2 d 3 h`.

    Nothing is shorter than zero, even where a machine's clock was set back.
    """
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    for large, small, words in ((86400, 3600, ("d", "h")), (3600, 60, ("h", "min")), (60, 1, ("min", "s"))):
        if whole >= large:
            first, rest = divmod(whole, large)
            second = rest // small
            return f"{first} {words[0]}" + (f" {second} {words[1]}" if second else "")
    raise AssertionError(whole)


def size(count: float) -> str:
    """Return a number of bytes: `12 B`, `3.4 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.1f} {unit}" if unit != "B" else f"{count} B"
        count /= 1024
    return f"{count:.1f} TiB"


def clock(seconds: float | None) -> str:
    """Return seconds since the epoch as a local time: `2026-11-25 10:52:55`."""
    return DASH if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def moment(when: float | None) -> str:
    """Return seconds since the epoch as `2026-11-25 10:53 UTC`."""
    return DASH if when is None else time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(when))


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Return dotted key → as few of its last words as tell it from the other keys."""
    names = {}
    for key in keys:
        parts = key.split(".")
        for count in range(1, len(parts) + 1):
            name = ".".join(parts[-count:])
            if sum(other.endswith("." + name) or other == name for other in keys) == 1:
                break
        names[key] = name
    return names

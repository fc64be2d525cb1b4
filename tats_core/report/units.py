"""Times as people write them."""

from __future__ import annotations

import time


def duration(seconds: float) -> str:
    """Return a length of time in its two largest units: `0.4 s`, `3 min 20 s`, `2 d 3 h`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    for large, small, words in ((86400, 3600, ("d", "h")), (3600, 60, ("h", "min")), (60, 1, ("min", "s"))):
        if whole >= large:
            first, rest = divmod(whole, large)
            second = rest // small
            return f"{first} {words[0]}" + (f" {second} {words[1]}" if second else "")
    raise AssertionError(whole)


def moment(when: float) -> str:
    """Return seconds since the epoch as `2026-11-25 10:53 UTC`."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(when))

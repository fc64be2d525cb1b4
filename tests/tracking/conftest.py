"""The toy stages of `tests.toys` in place of the real ones."""

from tests.toys import load, no_tracker, toy_kinds, ui

__all__ = ["load", "no_tracker", "toy_kinds", "ui"]

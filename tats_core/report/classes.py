"""What a test says beside its one number, by class and by confidence: tables as CSV text.

Axes: C classes, K bins; `confusion_CC` counts clips, a row for each true class, a column for each predicted.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Counts: TypeAlias = NDArray[np.int64]

PER_CLASS = ("class", "clips", "top1", "most_confused_with", "confused_clips")
"""Columns of the table of classes; `top1` in percent, empty for a class without clips."""


class Pair(NamedTuple):
    """A class whose clips are taken for another's."""

    true: int
    predicted: int
    clips: int
    of: int
    """Clips of the true class."""


def per_class(confusion_CC: Counts, classes: Sequence[str]) -> str:
    """Return one line a class: its clips, how many percent of them are found, and what it is taken for.

    Of two classes that it is taken for equally often, the first is named; none where all are found.
    """
    lines: list[Sequence[Any]] = [PER_CLASS]
    for place, name in enumerate(classes):
        clips, found = int(confusion_CC[place].sum()), int(confusion_CC[place, place])
        wrong_C = confusion_CC[place].copy()
        wrong_C[place] = 0
        other, often = int(wrong_C.argmax()), int(wrong_C.max())
        top1 = f"{100 * found / clips:.2f}" if clips else ""
        lines.append((name, clips, top1, *((classes[other], often) if often else ("", 0))))
    return _csv(lines)


def matrix(confusion_CC: Counts, classes: Sequence[str]) -> str:
    """Return the matrix with its classes' names: a line for each true class, a column for each predicted."""
    rows = ([name, *row.tolist()] for name, row in zip(classes, confusion_CC, strict=True))
    return _csv([["true / predicted", *classes], *rows])


def calibration(clips_K: Sequence[float], confidence_K: Sequence[float], accuracy_K: Sequence[float]) -> str:
    """Return one line a bin of confidence: its edges, its clips, how sure and how often right; percent.

    `confidence` and `accuracy` of a bin without clips are empty.
    """
    bins = len(clips_K)
    lines: list[Sequence[Any]] = [("above", "up_to", "clips", "confidence", "accuracy")]
    for place, (clips, confidence, accuracy) in enumerate(
        zip(clips_K, confidence_K, accuracy_K, strict=True)
    ):
        edges = (f"{100 * place / bins:.2f}", f"{100 * (place + 1) / bins:.2f}")
        means = (f"{confidence:.2f}", f"{accuracy:.2f}") if clips else ("", "")
        lines.append((*edges, int(clips), *means))
    return _csv(lines)


def most_confused(confusion_CC: Counts, count: int) -> list[Pair]:
    """Return the `count` pairs of classes that most clips confuse, the most first; or fewer."""
    wrong_CC = confusion_CC.copy()
    np.fill_diagonal(wrong_CC, 0)
    # Stable, so that pairs of equal counts come in the order of their classes.
    order = np.argsort(-wrong_CC, axis=None, kind="stable")[:count]
    places = zip(*(axis.tolist() for axis in np.unravel_index(order, wrong_CC.shape)), strict=True)
    pairs = [Pair(i, j, int(wrong_CC[i, j]), int(confusion_CC[i].sum())) for i, j in places]
    return [pair for pair in pairs if pair.clips]


def _csv(lines: Iterable[Sequence[Any]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(lines)
    return out.getvalue()

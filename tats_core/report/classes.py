"""The results of a test by class and by confidence: tables as CSV text.

Axes: C classes, K bins; `confusion_CC` counts clips, a row for each true class, a column for each predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tats_core.report.table import Table

Counts: TypeAlias = NDArray[np.int64]


class Pair(NamedTuple):
    """A class whose clips are predicted as another; `of` counts the true class's clips."""

    true: int
    predicted: int
    clips: int
    of: int


def per_class(confusion_CC: Counts, classes: Sequence[str]) -> str:
    """Return one line a class: its clips, their top-1 in percent, and the class it is confused with most.

    Of two classes that it is confused with equally often, the first is named.
    """
    clips_C, wrong_CC = confusion_CC.sum(1), confusion_CC * ~np.eye(len(classes), dtype=bool)
    lines = []
    for index, name in enumerate(classes):
        clips, other, confused = (
            int(clips_C[index]),
            int(wrong_CC[index].argmax()),
            int(wrong_CC[index].max()),
        )
        top1 = f"{100 * int(confusion_CC[index, index]) / clips:.2f}" if clips else ""
        lines.append([name, clips, top1, classes[other] if confused else "", confused])
    return Table.of(("class", "clips", "top1", "most_confused_with", "confused_clips"), lines).csv()


def matrix(confusion_CC: Counts, classes: Sequence[str]) -> str:
    """Return the matrix with its classes' names: a line for each true class, a column for each predicted."""
    lines = [[name, *row] for name, row in zip(classes, confusion_CC.tolist(), strict=True)]
    return Table.of(["true / predicted", *classes], lines).csv()


def calibration(clips_K: Sequence[float], confidence_K: Sequence[float], accuracy_K: Sequence[float]) -> str:
    """Return one line a bin of confidence: its edges, clips, mean confidence and accuracy, in percent.

    `confidence` and `accuracy` of a bin without clips are empty.
    """
    edges = np.linspace(0, 100, len(clips_K) + 1)
    lines = [
        [f"{low:.2f}", f"{high:.2f}", int(clips), *(f"{mean:.2f}" if clips else "" for mean in means)]
        for low, high, clips, *means in zip(edges, edges[1:], clips_K, confidence_K, accuracy_K, strict=False)
    ]
    return Table.of(("above", "up_to", "clips", "confidence", "accuracy"), lines).csv()


def most_confused(confusion_CC: Counts, count: int) -> list[Pair]:
    """Return the `count` pairs of classes that most clips confuse, the most first; or fewer."""
    wrong_CC = confusion_CC * ~np.eye(len(confusion_CC), dtype=bool)
    # Stable, so that pairs of equal counts come in the order of their classes.
    order = np.argsort(-wrong_CC, axis=None, kind="stable")[:count]
    cells = zip(*(axis.tolist() for axis in np.unravel_index(order, wrong_CC.shape)), strict=True)
    pairs = [Pair(i, j, int(wrong_CC[i, j]), int(confusion_CC[i].sum())) for i, j in cells]
    return [pair for pair in pairs if pair.clips]

"""Tables of classes and confidence, on counts that are known."""

from __future__ import annotations

import csv
import io

import numpy as np

from tats_core.report import classes
from tats_core.report.classes import Pair

CONFUSION = np.array([[8, 2, 0, 0], [0, 10, 0, 0], [3, 3, 4, 0], [0, 0, 0, 0]])
NAMES = ["run", "walk", "swim, slowly", "fly"]


def test_a_class_is_told_with_what_it_is_taken_for_most() -> None:
    read = list(csv.reader(io.StringIO(classes.per_class(CONFUSION, NAMES))))
    assert read == [
        ["class", "clips", "top1", "most_confused_with", "confused_clips"],
        ["run", "10", "80.00", "walk", "2"],
        ["walk", "10", "100.00", "", "0"],
        ["swim, slowly", "10", "40.00", "run", "3"],
        ["fly", "0", "", "", "0"],
    ]


def test_the_matrix_has_the_true_classes_in_its_rows() -> None:
    read = list(csv.reader(io.StringIO(classes.matrix(CONFUSION, NAMES))))
    assert read[0] == ["true / predicted", *NAMES]
    assert read[3] == ["swim, slowly", "3", "3", "4", "0"]


def test_the_pairs_confused_most_come_first_and_right_answers_never() -> None:
    assert classes.most_confused(CONFUSION, 2) == [Pair(2, 0, 3, 10), Pair(2, 1, 3, 10)]
    assert classes.most_confused(CONFUSION, 9) == [Pair(2, 0, 3, 10), Pair(2, 1, 3, 10), Pair(0, 1, 2, 10)]
    assert CONFUSION[0, 0] == 8


def test_a_bin_without_clips_has_neither_confidence_nor_accuracy() -> None:
    text = classes.calibration([0.0, 4.0], [0.0, 75.0], [0.0, 50.0])
    assert text.splitlines() == [
        "above,up_to,clips,confidence,accuracy",
        "0.00,50.00,0,,",
        "50.00,100.00,4,75.00,50.00",
    ]

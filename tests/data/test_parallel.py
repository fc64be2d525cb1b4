"""Work in pieces, of which some end the process that does them."""

from __future__ import annotations

import os

import pytest

from tats_core.data.parallel import in_pieces
from tats_core.errors import StageError
from tats_core.machine import end_after

CRASHES, LOOPS = 7, 21


def square(number: int) -> int:
    if number == CRASHES:
        os._exit(1)
    if number == LOOPS:
        end_after(0.5)
        while True:
            pass
    return number**2


def test_an_item_that_ends_its_process_costs_no_other_item() -> None:
    results: dict[int, int] = {}
    for piece, made in in_pieces(square, range(40), workers=2, lost=lambda number: -number):
        results |= zip(piece, made, strict=True)
    assert results == {number: number**2 for number in range(40)} | {CRASHES: -CRASHES, LOOPS: -LOOPS}


def test_without_a_result_for_such_an_item_the_work_ends_with_a_sentence() -> None:
    with pytest.raises(StageError, match="one of its processes was ended from outside"):
        list(in_pieces(square, range(20), workers=2))

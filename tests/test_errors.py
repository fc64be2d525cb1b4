"""The error tree and its suggestions."""

from __future__ import annotations

import inspect

import pytest

from tats_core import errors
from tats_core.errors import RunError, TatsError, did_you_mean

ALL = [one for _, one in inspect.getmembers(errors, inspect.isclass) if issubclass(one, TatsError)]


def test_wrong_input_exits_with_2_and_a_failure_while_running_with_1() -> None:
    codes = {error.__name__: error.exit_code for error in ALL}
    assert codes == {
        "TatsError": 2,
        "SpecError": 2,
        "DataError": 2,
        "VideoError": 2,
        "WeightsError": 2,
        "ResourceError": 2,
        "StoreError": 2,
        "RunError": 1,
        "TrainingError": 1,
        "StageError": 1,
    }


@pytest.mark.parametrize("error", ALL)
def test_every_error_stands_in_the_tree_of_the_module_docstring(error: type[TatsError]) -> None:
    assert error.__name__ in (errors.__doc__ or "")


def test_the_text_of_an_error_is_its_sentence() -> None:
    assert str(RunError("the disk is full; free some space")) == "the disk is full; free some space"


def test_the_nearest_name_is_suggested() -> None:
    assert did_you_mean("mask_ration", ["mask_ratio", "depth"]) == "; did you mean 'mask_ratio'?"


def test_without_a_near_name_all_valid_ones_are_listed_in_order() -> None:
    assert did_you_mean("qqqqqq", ["width", "depth"]) == "; valid: depth, width"


def test_with_no_valid_name_nothing_is_suggested() -> None:
    assert did_you_mean("anything", []) == ""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tats_core.training.schedules import SCHEDULES
from tats_core.training.schedules.constant import ConstantConfig
from tats_core.training.schedules.cosine import CosineConfig
from tats_core.training.schedules.wsd import WSDConfig


def test_half_a_cosine_falls_from_one_to_nothing() -> None:
    levels = [CosineConfig().level(share) for share in (0, 0.25, 0.5, 1)]
    assert levels == pytest.approx([1, 0.5 * (1 + math.sqrt(0.5)), 0.5, 0])


def test_warm_up_stable_decay_stays_at_the_peak_and_then_falls() -> None:
    linear = WSDConfig(decay_share=0.2, decay="linear")
    assert [linear.level(share) for share in (0, 0.8, 0.85, 0.9, 1)] == pytest.approx([1, 1, 0.75, 0.5, 0])
    root = WSDConfig(decay_share=0.2)
    assert [root.level(share) for share in (0.8, 0.85, 1)] == pytest.approx([1, 0.5, 0])


def test_a_constant_never_falls() -> None:
    assert {ConstantConfig().level(share) for share in (0, 0.3, 1)} == {1}


@pytest.mark.parametrize("kind", list(SCHEDULES))
@given(first=st.floats(0, 1), second=st.floats(0, 1))
def test_every_schedule_begins_at_its_peak_and_never_rises(kind: str, first: float, second: float) -> None:
    schedule = SCHEDULES[kind]()
    assert schedule.level(0) == 1
    before, after = schedule.level(min(first, second)), schedule.level(max(first, second))
    assert 0 <= after <= before <= 1


@pytest.mark.parametrize("kind", list(SCHEDULES))
def test_every_schedule_calls_itself_as_it_is_registered(kind: str) -> None:
    assert SCHEDULES[kind]().kind == kind

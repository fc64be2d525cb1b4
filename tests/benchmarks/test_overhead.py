"""The cases of `benchmarks/overhead.py` measure what they say."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def overhead(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import overhead

    yield overhead
    sys.modules.pop("overhead")


def test_the_plans_have_500_stages_all_reused_or_all_fine_tunings_changed(overhead) -> None:
    with overhead.CASES["plan_500"]() as work:
        plan = work()
    assert (len(plan.items), plan.count("reuse")) == (500, 500)
    with overhead.CASES["plan_500_changed"]() as work:
        plan = work()
    changed = [item for item in plan.items if item.reason == "epochs: 50 → 3"]
    assert {item.stage for item in changed} == {"finetune"}
    assert len(changed) == 213

"""Asynchronous halving that goes on after a kill as if there had been none; without a cluster."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tats_core.sweep import engine, spec
from tats_core.sweep.halving import Decision, Decisions

pytestmark = pytest.mark.slow  # it imports Ray

HALVING = "scheduler={kind: asha, metric: pretrain.linear_top1, mode: max, grace: 1, reduction: 2}"
SCORES = {"a": 5, "b": 3, "c": 9, "d": 4, "e": 7, "f": 8, "g": 1, "h": 6}
EPOCHS = 8


@dataclass
class Given:
    """A trial as Tune knows it."""

    config: dict[str, Any]
    trial_id: str = field(default="")


def run(scheduler: Any, names: str, tune: str, *, kill_after: int = 10**6) -> dict[str, int]:
    """Run trials one after the other; return how many epochs each got. `tune` are Tune's own names."""
    got: dict[str, int] = {}
    rows = 0
    for place, name in enumerate(names):
        one = Given({"trial": name}, f"{tune}-{place}")
        scheduler.on_trial_add(None, one)
        for epoch in range(1, EPOCHS + 1):
            row = {"epoch": epoch, "pretrain.linear_top1": SCORES[name] + epoch / 10}
            action = scheduler.on_trial_result(None, one, row)
            rows += 1
            got[name] = epoch
            if rows == kill_after:
                return got
            if action == "STOP":
                break
        scheduler.on_trial_complete(None, one, {"done": True})
    return got


@pytest.fixture(scope="module")
def sweep() -> spec.Sweep:
    return spec.load("demo_ratio", [HALVING])


def test_it_stops_the_lower_half_at_each_rung(sweep, tmp_path) -> None:
    # a passes alone; b is below 5.1; c above; d below the median of 5.1, 3.1, 9.1; and so on.
    assert run(engine._scheduler(sweep, tmp_path), "abcd", "x") == {"a": 8, "b": 1, "c": 8, "d": 1}


@pytest.mark.parametrize("kill_after", [3, 8, 9, 10, 13, 18, 25])
def test_wherever_it_was_killed_a_resume_decides_as_if_it_had_not_been(
    sweep, tmp_path: Path, kill_after: int
) -> None:
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole = run(engine._scheduler(sweep, tmp_path / "whole"), "abcdefgh", "x")
    first = run(engine._scheduler(sweep, tmp_path / "cut"), "abcdefgh", "x", kill_after=kill_after)
    begun = list(first)
    # The last one has not ended, and tells its epochs again from the first on.
    left = begun[-1] + "".join(name for name in SCORES if name not in begun)
    again = run(engine._scheduler(sweep, tmp_path / "cut"), left, "y")
    assert {**first, **again} == whole
    same = [Decisions(tmp_path / name / "decisions.jsonl").before for name in ("whole", "cut")]
    assert same[0] == same[1]


def test_a_row_without_the_metric_decides_nothing(sweep, tmp_path) -> None:
    scheduler = engine._scheduler(sweep, tmp_path)
    one = Given({"trial": "a"})
    scheduler.on_trial_add(None, one)
    assert scheduler.on_trial_result(None, one, {"epoch": 1, "pretrain.loss": 0.1}) == "CONTINUE"
    assert not (tmp_path / "decisions.jsonl").exists()


def test_a_line_that_was_half_written_is_cut_off(tmp_path) -> None:
    path = tmp_path / "decisions.jsonl"
    Decisions(path).keep(Decision("a", 1, 0.5, "CONTINUE"))
    with path.open("a") as file:
        file.write('{"trial": "b", "ep')
    Decisions(path).keep(Decision("c", 1, 0.25, "STOP"))
    found = Decisions(path)
    assert found.before == [Decision("a", 1, 0.5, "CONTINUE"), Decision("c", 1, 0.25, "STOP")]
    assert (found.action("c", 1), found.action("b", 1)) == ("STOP", None)

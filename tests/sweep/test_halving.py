"""Asynchronous halving that continues after a kill as if there had been none; without a cluster."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tats_core.sweep import spec
from tats_core.sweep.tuning import Halving
from tats_core.training.events import read_events

pytestmark = pytest.mark.slow  # it imports Ray

HALVING = "scheduler={kind: asha, metric: pretrain.linear_top1, mode: max, grace: 1, reduction: 2}"
SCORES = {"a": 5, "b": 3, "c": 9, "d": 4, "e": 7, "f": 8, "g": 1, "h": 6}
EPOCHS = 8


@dataclass
class TuneTrial:
    """A trial as Tune knows it."""

    config: dict[str, Any]
    trial_id: str = field(default="")


def run(scheduler: Any, names: str, tune: str, *, kill_after: int = 10**6) -> dict[str, int]:
    """Run trials one after the other; return how many epochs each got. `tune` are Tune's own names."""
    got: dict[str, int] = {}
    rows = 0
    for number, name in enumerate(names):
        trial = TuneTrial({"trial": name}, f"{tune}-{number}")
        scheduler.on_trial_add(None, trial)
        for epoch in range(1, EPOCHS + 1):
            row = {"epoch": epoch, "pretrain.linear_top1": SCORES[name] + epoch / 10}
            action = scheduler.on_trial_result(None, trial, row)
            rows += 1
            got[name] = epoch
            if rows == kill_after:
                return got
            if action == "STOP":
                break
        scheduler.on_trial_complete(None, trial, {"done": True})
    return got


def rows(folder: Path) -> list[Any]:
    """What ASHA has seen: epoch and value by trial."""
    return [(event["step"], event["values"]) for _, event in read_events(folder / "asha.jsonl")]


@pytest.fixture(scope="module")
def sweep() -> spec.Sweep:
    return spec.load("demo_ratio", [HALVING])


def test_it_stops_the_lower_half_at_each_rung(sweep, tmp_path) -> None:
    # a passes alone; b is below 5.1; c above; d below the median of 5.1, 3.1, 9.1; and so on.
    assert run(Halving(sweep.scheduler, tmp_path), "abcd", "x") == {"a": 8, "b": 1, "c": 8, "d": 1}


@pytest.mark.parametrize("kill_after", [3, 8, 9, 10, 13, 18, 25])
def test_wherever_it_was_killed_a_resume_decides_as_if_it_had_not_been(
    sweep, tmp_path: Path, kill_after: int
) -> None:
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole = run(Halving(sweep.scheduler, tmp_path / "whole"), "abcdefgh", "x")
    first = run(Halving(sweep.scheduler, tmp_path / "cut"), "abcdefgh", "x", kill_after=kill_after)
    begun = list(first)
    # The last one has not ended, and reports its epochs again from the first on.
    left = begun[-1] + "".join(name for name in SCORES if name not in begun)
    again = run(Halving(sweep.scheduler, tmp_path / "cut"), left, "y")
    assert {**first, **again} == whole
    assert rows(tmp_path / "whole") == rows(tmp_path / "cut")


def test_a_row_without_the_metric_decides_nothing(sweep, tmp_path) -> None:
    scheduler = Halving(sweep.scheduler, tmp_path)
    trial = TuneTrial({"trial": "a"})
    scheduler.on_trial_add(None, trial)
    assert scheduler.on_trial_result(None, trial, {"epoch": 1, "pretrain.loss": 0.1}) == "CONTINUE"
    assert rows(tmp_path) == []


def test_a_line_that_was_half_written_is_cut_off(sweep, tmp_path) -> None:
    run(Halving(sweep.scheduler, tmp_path), "ab", "x")
    before = rows(tmp_path)
    with (tmp_path / "asha.jsonl").open("a") as file:
        file.write('{"trial": "b", "ep')
    run(Halving(sweep.scheduler, tmp_path), "c", "x")
    assert rows(tmp_path)[: len(before)] == before
    assert rows(tmp_path)[len(before) :] == [(epoch, {"c": 9 + epoch / 10}) for epoch in range(1, 9)]

"""What a run shows, line by line, with a clock in hand."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from tats_core.cli.printing import numbers, params
from tats_core.cli.progress import LiveUI, PlainUI, Remaining
from tats_core.pipeline.plan import Plan, PlanItem
from tats_core.store.run import RunRecord, StageRecord


def item(name: str, action: Any) -> PlanItem:
    """Return a stage of a plan."""
    return PlanItem(name, name, name, {}, (), action, "")


PLAN = Plan("demo", "A small one.", (item("data", "reuse"), item("pretrain", "run"), item("report", "run")))


def record(status: Any = "running", finished: float | None = None) -> RunRecord:
    """Return the record of a run that started at 1000 s; one of its two stages is done."""
    stages = {
        "data": StageRecord("data", "data", "data", {}, [], status="cached"),
        "pretrain": StageRecord("pretrain", "pretrain", "pretrain", {}, ["data"], status="running"),
    }
    return RunRecord(
        "r1", "demo", "A small one.", "demo.yaml", "/home", status, 1000.0, stages, finished=finished
    )


def stage(name: str) -> StageRecord:
    """Return the record of a stage that runs."""
    return StageRecord(name, name, "pretrain", {}, [], status="running")


def event(step: int, at: float, **numbers: float) -> dict[str, Any]:
    """Return a progress event of a stage of 100 steps in 10 epochs."""
    return {"time": at, "step": step, "steps": 100, "epoch": step // 10, "epochs": 10, "shown": numbers}


def test_the_remaining_time_is_estimated_from_the_steps_of_this_run_alone():
    left = Remaining()
    # Resumed at step 60: those 60 steps took no time of this run.
    assert left.seconds(event(60, at=500)) is None
    assert left.seconds(event(70, at=520)) == 60  # 2 s a step, 30 steps to go
    assert left.seconds(event(80, at=560)) == 60  # 3 s a step on average, 20 steps to go
    assert left.seconds(event(100, at=600)) == 0


def test_two_events_of_the_same_step_estimate_nothing():
    left = Remaining()
    left.seconds(event(0, at=500))
    assert left.seconds(event(0, at=510)) is None


def test_visible_and_tokens_are_printed_together_and_every_other_value_after_its_name():
    values = {
        "global_batch": 2048,
        "learning_rate": 0.00078125,
        "visible_tokens": 51,
        "tokens": 512,
        "device": "cpu",
    }
    assert (
        params(values) == "51 visible of 512 tokens, global batch 2,048, learning rate 0.000781, device cpu"
    )


def test_numbers_have_three_digits_and_readable_names():
    assert numbers({"loss": 0.52341, "motion_lift": 2.0}) == "loss 0.523  motion lift 2"


def test_plain_lines_of_a_run_are_exactly_these():
    lines: list[str] = []
    now = [0.0]
    ui = PlainUI(lines.append, every=10, clock=lambda: now[0])
    ui.started(PLAN, record())
    ui.stage_finished("data", 0.0, cached=True)
    ui.stage_started(stage("pretrain"), ())
    ui.params("pretrain", {"workers": 2})
    for second in range(25):
        now[0] = float(second)
        ui.progress("pretrain", event(second, at=100.0 + second, loss=1.0))
    ui.note("pretrain", "skipped 1 video")
    ui.stage_finished("pretrain", 25.2, cached=False)
    ui.note("", "the tracking server is away")
    ui.stage_failed("report", "no rows")
    ui.finished(record("failed", finished=1030.0))
    ui.close()
    assert lines == [
        "demo: A small one.",
        "run r1 in /home, 3 stages: 2 to run, 1 reused",
        "data: reused",
        "pretrain: started",
        "pretrain: workers 2",
        "pretrain: epoch 0/10, step 0/100, loss 1",
        "pretrain: epoch 1/10, step 10/100, loss 1, about 1 min 30 s left",
        "pretrain: epoch 2/10, step 20/100, loss 1, about 1 min 20 s left",
        "pretrain: skipped 1 video",
        "pretrain: finished in 25 s",
        "the tracking server is away",
        "report: failed: no rows",
        "demo failed after 30 s: 1 of 2 stages are done",
    ]


def test_each_stage_has_its_own_interval_between_lines():
    lines: list[str] = []
    ui = PlainUI(lines.append, every=10, clock=lambda: 0.0)
    for name in ("a", "b", "a", "b"):
        ui.progress(name, event(1, at=0))
    assert [line[0] for line in lines] == ["a", "b"]


def test_the_live_display_shows_the_running_stage_and_leaves_finished_ones_as_lines():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120, color_system=None)
    ui = LiveUI(console)
    ui.started(PLAN, record())
    ui.stage_started(stage("pretrain[a]"), ())
    ui.params("pretrain[a]", {"workers": 2})
    ui.progress("pretrain[a]", event(0, at=100, loss=2.0))
    ui.progress("pretrain[a]", event(50, at=150, loss=1.0))
    ui._progress.refresh()
    assert "pretrain[a]" in out.getvalue()
    assert "50% epoch 5/10  50 s left  loss 1" in out.getvalue()
    ui.stage_finished("pretrain[a]", 61, cached=False)
    ui.stage_finished("data", 0, cached=True)
    ui.stage_failed("report", "no [rows]")
    ui.finished(record("failed", finished=1030.0))
    for line in (
        "demo: A small one.",
        "pretrain[a]: workers 2",
        "✓ pretrain[a]  1 min 1 s",
        "= data  reused",
        "✗ report  no [rows]",
        "demo failed after 30 s: 1 of 2 stages are done",
    ):
        assert line in out.getvalue()
    assert not ui._tasks
    ui.close()

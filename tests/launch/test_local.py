"""Training in a process forked here, without Ray."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from tats_core.errors import StageError, Stopped
from tats_core.launch import local
from tats_core.stages.base import ParallelWork
from tats_core.training.events import read_events

pytestmark = pytest.mark.slow

JOB = "tests.launch.jobs.counting:count"


def notes(out: Path) -> list[str]:
    return [event["text"] for _, event in read_events(out / "events.jsonl") if event["kind"] == "note"]


def preempt(out: Path, stop: threading.Event | None = None) -> threading.Thread:
    """Send SIGTERM to the worker once it waits after a step, and ask to stop if `stop` is given."""

    def send() -> None:
        while not (out / "ask").exists():
            time.sleep(0.02)
        if stop is not None:
            stop.set()
            while not (out / "log" / "please-stop").exists():
                time.sleep(0.02)
        os.kill(int((out / "ask").read_text()), signal.SIGTERM)
        (out / "answered").touch()

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def test_a_worker_whose_machine_is_taken_away_saves_its_work_and_no_step_is_done_twice(tmp_path):
    sender = preempt(tmp_path)
    work = ParallelWork(JOB, {"steps": 4, "out": str(tmp_path), "ask_at": 2}, 1, max_failures=0)
    local.fit(work, "fit", tmp_path, threading.Event())
    sender.join()
    assert notes(tmp_path) == ["starts after step 0", "starts after step 3"]
    steps = [
        event["step"] for _, event in read_events(tmp_path / "events.jsonl") if event["kind"] == "metrics"
    ]
    assert steps == [1, 2, 3, 4]


def test_preemptions_have_a_budget_of_their_own(tmp_path):
    sender = preempt(tmp_path)
    job = {"steps": 4, "out": str(tmp_path), "ask_at": 2}
    work = ParallelWork(JOB, job, 1, max_failures=5, max_preemptions=0)
    with pytest.raises(StageError, match=r"^its worker got SIGTERM 1 times; what it printed is in "):
        local.fit(work, "fit", tmp_path, threading.Event())
    sender.join()


def test_whoever_asks_to_stop_while_the_machine_is_taken_away_gets_a_stop(tmp_path):
    stop = threading.Event()
    sender = preempt(tmp_path, stop)
    work = ParallelWork(JOB, {"steps": 4, "out": str(tmp_path), "ask_at": 2}, 1)
    with pytest.raises(Stopped):
        local.fit(work, "fit", tmp_path, stop)
    sender.join()
    assert notes(tmp_path) == ["starts after step 0"]

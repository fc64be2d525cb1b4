"""What a training reports of its speed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tats_core.training import loop
from tats_core.training.events import EventLog, read_events
from tats_core.training.loop import Watch


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch):
    """A clock that a test moves."""
    now = [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])
    return now


def _epoch(watch: Watch, clock: list[float], events: EventLog, *, waits: float) -> dict[str, float]:
    """Four steps of a batch of 8 in ten seconds, of which the share `waits` is a wait for data."""

    def batches():
        for _ in range(4):
            clock[0] += waits * 10 / 4
            yield None

    for _ in watch.timed(batches()):
        clock[0] += (1 - waits) * 10 / 4
    return watch.metrics(8, events)


def test_speed_flops_and_their_share_of_the_peak_follow_from_the_clips_of_an_epoch(tmp_path, clock):
    watch = Watch(flops=2e12, peak=32e12)
    found = _epoch(watch, clock, EventLog(None), waits=0.2)
    # 32 clips in 10 s; 6.4 TFLOP/s of 32.
    assert found["clips_per_second"] == pytest.approx(3.2)
    assert found["data_wait_share"] == pytest.approx(0.2)
    assert found["tflops"] == pytest.approx(6.4)
    assert found["mfu"] == pytest.approx(0.2)
    assert found["memory_mb"] > 0
    assert "mfu" not in _epoch(Watch(flops=2e12), clock, EventLog(None), waits=0.2)


def test_a_training_that_waits_for_data_says_so_once_after_its_first_epoch(tmp_path: Path, clock):
    events = EventLog(tmp_path / "events.jsonl")
    watch = Watch(advice="raise data.decode_workers (it is 2)")
    for waits in (0.9, 0.05, 0.3, 0.3):
        _epoch(watch, clock, events, waits=waits)
    notes = [event["text"] for _, event in read_events(tmp_path / "events.jsonl")]
    assert notes == ["30% of an epoch is spent waiting for data: raise data.decode_workers (it is 2)"]


def test_nothing_is_reported_of_an_epoch_that_was_over_at_a_resume():
    watch = Watch()
    assert list(watch.timed([])) == []
    assert watch.metrics(8, EventLog(None)) == {}

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tats_core.training.events import EventLog, read_events


def test_events_are_read_in_the_order_in_which_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "stage" / "events.jsonl"
    log = EventLog(path)
    log.params({"global_batch": 64})
    log.metrics(3, {"loss": 0.5})
    log.progress(step=3, steps=9, epoch=1, epochs=3, shown={"loss": 0.5})
    log.file(3, "masks", "pictures/masks.png")
    log.note("two\nlines, and a 漢")
    events = [event for _, event in read_events(path)]
    assert all(event.pop("time") > 1e9 for event in events)
    assert events == [
        {"kind": "params", "values": {"global_batch": 64}},
        {"kind": "metrics", "step": 3, "values": {"loss": 0.5}},
        {"kind": "progress", "step": 3, "steps": 9, "epoch": 1, "epochs": 3, "shown": {"loss": 0.5}},
        {"kind": "file", "step": 3, "key": "masks", "path": "pictures/masks.png"},
        {"kind": "note", "text": "two\nlines, and a 漢"},
    ]


def test_a_metric_that_is_not_finite_is_a_gap_in_its_curve(tmp_path: Path) -> None:
    EventLog(tmp_path / "e").metrics(1, {"loss": math.nan, "norm": math.inf, "lr": 0.1})
    ((_, event),) = read_events(tmp_path / "e")
    assert event["values"] == {"lr": 0.1}


def test_a_reader_continues_where_it_stopped(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "e")
    log.note("first")
    ((offset, _),) = read_events(tmp_path / "e")
    assert list(read_events(tmp_path / "e", offset)) == []
    log.note("second")
    assert [event["text"] for _, event in read_events(tmp_path / "e", offset)] == ["second"]


def test_half_a_last_line_waits_until_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "e"
    EventLog(path).note("complete")
    with path.open("a") as file:
        file.write('{"time": 1, "kind": "note", "te')
    ((offset, event),) = read_events(path)
    assert event["text"] == "complete"
    with path.open("a") as file:
        file.write('xt": "late"}\n')
    assert [event["text"] for _, event in read_events(path, offset)] == ["late"]


def test_a_log_without_a_path_drops_everything(tmp_path: Path) -> None:
    EventLog(None).note("nobody reads this")
    assert list(tmp_path.iterdir()) == []


def test_there_are_no_events_before_the_first() -> None:
    assert list(read_events(Path("nowhere.jsonl"))) == []


@pytest.mark.parametrize(
    "line",
    [
        '{"time": 1, "ki{"time": 1, "kind": "note", "text": "two writes in one"}',
        "no JSON",
        "[1]",
        "[" * 100_000,
        '{"time": 1}',
        '{"time": 1, "kind": "metrics", "step": 1}',
        '{"time": 1, "kind": "metrics", "step": 1, "values": {"loss": "low"}}',
        '{"time": 1, "kind": "progress", "step": "1"}',
        '{"time": 1, "kind": "file", "step": 1, "key": "k", "path": "../../secret"}',
        '{"kind": "note", "text": "without a time"}',
        '{"time": 1, "kind": "progress", "step": 1, "steps": 2, "epoch": 1, "epochs": 2, "shown": [1]}',
    ],
)
def test_a_line_that_is_no_event_is_passed_over_and_a_note_says_so(tmp_path: Path, line: str) -> None:
    path = tmp_path / "e"
    EventLog(path).note("before")
    with path.open("a") as file:
        file.write(line + "\n")
    EventLog(path).note("after")
    texts = [event["text"] for _, event in read_events(path)]
    assert (texts[0], texts[2]) == ("before", "after")
    end = path.read_bytes().index(b"\n", path.read_bytes().index(b"\n") + 1) + 1
    assert texts[1] == f"e: the line that ends at byte {end} is damaged and is passed over"


def test_a_field_of_another_kind_of_event_is_not_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "e"
    path.write_text('{"time": 1, "kind": "note", "text": "as it is", "shown": 3, "path": 4}\n')
    assert [event["text"] for _, event in read_events(path)] == ["as it is"]

"""The log of a stage, read while it is written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tats_core.store import logs
from tats_core.store.logs import StageLog
from tats_core.store.run import Run, RunRecord, StageRecord

KEY = "f" * 64


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    """A run whose one stage is at work since second 100."""
    stage = StageRecord("train", "train", "train", {}, [], "running", key=KEY, started=100.0)
    return RunRecord(
        "toy-20260102-030405000-ab", "toy", "", "toy.yaml", str(tmp_path), "running", 99.0, {"train": stage}
    )


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    folder = tmp_path / "stages" / f"train-{KEY[:12]}.partial"
    (folder / "log").mkdir(parents=True)
    return folder


def note(folder: Path, time: float, text: str) -> None:
    with (folder / "events.jsonl").open("a") as file:
        file.write(json.dumps({"time": time, "kind": "note", "text": text}) + "\n")


def read(log: StageLog, record: RunRecord) -> list[str]:
    return [
        entry.event["text"] if entry.event else f"{entry.source}: {entry.line}"
        for entry in log.read(Run(record))
    ]


def test_each_read_returns_what_is_new_also_after_the_commit_renamed_the_folder(record, partial):
    log = StageLog("train")
    assert read(log, record) == []
    note(partial, 101.0, "one")
    (partial / "log" / "worker-0.log").write_text("hello\nhal")
    assert read(log, record) == ["one", "worker 0: hello"]
    assert read(log, record) == []
    note(partial, 102.0, "two")
    with (partial / "log" / "worker-0.log").open("a") as file:
        file.write("f\n")
    folder = partial.with_name(partial.name.removesuffix(".partial"))
    partial.rename(folder)
    stage = record.stages["train"]
    assert read(log, record) == ["two", "worker 0: half"]
    note(folder, 103.0, "three")
    stage.status, stage.folder, stage.finished = "finished", str(folder), 104.0
    assert read(log, record) == ["three"]


def test_events_of_other_runs_in_the_same_folder_are_left_out_whatever_their_clocks_say(record, partial):
    stage, events = record.stages["train"], partial / "events.jsonl"
    note(partial, 500.0, "an earlier attempt")
    stage.said_from = events.stat().st_size
    note(partial, 50.0, "this run")
    stage.status, stage.said_to = "stopped", events.stat().st_size
    note(partial, 60.0, "a later attempt")
    assert read(StageLog("train"), record) == ["this run"]


def test_events_of_the_run_that_made_the_output_again_are_left_out(record, partial):
    note(partial, 101.0, "the newer one")
    components = {"kind": "train", "config": {}, "code": {}, "inputs": [], "external": {}}
    origin = {"run": "toy-2026", "pipeline": "toy", "stage": "train", "time": 1}
    (partial / "key.json").write_text(json.dumps({**origin, "components": components}))
    stage = record.stages["train"]
    stage.status, stage.folder, stage.said_to = "finished", str(partial), 1000
    assert read(StageLog("train"), record) == []
    stage.status = "cached"
    assert read(StageLog("train"), record) == ["the newer one"]


def test_a_forced_attempt_that_begins_anew_is_read_from_its_start(record, partial):
    log = StageLog("train")
    note(partial, 101.0, "a long sentence of the first attempt")
    assert len(read(log, record)) == 1
    (partial / "events.jsonl").unlink()
    note(partial, 102.0, "new")
    assert read(log, record) == ["new"]


def test_one_workers_lines_can_be_read_and_an_unended_last_line_is_read_at_the_end(record, partial):
    note(partial, 101.0, "a note")
    (partial / "log" / "worker-0.log").write_text("zero\n")
    (partial / "log" / "worker-1.log").write_text("one\nlast")
    (partial / "log" / "stopped").touch()
    assert logs.workers(Run(record).stages["train"]) == [0, 1]
    assert read(StageLog("train", 1), record) == ["worker 1: one"]
    record.stages["train"].status = "failed"
    assert read(StageLog("train", 1), record) == ["worker 1: one", "worker 1: last"]


def test_of_a_long_history_only_the_end_is_read_for_the_progress(record, partial, monkeypatch):
    monkeypatch.setattr(logs, "_TAIL_BYTES", 500)
    with (partial / "events.jsonl").open("w") as file:
        for step in range(1, 101):
            at = {"time": 100.0 + step, "step": step}
            progress = {"kind": "progress", "steps": 100, "epoch": 1, "epochs": 1, "shown": {}}
            file.write(json.dumps({**at, **progress}) + "\n")
            file.write(json.dumps({**at, "kind": "metrics", "values": {}}) + "\n")
    steps = [event["step"] for event in logs.recent_progress(Run(record).stages["train"])]
    assert steps == list(range(steps[0], 101))
    assert 2 <= len(steps) < 10
    os.truncate(partial / "events.jsonl", 0)
    assert logs.recent_progress(Run(record).stages["train"]) == []


def test_a_stage_that_has_not_begun_has_no_log(record):
    stage = record.stages["train"]
    stage.key, stage.status = None, "waiting"
    assert Run(record).stages["train"].folder is None
    assert read(StageLog("train"), record) == []
    assert logs.recent_progress(Run(record).stages["train"]) == []

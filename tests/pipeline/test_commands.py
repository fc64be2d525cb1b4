"""Whole runs of `command` stages: what a program writes and what the engine writes are apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tats_core.pipeline import graph as graphs
from tats_core.pipeline import runner
from tats_core.stages import command
from tats_core.store.run import Run

pytestmark = pytest.mark.usefixtures("no_tracker")

NAMES = ("events.jsonl", "manifest.json", "key.json", "attempt.json", "results.json")


@pytest.fixture(autouse=True)
def real_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "KINDS", {"command": command.KIND})


def test_a_program_may_write_files_with_the_names_of_the_engines(load, tmp_path):
    writes = "; ".join(f"echo mine > $TATS_OUT/{name}" for name in NAMES)
    folders = "mkdir -p $TATS_OUT/checkpoints $TATS_OUT/ray $TATS_OUT/log; touch $TATS_OUT/checkpoints/state"
    text = f"stages: {{work: {{kind: command, run: '{writes}; {folders}'}}}}"
    record = runner.run(load(text), tmp_path)
    assert record.status == "finished", record.error
    output = record.outputs("command")[0] / "output"
    assert {(output / name).read_text() for name in NAMES} == {"mine\n"}
    assert (output / "checkpoints" / "state").exists(), "it is part of the output"
    again = runner.run(load(text), tmp_path)
    assert again.stages["work"].status == "cached"


def test_a_program_logs_its_curve_and_its_result(load, tmp_path, ui):
    event = {"time": 1, "kind": "metrics", "step": 1, "values": {"score": 3}}
    (tmp_path / "event").write_text(json.dumps(event) + "\nno event\n")
    run = f'cat {tmp_path}/event >> $TATS_EVENTS; echo "{{\\"score\\": 4}}" > $TATS_OUT/result.json'
    record = runner.run(load(f"stages: {{work: {{kind: command, run: {json.dumps(run)}}}}}"), tmp_path, ui=ui)
    assert record.status == "finished", record.error
    stage = Run(record).stages["work"]
    assert (stage.curves, stage.result) == ({"score": {1: 3}}, {"score": 4})
    ((_, note),) = ui.of("note")
    assert note.endswith("is damaged and is passed over")


@pytest.mark.parametrize("result", ["[1]", "3", "{"])
def test_a_result_that_is_no_object_is_a_failure_each_time(load, tmp_path: Path, result: str):
    text = f"stages: {{work: {{kind: command, run: 'echo \"{result}\" > $TATS_OUT/result.json'}}}}"
    for _ in range(2):
        record = runner.run(load(text), tmp_path)
        assert record.status == "failed"
        assert "output/result.json: is not the result of a stage" in (record.error or "")

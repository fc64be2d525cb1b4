"""`tats report` on a run whose results are known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tats_core.files import write_json
from tats_core.store.run import RunRecord, StageRecord

ROWS = [{"benchmark": "ssv2", "init": "pretrained", "top1": 50.0, "low": 40.0, "high": 60.0, "clips": 90}]
RUN = "mine-20260102-100000000-aaaa"


@pytest.fixture
def run(tmp_path: Path) -> RunRecord:
    """One finished run of the pipeline `mine` in `.tats`."""
    home = tmp_path / ".tats"
    folder = home / "stages" / "report-0"
    write_json(folder / "results.json", {"pipeline": "mine", "rows": ROWS, "policy": {}})
    stage = StageRecord("report", "report", "report", {}, [], status="finished", folder=str(folder))
    record = RunRecord(
        RUN, "mine", "", "mine.yaml", str(home), "finished", 0.0, {"report": stage}, finished=1.0
    )
    record.save()
    return record


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("md", "| ssv2 | pre-trained | 50.0 | 40.0–60.0 |"),
        ("csv", "ssv2,pretrained,50.0,40.0,60.0"),
        ("latex", r"    ssv2 & pre-trained & 50.0 & 40.0--60.0 \\"),
        ("html", "<title>mine</title>"),
        ("json", f'"run": "{RUN}"'),
    ],
)
def test_every_format_holds_the_results(tats, run, form, text):
    ended = tats("report", "mine", "--format", form)
    assert (ended.code, ended.err) == (0, "")
    assert text in ended.out


def test_a_file_gets_what_is_printed_without_out(tats, run, tmp_path):
    screen = tats("report", RUN, "--format", "json").out
    assert json.loads(screen)["rows"] == ROWS
    assert (
        tats("report", RUN, "--format", "json", "--out", "r.json").out
        == f"r.json: the results of {RUN}, as json\n"
    )
    assert (tmp_path / "r.json").read_text() == screen


def test_a_path_that_cannot_be_written_is_one_sentence(tats, run):
    ended = tats("report", "mine", "--out", "no/such/folder/r.md")
    assert ended.code == 2
    assert ended.err.endswith("no/such/folder/r.md: cannot be written (No such file or directory)\n")


def test_a_run_without_a_report_stage_has_no_table_but_a_page(tats, run):
    run.stages = {}
    run.save()
    ended = tats("report", RUN)
    assert ended.code == 1
    assert "no finished report stage" in ended.err
    assert "<title>mine</title>" in tats("report", RUN, "--format", "html").out


@pytest.mark.parametrize("command", ["results", "report"])
def test_a_sweep_that_has_not_run_is_named_with_the_command_that_runs_it(tats, command):
    ended = tats(command, "demo_ratio")
    assert ended.code == 2
    assert "no sweep 'demo_ratio' in" in ended.err
    assert "run it with: tats sweep demo_ratio" in ended.err

"""Which run a person means."""

from __future__ import annotations

from pathlib import Path

import pytest

from tats_core.errors import SpecError, StoreError
from tats_core.store import history
from tats_core.store.run import RunRecord

IDS = (
    "demo-20260102-100000000-aaaa",
    "demo_samplers-20260102-110000000-bbbb",
    "demo-20260103-090000000-cccc",
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for run in IDS:
        pipeline = run.split("-")[0]
        RunRecord(run, pipeline, "", f"{pipeline}.yaml", str(tmp_path), "finished", 0.0, {}).save()
    return tmp_path


def test_runs_come_newest_first_by_the_time_in_their_names(home):
    assert history.ids(home) == [IDS[2], IDS[1], IDS[0]]
    assert history.ids(home, "demo") == [IDS[2], IDS[0]]
    assert history.pipelines(home) == ["demo", "demo_samplers"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("latest", IDS[2]),
        ("demo", IDS[2]),
        ("demo.yaml", IDS[2]),
        ("demo_samplers", IDS[1]),
        (IDS[0], IDS[0]),
        ("demo-20260102", IDS[0]),
        ("demo_s", IDS[1]),
    ],
)
def test_a_run_is_named_by_pipeline_id_or_its_beginning(home, name, meant):
    assert history.find(name, home).id == meant


def test_a_damaged_record_that_is_passed_over_is_named(home, caplog):
    (home / "runs" / IDS[2] / "run.json").write_text("{")
    assert history.find("latest", home).id == IDS[1]
    assert history.find("demo", home).id == IDS[0]
    assert history.newest_finished(home, "demo_samplers") is not None
    warning = f"tats: warning: a damaged run is passed over: {home / 'runs' / IDS[2] / 'run.json'}: is not"
    assert [text[: len(warning)] for text in caplog.messages] == [warning, warning]


def test_a_beginning_of_several_names_lists_them(home):
    with pytest.raises(
        SpecError, match=r"the ids of 2 runs begin with 'demo-2026' \(demo-20260103.*more of the id"
    ):
        history.find("demo-2026", home)


@pytest.mark.parametrize(
    ("name", "near"), [("dmo", "'demo'"), ("demo-20260104", IDS[2]), ("lates", "'latest'")]
)
def test_a_wrong_name_is_an_error_with_the_nearest(home, name, near):
    with pytest.raises(SpecError, match=f"'{name}' is no run in .* and no pipeline; did you mean '?{near}"):
        history.find(name, home)


def test_where_nothing_ran_the_sentence_says_how_to_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match=r"no run in .*; start one with: tats run pipeline NAME"):
        history.find("latest", tmp_path)
    with pytest.raises(StoreError, match=r"no run of 'demo' in .*; start one with: tats run pipeline demo"):
        history.find("demo", tmp_path)


def test_a_folder_that_is_no_run_and_a_run_without_a_record_are_passed_over(home):
    (home / "runs" / "notes").mkdir()
    (home / "runs" / "demo-20260104-000000000-dddd").mkdir()
    assert [record.id for record in history.records(home)] == [IDS[2], IDS[1], IDS[0]]

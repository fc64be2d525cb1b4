"""`tats run pipeline` around a runner that only records its arguments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tats_core.errors import ResourceError
from tats_core.pipeline import runner
from tats_core.pipeline.plan import Plan, PlanItem
from tats_core.store import history
from tats_core.store.run import RunRecord, StageRecord

ROWS = [{"benchmark": "ssv2", "init": "pretrained", "top1": 50.0, "low": 40.0, "high": 60.0, "clips": 90}]


@pytest.fixture
def menu(tmp_path: Path) -> Path:
    """Put one pipeline beside the working directory."""
    (tmp_path / "pipelines").mkdir()
    path = tmp_path / "pipelines" / "mine.yaml"
    path.write_text("name: mine\nstages: {data: {kind: data}}")
    return path


def ended(home: Path, status: Any, error: str | None = None, refused: bool = False) -> RunRecord:
    """Return the record of a run with one report stage whose results are `ROWS`."""
    folder = home / "stages" / "report-0"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"pipeline": "mine", "rows": ROWS, "policy": {}}))
    stage = StageRecord("report", "report", "report", {}, [], status="finished", folder=str(folder))
    record = RunRecord("r1", "mine", "", "mine.yaml", str(home), status, 0.0, {"report": stage}, finished=1.0)
    record.error, record.refused = error, refused
    return record


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Replace `runner.run`; the returned dict holds its arguments and sets what it returns."""
    seen: dict[str, Any] = {"status": "finished", "error": None, "refused": False}

    def run(pipeline: Any, home: Path, **options: Any) -> RunRecord:
        seen.update(options, pipeline=pipeline, home=home)
        return ended(home, seen["status"], seen["error"], seen["refused"])

    monkeypatch.setattr(runner, "run", run)
    return seen


def test_every_option_reaches_the_runner(tats, menu, called, tmp_path):
    words = "--set data.seed=1 --set data.generate=x --from data --only data --force data --on-error continue"
    assert tats("run", "pipeline", "mine", *words.split(), "--home", "elsewhere").code == 0
    assert called["pipeline"].overrides == ("data.seed=1", "data.generate=x")
    assert (called["from_stage"], called["only"], called["force"]) == ("data", ["data"], ["data"])
    assert called["on_error"] == "continue"
    assert called["home"] == tmp_path / "elsewhere"


def test_without_options_nothing_is_forced_and_the_home_is_absolute(tats, menu, called, tmp_path):
    tats("run", "pipeline", "mine")
    assert (called["from_stage"], called["only"], called["force"]) == (None, (), ())
    assert called["on_error"] == "stop"
    assert called["home"] == tmp_path / ".tats"


def test_the_home_may_come_from_the_environment(tats, menu, called, tmp_path, monkeypatch):
    monkeypatch.setenv("TATS_HOME", str(tmp_path / "elsewhere"))
    tats("run", "pipeline", "mine")
    assert called["home"] == tmp_path / "elsewhere"


def test_a_finished_run_ends_with_its_table_its_legend_and_the_next_commands(tats, menu, called):
    output = tats("run", "pipeline", "mine").out
    assert "ssv2       pre-trained   50.0  40.0–60.0" in output
    assert "What each number means" in output
    assert output.splitlines()[-4] == "Next"
    assert "tats ui" in output
    assert "tats results mine" in output


def test_a_stopped_run_exits_with_130_and_the_command_that_resumes_it(tats, menu, called):
    called["status"] = "stopped"
    words = ("--set", "data.title=a b", "--force", "data", "--only", "data")
    result = tats("run", "pipeline", "mine", *words)
    assert result.code == 130
    # The forced stage has begun: resuming must not force it again.
    line = "tats run pipeline mine --set 'data.title=a b' --only data"
    assert result.out == f"Stopped; finished work is saved. Resume with: {line}\n"


def test_a_failed_run_exits_with_1_its_error_and_the_command_that_resumes_it(tats, menu, called):
    called.update(status="failed", error="pretrain: the disk is full")
    result = tats("run", "pipeline", "mine", "--home", "elsewhere")
    assert result.code == 1
    assert result.err.startswith(
        "tats: pretrain: the disk is full; finished work is saved, "
        "resume with: tats run pipeline mine --home "
    )


def test_a_run_that_failed_over_what_it_was_given_exits_with_2(tats, menu, called):
    called.update(status="failed", error="evaluate: a.avi: cannot be read", refused=True)
    result = tats("run", "pipeline", "mine")
    assert result.code == 2
    assert result.err.startswith("tats: evaluate: a.avi: cannot be read; finished work is saved")


def test_an_error_before_the_start_exits_with_2(tats, menu, monkeypatch):
    def run(*_: Any, **__: Any) -> RunRecord:
        raise ResourceError("pretrain wants 8 CPUs, and there are 2; give --set pretrain.workers=2")

    monkeypatch.setattr(runner, "run", run)
    result = tats("run", "pipeline", "mine", "--set", "data.fold=2")
    assert (result.code, result.out) == (2, "")
    assert result.err.splitlines() == [
        "tats: pretrain wants 8 CPUs, and there are 2; give --set pretrain.workers=2",
        "tats: to see it work here: tats run pipeline mine --set data.fold=2 --rehearse",
    ]


def test_a_rehearsal_runs_in_a_project_folder_of_its_own_under_a_name_of_its_own(tats, menu, called):
    assert tats("run", "pipeline", "mine", "--rehearse", "--plan", "--home", "elsewhere").code == 0
    called["status"] = "failed"
    called["error"] = "data: gone"
    result = tats("run", "pipeline", "mine", "--rehearse", "--home", "elsewhere")
    assert called["home"] == menu.parent.parent / "elsewhere" / "rehearsal"
    assert called["pipeline"].name == "mine-rehearsal"
    assert "resume with: tats run pipeline mine --rehearse --home " in result.err


@pytest.mark.parametrize("words", [["--gpu", "h100"], ["--share", "0.4"], ["--price", "2"], ["--measure"]])
def test_what_only_an_estimate_uses_is_refused_without_one(tats, menu, called, words):
    result = tats("run", "pipeline", "mine", *words)
    does_nothing = f"tats: {words[0]} does nothing without --estimate; add that, or leave {words[0]} out"
    assert (result.code, result.err.splitlines()) == (2, [does_nothing])
    assert "pipeline" not in called


def test_a_plan_is_a_tree_and_runs_nothing(tats, menu, called, monkeypatch):
    items = (
        PlanItem("data", "data", "data", {}, (), "reuse", "unchanged"),
        PlanItem("finetune[a]", "finetune", "finetune", {"x": "a"}, ("data",), "run", "epochs: 3 → 4"),
    )
    monkeypatch.setattr(runner, "plan", lambda *_, **__: Plan("mine", "", items))
    assert tats("run", "pipeline", "mine", "--plan").out.splitlines() == [
        "mine: 2 stages, 1 to run, 1 reused",
        "",
        "data  reused",
        "└── finetune × 1  run: epochs: 3 → 4",
    ]
    assert "home" not in called


def test_results_prints_the_newest_finished_run(tats, menu, tmp_path, monkeypatch):
    record = ended(tmp_path / ".tats", "finished")
    monkeypatch.setattr(history, "newest_finished", lambda home, name: record)
    assert "ssv2       pre-trained   50.0" in tats("results", "mine").out
    assert json.loads(tats("results", "mine", "--json").out) == {
        "run": "r1", "pipeline": "mine", "rows": ROWS, "policy": {},
    }  # fmt: skip


def test_results_before_any_run_says_how_to_start_a_run(tats, menu, tmp_path, monkeypatch):
    monkeypatch.setattr(history, "newest_finished", lambda home, name: None)
    result = tats("results", "mine")
    assert (result.code, result.out) == (2, "")
    home = tmp_path / ".tats"
    assert (
        result.err == f"tats: no finished run of 'mine' in {home}; start one with: tats run pipeline mine\n"
    )


def test_a_deleted_table_is_one_sentence(tats, menu, tmp_path, monkeypatch):
    record = ended(tmp_path / ".tats", "finished")
    (record.outputs("report")[0] / "results.json").unlink()
    monkeypatch.setattr(history, "newest_finished", lambda home, name: record)
    result = tats("results", "mine")
    assert result.code == 2
    assert "results.json: cannot be read" in result.err


GRAPH = Plan(
    "mine",
    "",
    (
        PlanItem("data", "data", "data", {}, (), "reuse", ""),
        PlanItem("tune", "tune", "finetune", {}, ("data",), "run", ""),
    ),
)


def test_the_file_ending_decides_how_the_graph_is_drawn(tats, menu, called, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "plan", lambda *_, **__: GRAPH)
    text = (
        'flowchart TD\n    s0[("data<br>reused")]\n    s1["tune<br>finetune · to run"]\n'
        "    s0 --> s1\n    style s0 stroke-dasharray:5 4\n"
    )
    assert tats("run", "pipeline", "mine", "--graph", "-").out == text
    assert tats("run", "pipeline", "mine", "--graph", "g.mmd").code == 0
    assert (tmp_path / "g.mmd").read_text() == text
    assert tats("run", "pipeline", "mine", "--graph", "g.svg").code == 0
    assert (tmp_path / "g.svg").read_text().startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    assert "home" not in called


def test_a_graph_with_another_ending_is_one_sentence(tats, menu):
    ended = tats("run", "pipeline", "mine", "--graph", "g.png")
    assert ended.code == 2
    assert (
        ended.err
        == "tats: --graph g.png: must end in .svg (a drawing) or .mmd (Mermaid), or be - (Mermaid)\n"
    )

"""`tats sweep` around an engine that only records its arguments."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tats_core.cli.sweep import LiveUI
from tats_core.store.run import RunRecord
from tats_core.sweep import engine, spec
from tats_core.sweep.progress import Progress

PIPELINE = "stages: {work: {kind: command, run: 'true', env: {X: '1'}}}"
RUN = "tries-20261125-120000000-0123"
SWEEP = "{pipeline: mine, space: {work.env.X: ['1', '2']}, metrics: [{name: work.a, mode: max}]}"


@pytest.fixture
def resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Write a pipeline and a sweep, and replace `engine.run`; the dict records its argument `resume`."""
    for menu, name, text in (("pipelines", "mine", PIPELINE), ("sweeps", "tries", SWEEP)):
        (tmp_path / menu).mkdir()
        (tmp_path / menu / f"{name}.yaml").write_text(text)
    seen: dict[str, bool] = {}

    def run(sweep: Any, home: Path, *, resume: bool, **options: Any) -> engine.Outcome:
        seen["resume"] = resume
        return engine.Outcome(tmp_path, [], True, None)

    monkeypatch.setattr(engine, "run", run)
    return seen


def record(home: Path, status: str, sets: tuple[str, ...] = ()) -> None:
    """Record a run of the sweep that ended with `status`."""
    folder = home / "runs" / RUN
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text(json.dumps(spec.load("tries", sets).identity()))
    RunRecord(RUN, "tries", "", "", str(home), status, 0.0, {}).save()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "expected"), [("stopped", True), ("running", True), ("finished", True), ("failed", False)]
)
def test_continue_resumes_unless_all_trials_failed(tats, resumed, tmp_path, status, expected):
    record(tmp_path / ".tats", status)
    tats("sweep", "tries", "--continue")
    assert resumed == {"resume": expected}


def test_continue_starts_a_new_run_where_none_or_another_sweep_was_begun(tats, resumed, tmp_path):
    tats("sweep", "tries", "--continue")
    assert resumed == {"resume": False}
    record(tmp_path / ".tats", "stopped", sets=("space.work.env.X=['3']",))
    tats("sweep", "tries", "--continue")
    assert resumed == {"resume": False}


def test_the_live_table_shows_values_that_look_like_styles(resumed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep = spec.load("tries", ("space.work.env.X=['[red]', '[/srv/x]']",))
    running = {trial.id: trial for point in sweep.points() for trial in sweep.trials_of(point)}
    live, out = LiveUI(), io.StringIO()
    live.sweep = sweep
    live.changed(Progress(2, 1, 0.0, running, best="best [b]x[/srv]"))
    Console(file=out, width=200).print(live.live.renderable)
    for text in ("[red]", "[/srv/x]", "[b]x[/srv]"):
        assert text in out.getvalue()

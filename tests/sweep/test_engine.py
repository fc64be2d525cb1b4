"""Sweeps of a pipeline with one small command, through Ray Tune; each ends as one never disturbed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tats_core.sweep.search import read_points
from tests.forks import Fork, Forks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PIPELINE = """
name: stub
stages:
  work:
    kind: command
    env: {X: "1", SLEEP: "0", SEED: "0"}
    run: 'sleep $SLEEP; test $X != bad && echo "{\\"score\\": $X$SEED}" > $TATS_OUT/result.json'
"""
CURVE = """
name: stub
stages:
  work:
    kind: command
    env: {X: "1", Y: "1", SLEEP: "0"}
    run: |
      line='{"time": 0, "kind": "metrics", "step": %d, "values": {"epoch": %d, "score": %d}}\\n'
      for epoch in 1 2 3 4; do
        sleep $SLEEP
        printf "$line" $epoch $epoch $X$epoch >> $TATS_EVENTS
      done
      echo "{\\"score\\": $X$epoch, \\"cost\\": $Y}" > $TATS_OUT/result.json
"""
FOUND = """
name: stubs
pipeline: stub
space: {work.env.X: ["1", "2", "3", "4", "5", "6", "7", "8"], work.env.Y: ["1", "2", "3"]}
metrics: [{name: work.score, mode: max, objective: true}, {name: work.cost, mode: min, objective: true}]
searcher: {kind: optuna}
scheduler: {kind: asha, metric: work.score, grace: 1, reduction: 2}
samples: 8
max_concurrent: 1
"""
SWEEP = """
name: stubs
pipeline: stub
space: {work.env.X: ["1", "2", "3"]}
seeds: {keys: [], values: [0]}
metrics: [{name: work.score, mode: max}]
"""


@pytest.fixture
def folder(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for menu, name, text in (("pipelines", "stub", PIPELINE), ("sweeps", "stubs", SWEEP)):
        (tmp_path / menu).mkdir()
        (tmp_path / menu / f"{name}.yaml").write_text(text)
    monkeypatch.setenv("TATS_HOME", str(tmp_path / "home"))
    return tmp_path


Start = Callable[..., Fork]


@pytest.fixture
def start(folder: Path, forks: Forks) -> Start:
    """Return a function that starts `tats sweep stubs` in a process of its own."""

    def started(*words: str) -> Fork:
        log = folder / f"log-{time.monotonic_ns()}"
        return forks.start("-m", "tats_core", "sweep", "stubs", *words, cwd=folder, env=os.environ, log=log)

    return started


def table(text: str) -> list[Any]:
    return [(trial["id"], trial["status"], trial["metrics"]) for trial in json.loads(text)["trials"]]


def wait_for_trials(folder: Path, count: int) -> None:
    deadline = time.monotonic() + 100
    while len(list((folder / "home" / "runs").glob("stubs-*/trials/*/trial.json"))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_trial_that_fails_is_recorded_and_the_others_go_on(start):
    code, out, err = start("--set", "space.work.env.X=['1', bad, '3']", "--json").wait()
    assert code == 0, err
    assert [(status, values.get("work.score")) for _, status, values in table(out)] == [
        ("finished", 10), ("failed", None), ("finished", 30),
    ]  # fmt: skip
    assert "1 of 3 trials failed: work: the command ended with code 1" in err


def test_where_all_fail_the_causes_are_grouped_and_the_exit_code_is_1(start):
    code, _, err = start("--set", "space.work.env.X=[bad]", "--set", "work.env.SLEEP='0.1'").wait()
    assert code == 1
    assert "1 of 1 trials failed" in err
    assert "all trials of stubs failed" in err


@pytest.mark.parametrize("how", [pytest.param(signal.SIGKILL, marks=pytest.mark.faults), signal.SIGINT])
def test_after_a_killed_driver_or_ctrl_c_a_resume_ends_with_the_same_table(
    folder, start, tats, how, monkeypatch
):
    slow = ("--set", "work.env.SLEEP='2'", "--max-concurrent", "1", "--json")
    process = start(*slow)
    wait_for_trials(folder, 1)
    process.send_signal(how)
    code, _, err = process.wait()
    assert code == (130 if how is signal.SIGINT else -9), err
    changed = tats("sweep", "stubs", *slow, "--resume", "--set", "space.work.env.X=['1', '7']")
    assert changed.code == 2
    assert "space.work.env.X: ['1', '2', '3'] → ['1', '7']" in changed.err
    code, out, err = start(*slow, "--resume").wait()
    assert code == 0, err
    assert [values["work.score"] for _, _, values in table(out)] == [10, 20, 30]
    assert len(list((folder / "home" / "runs").glob("stubs-*/sweep.json"))) == 1

    # Nothing is left: the table is printed again without a cluster.
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")  # where nothing answers
    again = tats("sweep", "stubs", *slow, "--resume")
    assert again.code == 0, again.err
    assert table(again.out) == table(out)
    printed = tats("sweep", "stubs", *slow[:-1], "--resume").out
    assert printed.startswith("all 3 trials of stubs had ended before; nothing was left to do\n")
    assert "best work.score: 30.0 with X=3" in printed


@pytest.mark.faults
def test_a_resume_asks_optuna_for_no_point_twice_and_halves_as_if_never_disturbed(folder, start):
    (folder / "pipelines" / "stub.yaml").write_text(CURVE)
    (folder / "sweeps" / "stubs.yaml").write_text(FOUND)
    # How long it sleeps makes another sweep of it, so both sleep.
    slow = ("--set", "work.env.SLEEP='0.3'", "--json")
    process = start(*slow)
    wait_for_trials(folder, 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    code, out, err = start(*slow, "--resume").wait()
    assert code == 0, err
    (folder / "home").rename(folder / "disturbed")
    code, whole, err = start(*slow).wait()
    assert code == 0, err
    assert table(out) == table(whole)
    assert len(table(out)) == 8
    assert {status for _, status, _ in table(out)} == {"finished", "stopped early"}
    points = [
        read_points(next((folder / home / "runs").glob("stubs-*/study.jsonl")).parent)
        for home in ("disturbed", "home")
    ]
    assert len(points[0]) == 8
    assert points[0] == points[1]


def test_more_cpus_than_there_are_is_reported_before_a_start(folder, tats):
    ended = tats("sweep", "stubs", "--set", "work.cpus=512")
    assert ended.code == 2
    assert "a trial of stubs needs 512 CPUs, but there are" in ended.err
    assert not (folder / "home" / "stages").exists()


def test_there_is_nothing_to_resume_before_a_start(folder, tats):
    ended = tats("sweep", "stubs", "--resume")
    assert ended.code == 2
    assert "no sweep 'stubs'" in ended.err

"""Two `tats run` of one pipeline at once, as two real processes: the work is done once."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tats_core.machine import available_cpus
from tats_core.store import history
from tests.forks import Fork, Forks

pytestmark = pytest.mark.slow

# `slow` says that it works, then waits for a file; both stages want every CPU.
PIPELINE = f"""
stages:
  slow:
    kind: command
    cpus: {available_cpus()}
    run: 'echo slow >> worked; while [ ! -e go ]; do sleep 0.1; done; echo 1 > $TATS_OUT/a'
  other: {{kind: command, cpus: {available_cpus()}, run: 'echo other >> worked; echo 1 > $TATS_OUT/b'}}
"""


Start = Callable[[str], Fork]


@pytest.fixture
def start(tmp_path: Path, forks: Forks, empty_database: Path) -> Iterator[Start]:
    """Return a function that starts `tats run pipeline two`; the name is that of its log."""
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "two.yaml").write_text(PIPELINE)
    (tmp_path / "home").mkdir()
    shutil.copy(empty_database, tmp_path / "home" / "mlflow.db")
    runs: list[Fork] = []

    def started(name: str) -> Fork:
        command = ("-m", "tats_core", "run", "pipeline", "two", "--home", "home")
        runs.append(forks.start(*command, cwd=tmp_path, env=os.environ, log=tmp_path / name))
        return runs[-1]

    yield started
    (tmp_path / "go").touch()  # a command outlives a driver that was killed
    for run in runs:
        run.send_signal(signal.SIGKILL)
        run.wait()


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def worked(folder: Path) -> list[str]:
    return (folder / "worked").read_text().split() if (folder / "worked").exists() else []


def test_the_second_waits_without_holding_cpus_and_takes_what_the_first_made(start, tmp_path):
    first = start("first")
    until(lambda: worked(tmp_path) == ["slow"])
    second = start("second")
    until(lambda: f"slow: waits for process {first.pid}, which is making the same" in second.printed[0])
    newest = next(history.records(tmp_path / "home", "two"))
    assert newest.stages["slow"].status == "waiting"
    # The CPUs that the waiting stage gave back are at work.
    until(lambda: "other: finished" in second.printed[0])
    (tmp_path / "go").touch()
    assert (first.wait()[0], second.wait()[0]) == (0, 0)
    assert worked(tmp_path) == ["slow", "other"]
    assert "slow: reused" in second.printed[0]
    assert "other: reused" in first.printed[0]


def test_the_second_takes_over_where_the_first_was_killed(start, tmp_path):
    first = start("first")
    until(lambda: worked(tmp_path) == ["slow"])
    second = start("second")
    until(lambda: "other: finished" in second.printed[0])
    first.send_signal(signal.SIGKILL)
    until(lambda: worked(tmp_path) == ["slow", "other", "slow"])
    (tmp_path / "go").touch()
    assert second.wait()[0] == 0
    assert "slow: finished" in second.printed[0]

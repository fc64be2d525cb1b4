"""Two `tats run` of one pipeline at once, as two real processes: the work is done once."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tats_core.machine import available_cpus
from tats_core.store import history

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


class Run:
    """One `tats run pipeline two`, and what it printed."""

    def __init__(self, folder: Path, name: str) -> None:
        self.log = folder / f"{name}.log"
        command = [sys.executable, "-m", "tats_core", "run", "pipeline", "two", "--home", "home"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)

    @property
    def printed(self) -> str:
        return self.log.read_text()


Start = Callable[[str], Run]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "two.yaml").write_text(PIPELINE)
    runs: list[Run] = []

    def started(name: str) -> Run:
        runs.append(Run(tmp_path, name))
        return runs[-1]

    yield started
    (tmp_path / "go").touch()  # a command outlives a driver that was killed
    for run in runs:
        run.process.kill()
        run.process.wait()


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
    until(lambda: f"slow: waits for process {first.process.pid}, which is making the same" in second.printed)
    newest = next(history.records(tmp_path / "home", "two"))
    assert newest.stages["slow"].status == "waiting"
    # The CPUs that the waiting stage gave back are at work.
    until(lambda: "other: finished" in second.printed)
    (tmp_path / "go").touch()
    assert (first.process.wait(60), second.process.wait(60)) == (0, 0)
    assert worked(tmp_path) == ["slow", "other"]
    assert "slow: reused" in second.printed
    assert "other: reused" in first.printed


def test_the_second_takes_over_where_the_first_was_killed(start, tmp_path):
    first = start("first")
    until(lambda: worked(tmp_path) == ["slow"])
    second = start("second")
    until(lambda: "other: finished" in second.printed)
    first.process.kill()
    until(lambda: worked(tmp_path) == ["slow", "other", "slow"])
    (tmp_path / "go").touch()
    assert second.process.wait(60) == 0
    assert "slow: finished" in second.printed

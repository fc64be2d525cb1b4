"""Runs `tats` in processes of its own, harms them, and compares what is left with an undisturbed run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
PIPELINE = HERE / "small.yaml"
STEP = "tats_core.training.pretrain:JointTrainer.step"

# A run is given this long; what takes longer hangs, unless the machine is very busy.
PATIENCE = float(os.environ.get("TEST_PATIENCE", "240"))

# Ray's agents try for a minute or two to tell a dead head that their node is dead. They hold no CPU and no
# file of ours.
LINGERING = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")

# What the clock decides: of these only the steps are compared.
TIMED = ("clips_per_second", "data_wait_share", "seconds", "memory_mb", "tflops", "mfu", "system/")

_MODELS = ("model.safetensors", "sampler.safetensors")


def until(what: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """Wait until `what()` is true and return its value."""
    end = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < end, f"{what} did not come true within {seconds:.0f} s"
        time.sleep(0.05)
    return value


@dataclass
class Started:
    """A `tats` process with all that it started; they carry a mark in their environment."""

    process: subprocess.Popen[str]
    mark: str
    output: Path

    def processes(self) -> dict[int, str]:
        """Return the command lines of all living processes of this run, by their ids."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if f"TATS_MARK={self.mark}".encode() not in (folder / "environ").read_bytes().split(b"\0"):
                    continue
                if (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
                    continue
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            found[int(folder.name)] = line
        return found

    def of(self, text: str) -> list[int]:
        """Return the ids of the processes whose command line contains `text`."""
        return [pid for pid, line in self.processes().items() if text in line]

    def interrupt(self) -> None:
        """Press Ctrl-C: the terminal tells the whole foreground group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def wait(self) -> tuple[int, str]:
        """Return exit code and output; nothing that the run started may outlive it."""
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"the run hangs; it said:\n{self.said}\n{self.processes()}") from error
        until(lambda: not self.working(), 30)
        return code, self.said

    def working(self) -> list[str]:
        """Return the command lines of what still could do work."""
        return [line for line in self.processes().values() if not line.startswith(LINGERING)]

    @property
    def said(self) -> str:
        """What it printed so far, on stdout and stderr."""
        return self.output.read_text()

    def end(self) -> None:
        """Kill what is left of it."""
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()


@dataclass
class Lab:
    """One project folder and the runs in it."""

    folder: Path
    ray: Path
    """Ray's sockets need a short path."""
    started: list[Started] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    pipeline: Path = PIPELINE

    @property
    def home(self) -> Path:
        """The TATS_HOME of all runs here."""
        return self.folder / "home"

    def fault(self, at: str, do: str, call: int = 1, **more: Any) -> dict[str, Any]:
        """Return a fault as `inject/sitecustomize.py` understands it; it happens once in this lab."""
        mark = self.folder / f"{do}-{uuid.uuid4().hex[:6]}"
        return {"at": at, "call": call, "do": do, "mark": str(mark), **more}

    def start(self, *words: str, faults: list[dict[str, Any]] | None = None) -> Started:
        """Start `tats run pipeline` with these words more, in a process group of its own."""
        mark = uuid.uuid4().hex
        settings = {
            **os.environ,
            **self.environment,
            "TATS_HOME": str(self.home),
            "TATS_MARK": mark,
            "TATS_FAULTS": json.dumps(faults or []),
            "PYTHONPATH": os.pathsep.join([str(HERE / "inject"), str(CHECKOUT)]),
            "RAY_TMPDIR": str(self.ray),
            "OMP_NUM_THREADS": "1",
        }
        output = self.folder / f"output-{len(self.started)}.txt"
        with output.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "tats_core", "run", "pipeline", str(self.pipeline), *words],
                cwd=self.folder,
                env=settings,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        run = Started(process, mark, output)
        self.started.append(run)
        return run

    def run(self, *words: str, faults: list[dict[str, Any]] | None = None) -> tuple[int, str]:
        """Run to the end; return exit code and output."""
        return self.start(*words, faults=faults).wait()

    @contextmanager
    def held(self, at: str, call: int, *words: str, **more: Any) -> Iterator[Started]:
        """Start a run, and enter when it stands still at this call of the function; it goes on afterwards."""
        hold = self.fault(at, "hold", call, **more)
        run = self.start(*words, faults=[hold])
        mark = Path(hold["mark"])
        until(lambda: mark.exists() or run.process.poll() is not None)
        assert mark.exists(), run.said
        try:
            yield run
        finally:
            Path(f"{mark}.go").touch()

    def partial(self, kind: str) -> Path:
        """Return the work folder of the stage of this kind that is under way."""
        (found,) = (self.home / "stages").glob(f"{kind}-*.partial")
        return found

    def end(self) -> None:
        """Kill what is left of the runs."""
        for run in self.started:
            run.end()

    # --- what a run left ------------------------------------------------------------------------------

    def stage(self, kind: str) -> Path:
        """Return the committed output of the newest run's stage of this kind."""
        return Path(self.record()["stages"][kind]["folder"])

    def record(self) -> dict[str, Any]:
        """Return the record of the newest run that has one."""
        records: list[dict[str, Any]] = [
            json.loads(path.read_text()) for path in (self.home / "runs").glob("*/run.json")
        ]
        # Not the one written last: a run that begins tells of what earlier ones left.
        return max(records, key=lambda record: record["started"])

    def parameters(self) -> dict[str, torch.Tensor]:
        """Return every tensor of every model that the pipeline made."""
        return {
            f"{kind}/{file}/{name}": tensor
            for kind in ("pretrain", "finetune")
            for file in _MODELS
            if (self.stage(kind) / file).exists()
            for name, tensor in load_file(self.stage(kind) / file).items()
        }

    def left_running(self) -> int:
        """Return how many runs MLflow shows as running."""
        with sqlite3.connect(self.home / "mlflow.db") as database:
            return int(database.execute("SELECT count(*) FROM runs WHERE status = 'RUNNING'").fetchone()[0])

    def points(self) -> dict[str, list[tuple[str, int, float | None]]]:
        """Return stage → sorted points (key, step, value) of its curves in MLflow.

        A reused stage has them in the run that made it. Where the clock decides, the value is None.
        """
        with sqlite3.connect(self.home / "mlflow.db") as database:
            return {
                name: _curves(database, stage["tracking_run"])
                for name, stage in self.record()["stages"].items()
            }


def _curves(database: sqlite3.Connection, run: str) -> list[tuple[str, int, float | None]]:
    source = database.execute(
        "SELECT value FROM tags WHERE run_uuid = ? AND key = 'source_run'", (run,)
    ).fetchone()
    rows = database.execute(
        "SELECT key, step, value FROM metrics WHERE run_uuid = ?", (source[0] if source else run,)
    )
    return sorted(
        (key, step, None if any(one in key for one in TIMED) else value) for key, step, value in rows
    )


def same(lab: Lab, reference: Lab, *, values: bool = True) -> None:
    """Assert that the parameters are those of `reference` bit for bit, and the points of the curves, too.

    Args:
        values: of the points, too, not just their keys and steps.
    """
    found, wanted = lab.parameters(), reference.parameters()
    assert found.keys() == wanted.keys()
    differ = [name for name, tensor in wanted.items() if not torch.equal(found[name], tensor)]
    assert not differ
    curves, undisturbed = lab.points(), reference.points()
    assert curves.keys() == undisturbed.keys()
    assert lab.left_running() == 0, "MLflow shows runs as running whose driver was killed"
    for stage, points in undisturbed.items():
        assert _points(curves[stage], values) == _points(points, values), stage


def _points(curves: list[tuple[str, int, float | None]], values: bool) -> list[tuple[Any, ...]]:
    return [(key, step, value) if values else (key, step) for key, step, value in curves]


def copy(reference: Lab, folder: Path, ray: Path, *stages: str) -> Lab:
    """Return a lab whose project folder holds these finished stages of `reference`, and its database."""
    lab = Lab(folder, ray)
    (lab.home / "stages").mkdir(parents=True)
    for stage in stages:
        shutil.copytree(reference.stage(stage), lab.home / "stages" / reference.stage(stage).name)
    for path in reference.home.glob("mlflow.db"):
        shutil.copy(path, lab.home / path.name)
    return lab

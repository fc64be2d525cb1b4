"""The tracking server is away or restarted, senders are killed: in the end MLflow has each thing once."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tats_core import tracking
from tats_core.pipeline import runner
from tats_core.stages.base import StageContext
from tats_core.store.journal import Spool, pending
from tats_core.tracking import sender, tracker
from tests.toys import Grow, Sum

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow.*"),
]

GROW = "stages: {grow: {kind: grow, init: scratch}}"
STEPS = 30
PATIENCE = 120.0  # seconds for a server that is there: a busy machine answers slowly


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Server:
    """`mlflow server` on a port of its own; it can be killed and started again on what it had."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}"]
        command += ["--artifacts-destination", (self.folder / "artifacts").as_uri()]
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **quiet},
            start_new_session=True,
        )
        deadline = time.monotonic() + 120
        # An open port is not enough: uvicorn listens long before its worker has loaded MLflow and answers.
        while True:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                    assert answer.status == 200
                    return
            except OSError:
                assert time.monotonic() < deadline, "the server did not start"
                time.sleep(0.2)

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    shutil.copy(empty_database, server.folder / "server.db")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def server(running: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", running.uri)
    monkeypatch.setattr(tracker, "_FIRST_WAIT", 0.2)
    monkeypatch.setattr(tracker, "_GRACE_SECONDS", PATIENCE)
    if running.process is None:
        running.start()
    return running


class Gate:
    """The way to a running server through a port of its own: a server takes seconds to start, a gate none."""

    def __init__(self, server: Server) -> None:
        self.beyond, self.open = server.port, False
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Let calls through; before, they are refused as where no server is."""
        self.listener = socket.create_server(("127.0.0.1", self.port))
        self.open = True
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        if self.open:
            self.open = False
            socket.create_connection(("127.0.0.1", self.port)).close()  # wakes the thread, which ends

    def _serve(self) -> None:
        with self.listener:
            while self.open:
                near, _ = self.listener.accept()
                threading.Thread(target=self._pass, args=(near,), daemon=True).start()

    def _pass(self, near: socket.socket) -> None:
        with near, socket.create_connection(("127.0.0.1", self.beyond)) as far:
            answers = threading.Thread(target=_copy, args=(far, near), daemon=True)
            answers.start()
            _copy(near, far)
            answers.join()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(ConnectionError):
        while received := source.recv(65536):
            sink.sendall(received)
        sink.shutdown(socket.SHUT_WR)


@pytest.fixture
def away(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """The server is away until it is started; a run waits a second for it."""
    gate = Gate(server)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", gate.uri)
    monkeypatch.setattr(tracker, "_GRACE_SECONDS", 1.0)
    yield gate
    gate.close()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def speak(ctx: StageContext) -> None:
    import PIL.Image

    (ctx.out / "pictures").mkdir(exist_ok=True)
    for step in range(1, STEPS + 1):
        ctx.events.metrics(step, {"loss": 1 / step})
        if step % 10 == 0:
            PIL.Image.new("RGB", (8, 8)).save(ctx.out / "pictures" / f"{step}.png")
            ctx.events.file(step, "masks", f"pictures/{step}.png")


@pytest.fixture
def talking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Grow, "hook", staticmethod(speak))


def logged(server: Server | Gate, run: str) -> dict[str, Any]:
    """What the server has of one of our runs, in full."""
    client = MlflowClient(server.uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, f"tags.run = '{run}'")
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    (grow,) = children
    pictures = [picture.path for picture in client.list_artifacts(grow.info.run_id, "images")]
    return {
        "status": [parent.info.status, grow.info.status],
        "steps": [point.step for point in client.get_metric_history(grow.info.run_id, "loss")],
        "pictures": sorted(int(path.split("+")[2]) for path in pictures if path.endswith(".png")),
    }


WHOLE = {
    "status": ["FINISHED", "FINISHED"],
    "steps": list(range(1, STEPS + 1)),
    "pictures": [10, 20, 30],
}


@pytest.mark.usefixtures("talking")
def test_a_server_that_is_away_for_the_whole_run_gets_it_later(load, home, ui, away, tats_sync):
    began = time.monotonic()
    record = runner.run(load(GROW), home, ui=ui)
    assert record.status == "finished"
    assert time.monotonic() - began < 300, "the run waits a moment for it, not for ever"
    (note,) = [text for _, text in ui.of("note") if text.startswith("MLflow: ")]
    assert f"entries could not be sent to {away.uri}" in note
    assert "`tats sync` sends them" in note
    assert tats_sync(home) == (1, "1 run is not sent yet; try again when the MLflow server answers")
    away.start()
    assert tats_sync(home) == (0, "")
    assert logged(away, record.id) == WHOLE
    again = runner.RunRecord.load(record.folder)
    assert again.tracking_error is None
    assert again.tracking_run is not None
    assert pending(home) == []


@pytest.mark.usefixtures("talking")
def test_an_output_that_is_gone_when_it_is_sent_later_leaves_no_run_running(load, home, ui, away, tats_sync):
    record = runner.run(load(GROW), home, ui=ui)
    for stage in record.stages.values():
        shutil.rmtree(str(stage.folder))
    away.start()
    tats_sync(home)
    assert logged(away, record.id)["status"] == ["FINISHED", "FINISHED"]


@pytest.mark.usefixtures("talking")
def test_the_next_run_sends_what_the_last_one_left(load, home, ui, away, monkeypatch):
    first = runner.run(load(GROW), home)
    away.start()
    monkeypatch.setattr(tracker, "_GRACE_SECONDS", PATIENCE)
    second = runner.run(load(GROW, "grow.add=2"), home, ui=ui)
    assert [logged(away, run.id) for run in (first, second)] == [WHOLE, WHOLE]


def test_a_server_that_is_away_for_a_part_of_the_run_has_all_of_it_in_the_end(
    load, home, server, monkeypatch
):
    def hook(ctx: StageContext) -> None:
        speak(ctx)
        time.sleep(1.5)
        server.kill()
        for step in range(STEPS + 1, STEPS + 11):
            ctx.events.metrics(step, {"loss": 1 / step})
        time.sleep(1)
        server.start()

    monkeypatch.setattr(Grow, "hook", staticmethod(hook))
    record = runner.run(load(GROW), home)
    assert record.tracking_error is None
    assert logged(server, record.id) == WHOLE | {"steps": list(range(1, STEPS + 11))}


def test_a_server_that_takes_calls_and_does_not_answer_holds_up_no_stage(load, home, server, monkeypatch):
    def stop_and_speak(ctx: StageContext) -> None:
        server.signal(signal.SIGSTOP)
        speak(ctx)

    def go_on(self: Sum, config: Any, ctx: StageContext) -> None:  # reached only if the first stage has ended
        server.signal(signal.SIGCONT)

    monkeypatch.setattr(Grow, "hook", staticmethod(stop_and_speak))
    monkeypatch.setattr(Sum, "run", go_on)
    record = runner.run(load(f"{GROW[:-1]}, after: {{kind: sum, needs: grow}}}}"), home)
    assert record.status == "finished"
    assert record.tracking_error is None
    client = MlflowClient(server.uri)
    run = record.stages["grow"].tracking_run
    assert [point.step for point in client.get_metric_history(run, "loss")] == list(range(1, STEPS + 1))


@pytest.mark.usefixtures("talking")
def test_a_sender_killed_between_the_answer_and_its_own_note_tells_nothing_twice(
    load, home, away, monkeypatch
):
    record = runner.run(load(GROW), home)
    away.start()
    spool = Spool(home, record.id)
    operations = sum(1 for _ in spool.read())
    died = 0
    saves = Spool.save

    # Dies once at each point where it would save its cursor: what was sent since then is unknown.
    def forget(self: Spool, sent: Any) -> None:
        if forget.armed:  # type: ignore[attr-defined]
            forget.armed = False  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        saves(self, sent)

    monkeypatch.setattr(Spool, "save", forget)
    while pending(home):
        forget.armed = True  # type: ignore[attr-defined]
        try:
            tracking.sync(home)
        except KeyboardInterrupt:
            died += 1
            forget.armed = False  # type: ignore[attr-defined]
            resumed = sender.Sender(spool, away.uri, lambda text: None)
            # One more step forward, noted this time, so that each place has its turn.
            for cursor, operation in spool.read(resumed.sent.cursor):
                resumed._do(operation)
                resumed._read = cursor
                resumed.flush()
                break
        assert died <= operations + 1
    assert died > 3
    assert logged(away, record.id) == WHOLE


@pytest.mark.usefixtures("talking")
def test_two_that_send_the_same_at_once_tell_it_once(load, home, away):
    record = runner.run(load(GROW), home)
    away.start()
    threads = [threading.Thread(target=tracking.sync, args=(home,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tracking.sync(home)
    assert logged(away, record.id) == WHOLE


@pytest.mark.usefixtures("talking")
def test_an_entry_that_the_server_refuses_is_saved_noted_and_skipped(load, home, ui, server, monkeypatch):
    def hook(ctx: StageContext) -> None:
        speak(ctx)
        ctx.events.file(5, "table", "never-written.csv")
        ctx.events.metrics(STEPS + 1, {"loss": 0.0})

    monkeypatch.setattr(Grow, "hook", staticmethod(hook))
    record = runner.run(load(GROW), home, ui=ui)
    assert logged(server, record.id)["steps"][-1] == STEPS + 1
    (note,) = [text for _, text in ui.of("note") if text.startswith("MLflow: ")]
    assert "did not take one entry (event): FileNotFoundError: never-written.csv is in none of" in note
    (line,) = (record.folder / "tracking" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["operation"]["event"]["path"] == "never-written.csv"


def test_a_run_that_somebody_deletes_on_the_page_holds_up_neither_itself_nor_the_next_one(
    load, home, ui, server, monkeypatch
):
    def hook(ctx: StageContext) -> None:
        ctx.events.metrics(1, {"loss": 1.0})
        client = MlflowClient(server.uri)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            experiments = [experiment.experiment_id for experiment in client.search_experiments()]
            runs = client.search_runs(experiments, f"tags.key = '{ctx.key[:12]}'")
            if runs:
                break
            time.sleep(0.2)
        client.delete_run(runs[0].info.run_id)
        ctx.events.metrics(2, {"loss": 0.5})

    monkeypatch.setattr(Grow, "hook", staticmethod(hook))
    record = runner.run(load(GROW, "grow.add=7"), home, ui=ui)
    assert record.status == "finished"
    assert "MLflow did not take one entry" in str(record.tracking_error)
    monkeypatch.setattr(Grow, "hook", staticmethod(speak))
    second = runner.run(load(GROW, "grow.add=8"), home)
    assert second.tracking_error is None
    assert logged(server, second.id) == WHOLE
    assert pending(home) == []


def test_a_run_whose_driver_was_killed_ends_as_killed(load, home, server, monkeypatch):
    """The driver is another process, killed in the middle of its stage."""
    script = f"""
import os, signal, sys, time
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from tats_core.pipeline import graph as graphs, runner, spec
from tests.toys import Grow, Make, Sum
graphs.KINDS = {{kind.name: kind for kind in (Make(), Grow(), Sum())}}
def hook(ctx):
    ctx.events.metrics(1, {{"loss": 1.0}})
    time.sleep(3)
    os.kill(os.getpid(), signal.SIGKILL)
Grow.hook = staticmethod(hook)
runner.run(spec.load({str(Path.cwd() / "pipelines" / "toy.yaml")!r}), Path({str(home)!r}))
"""
    load(GROW)
    killed = subprocess.run([sys.executable, "-c", script], check=False, cwd=Path(__file__).parents[2])
    assert killed.returncode == -signal.SIGKILL
    (dead,) = pending(home)
    monkeypatch.setattr(Grow, "hook", staticmethod(speak))
    record = runner.run(load(GROW), home)
    assert logged(server, record.id) == WHOLE
    assert logged(server, dead.run) == {"status": ["KILLED", "KILLED"], "steps": [1], "pictures": []}
    assert pending(home) == []


@pytest.fixture
def tats_sync():
    from typer.testing import CliRunner

    from tats_core.cli.app import app

    def call(home: Path) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["sync", "--home", str(home)])
        return (getattr(done.exception, "exit_code", 0), str(done.exception or ""))

    return call

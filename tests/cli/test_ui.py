"""`tats ui` with the real MLflow server."""

from __future__ import annotations

import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request

import pytest

from tats_core import tracking
from tats_core.cli import ui
from tats_core.store.run import RunRecord


@pytest.fixture
def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_the_page_serves_the_runs_of_the_project_and_ends_with_the_command(tmp_path, free_port):
    client = tracking.connect(tmp_path, tracking.tracking_uri(tmp_path))
    client.create_experiment("mine", artifact_location=(tmp_path / "mlflow-artifacts").as_uri())
    command = [sys.executable, "-m", "tats_core", "ui", "--home", str(tmp_path), "--port", str(free_port)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    page = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    address = f"http://127.0.0.1:{free_port}"
    assert page.stdout is not None
    assert page.stdout.readline() == f"MLflow shows the runs of {tmp_path} at {address} (Ctrl-C ends it)\n"
    search = f"{address}/api/2.0/mlflow/experiments/search?max_results=10"
    with urllib.request.urlopen(search) as answer:
        names = {experiment["name"] for experiment in json.load(answer)["experiments"]}
    page.send_signal(signal.SIGTERM)  # handled like Ctrl-C
    assert page.wait(120) == 0
    page.stdout.close()
    assert "mine" in names
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", free_port)) != 0


def test_before_the_first_run_there_is_nothing_to_show(tats, tmp_path):
    ended = tats("ui")
    assert ended.code == 1
    home = tmp_path / ".tats"
    assert ended.err == (
        f"tats: nothing has run in {home} yet, so there is nothing to show; "
        "start with: tats run pipeline demo\n"
    )


def test_a_port_in_use_is_refused_before_anything_starts(tats, tmp_path):
    (tmp_path / ".tats").mkdir()
    (tmp_path / ".tats" / "mlflow.db").touch()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = tats("ui", "--port", str(port))
    assert ended.code == 2
    assert ended.err == f"tats: port {port} of 127.0.0.1 is in use; give another port with --port\n"


def test_with_a_tracking_server_its_address_is_named(tats, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://runs.example.org")
    ended = tats("ui")
    assert (ended.code, ended.out) == (
        0, "The runs are on an MLflow server: open https://runs.example.org\n"
    )  # fmt: skip


def test_a_password_in_the_servers_address_is_not_printed(tats, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:hidden@runs.example.org")
    ended = tats("ui")
    assert (ended.code, ended.out) == (
        0, "The runs are on an MLflow server: open https://runs.example.org\n"
    )  # fmt: skip


def test_a_database_that_mlflow_cannot_open_is_a_sentence(tats, tmp_path):
    (tmp_path / ".tats").mkdir()
    (tmp_path / ".tats" / "mlflow.db").write_text("no database, and longer than the head of one is" * 9)
    ended = tats("ui", "--port", "59999")
    assert ended.code == 2
    assert ended.err.startswith(f"tats: {tmp_path / '.tats' / 'mlflow.db'}: cannot be opened as a database")
    assert len(ended.err.splitlines()) == 1


@pytest.fixture
def home_of_a_run(tmp_path):
    run = "demo-20260102-100000000-aaaa"
    record = RunRecord(run, "demo", "", "demo.yaml", str(tmp_path / ".tats"), "finished", 0.0, {})
    record.tracking_run = "1"
    record.save()
    return tmp_path / ".tats"


class NotFound(http.server.BaseHTTPRequestHandler):
    """A server of something else."""

    def do_GET(self):
        self.send_error(404)

    do_POST = do_GET

    def log_message(self, *_):
        pass


def test_a_server_that_is_no_mlflow_is_a_sentence(tats, home_of_a_run, monkeypatch):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), NotFound) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        ended = tats("ui", "--no-open")
        server.shutdown()
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"tats: the tracking server {address} answers 404; it is no MLflow server")


@pytest.mark.parametrize("content", ["{}", "["])
def test_a_damaged_file_of_the_newest_sweep_hides_no_other_run(home_of_a_run, capsys, content):
    uri = tracking.tracking_uri(home_of_a_run)
    tracking.connect(home_of_a_run, uri).create_experiment("demo")
    (home_of_a_run / "runs" / "demo-20260102-100000000-aaaa" / "sweep.json").write_text(content)
    assert ui._newest(home_of_a_run, uri, "http://page") == "http://page/#/experiments"
    assert "sweep.json: is not the identity of a sweep" in capsys.readouterr().err

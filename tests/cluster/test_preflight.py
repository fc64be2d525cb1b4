"""The preflight of a cluster, as far as it needs no cluster."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tats_core.cluster import preflight
from tats_core.pipeline import graph, spec


class Server(BaseHTTPRequestHandler):
    """Knows one user and refuses everybody else."""

    def do_POST(self) -> None:
        known = self.headers["Authorization"] == "Basic bWU6c2VjcmV0"  # me:secret
        self.send_response(200 if known else 401)
        self.end_headers()
        self.wfile.write(b"{}" if known else b"")

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def problems(monkeypatch: pytest.MonkeyPatch, home: Path, uri: str, **login: str) -> list[str]:
    """Return what the preflight says of a server, asked with these `MLFLOW_TRACKING_…` of the environment."""
    for name, value in {"uri": uri, **login}.items():
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name.upper()}", value)
    return preflight.server_problems(home)


def test_a_wrong_password_is_a_problem_and_the_right_one_is_not(server, monkeypatch, tmp_path):
    assert problems(monkeypatch, tmp_path, server, username="me", password="secret") == []
    (sentence,) = problems(monkeypatch, tmp_path, server, username="me", password="guess")
    assert sentence == (
        f"the tracking server {server} answers 401; "
        "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    )  # fmt: skip


def test_a_server_that_does_not_answer_is_named(monkeypatch, tmp_path):
    (sentence,) = problems(monkeypatch, tmp_path, "http://127.0.0.1:1")
    assert sentence.startswith("the tracking server http://127.0.0.1:1 does not answer the cluster")


@pytest.mark.parametrize("uri", ["", "sqlite:////shared/mlflow.db"])
def test_a_database_in_a_file_needs_no_answer(uri, monkeypatch, tmp_path):
    assert problems(monkeypatch, tmp_path, uri) == []


def test_an_impossible_port_is_a_sentence(monkeypatch, tmp_path):
    (sentence,) = problems(monkeypatch, tmp_path, "http://me:guess@mlflow:port")
    assert sentence.startswith("MLFLOW_TRACKING_URI 'http://mlflow:port' has an impossible port")


def test_another_version_is_named_with_both_sides():
    ours = {"tats": "1.0", "ray": "2.60.0"}
    assert preflight.differing(ours, {**ours, "torch": "2.14.1"}) == []
    assert preflight.differing(ours, {"tats": "0.9", "ray": "2.60.0"}) == [
        "tats is 0.9 there and 1.0 here; use the same image on both sides"
    ]


def test_the_versions_leave_out_how_torch_was_built():
    versions = preflight.versions()
    assert set(versions) == {"tats", "python", "ray", "torch"}
    assert "+" not in versions["torch"]


def test_gpus_that_torch_cannot_use_are_named():
    assert preflight.without_cuda("13.0") == []
    assert preflight.without_cuda(None)[0].startswith("its torch is built without CUDA")


def test_a_stage_larger_than_the_cluster_is_named(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("stages:\n  work: {kind: command, run: 'true', cpus: 4, gpus: 1}\n", encoding="utf-8")
    instances = list(graph.build(spec.load(str(path))).instances.values())
    assert preflight.too_small(instances, 4, 1) == []
    assert preflight.too_small(instances, 3, 1)[0].startswith("work needs 4 CPUs and the cluster has 3")
    assert preflight.too_small(instances, 4, 0)[0].startswith("work needs 1 GPUs and the cluster has 0")


def test_a_folder_that_is_not_shared_is_known_by_the_missing_files(tmp_path: Path):
    folder = tmp_path / ".preflight"
    folder.mkdir()
    (folder / "a").touch()
    assert preflight._check_shared(folder, ["a"]) == []
    (sentence,) = preflight._check_shared(folder, ["a", "b"])
    assert sentence == f"{tmp_path} lacks what 1 of 2 machines wrote there; it must be shared by all"


def test_a_password_in_the_servers_address_is_used_and_never_printed(server, monkeypatch, tmp_path):
    address = server.replace("http://", "http://me:{}@")
    assert problems(monkeypatch, tmp_path, address.format("secret")) == []
    for uri in (address.format("guess"), "http://me:guess@127.0.0.1:1"):
        (sentence,) = problems(monkeypatch, tmp_path, uri)
        assert "guess" not in sentence

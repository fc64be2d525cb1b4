"""The compose files and the scripts beside them, without Docker; docker/test.py does the rest."""

from __future__ import annotations

import base64
import http.server
import importlib.util
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tats_core.pipeline import graph, spec

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
DOCKER = CHECKOUT / "docker"
FILES = sorted(DOCKER.glob("compose*.yaml"))


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    return loaded


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_compose_file_follows_the_specification(path):
    validator = jsonschema.Draft202012Validator(json.loads((HERE / "compose-spec.json").read_text()))
    wrong = [
        f"{error.json_path}: {error.message}"
        for error in validator.iter_errors(yaml.safe_load(path.read_text()))
    ]
    assert not wrong


def test_nothing_is_published_beyond_loopback_unless_asked(compose):
    ports = [port for service in compose["services"].values() for port in service.get("ports", ())]
    assert len(ports) == 2
    assert all(port.startswith("${TATS_BIND:-127.0.0.1}:") for port in ports)


def test_every_secret_is_a_file_that_git_ignores_and_that_the_script_makes(compose, tmp_path):
    ignored = (CHECKOUT / ".gitignore").read_text().splitlines()
    assert "docker/secrets/" in ignored
    files = {secret["file"] for secret in compose["secrets"].values()}
    assert files == {f"secrets/{path.name}" for path in _secrets(tmp_path).iterdir()}


def test_a_service_waits_until_those_it_needs_are_healthy(compose):
    needs = {
        name: {other: needed["condition"] for other, needed in service.get("depends_on", {}).items()}
        for name, service in compose["services"].items()
    }
    assert needs["worker"] == {"head": "service_healthy"}
    assert needs["head"] == {"mlflow": "service_healthy"}
    assert needs["mlflow"]["postgres"] == "service_healthy"


def test_the_health_check_of_mlflow_asks_an_api_path(compose):
    # /health answers 200 even where the server refuses the host name.
    assert "/api/2.0/mlflow/" in compose["services"]["mlflow"]["environment"]["TATS_HEALTH_URL"]


def test_only_the_mlflow_server_reaches_database_and_store(compose):
    assert compose["networks"]["record"] == {"internal": True}
    assert {
        name for name, service in compose["services"].items() if "record" in service.get("networks", ())
    } == {"mlflow", "postgres", "s3"}


def test_every_setting_of_the_compose_files_is_in_the_guide():
    used = {name for path in FILES for name in re.findall(r"\$\{(TATS_\w+)", path.read_text())}
    guide = (CHECKOUT / "docs" / "operations.md").read_text()
    assert not {name for name in used - {"TATS_MLFLOW_WORKERS"} if f"`{name}`" not in guide}


def _secrets(folder: Path) -> Path:
    script = folder / "make-secrets"
    script.write_text((DOCKER / "make-secrets").read_text())
    subprocess.run(["sh", script], check=True, capture_output=True)
    return folder / "secrets"


def test_secrets_are_random_and_existing_ones_stay(tmp_path):
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    first, second = (
        {path.name: path.read_text() for path in _secrets(folder).iterdir()} for folder in folders
    )
    assert not {name for name in first if first[name] == second[name]}
    assert re.fullmatch("[0-9a-f]{64}", first["ray_token"])
    assert stat.S_IMODE((folders[0] / "secrets").stat().st_mode) == 0o700
    (folders[0] / "secrets" / "mlflow_key").unlink()
    (folders[0] / "secrets" / "s3_store").unlink()
    after = {path.name: path.read_text() for path in _secrets(folders[0]).iterdir()}
    assert {name for name in first if first[name] != after[name]} == {"mlflow_key"}


def test_the_store_and_its_client_share_one_key(tmp_path):
    secrets = _secrets(tmp_path)
    (identity,) = json.loads((secrets / "s3_store").read_text())["identities"]
    (key,) = identity["credentials"]
    assert f"aws_access_key_id = {key['accessKey']}\n" in (secrets / "s3_client").read_text()
    assert f"aws_secret_access_key = {key['secretKey']}\n" in (secrets / "s3_client").read_text()


def _with_secrets(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {"PATH": os.environ["PATH"], **environment}
    command = ["sh", str(DOCKER / "with-secrets"), *words]
    return subprocess.run(command, env=settings, capture_output=True, text=True, check=False)


def test_a_program_finds_in_its_environment_what_the_file_holds(tmp_path):
    (tmp_path / "password").write_text("a b'c\n")
    done = _with_secrets("printenv", "PGPASSWORD", PGPASSWORD_FILE=str(tmp_path / "password"))
    assert (done.returncode, done.stdout) == (0, "a b'c\n")


def test_a_secret_that_is_absent_or_empty_stops_the_program(tmp_path):
    for name in ("absent", "empty"):
        (tmp_path / "empty").touch()
        done = _with_secrets("true", PGPASSWORD_FILE=str(tmp_path / name))
        assert done.returncode == 2
        assert "absent or empty" in done.stderr


@pytest.fixture
def server() -> Iterator[str]:
    """An address that answers only with the password `right`."""
    expected = f"Basic {base64.b64encode(b'tats:right').decode()}"

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.headers["Authorization"] == expected else 401)
            self.end_headers()

        def log_message(self, *words: Any) -> None:
            """Say nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("password", "code"), [("right", 0), ("wrong", 1)])
def test_a_container_is_healthy_when_its_address_answers_it(server, tmp_path, password, code):
    (tmp_path / "password").write_text(password)
    settings = {"TATS_HEALTH_URL": server, "TATS_HEALTH_USER": "tats"}
    settings["TATS_HEALTH_PASSWORD_FILE"] = str(tmp_path / "password")
    done = subprocess.run(
        [sys.executable, DOCKER / "health.py"], env=settings, check=False, capture_output=True
    )
    assert done.returncode == code


def test_a_container_without_an_address_is_healthy():
    assert subprocess.run([sys.executable, DOCKER / "health.py"], env={}, check=False).returncode == 0


def test_where_docker_cannot_run_the_test_says_so_and_passes(tmp_path):
    done = subprocess.run(
        [sys.executable, DOCKER / "test.py"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "SKIPPED: Docker cannot run here" in done.stdout


@pytest.fixture
def cluster_test(monkeypatch: pytest.MonkeyPatch) -> Any:
    """docker/test.py."""
    monkeypatch.syspath_prepend(str(DOCKER))
    found = importlib.util.spec_from_file_location("docker_test", DOCKER / "test.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_the_demo_that_the_cluster_test_shortens_is_a_pipeline(cluster_test: Any, tmp_path: Path) -> None:
    shutil.copytree(CHECKOUT / "pipelines", tmp_path / "pipelines")
    cluster_test.cut_demo(tmp_path)
    trainings = {}
    for name in ("demo", "alone", "timed"):
        stages = graph.build(spec.load(str(tmp_path / "pipelines" / f"{name}.yaml"))).instances
        config = stages["pretrain"].config
        trainings[name] = (len(stages), config.epochs, config.batch_size, config.checkpoint.epochs)
    assert trainings == {"demo": (9, 40, 16, 1), "alone": (2, 40, 16, 1), "timed": (2, 60, 64, 60)}


REHEARSED = """
What the rehearsal exercised, by its first trial
exercised  what        how
yes        stages      4 of 4: data, pretrain, finetune, evaluate
yes        data: ssv2  16 + 8 .webm, generated; reader: auto
yes        pretrain    1 of 32 workers on cpu, steps 12, bf16, accumulation 1
yes        resume      pretrain: a worker was killed after its first checkpoint; resumed after step 4 of 12
yes        tracking    http://mlflow:5000
yes        storage     296 files, 11.5 MiB, in /srv/tats/rehearsal, after 4 min 24 s
no         GPUs, NCCL  there is none here; bfloat16 ran on the CPU where the recipe has it
no         the size    memory, speed and price of the real thing: --estimate
"""


@pytest.mark.parametrize(
    ("row", "changed"),
    [
        ("4 of 4", "3 of 4"),
        ("generated; reader", "real, in /srv/data/ssv2; reader"),
        ("yes        pretrain ", "no         pretrain "),
        ("yes        resume   ", "no         resume   "),
        ("http://mlflow:5000", "sqlite:////srv/tats/mlflow.db"),
        ("in /srv/tats/rehearsal", "in /srv/tats"),
    ],
)
def test_a_rehearsal_that_lacks_something_fails_the_cluster_test(
    row: str, changed: str, cluster_test: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster_test._check_exercised(REHEARSED, "4 of 4", "pretrain")
    assert row in REHEARSED
    with pytest.raises(SystemExit, match="FAILED: "):
        cluster_test._check_exercised(REHEARSED.replace(row, changed), "4 of 4", "pretrain")

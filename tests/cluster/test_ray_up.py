"""The cluster file for `ray up` against the schema and the checks of the Ray that is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tats_core.cluster.manifests import check_image

FILE = Path(__file__).resolve().parents[2] / "docker" / "ray-up.yaml"


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(FILE.parent.parent)
    config: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return config


def test_the_launcher_accepts_the_file_and_adds_no_commands(config):
    prepared = prepare_config(config)
    validate_config(prepared)
    for key in ("initialization_commands", "head_start_ray_commands", "worker_start_ray_commands"):
        assert prepared[key] == config[key]
    assert (prepared["head_setup_commands"], prepared["worker_setup_commands"]) == ([], [])
    assert prepared["docker"] == config["docker"]


def test_every_machine_asks_for_the_token_and_runs_an_image_that_stays(config):
    docker = config["docker"]
    assert "--env RAY_AUTH_MODE=token" in docker["run_options"]
    assert "--env RAY_AUTH_TOKEN_PATH=/secrets/auth_token" in docker["run_options"]
    assert config["file_mounts"] == {"/secrets": "~/.tats-secrets"}
    check_image(docker["image"])


def test_the_head_is_no_spot_machine_and_its_dashboard_listens_to_itself_alone(config):
    head = config["available_node_types"][config["head_node_type"]]
    assert "InstanceMarketOptions" not in head["node_config"]
    assert head["resources"] == {"CPU": 0}
    (start,) = (line for line in config["head_start_ray_commands"] if "--head" in line)
    assert "--dashboard-host 127.0.0.1" in start

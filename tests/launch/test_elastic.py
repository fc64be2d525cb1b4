"""Machines that leave and join a cluster during a training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from tats_core.launch import ray_internals
from tats_core.launch.workers import Outcomes

LIVES, DEAD = ({"NodeID": name, "Alive": alive} for name, alive in (("lives", True), ("dead", False)))


@pytest.fixture
def policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Our elastic policy, for 2, 3 or 6 workers."""
    from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy
    from ray.train.v2.api.config import ScalingConfig

    monkeypatch.setattr(ray, "nodes", lambda: [LIVES, DEAD])
    monkeypatch.setattr(ElasticScalingPolicy, "_maybe_send_resource_request", lambda self: None)
    monkeypatch.setattr(ElasticScalingPolicy, "_get_reserved_resources", lambda self: self.reserved)
    scaling = ScalingConfig(
        num_workers=(2, 6), resources_per_worker={"CPU": 1}, elastic_resize_monitor_interval_s=0
    )
    outcomes = Outcomes(tmp_path)
    outcomes.clear()
    return ray_internals.elastic_policy(scaling, (2, 3, 6), tmp_path / "checkpoints", outcomes)


@pytest.mark.parametrize(("cpus", "workers"), [(9, 6), (5, 3), (2, 2)])
def test_as_many_workers_start_as_divide_a_step_evenly_on_live_machines(policy, cpus, workers):
    policy.reserved = {"lives": {"CPU": cpus}, "dead": {"CPU": 9}}
    assert policy.make_decision_for_non_running_worker_group().num_workers == workers


def test_running_workers_are_replaced_by_more_only_after_a_checkpoint(policy, tmp_path):
    policy.reserved = {"lives": {"CPU": 6}}
    running = SimpleNamespace(num_workers=3, start_time=0.0)
    assert type(policy.make_decision_for_running_worker_group(running, None)).__name__ == "NoopDecision"
    (tmp_path / "checkpoints" / "step-000000001").mkdir(parents=True)
    assert policy.make_decision_for_running_worker_group(running, None).num_workers == 6
    assert type(policy.make_decision_for_running_worker_group(running, None)).__name__ == "NoopDecision"


def test_the_wait_for_room_has_a_limit_and_ends_at_a_request_to_stop(policy, tmp_path, monkeypatch):
    policy.reserved = {"lives": {"CPU": 1}}
    assert type(policy.make_decision_for_non_running_worker_group()).__name__ == "NoopDecision"
    monkeypatch.setattr(ray_internals, "ROOM_SECONDS", -60)
    with pytest.raises(TimeoutError, match="there was no room for 2 workers for"):
        policy.make_decision_for_non_running_worker_group()
    (tmp_path / "log" / "please-stop").touch()
    with pytest.raises(TimeoutError, match="stopped"):
        policy.make_decision_for_non_running_worker_group()
    assert (tmp_path / "log" / "stopped").exists()


SCRIPT = Path(__file__).parent / "processes" / "come_and_go.py"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.faults
@pytest.mark.parametrize(("fewest", "starts"), [(1, [2, 1, 2]), (2, [2, 2])])
def test_a_training_survives_the_loss_of_its_machines(tmp_path, fewest, starts):
    path = os.pathsep.join([str(SCRIPT.parents[3]), str(SCRIPT.parent)])
    settings = {
        "PYTHONPATH": path,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "a-token-of-the-test-" + "0" * 44,
    }
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), str(fewest)],
        env={**os.environ, **settings}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["starts"] == starts, "with a single worker if allowed, else only with two again"
    assert outcome["total"] == pytest.approx(outcome["steps"]), "no step was lost or counted twice"

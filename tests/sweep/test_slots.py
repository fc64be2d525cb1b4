from __future__ import annotations

import pytest
import torch
from ray.tune.execution.placement_groups import resource_dict_to_pg_factory

from tats_core.errors import ResourceError
from tats_core.launch import ray_train
from tats_core.pipeline import resources
from tats_core.sweep import engine, spec, tuning


def test_a_sweep_that_needs_gpus_is_refused_without_starting_ray(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_train, "connect", None)
    monkeypatch.setattr(resources, "available_cpus", lambda: 64)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ResourceError, match=r"^a trial of ppo needs \d+ GPUs, but there are 0; ask for"):
        engine.slots(spec.load("ppo"))


def test_the_process_of_a_trial_leaves_every_cpu_to_the_workers_of_its_training():
    wanted = resource_dict_to_pg_factory(tuning._DRIVER).required_resources
    assert wanted.get("CPU", 0) == 0

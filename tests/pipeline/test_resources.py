from __future__ import annotations

import torch

from tats_core.launch import ray_train
from tats_core.machine import available_cpus
from tats_core.pipeline import resources


def test_the_gpus_of_this_machine_are_counted_without_ray(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_train, "connect", None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert resources.capacity(wants_gpu=True) == resources.Resources(available_cpus(), 3)
    assert resources.capacity(wants_gpu=False) == resources.Resources(available_cpus(), 0)

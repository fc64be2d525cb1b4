from __future__ import annotations

import pytest
import torch

from tats_core.errors import ResourceError
from tats_core.launch import ray_train
from tats_core.machine import available_cpus
from tats_core.pipeline import graph, resources, spec
from tats_core.pipeline.graph import Instance
from tats_core.pipeline.resources import Resources


def test_the_gpus_of_this_machine_are_counted_without_ray(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_train, "connect", None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert resources.capacity(wants_gpu=True) == resources.Resources(available_cpus(), 3)
    assert resources.capacity(wants_gpu=False) == resources.Resources(available_cpus(), 0)


@pytest.fixture
def toy_kinds():
    """Leave the real stage kinds: those that decode."""


@pytest.fixture
def remote() -> Instance:
    """A pre-training of two workers, each with three decoders on the cluster."""
    changes = ["pretrain.workers=2", "pretrain.data={decode_workers: 3, decode_on: cluster}"]
    return graph.build(spec.load("demo", changes)).instances["pretrain"]


def test_decoders_on_the_cluster_need_cpus_of_their_own(remote, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setattr(ray_train, "capacity", lambda: (8, 0))
    assert resources.available([remote]) == Resources(8, 0)
    monkeypatch.setattr(ray_train, "capacity", lambda: (7, 0))
    with pytest.raises(ResourceError, match="pretrain needs 8 CPUs, but there are 7"):
        resources.available([remote])


def test_without_a_cluster_they_are_refused(remote, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(
        ResourceError, match=r"pretrain: data\.decode_on: cluster needs a Ray cluster; submit"
    ):
        resources.available([remote])

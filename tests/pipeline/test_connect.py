"""Which Ray a process joins; none is started."""

from __future__ import annotations

import os

import pytest

from tats_core.pipeline import ray_train


@pytest.mark.parametrize(("named", "joined"), [(None, "local"), ("10.0.0.1:6379", "10.0.0.1:6379")])
def test_a_cluster_is_joined_where_it_is_named_and_else_none_that_someone_else_has_started(
    monkeypatch, named, joined
):
    asked = {}
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(ray_train.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_train.ray, "init", lambda **options: asked.update(options))
    os.environ["RAY_AUTH_MODE"] = "token"
    if named:
        os.environ["RAY_ADDRESS"] = named
    ray_train.connect()
    assert asked["address"] == joined

"""The private names of Ray that `ray_internals` uses, and what breaks without each."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from pathlib import Path

import tats_core

PRIVATE = re.compile(
    r"ray\._private\.worker|ray_constants|ray\._raylet|ray\.train\.v2\._internal|_and_run_controller"
)

_TRAIN = "ray.train.v2._internal"
_SCALING = f"{_TRAIN}.execution.scaling_policy"
_NO_TOKEN = "other users of the machine can use a local cluster: Ray reads its token only when imported"
_NO_LOOPBACK = "a local cluster listens on all network interfaces"
_NO_POLICY = "a permanent error is retried max_failures times before its stage fails"
_NO_NOTICE = "a machine that Ray takes away is taken without a checkpoint"
_NO_ELASTIC = "min_workers allows any number of workers, and resizing loses the steps since a checkpoint"

NAMES = {
    "ray._raylet:Config.initialize": _NO_TOKEN,
    "ray._private.ray_constants:ENABLE_RAY_CLUSTER": _NO_LOOPBACK,
    "ray._private.ray_constants:ENABLE_RAY_CLUSTERS_ENV_VAR": _NO_LOOPBACK,
    "ray._private.worker:_global_node": "a run ends where the head of its local cluster dies",
    f"{_TRAIN}.exceptions:WorkerHealthCheckFailedError": "a worker lost beside an error is not replaced",
    f"{_TRAIN}.exceptions:WorkerHealthCheckTimeoutError": "a worker lost beside an error is not replaced",
    f"{_TRAIN}.execution.failure_handling:DefaultFailurePolicy.make_decision": _NO_POLICY,
    f"{_TRAIN}.execution.failure_handling:FailureDecision.RAISE": _NO_POLICY,
    f"{_TRAIN}.execution.context:get_train_context": _NO_NOTICE,
    f"{_TRAIN}.execution.context:TrainContext.__dataclass_fields__": _NO_NOTICE,
    "ray.train.torch:TorchTrainer._initialize_and_run_controller": f"{_NO_POLICY}, and {_NO_ELASTIC}",
    f"{_SCALING}:ElasticScalingPolicy._count_possible_workers": _NO_ELASTIC,
    f"{_SCALING}:ElasticScalingPolicy.make_decision_for_non_running_worker_group": _NO_ELASTIC,
    f"{_SCALING}:ElasticScalingPolicy.make_decision_for_running_worker_group": _NO_ELASTIC,
    f"{_SCALING}:NoopDecision": _NO_ELASTIC,
}
"""`"module:attribute"` → what breaks without it."""


def lacking(names: Mapping[str, str]) -> str:
    """Return a sentence with the names that do not exist, and what is lost without each."""
    return "; ".join(f"without {name}: {loss}" for name, loss in names.items() if not exists(name))


def exists(name: str) -> bool:
    module, _, attributes = name.partition(":")
    try:
        value: object = importlib.import_module(module)
        for attribute in attributes.split("."):
            value = getattr(value, attribute)
    except (ImportError, AttributeError):
        return False
    return True


def test_the_installed_ray_has_every_private_name_that_is_used():
    assert lacking(NAMES) == ""


def test_a_missing_name_is_reported_with_what_is_lost():
    names = {"ray.no_such_module:x": "a", "ray:no_such_name": "b", "ray:init": "c"}
    assert lacking(names) == "without ray.no_such_module:x: a; without ray:no_such_name: b"


def test_private_names_of_ray_stand_in_one_file():
    package = Path(tats_core.__file__).parent
    files = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if PRIVATE.search(path.read_text())
    }
    assert files == {"launch/ray_internals.py"}

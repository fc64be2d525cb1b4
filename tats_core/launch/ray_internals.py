"""Every private name of Ray that TATS uses, and what is built on it.

An upgrade of Ray may remove any of them without notice: `NAMES` says what breaks without each, and
`tests/launch/test_ray_internals.py` fails if the installed Ray lacks any. They are imported where they are
used: at the top they would also import Ray Data in every worker.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import ray

from tats_core.errors import PREEMPTED
from tats_core.launch.workers import Outcomes

if TYPE_CHECKING:
    from ray.train import FailureConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

_TRAIN: Final = "ray.train.v2._internal"
_SCALING: Final = f"{_TRAIN}.execution.scaling_policy"
_NO_TOKEN = "other users of the machine can use a local cluster: Ray reads its token only when imported"
_NO_LOOPBACK = "a local cluster listens on all network interfaces"
_NO_POLICY = "a permanent error is retried max_failures times before its stage fails"
_NO_NOTICE = "a machine that Ray takes away is taken without a checkpoint"
_NO_ELASTIC = "min_workers allows any number of workers, and resizing loses the steps since a checkpoint"

NAMES: Final[Mapping[str, str]] = {
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

LOOPBACK = "127.0.0.1"

# A local cluster needs both.
_SERVERS = ("gcs_server", "raylet")

ROOM_SECONDS = 900
"""How long workers may wait for a machine of the cluster before the training fails."""
# Ray may take so long to notice that a machine is gone; until then it would wait for workers on it.
_SETTLE_SECONDS = 30.0


def read_environment() -> None:
    """Make Ray read its environment again; it does so only when it is imported."""
    from ray._raylet import Config  # type: ignore[attr-defined]

    Config.initialize("")


def set_loopback(on: bool) -> None:
    """Make a cluster that this process starts listen on the loopback interface alone, or no longer.

    It is what Ray does on laptops (macOS, Windows). `ray.init` has no argument for it: it replaces a loopback
    address by the machine's own. Its servers read the environment, this process what it read at the import.
    """
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = not on
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = str(int(not on))


def local_head() -> Any:
    """Return Ray's record of the servers that this process started; None where it only joined a cluster."""
    return ray._private.worker._global_node


def end_if_dead(head: Any) -> str | None:
    """Return the server of the local cluster `head` that died, after ending the others; None if all live."""
    dead = [name for name, _ in head.dead_processes() if name in _SERVERS]
    if not dead:
        return None
    head.kill_all_processes(check_alive=False, allow_graceful=False)
    ray.shutdown()
    return str(dead[0])


def is_preempted() -> bool:
    """Return whether Ray has announced to this worker that the machine of a worker will be taken away.

    `ray.train.get_preemption_info` also makes the workers agree, which ours do when they save a checkpoint.
    """
    from ray.train.v2._internal.execution.context import get_train_context

    return get_train_context().preemption_context.preemption_info is not None


def failure_policy(config: FailureConfig, outcomes: Outcomes) -> Any:
    """Return Ray's policy of replacing lost workers, which does not retry permanent errors.

    Ray restarts the workers after any exception, which takes seconds and fails again with the same message.
    An exception that may only be the consequence of another worker's death is retried once. Workers that
    saved their work because a machine is taken away are charged to the budget of preemptions.
    """
    from ray.train import PreemptionError, PreemptionInfo
    from ray.train.v2._internal.exceptions import (
        WorkerHealthCheckFailedError,
        WorkerHealthCheckTimeoutError,
    )
    from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision

    lost = (WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError)

    class ReplaceLost(DefaultFailurePolicy):
        def __init__(self) -> None:
            super().__init__(config)  # type: ignore[arg-type]
            self.before: set[str] = set()

        def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
            failures = list(getattr(training_failed_error, "worker_failures", {}).values())
            raised = {last_line(failure) for failure in failures}
            if any(text.endswith(PREEMPTED) for text in raised):
                if not outcomes.please_stop.exists():
                    return super().make_decision(PreemptionError(PreemptionInfo(None, {})))
                outcomes.stopped.touch()
                return FailureDecision.RAISE
            again = bool(raised & self.before) and not any(isinstance(failure, lost) for failure in failures)
            self.before = raised
            if again or outcomes.failures():
                return FailureDecision.RAISE
            return super().make_decision(training_failed_error)

    return ReplaceLost()


def last_line(error: BaseException) -> str:
    """Return the last line of an error's text, which in Ray's errors is the message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def trainer_class(outcomes: Outcomes, scaling_policy: Any) -> type[TorchTrainer]:
    """Return Ray's trainer with our failure policy and, if given, another scaling policy."""
    from ray.train.torch import TorchTrainer

    ray_trainer: Any = TorchTrainer  # its type annotations are still those of Ray Train V1

    class Trainer(ray_trainer):  # type: ignore[misc]
        def _initialize_and_run_controller(self, **parts: Any) -> Any:
            parts["failure_policy"] = failure_policy(self.run_config.failure_config, outcomes)
            if scaling_policy is not None:
                parts["scaling_policy"] = scaling_policy
            return super()._initialize_and_run_controller(**parts)

    return Trainer


def elastic_policy(
    scaling: ScalingConfig, sizes: tuple[int, ...], checkpoints: Path, outcomes: Outcomes
) -> Any:
    """Return Ray's policy of using as many workers as there is room for, with three more rules.

    The number of workers is one of `sizes`, which divide a step evenly. Running workers are replaced by
    more, or by others, only right after a checkpoint, so that no step is repeated. The wait for room has a
    limit, and ends at a request to stop.
    """
    from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, NoopDecision

    def newest() -> str | None:
        return max((path.name for path in checkpoints.glob("step-*") if not path.suffix), default=None)

    class Elastic(ElasticScalingPolicy):
        def __init__(self) -> None:
            super().__init__(scaling)  # type: ignore[arg-type]
            self.newest = newest()
            self.ran = -math.inf  # when workers were last seen running
            self.waits_since: float | None = None

        def _count_possible_workers(self, reserved_resources: Any) -> int:
            # Ray updates its list of machines every twenty seconds: it may include dead ones.
            alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]
            room = super()._count_possible_workers(
                {node: resources for node, resources in reserved_resources.items() if node in alive}
            )
            return max((size for size in sizes if size <= room), default=0)

        def make_decision_for_non_running_worker_group(self) -> Any:
            if time.monotonic() - self.ran < _SETTLE_SECONDS:
                return NoopDecision()
            decision = super().make_decision_for_non_running_worker_group()
            if not isinstance(decision, NoopDecision):
                self.waits_since = None
                return decision
            self.waits_since = self.waits_since or time.monotonic()
            if outcomes.please_stop.exists():
                outcomes.stopped.touch()
                raise TimeoutError("stopped")
            if time.monotonic() - self.waits_since > ROOM_SECONDS:
                minutes = ROOM_SECONDS // 60
                raise TimeoutError(f"there was no room for {min(sizes)} workers for {minutes} minutes")
            return decision

        def make_decision_for_running_worker_group(self, *state: Any, **named: Any) -> Any:
            self.ran = time.monotonic()
            before, self.newest = self.newest, newest()
            if self.newest == before:
                return NoopDecision()
            return super().make_decision_for_running_worker_group(*state, **named)

    return Elastic()

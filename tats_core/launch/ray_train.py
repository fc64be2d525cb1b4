"""Data-parallel work on Ray Train (V2): starts workers, starts them again when some are lost.

The driver takes no CPU of the cluster, each worker one (or one GPU). Nothing of Ray reaches the training
loop: it gets a `World`, an `EventLog` and a `CheckpointStore`.

Almost all that a start costs is Python processes importing things, so there are as few of both as Ray Train
allows: see `_environment`, `Gloo`, `_fitter`.
Modules that import torch are imported inside the functions that run in a worker.
"""

from __future__ import annotations

import atexit
import fcntl
import importlib
import json
import logging
import math
import os
import queue
import secrets
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train
from ray._raylet import Config  # type: ignore[attr-defined]
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision

from tats_core import errors
from tats_core.errors import ResourceError, StageError, Stopped, TatsError
from tats_core.files import write_json
from tats_core.machine import keep_freed_memory
from tats_core.store.layout import CHECKPOINTS, RAY
from tats_core.training.events import EventLog

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import FailureConfig, ScalingConfig
    from ray.train.v2.api.exceptions import TrainingFailedError

    from tats_core.training.world import World

_STARTED = threading.Lock()
# One for this process: Ray keeps the first that it reads, also for the next cluster that it starts.
_TOKEN = secrets.token_hex(32)
_CONTROLLER_FAILURES = 2
# How long a machine of a cluster that was taken away may stay away. Workers of a fixed number are started in
# tries that wait a part of it each.
_ROOM_SECONDS = 900
# So long Ray may take to see that a machine is gone. Workers that are asked of it before would be waited for.
_SETTLE_SECONDS = 30.0

# Without one of these a local cluster cannot work.
_SERVERS = ("gcs_server", "raylet")

# How Ray tells that a worker's process or machine is gone.
_LOST = (WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError)

# What would come again after a restart: the user's mistakes, and our bugs.
_CERTAIN = (
    TatsError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    TypeError,
    ValueError,
)


def fit(
    entry: str,
    job: Mapping[str, Any],
    *,
    workers: int,
    gpu: bool,
    name: str,
    out: Path,
    max_failures: int,
    stop: threading.Event,
    fewer: Sequence[int] = (),
) -> None:
    """Call `function(job, world, events, store)` in each of `workers` processes and wait for them.

    Args:
        entry: "module:function".
        job: plain values for the function.
        fewer: numbers of workers that do as well where there is no room for all. When there is more room,
            they start again from a new state, as many as then fit.
        name: of this training among those of the stage; one of the same name goes on from its newest state.
        out: the stage's work folder, shared by all machines: events, under `log/` what each worker prints,
            under `checkpoints/` the states to go on from.
        max_failures: how often dead workers are replaced before the stage fails.
        stop: when set, the workers keep a state after their next step, and leave.

    Raises:
        TatsError: what a worker raised.
        StageError: workers died too often, or raised what would come again; names the worker's log.
        ResourceError: the cluster is smaller than what is asked for.
        Stopped: `stop` was set.
    """
    out = out.absolute()
    for left in range(max_failures, -1, -1):
        try:
            _fit(entry, job, (*fewer, workers), gpu, name, out, max_failures, stop)
        except _HeadLost as error:
            if not left:
                raise StageError(f"{error}; what the workers printed is in {out / 'log'}") from error
        else:
            return


def _fit(
    entry: str,
    job: Mapping[str, Any],
    sizes: tuple[int, ...],
    gpu: bool,
    name: str,
    out: Path,
    max_failures: int,
    stop: threading.Event,
) -> None:
    connect()
    head = _local_head()
    _check_resources(min(sizes), gpu)
    outcomes = _Outcomes(out / "log")
    outcomes.clear()
    task = {
        "entry": entry,
        "job": dict(job),
        "out": str(out),
        "checkpoints": str(out / CHECKPOINTS / name),
    }
    trainer = _trainer(task, outcomes, sizes=sizes, gpu=gpu, storage=out / RAY, max_failures=max_failures)
    ended = threading.Event()
    watch = threading.Thread(target=_pass_on_stop, args=(stop, ended, outcomes), daemon=True)
    watch.start()
    try:
        _run(trainer, head)
    except ray.train.TrainingFailedError as error:
        outcomes.raise_failure()
        if outcomes.stopped.exists():
            raise Stopped from error
        raise StageError(f"{_reason(error)}; what the workers printed is in {out / 'log'}") from error
    finally:
        ended.set()
        watch.join()
    outcomes.raise_failure()
    if outcomes.stopped.exists():
        raise Stopped


def capacity() -> tuple[int, int]:
    """Return the CPUs and GPUs of the cluster; starts a local one if there is none."""
    connect()
    there = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return int(there.get("CPU", 0)), int(there.get("GPU", 0))


def connect() -> None:
    """Connect to the cluster that RAY_ADDRESS names, or start a local one; the second call does nothing."""
    with _STARTED:
        os.environ.update(_environment())
        if ray.is_initialized():
            return
        address = os.environ.get("RAY_ADDRESS")
        if not address and "RAY_AUTH_MODE" not in os.environ:
            # Left alone, Ray would write a token into the home folder. One that lives as long as this
            # process keeps other users of the machine out just as well.
            os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=_TOKEN)
            Config.initialize("")  # Ray read its environment when it was imported
        _in_a_thread_that_stays(
            lambda: ray.init(
                # "local": else it would join whatever cluster someone else has started on this machine.
                address=address or "local",
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=True,
            )
        )
        atexit.register(ray.shutdown)


def _in_a_thread_that_stays(work: Callable[[], Any]) -> None:
    """Run `work` in a thread that lives as long as this process.

    Ray asks the kernel to kill its servers when their parent dies, and for the kernel the parent is the
    *thread* that started them: a stage's thread would take the cluster along when the stage ends.
    """
    answer: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def stay() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001, it is raised by the caller
            answer.put(error)
            return
        answer.put(None)
        threading.Event().wait()

    threading.Thread(target=stay, name="ray-parent", daemon=True).start()
    error = answer.get()
    if error is not None:
        raise error


def _environment() -> dict[str, str]:
    wanted = {
        "RAY_USAGE_STATS_ENABLED": "0",
        # The controller looks at its workers this often; at the default 2 s, the end of a short training
        # waits a second for it.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
        # Metrics go to Prometheus, which a laptop does not have.
        "RAY_TRAIN_METRICS_ENABLED": "0",
        # What workers print goes into the stage's folder, as they print it.
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
        # Ray would run its workers at niceness 15: beside any busy process, a start took minutes.
        "RAY_worker_niceness": "0",
    }
    if os.environ.get("RAY_ADDRESS"):
        wanted["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(_ROOM_SECONDS // (_CONTROLLER_FAILURES + 1))
    else:
        # One process less for each training. On this machine nobody announces a preemption.
        wanted["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    return {name: value for name, value in wanted.items() if name not in os.environ}


def _check_resources(workers: int, gpu: bool) -> None:
    # Ray would wait for what will never come.
    resource = "GPU" if gpu else "CPU"
    there = capacity()[gpu]
    if there < workers:
        raise ResourceError(
            f"{workers} workers need {workers} {resource}s, but Ray has {there}; ask for fewer workers"
        )


@dataclass
class Gloo(BackendConfig):
    """Joins CPU workers into one gloo process group.

    Ray's own TorchConfig does the same, but makes the controller import torch too: on 2 cores that adds
    about 2 s of CPU time to the start of every training.
    """

    backend: str = "gloo"

    @property
    def backend_cls(self) -> type[Backend]:
        """What Ray Train calls around the training."""
        return _GlooBackend


class _GlooBackend(Backend):
    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        size = len(worker_group)
        if size == 1:
            return
        address = worker_group.execute_single(0, _free_address)
        calls = [worker_group.execute_single_async(rank, _join, rank, size, address) for rank in range(size)]
        ray.get(calls)

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        if len(worker_group) > 1:
            ray.get(worker_group.execute_async(_leave))


def _free_address() -> str:
    import socket

    host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.bind((host, 0))
        port = listener.getsockname()[1]
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def _join(rank: int, size: int, address: str) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=size)


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def _trainer(
    task: dict[str, Any],
    outcomes: _Outcomes,
    *,
    sizes: tuple[int, ...],
    gpu: bool,
    storage: Path,
    max_failures: int,
) -> TorchTrainer:
    from ray.train import FailureConfig, RunConfig
    from ray.train.torch import TorchConfig
    from ray.train.v2.api.config import ScalingConfig

    scaling = ScalingConfig(
        num_workers=max(sizes) if len(sizes) == 1 else (min(sizes), max(sizes)),
        elastic_resize_monitor_interval_s=0,  # `_elastic` decides when
        use_gpu=gpu,
        resources_per_worker={"GPU": 1} if gpu else {"CPU": 1},
    )
    policy = None if len(sizes) == 1 else _elastic(scaling, sizes, Path(task["checkpoints"]), outcomes)
    fitter = _fitter(outcomes, policy)
    return fitter(
        _work,
        train_loop_config=task,
        torch_config=TorchConfig(backend="nccl") if gpu else Gloo(),  # type: ignore[arg-type]
        scaling_config=scaling,
        run_config=RunConfig(
            # A name that Ray has seen before it would resume by its own records; ours are in `checkpoints/`.
            name=uuid.uuid4().hex[:12],
            storage_path=str(storage),
            # The default is to try for ever.
            failure_config=FailureConfig(  # type: ignore[call-arg]
                max_failures=max_failures, controller_failure_limit=_CONTROLLER_FAILURES
            ),
        ),
    )


def _elastic(scaling: ScalingConfig, sizes: tuple[int, ...], checkpoints: Path, outcomes: _Outcomes) -> Any:
    """Return Ray's policy of taking as many workers as there is room for, with rules of ours.

    There are only as many as share the step evenly. Those that run are given up for more, or for others, only
    just after a state was kept: what was done since would be done again. The wait for room has an end, and
    heeds the wish to stop.
    """
    # Imported here: it would bring Ray Data into each worker.
    from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, NoopDecision

    def newest() -> str | None:
        return max((path.name for path in checkpoints.glob("step-*") if not path.suffix), default=None)

    class Elastic(ElasticScalingPolicy):
        def __init__(self) -> None:
            super().__init__(scaling)
            self.kept = newest()
            self.ran = -math.inf  # when workers were last seen running
            self.waits_since: float | None = None

        def _count_possible_workers(self, reserved_resources: Any) -> int:
            # Ray looks at its machines every twenty seconds: a dead one may still be among them.
            alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]
            there = super()._count_possible_workers(
                {node: held for node, held in reserved_resources.items() if node in alive}
            )
            return max((size for size in sizes if size <= there), default=0)

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
            if time.monotonic() - self.waits_since > _ROOM_SECONDS:
                minutes = _ROOM_SECONDS // 60
                raise TimeoutError(f"there was no room for {min(sizes)} workers for {minutes} minutes")
            return decision

        def make_decision_for_running_worker_group(self, *state: Any, **named: Any) -> Any:
            self.ran = time.monotonic()
            before, self.kept = self.kept, newest()
            if self.kept == before:
                return NoopDecision()
            return super().make_decision_for_running_worker_group(*state, **named)

    return Elastic()


def _fitter(outcomes: _Outcomes, scaling_policy: Any) -> type[TorchTrainer]:
    """Return Ray's trainer with our rules for failures and sizes, and on this machine without two processes.

    One frees what a dead controller held, for the others of a shared cluster: a local Ray ends with us.
    The other serves Ray datasets: we have none. Each costs the start of a Python process.
    """
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    unneeded: tuple[type, ...] = (DatasetsCallback, PlacementGroupCleanerCallback)
    if os.environ.get("RAY_ADDRESS"):
        unneeded = ()

    ray_trainer: Any = TorchTrainer  # its types are those of the first Ray Train, which it no longer is

    class Fitter(ray_trainer):  # type: ignore[misc]
        def _create_default_callbacks(self) -> list[Any]:
            return [one for one in super()._create_default_callbacks() if not isinstance(one, unneeded)]

        def _initialize_and_run_controller(self, **parts: Any) -> Any:
            parts["failure_policy"] = ReplaceLost(self.run_config.failure_config, outcomes)
            if scaling_policy is not None:
                parts["scaling_policy"] = scaling_policy
            return super()._initialize_and_run_controller(**parts)

    return Fitter


class ReplaceLost(DefaultFailurePolicy):
    """Lost workers are replaced, as often as the stage allows; what would come again is not tried again.

    Ray restarts the workers after any exception, which takes seconds and ends in the same sentence. An
    exception that may be no more than what a worker sees when another one dies gets a second chance.
    """

    def __init__(self, failure_config: FailureConfig, outcomes: _Outcomes) -> None:
        super().__init__(failure_config)
        self.outcomes = outcomes
        self.before: set[str] = set()

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Tell whether to start again from the newest checkpoint."""
        failures = list(getattr(training_failed_error, "worker_failures", {}).values())
        raised = {_last_line(one) for one in failures}
        again = bool(raised & self.before) and not any(isinstance(one, _LOST) for one in failures)
        self.before = raised
        if again or self.outcomes.failures():
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


class _HeadLost(Exception):  # noqa: N818 (it never leaves this module)
    """A server of the local Ray cluster is gone; the next `connect` starts a new one."""


def _local_head() -> Any:
    """Return Ray's record of the servers that this process started, or None on a cluster of others."""
    return ray._private.worker._global_node


def _run(trainer: TorchTrainer, head: Any) -> None:
    """Call `trainer.fit()`, and leave it when the local cluster dies.

    Without a head Ray would wait for a minute, then end this process without a word of ours.
    """
    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    # In a thread of its own: in the main thread `fit` would also leave its handler of Ctrl-C behind.
    def work() -> None:
        try:
            trainer.fit()
        except BaseException as error:  # noqa: BLE001, it is raised by the caller
            ended.put(error)
        else:
            ended.put(None)

    threading.Thread(target=work, name="ray-fit", daemon=True).start()
    while True:
        try:
            error = ended.get(timeout=0.5)
        except queue.Empty:
            _check_head(head)
            continue
        if error is not None:
            _check_head(head)
            raise error
        return


def _check_head(head: Any) -> None:
    """Raise _HeadLost where a server of the local cluster is gone, after clearing away the others."""
    if head is None:
        return
    with _STARTED:
        if head is _local_head():
            gone = [name for name, _ in head.dead_processes() if name in _SERVERS]
            if not gone:
                return
            head.kill_all_processes(check_alive=False, allow_graceful=False)
            ray.shutdown()
            raise _HeadLost(f"Ray's {gone[0]} on this machine was killed or has crashed")
    raise _HeadLost("Ray on this machine was killed or has crashed")


def _reason(error: Exception) -> str:
    failures = getattr(error, "worker_failures", None)
    if not failures:
        return f"the training failed: {_last_line(error)}"
    rank, first = min(failures.items())
    return f"worker {rank} failed: {_last_line(first)}"


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _pass_on_stop(stop: threading.Event, ended: threading.Event, outcomes: _Outcomes) -> None:
    while not ended.wait(0.2):
        if stop.is_set():
            outcomes.please_stop.touch()
            return


class _Outcomes:
    """Files by which driver and workers tell each other how it ends; they share the stage's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.please_stop = folder / "please-stop"
        self.stopped = folder / "stopped"

    def clear(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in (self.please_stop, self.stopped, *self.failures()):
            path.unlink(missing_ok=True)

    def failures(self) -> list[Path]:
        return sorted(self.folder.glob("failure-*.json"))

    def record_failure(self, rank: int, error: Exception) -> None:
        known = type(error).__name__ if isinstance(error, TatsError) else None
        write_json(
            self.folder / f"failure-{rank}.json",
            {"type": known, "text": str(error) if known else f"{type(error).__name__}: {error}"},
        )

    def raise_failure(self) -> None:
        for path in self.failures():
            failure = json.loads(path.read_text(encoding="utf-8"))
            if failure["type"]:
                raise getattr(errors, failure["type"])(failure["text"])
            raise StageError(f"{failure['text']}; the traceback is in {self.folder}")


# --- in the workers ----------------------------------------------------------------------------------


def _work(task: dict[str, Any]) -> None:
    from tats_core.training.checkpoint import FolderStore

    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    out = Path(task["out"])
    outcomes = _Outcomes(out / "log")
    _print_into(out / "log" / f"worker-{rank}.log")
    world = _world(rank, size)
    events = EventLog(out / "events.jsonl" if rank == 0 else None)
    module, _, function = task["entry"].partition(":")
    try:
        with _alone(out / "log" / f"worker-{rank}.lock"):
            store = FolderStore(
                Path(task["checkpoints"]), world, stop=outcomes.please_stop.exists, say=events.note
            )
            getattr(importlib.import_module(module), function)(task["job"], world, events, store)
            store.wait()
    except Stopped:
        if world.is_first:
            outcomes.stopped.touch()
    except _CERTAIN as error:
        outcomes.record_failure(rank, error)
        traceback.print_exc()
        raise
    except Exception:
        # Perhaps only what a worker sees when another one dies; `ReplaceLost` decides.
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _world(rank: int, size: int) -> World:
    import torch

    from tats_core.training.world import World

    if torch.cuda.is_available() and ray.get_gpu_ids():
        from ray.train.torch import get_device

        return World(rank, size, get_device())
    keep_freed_memory()
    return World(rank, size, torch.device("cpu"))


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Wait until this rank's process of an earlier attempt is gone: after a kill of the driver it may live on
    for a moment, and would write into the same files.
    """
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waits until this worker's process of an earlier attempt has ended", flush=True)  # noqa: T201
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _print_into(path: Path) -> None:
    # The file descriptors, not sys.stderr: FFmpeg and torch print past Python.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)

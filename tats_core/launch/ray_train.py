"""Data-parallel work on Ray Train (V2): starts workers, and restarts them when some are lost.

The driver occupies no CPU of the cluster, each worker one CPU or GPU. The training loop knows nothing of
Ray: it gets a `World`, an `EventLog` and a `CheckpointStore`.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import socket
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import ray
import ray.train
from ray.train.backend import Backend, BackendConfig

from tats_core import addresses
from tats_core.addresses import masked
from tats_core.errors import ResourceError, StageError, Stopped, TatsError
from tats_core.launch import ray_internals
from tats_core.launch import workers as launched
from tats_core.launch.ray_internals import ROOM_SECONDS
from tats_core.launch.workers import Outcomes, Task
from tats_core.machine import keep_freed_memory
from tats_core.store.layout import RAY

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

    from tats_core.stages.base import ParallelWork
    from tats_core.training.world import World

_STARTED = threading.Lock()
# One token for the lifetime of this process: Ray uses the first that it reads for every cluster it starts.
_TOKEN = secrets.token_hex(32)
_CONTROLLER_FAILURES = 2
_TICK = 0.2  # seconds between two checks of `stop` and of the local cluster
# Ray gives up after 30 s; at loads of 12 to 40 on 2 cores, a third of the starts took longer.
_START_TRIES = 4

# Errors that a restart would only repeat: the user's mistakes, and our bugs.
_PERMANENT = (
    TatsError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    TypeError,
    ValueError,
)


def fit(work: ParallelWork, name: str, out: Path, stop: threading.Event) -> None:
    """Do the work in its processes and wait for them.

    Args:
        name: of this training within the stage; it resumes from the newest checkpoint of this name.
        out: the stage's work folder, shared by all machines: events, under `log/` the output of each worker,
            under `checkpoints/` the checkpoints.
        stop: when set, the workers save a checkpoint after their next step and exit.

    Raises:
        TatsError: a worker raised it.
        StageError: workers died too often, or raised a permanent error; names the log folder.
        ResourceError: the cluster is too small, does not answer, or does not start.
        Stopped: `stop` was set.
    """
    out = out.absolute()
    outcomes = Outcomes(out)
    for left in range(work.max_failures, -1, -1):
        connect(stop)
        head = ray_internals.local_head()
        _check_resources(min((*work.fewer, work.workers)), work.gpu)
        outcomes.clear()
        trainer = _trainer(work, launched.task_of(work, out, name), outcomes, out / RAY)
        try:
            _run(trainer, head, stop, outcomes)
        except _HeadLost as error:
            if left:
                continue
            raise StageError(f"{error}; what the workers printed is in {outcomes.folder}") from error
        except ray.train.TrainingFailedError as error:
            outcomes.check()
            raise StageError(f"{_reason(error)}; what the workers printed is in {outcomes.folder}") from error
        outcomes.check()
        return


def capacity() -> tuple[int, int]:
    """Return the CPUs and GPUs of the cluster; starts a local one if there is none."""
    connect()
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return int(resources.get("CPU", 0)), int(resources.get("GPU", 0))


def connect(stop: threading.Event | None = None) -> None:
    """Connect to the cluster that RAY_ADDRESS names, or start a local one; the second call does nothing.

    A local one listens on the loopback interface alone. Once `stop` is set it is not tried again.

    Raises:
        Stopped: `stop` was set before the local one had started.
        SpecError: RAY_ADDRESS cannot be an address.
        ResourceError: the cluster does not answer, or the local one does not start.
    """
    with _STARTED:
        address = os.environ.get("RAY_ADDRESS")
        if address:
            addresses.check(address, "RAY_ADDRESS", "host:6379")
        os.environ.update(_environment())
        if ray.is_initialized():
            return
        if not address and "RAY_AUTH_MODE" not in os.environ:
            # By default, Ray would write a token into the home folder. A token that lives as long as this
            # process keeps other users of the machine out just as well.
            os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=_TOKEN)
            ray_internals.read_environment()
        ray_internals.set_loopback(not address)
        _start(address, stop)
        atexit.register(ray.shutdown)


def _start(address: str | None, stop: threading.Event | None) -> None:
    init = partial(
        ray.init,
        # "local": else Ray would join a cluster that somebody else has started on this machine.
        address=address or "local",
        include_dashboard=None if address else False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        configure_logging=True,
    )
    tries = 1 if address else _START_TRIES
    for left in range(tries - 1, -1, -1):
        try:
            # Ray asks the kernel to kill its servers when their parent dies, and for the kernel the parent is
            # the *thread* that started them: it must live as long as this process.
            _in_thread("ray-parent", init, stay=True).result()
        except Exception as error:  # Ray raises a bare Exception where its servers do not come up in time
            ray.shutdown()
            if stop is not None and stop.is_set():
                raise Stopped from error
            reason = masked(ray_internals.last_line(error))
            if address:
                raise ResourceError(
                    f"the Ray cluster of RAY_ADDRESS={masked(address)} cannot be joined ({reason}); start "
                    "it, or unset RAY_ADDRESS to run here"
                ) from error
            if not left:
                raise ResourceError(
                    f"Ray did not start on this machine in {tries} tries ({reason}); is the machine very "
                    "busy, or /tmp full? Run again to resume; Ray's logs are in /tmp/ray/session_latest/logs"
                ) from error
            logging.getLogger(__name__).warning("Ray did not start (%s); it is started again", reason)
        else:
            return


def _in_thread(name: str, work: Callable[[], object], *, stay: bool = False) -> Future[None]:
    """Do `work` in a thread, which afterwards lives as long as this process if it is to `stay`."""
    done: Future[None] = Future()

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001, whoever waits raises it
            done.set_exception(error)
        else:
            done.set_result(None)
            if stay:
                threading.Event().wait()

    threading.Thread(target=run, name=name, daemon=True).start()
    return done


def _environment() -> dict[str, str]:
    wanted = {
        "RAY_USAGE_STATS_ENABLED": "0",
        # How often the controller polls its workers; at the default 2 s, the end of a short training is
        # noticed a second late.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
        # Ray's metrics go to Prometheus, which a laptop does not have.
        "RAY_TRAIN_METRICS_ENABLED": "0",
        # The output of workers goes to the stage's folder unchanged.
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
        # Ray would run workers at niceness 15: beside a busy process, their start took minutes.
        "RAY_worker_niceness": "0",
    }
    if os.environ.get("RAY_ADDRESS"):
        wanted["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(ROOM_SECONDS // (_CONTROLLER_FAILURES + 1))
    else:
        # One process less for each training: nobody preempts this machine.
        wanted["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
        # Pages of metrics have fixed ports, which a second run on this machine would find in use.
        wanted |= {"AUTOSCALER_METRIC_PORT": "0", "DASHBOARD_METRIC_PORT": "0"}
    return {name: value for name, value in wanted.items() if name not in os.environ}


def _check_resources(workers: int, gpu: bool) -> None:
    # Ray would wait for them forever.
    resource = "GPU" if gpu else "CPU"
    available = capacity()[gpu]
    if available < workers:
        raise ResourceError(
            f"{workers} workers need {workers} {resource}s, but Ray has {available}; ask for fewer workers"
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
        """The class whose hooks Ray Train calls around the training."""
        return _GlooBackend


class _GlooBackend(Backend):
    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        ray.get(worker_group.execute_async(launched.expect_preemption))
        size = len(worker_group)
        if size == 1:
            return
        host, port = worker_group.execute_single(0, _listen)
        calls = [
            worker_group.execute_single_async(rank, _join, rank, size, host, port) for rank in range(size)
        ]
        ray.get(calls)

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        if len(worker_group) > 1:
            ray.get(worker_group.execute_async(_leave))


def _nccl() -> BackendConfig:
    from ray.train.torch import TorchConfig

    config = TorchConfig(backend="nccl")

    class NcclBackend(config.backend_cls):  # type: ignore[misc, name-defined]
        def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
            ray.get(worker_group.execute_async(launched.expect_preemption))
            super().on_start(worker_group, backend_config)

    class Nccl(TorchConfig):
        backend_cls = property(lambda self: NcclBackend)

    return Nccl(backend="nccl")


_listeners: list[socket.socket] = []
"""In rank 0, between `_listen` and `_join`."""


def _listen() -> tuple[str, int]:
    """Open the port of the store at which the workers meet: torch would open it on all interfaces."""
    host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.bind((host, 0))
    listener.listen()
    _listeners.append(listener)
    return host, listener.getsockname()[1]


def _join(rank: int, size: int, host: str, port: int) -> None:
    import torch.distributed as dist
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    if host == ray_internals.LOOPBACK:
        # Else gloo listens where the machine's name leads.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", _interface(host))
    listening = _listeners.pop().detach() if rank == 0 else None
    store = TCPStore(host, port, size, rank == 0, master_listen_fd=listening)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)


def _interface(host: str) -> str:
    """Return the network interface that has this address."""
    import psutil

    interfaces = psutil.net_if_addrs().items()
    return next(
        str(name) for name, addresses in interfaces if any(each.address == host for each in addresses)
    )


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def _trainer(work: ParallelWork, task: Task, outcomes: Outcomes, storage: Path) -> TorchTrainer:
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    sizes = (*work.fewer, work.workers)
    scaling = ScalingConfig(  # type: ignore[call-arg]
        num_workers=(min(sizes), work.workers) if work.fewer else work.workers,  # type: ignore[arg-type]
        elastic_resize_monitor_interval_s=0,  # `elastic_policy` decides when
        use_gpu=work.gpu,
        resources_per_worker={"GPU": 1} if work.gpu else {"CPU": 1},
    )
    policy = None
    if work.fewer:
        policy = ray_internals.elastic_policy(scaling, sizes, Path(task["checkpoints"]), outcomes)
    trainer = ray_internals.trainer_class(outcomes, policy)
    return trainer(
        _work,
        train_loop_config={**task},
        torch_config=_nccl() if work.gpu else Gloo(),  # type: ignore[arg-type]
        scaling_config=scaling,
        run_config=RunConfig(
            # A known name would make Ray resume from its own records; ours are in `checkpoints/`.
            name=uuid.uuid4().hex[:12],
            storage_path=str(storage),
            # The default is to retry forever.
            failure_config=FailureConfig(  # type: ignore[call-arg]
                max_failures=work.max_failures,
                max_preemption_failures=work.max_preemptions,
                controller_failure_limit=_CONTROLLER_FAILURES,
            ),
        ),
    )


class _HeadLost(Exception):  # noqa: N818 (it never leaves this module)
    """A server of the local Ray cluster is gone; the next `connect` starts a new one."""


def _run(trainer: TorchTrainer, head: Any, stop: threading.Event, outcomes: Outcomes) -> None:
    """Call `trainer.fit()`; pass `stop` on to the workers, and abandon them when the local cluster dies.

    Without a head Ray would wait for a minute, then end this process without an error of ours.
    """
    # In a thread of its own: in the main thread `fit` would also leave its Ctrl-C handler installed.
    ended = _in_thread("ray-fit", trainer.fit)
    while not wait([ended], _TICK).done:
        if stop.is_set():
            outcomes.please_stop.touch()
        _check_head(head)
    if ended.exception() is not None:
        _check_head(head)
    ended.result()


def _check_head(head: Any) -> None:
    """Raise _HeadLost where a server of the local cluster is gone."""
    if head is None:
        return
    with _STARTED:
        if head is ray_internals.local_head():
            dead = ray_internals.end_if_dead(head)
            if dead is None:
                return
            raise _HeadLost(f"Ray's {dead} on this machine was killed or has crashed")
    raise _HeadLost("Ray on this machine was killed or has crashed")


def _reason(error: Exception) -> str:
    failures = getattr(error, "worker_failures", None)
    if not failures:
        return f"the training failed: {ray_internals.last_line(error)}"
    rank, first = min(failures.items())
    return f"worker {rank} failed: {ray_internals.last_line(first)}"


def _work(task: dict[str, Any]) -> None:
    """Do the task in a worker of Ray Train."""
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    launched.work(
        cast("Task", task), lambda: _world(rank, size), rank, _PERMANENT, ray_internals.is_preempted
    )


def _world(rank: int, size: int) -> World:
    import torch

    from tats_core.training.world import World

    if torch.cuda.is_available() and ray.get_gpu_ids():
        from ray.train.torch import get_device

        return World(rank, size, get_device())
    keep_freed_memory()
    return World(rank, size, torch.device("cpu"))

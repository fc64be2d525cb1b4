"""Each test starts real Ray Train workers, which takes seconds; one local Ray serves them all."""

from __future__ import annotations

import contextlib
import fcntl
import io
import ipaddress
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tats_core.errors import PREEMPTED, Preempted, ResourceError, StageError, Stopped, TrainingError
from tats_core.launch import ray_internals, ray_train, workers
from tats_core.launch.workers import Outcomes
from tats_core.stages.base import ParallelWork
from tats_core.training.events import read_events

pytestmark = [
    pytest.mark.slow,
    # Ray's own use of its libraries, and of os.fork in a process with threads.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

STEPS = 4


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    import ray

    ray.shutdown()  # started by another test: its workers could not import this one's jobs
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent / "jobs"), prepend=os.pathsep)
        yield
    ray.shutdown()


def expected(steps: int, workers: int) -> float:
    """Return the sum of the numbers that the workers draw."""
    generators = [torch.Generator().manual_seed(rank) for rank in range(workers)]
    total = torch.zeros(1)
    for _ in range(steps):
        total = total + sum(torch.rand(1, generator=generator) for generator in generators)
    return total.item()


def fit(
    out: Path, *, workers: int = 2, stop: threading.Event | None = None, name: str = "fit", **job: int
) -> None:
    work = ParallelWork("counting:count", {"steps": STEPS, "out": str(out), **job}, workers)
    ray_train.fit(work, name, out, stop or threading.Event())


def starts(out: Path) -> list[str]:
    """Return the note of each start of the workers."""
    return [event["text"] for _, event in read_events(out / "events.jsonl") if event["kind"] == "note"]


def listening(out: Path) -> dict[str, set[str]]:
    """Watch a run until it is at its end.

    Returns:
        The programs that this process has started, and itself → addresses at which they listened.
    """
    addresses: dict[str, set[str]] = {}
    me = psutil.Process()
    while not (out / "answered").exists():
        last = (out / "ask").exists()
        for process in (me, *me.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                sockets = process.net_connections(kind="inet")
                waiting = {socket.laddr.ip for socket in sockets if not socket.raddr}
                if waiting:
                    addresses.setdefault(process.name(), set()).update(waiting)
        if last:
            (out / "answered").touch()
        time.sleep(0.2)
    return addresses


def test_two_workers_add_up_only_rank_0_reports_and_nobody_listens_to_other_machines(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with ThreadPoolExecutor() as watching:
        watched = watching.submit(listening, tmp_path)
        try:
            fit(tmp_path, ask_at=2)
        finally:
            (tmp_path / "answered").touch()
    total, steps, size = (tmp_path / "total").read_text().split()
    assert (float(total), steps, size) == (pytest.approx(expected(STEPS, 2), abs=1e-6), str(STEPS), "2")
    events = [event for _, event in read_events(tmp_path / "events.jsonl")]
    assert [event["step"] for event in events if event["kind"] == "metrics"] == [1, 2, 3, 4]
    assert signal.getsignal(signal.SIGINT) is before, "a later Ctrl-C would be swallowed"
    checkpoints = sorted(path.name for path in (tmp_path / "checkpoints" / "fit").iterdir())
    assert checkpoints == ["step-000000003", "step-000000004"], "the last two checkpoints stay"
    assert not Path.home().joinpath(".ray", "auth_token").exists() or "RAY_AUTH_TOKEN" in os.environ
    assert {"gcs_server", "raylet"} <= set(watched.result())
    assert any(program.startswith("ray::") for program in watched.result()), "the workers"
    beyond = {
        (program, address)
        for program, addresses in watched.result().items()
        for address in addresses
        if not ipaddress.ip_address(address.removeprefix("::ffff:")).is_loopback
    }
    assert beyond == set()


def test_a_killed_worker_is_replaced_and_the_sum_is_that_of_an_undisturbed_run(tmp_path):
    fit(tmp_path, die_at=3)
    total, _, _ = (tmp_path / "total").read_text().split()
    assert float(total) == pytest.approx(expected(STEPS, 2), abs=1e-6)
    assert starts(tmp_path) == ["starts after step 0", "starts after step 2"]


def test_a_tats_error_is_raised_unchanged_and_not_retried(tmp_path):
    with pytest.raises(TrainingError, match=r"^the loss is not finite$"):
        fit(tmp_path, raise_at=2)
    assert "TrainingError" in (tmp_path / "log" / "worker-0.log").read_text()
    events = [event for _, event in read_events(tmp_path / "events.jsonl")]
    steps = [event["step"] for event in events if event["kind"] == "metrics"]
    assert steps == [1, 2]
    assert starts(tmp_path) == ["starts after step 0"]


def test_an_error_that_is_raised_twice_is_not_retried_again(tmp_path):
    with pytest.raises(
        StageError, match=r"^worker \d failed: no memory; what the workers printed is in .*log$"
    ):
        fit(tmp_path, break_at=1)
    assert starts(tmp_path) == ["starts after step 0"] * 2


def test_workers_that_keep_dying_fail_with_the_path_of_their_log(tmp_path):
    # Called with the job as exit code: no worker survives it.
    work = ParallelWork("os:_exit", {}, workers=1, max_failures=0)
    with pytest.raises(StageError, match="log"):
        ray_train.fit(work, "fit", tmp_path, threading.Event())


def test_a_stop_saves_a_checkpoint_from_which_the_next_fit_resumes_exactly(tmp_path):
    stop = threading.Event()

    def user() -> None:
        while not (tmp_path / "ask").exists():
            time.sleep(0.05)
        stop.set()
        while not (tmp_path / "log" / "please-stop").exists():
            time.sleep(0.05)
        (tmp_path / "answered").touch()

    threading.Thread(target=user, daemon=True).start()
    with pytest.raises(Stopped):
        fit(tmp_path, stop=stop, ask_at=2)
    assert not (tmp_path / "total").exists()
    fit(tmp_path)
    total, _, _ = (tmp_path / "total").read_text().split()
    assert float(total) == pytest.approx(expected(STEPS, 2), abs=1e-6)


def test_more_workers_than_cpus_are_refused_at_once(tmp_path):
    with pytest.raises(ResourceError, match=r"^999 workers need 999 CPUs, but Ray has \d+; ask for fewer"):
        fit(tmp_path, workers=999)
    assert not list(tmp_path.iterdir()), "nothing was started"


def decide(policy: Any, **failures: Exception) -> str:
    from ray.train.v2.api.exceptions import WorkerGroupError

    by_rank = dict(enumerate(failures.values()))
    return policy.make_decision(WorkerGroupError("two workers failed", by_rank)).value


def test_a_lost_worker_is_replaced_even_if_losses_and_errors_of_its_peers_repeat(tmp_path):
    from ray.train import FailureConfig
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    policy = ray_internals.failure_policy(FailureConfig(max_failures=3), Outcomes(tmp_path))
    lost = WorkerHealthCheckFailedError("a worker health check failed", failure=OSError())
    peer = RuntimeError("connection closed by peer")
    assert [decide(policy, lost=lost, other=peer) for _ in range(4)] == ["RETRY"] * 3 + ["RAISE"]


def test_different_errors_in_turn_are_retried_as_often_as_allowed(tmp_path):
    from ray.train import FailureConfig

    policy = ray_internals.failure_policy(FailureConfig(max_failures=5), Outcomes(tmp_path))
    decisions = [decide(policy, error=RuntimeError(text)) for text in ("a", "b", "a", "a")]
    assert decisions == ["RETRY", "RETRY", "RETRY", "RAISE"]


def test_saved_work_of_preempted_workers_is_charged_to_a_budget_of_its_own(tmp_path):
    from ray.train import FailureConfig

    outcomes = Outcomes(tmp_path)
    outcomes.clear()
    policy = ray_internals.failure_policy(FailureConfig(max_failures=1, max_preemption_failures=2), outcomes)
    decisions = [decide(policy, saved=Preempted(PREEMPTED)) for _ in range(3)]
    assert decisions == ["RETRY", "RETRY", "RAISE"]
    assert decide(policy, error=RuntimeError("no memory")) == "RETRY", "the budget of failures is untouched"


def test_where_a_person_asks_to_stop_preempted_workers_are_not_replaced(tmp_path):
    from ray.train import FailureConfig

    outcomes = Outcomes(tmp_path)
    outcomes.clear()
    outcomes.please_stop.touch()
    policy = ray_internals.failure_policy(FailureConfig(max_failures=5), outcomes)
    assert decide(policy, saved=Preempted(PREEMPTED)) == "RAISE"
    with pytest.raises(Stopped):
        outcomes.check()


def test_a_worker_with_a_gpu_expects_sigterm_before_it_joins_the_others(monkeypatch):
    import ray
    from ray.train.torch import TorchConfig

    called: list[str] = []

    class Group:
        def execute_async(self, function: Any) -> None:
            called.append(function.__name__)

    config = ray.cloudpickle.loads(ray.cloudpickle.dumps(ray_train._nccl()))
    assert config.backend == "nccl"
    monkeypatch.setattr(ray_train.ray, "get", lambda calls: None)
    monkeypatch.setattr(TorchConfig().backend_cls, "on_start", lambda *called_with: called.append("joins"))
    config.backend_cls().on_start(Group(), config)
    assert called == ["expect_preemption", "joins"]


def test_sigterm_to_a_worker_saves_a_checkpoint_and_loses_no_step(tmp_path):
    def take_away() -> None:
        while not (tmp_path / "ask").exists():
            time.sleep(0.05)
        os.kill(int((tmp_path / "ask").read_text()), signal.SIGTERM)
        (tmp_path / "answered").touch()

    threading.Thread(target=take_away, daemon=True).start()
    fit(tmp_path, ask_at=2)
    total, _, _ = (tmp_path / "total").read_text().split()
    assert float(total) == pytest.approx(expected(STEPS, 2), abs=1e-6)
    assert starts(tmp_path) == ["starts after step 0", "starts after step 3"]


def test_a_worker_that_waits_for_its_predecessor_reports_it_in_its_log(tmp_path):
    printed = io.StringIO()
    with (
        ThreadPoolExecutor() as other,
        (tmp_path / "worker-0.lock").open("w") as earlier,
        contextlib.redirect_stdout(printed),
    ):
        fcntl.flock(earlier, fcntl.LOCK_EX)

        def work() -> str:
            with workers._only_process(tmp_path / "worker-0.lock"):
                return "works"

        later = other.submit(work)
        while not printed.getvalue().endswith("\n"):
            time.sleep(0.01)
        assert not later.done()
        fcntl.flock(earlier, fcntl.LOCK_UN)
        assert later.result(60) == "works"
    assert printed.getvalue() == "waiting until this worker's process of an earlier attempt has ended\n"


TIMED_OUT = "The current node timed out during startup. This could happen because the raylet failed"


@pytest.fixture
def failing_starts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let `ray.init` raise what is in the list, one a call, then succeed."""
    left: list[str] = []

    def init(**options: object) -> None:
        if left:
            raise Exception(left.pop())  # noqa: TRY002 (as Ray does)

    monkeypatch.setattr(ray_train.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_train.ray, "init", init)
    monkeypatch.setattr(ray_train.ray, "shutdown", lambda: None)
    return left


def test_a_ray_that_does_not_come_up_in_time_is_started_again(failing_starts, monkeypatch, caplog):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    failing_starts += [TIMED_OUT] * 3
    ray_train.connect()
    assert failing_starts == []
    assert caplog.text.count("Ray did not start (The current node timed out") == 3


def test_a_ray_that_never_comes_up_is_a_sentence(failing_starts, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    failing_starts += [TIMED_OUT] * 9
    with pytest.raises(ResourceError, match=r"^Ray did not start on this machine in 4 tries \(The current"):
        ray_train.connect()
    assert len(failing_starts) == 5


def test_a_stop_ends_the_tries_to_start_ray(failing_starts, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    failing_starts += [TIMED_OUT] * 9
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        ray_train.connect(stop)
    assert len(failing_starts) == 8


def test_a_cluster_that_cannot_be_joined_is_tried_once_and_its_password_not_repeated(
    failing_starts, monkeypatch
):
    monkeypatch.setenv("RAY_ADDRESS", "ray://me:hidden@head:10001")
    failing_starts += ["no ray://me:hidden@head:10001 (me:hidden is refused)"] * 2
    with pytest.raises(ResourceError, match=r"RAY_ADDRESS=ray://head:10001 cannot be joined") as raised:
        ray_train.connect()
    assert "hidden" not in str(raised.value)
    assert len(failing_starts) == 1


def test_without_an_address_a_cluster_that_somebody_else_started_is_not_joined(monkeypatch):
    addresses: list[str] = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_train.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_train.ray, "init", lambda **options: addresses.append(options["address"]))
    ray_train.connect()
    assert addresses == ["local"]

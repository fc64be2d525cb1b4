from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tats_core.errors import SpecError
from tats_core.specs import identity
from tats_core.stages.evaluate import gather_uneven
from tats_core.training.world import StepConfig, World

WORKER = Path(__file__).parent / "workers" / "two_workers.py"


def test_a_worker_alone_is_the_first_and_the_whole_world() -> None:
    world, module, values = World(), nn.Linear(2, 2), torch.tensor([1.0, 2.0])
    assert world.is_first
    assert world.parallel(module) is module
    assert torch.equal(world.sum(values), values)
    assert torch.equal(world.gather(values), values)
    assert world.union({"a": "b"}) == {"a": "b"}
    assert torch.equal(gather_uneven(world, values)[0], values)
    assert not World(rank=1, size=2).is_first


def test_moments_are_those_of_the_population_and_do_not_cancel_far_from_zero() -> None:
    # 1, 2, 3, 4 and a million: deviation sqrt(1.25), which float32 sums of squares would lose.
    mean, deviation = World().moments(torch.tensor([[1.0, 2.0], [3.0, 4.0]]) + 1e6)
    assert mean.item() == 1e6 + 2.5
    assert deviation.item() == pytest.approx(1.25**0.5)


def test_a_global_batch_is_shared_evenly() -> None:
    assert StepConfig(batch_size=32).per_worker(1) == 32
    assert StepConfig(batch_size=32, accumulate=2).per_worker(4) == 8
    with pytest.raises(SpecError, match=r"^batch_size \(30\) .* must be a multiple of workers \(4\)$"):
        StepConfig(batch_size=30).per_worker(4)
    with pytest.raises(
        SpecError, match=r"share of batch_size \(8 of 32\) must be a multiple of accumulate \(3\)$"
    ):
        StepConfig(batch_size=32, accumulate=3).per_worker(4)


def test_a_model_is_divided_only_where_asked_and_never_compiled_then() -> None:
    assert "shard" not in identity(StepConfig())  # stages keep the keys that they had before it was there
    assert identity(StepConfig(shard=True))["shard"]
    with pytest.raises(ValueError, match="compile works on whole networks, which shard divides"):
        StepConfig(shard=True, compile=True)
    module = nn.Linear(2, 2)
    assert World().parallel(module, StepConfig(shard=True)) is module


def test_figures_of_one_worker_are_their_own_mean() -> None:
    assert World().mean({"loss": 2.0, "train_top1": 50.0}) == {"loss": 2.0, "train_top1": 50.0}


def _load_worker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("two_workers", WORKER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two workers found, by rank."""
    out = tmp_path_factory.mktemp("workers")
    _load_worker().elastic(World(), out / "grown", steps=6)
    command = [sys.executable, str(WORKER)]
    workers = [
        subprocess.Popen(
            [*command, str(rank), str(out / "meet"), str(out)], cwd=WORKER.parents[3], stderr=subprocess.PIPE
        )
        for rank in range(2)
    ]
    messages = [worker.communicate(timeout=240)[1].decode() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(messages)
    return [torch.load(out / f"{rank}.pt") | {"out": out} for rank in range(2)]


def _assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            actual[name], tensor, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.slow
def test_two_workers_pool_what_they_know(both: list[dict[str, Any]]) -> None:
    for worker in both:
        # Over 1, 3, 5 and 7 (and a million): mean 4, deviation sqrt((9 + 1 + 1 + 9) / 4).
        assert worker["moments"] == pytest.approx([1e6 + 4, 5**0.5])
        assert worker["sum"] == [2, 10]
        assert worker["mean"] == {"loss": 1.5, "train_top1": 50.0}
        assert worker["union"] == {"both": "one", "0": "own", "1": "own"}
        assert worker["gather"] == [[0, 7], [1, 7]]
        assert worker["uneven"] == [[0, 1, 2, 10, 11], [[0], [1], [2], [10], [11]]]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["layer", "batch", "accumulate"])
def test_two_workers_take_the_fine_tuning_step_of_one(both: list[dict[str, Any]], recipe: str) -> None:
    worker = _load_worker()
    alone = worker.classifier(World(), **worker.RECIPES[recipe] | {"accumulate": 1})
    for worker in both:
        _assert_close(worker["classifier"][recipe], alone)
    for name in ("head_norm.running_mean", "head_norm.running_var"):
        assert (name in alone) == (recipe == "batch")


@pytest.mark.slow
def test_two_workers_exchange_gradients_once_a_step_however_many_parts_it_has(
    both: list[dict[str, Any]],
) -> None:
    # Tables of positions are the same on all, and so are the statistics of a pooled batch norm.
    for worker in both:
        assert worker["exchanges"] == (1, False)


@pytest.mark.slow
def test_two_workers_take_twenty_joint_steps_as_one_with_the_whole_batch(both: list[dict[str, Any]]) -> None:
    alone = _load_worker().joint(World(), steps=20)
    for worker in both:
        for part in ("mae", "sampler"):
            for name, tensor in alone[part].items():
                difference = (worker["joint"][part][name] - tensor).abs().max().item()
                assert difference < 1e-5, f"{part}.{name}: {difference}"
    shared = ("reward_mean", "reward_std", "policy_loss", "entropy_share", "kl", "clip_fraction")
    for step, expected in enumerate(alone["metrics"]):
        ranks = [worker["joint"]["metrics"][step] for worker in both]
        # The loss is each worker's own; what the sampler learns from is pooled.
        assert sum(rank["loss"] for rank in ranks) / 2 == pytest.approx(expected["loss"], abs=1e-5)
        for name in shared:
            assert [rank[name] for rank in ranks] == pytest.approx([expected[name]] * 2, abs=1e-5), name


@pytest.mark.slow
def test_the_loss_of_a_pre_training_is_that_of_all_workers(
    both: list[dict[str, Any]], tmp_path: Path
) -> None:
    alone = _load_worker().pretrain_metrics(World(), tmp_path)
    for worker in both:
        assert worker["metrics"] == pytest.approx(alone, rel=1e-5)


@pytest.mark.slow
def test_a_training_resumes_with_fewer_or_more_workers_as_one_undisturbed(
    both: list[dict[str, Any]], tmp_path: Path
) -> None:
    # Two workers stopped after six of twelve steps and one resumed, also of a divided model, and
    # the other way round. The sampler had learnt from the first four, and remembered two.
    worker, out = _load_worker(), both[0]["out"]
    undisturbed = worker.elastic(World(), tmp_path / "undisturbed")
    assert sorted(undisturbed) == list(range(1, 13))
    assert worker.elastic(World(), out / "shrunk") == pytest.approx(undisturbed, abs=1e-5)
    assert worker.elastic(World(), out / "divided") == pytest.approx(undisturbed, abs=1e-5)
    grown = worker.elastic(World(), out / "grown")  # at its end already: nothing is done again
    assert grown == pytest.approx(undisturbed, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tats", "adaptive", "bf16", "averaged", "batch norm"])
def test_a_divided_model_takes_the_steps_of_one_that_is_whole_on_each_worker(
    both: list[dict[str, Any]], name: str
) -> None:
    # In double precision they are the same but for the order of sums; bf16 is in single precision.
    tolerance = 1e-6 if name == "bf16" else 1e-12
    for worker in both:
        (metrics, weights), (expected_metrics, expected) = worker["steps"][name]
        for step, other in zip(metrics, expected_metrics, strict=True):
            assert step == pytest.approx(other, abs=tolerance)
        torch.testing.assert_close(weights, expected, rtol=0, atol=tolerance)
    if name != "bf16":
        assert min(step["grad_norm"] for step in metrics) > 0.05, "clipping has something to do"


@pytest.mark.slow
def test_a_divided_training_resumes_in_the_same_bits_and_undivided_within_rounding(
    both: list[dict[str, Any]],
) -> None:
    for worker in both:
        resumed = worker["resumed"]
        torch.testing.assert_close(resumed["divided"], resumed["straight"], rtol=0, atol=0)
        torch.testing.assert_close(resumed["together"], resumed["straight"], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_each_of_two_workers_holds_half_of_a_divided_model_and_sends_it_once_a_step(
    both: list[dict[str, Any]],
) -> None:
    held = [worker["resumed"]["held"] for worker in both]
    parameters = both[0]["resumed"]["parameters"]
    for what in ("weights", "gradients", "exp_avg", "exp_avg_sq"):
        assert sum(worker[what] for worker in held) == pytest.approx(parameters, rel=0.01), what
        assert held[0][what] == pytest.approx(held[1][what], rel=0.01), what
    # Two blocks of the encoder, one of the decoder, and the rest; not four times as many for four parts.
    assert [worker["resumed"]["sent"] for worker in both] == [4, 4]


def test_fewer_workers_do_more_parts_of_the_same_size() -> None:
    recipe = StepConfig(batch_size=48, accumulate=2)
    assert [recipe.among(n, 4).accumulate for n in (1, 2, 4)] == [8, 4, 2]
    for n in (1, 2, 4):
        assert recipe.among(n, 4).per_worker(n) // recipe.among(n, 4).accumulate == 6
    with pytest.raises(SpecError, match="3 workers cannot share evenly what 4 do in 2 parts each"):
        recipe.among(3, 4)


@pytest.mark.slow
def test_two_workers_hold_the_same_bits_after_twenty_steps(both: list[dict[str, Any]]) -> None:
    first, second = (worker["joint"] for worker in both)
    for part in ("mae", "sampler"):
        assert [n for n, tensor in first[part].items() if not torch.equal(tensor, second[part][n])] == []


@pytest.mark.slow
def test_two_workers_keep_states_together_and_stop_together(both: list[dict[str, Any]]) -> None:
    for rank, worker in enumerate(both):
        states = worker["states"]
        assert states["fresh"] is None
        assert states["due"] == [False, True]
        assert states["wanted"], "one of them saw the request to stop"
        assert states["stopped"]
        assert states["state"] == {"shared": 0, "rank": {"own": 10 + rank}}
        assert states["items"] == ([0, 1, 2, 3, 4] if rank == 0 else [])
        assert states["left"]


@pytest.fixture
def flags(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], tuple[bool, bool, bool]]]:
    """Return whether kernels are deterministic, tried out, and in any order; afterwards all is as before."""

    def now() -> tuple[bool, bool, bool]:
        return (
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.benchmark,
            torch.backends.cuda.mem_efficient_sdp_enabled(),
        )

    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = now()
    yield now
    torch.use_deterministic_algorithms(before[0])
    torch.backends.cudnn.benchmark = before[1]
    torch.backends.cuda.enable_mem_efficient_sdp(before[2])
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_on_a_gpu_exact_takes_kernels_that_repeat_themselves_and_fast_all_others(flags):
    gpu = torch.device("cuda")
    assert StepConfig(numerics="exact").choose_kernels(gpu) == "exact"
    assert flags() == (True, False, False)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert StepConfig().choose_kernels(gpu) == "fast"
    assert flags() == (False, True, True)


@pytest.mark.parametrize("numerics", ["exact", "fast"])
def test_on_a_cpu_both_are_exact_and_nothing_is_set(flags, numerics):
    before = flags()
    assert StepConfig(numerics=numerics).choose_kernels(torch.device("cpu")) == "exact"
    assert flags() == before
    assert identity(StepConfig(numerics="exact")) != identity(StepConfig(numerics="fast"))

"""How things are measured here: in turn, in one process, as ratios.

Machines drift: another tenant, heat, a clock. So the cases of one comparison run A B A B ..., each round
gives one ratio, and the median of the ratios is what is reported. Memory is the peak of a separate process.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

Step = Callable[[], object]


def seconds_in_turn(
    cases: dict[str, Step], rounds: int, warm_up: int = 2, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Run all cases in turn, `rounds` times after `warm_up` that do not count; seconds of each step."""
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for round_index in range(warm_up + rounds):
        for name, step in cases.items():
            began = clock()
            step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if round_index >= warm_up:
                taken[name].append(clock() - began)
    return taken


def ratio(taken: dict[str, list[float]], case: str, reference: str) -> float:
    """Median over the rounds of a case's seconds over the reference's in the same round."""
    return statistics.median(a / b for a, b in zip(taken[case], taken[reference], strict=True))


def matmul_rate(dtype: torch.dtype, device: torch.device, side: int = 2048, seconds: float = 1.5) -> float:
    """This machine's own rate of a large matrix product, in GFLOP/s: the best of many."""
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        began = time.perf_counter()
        functional.linear(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best / 1e9


def peak_mib(case: str, *arguments: str) -> float:
    """Peak memory that `case` adds to a process, MiB, over three steps in a separate process."""
    command = [sys.executable, str(Path(__file__).parent / "run.py"), "--peak", case, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    peak: float = json.loads(done.stdout.splitlines()[-1])["peak_mib"]
    return peak


def resident_mib(peak: bool) -> float:
    """Resident memory of this process now, or at its peak so far, MiB (Linux)."""
    name = "VmHWM:" if peak else "VmRSS:"
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {name}")


def measure_peak(build: Callable[[], Step], device: torch.device, steps: int = 3) -> float:
    """Peak memory of building a case and taking `steps` steps, less what was there before, MiB."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = resident_mib(peak=False)
    step = build()
    for _ in range(steps):
        step()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resident_mib(peak=True) - before


def forward_backward(form: Callable[[Tensor], Tensor], inputs: Tensor) -> Step:
    """One forward and backward pass of `form`."""
    leaf = inputs.clone().requires_grad_()

    def step() -> None:
        leaf.grad = None
        out = form(leaf)
        out.backward(torch.ones_like(out))

    return step

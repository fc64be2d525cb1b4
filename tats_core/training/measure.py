"""Times real steps of a recipe on this machine, on random pixels."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from tats_core.machine import keep_freed_memory
from tats_core.training import metrics
from tats_core.training.arithmetic import Recipe, step_flops, step_memory
from tats_core.training.finetune import FinetuneTrainer
from tats_core.training.pretrain import JointTrainer, PretrainConfig
from tats_core.training.world import World

_STEPS = 3
_FLOPS_ON_CPU = 4e11  # of a step: two clips of a ViT-B


@dataclass(frozen=True)
class Measured:
    """Three steps on one worker."""

    seconds: float
    """Of a clip."""
    memory: float
    """Measured activations over the estimated ones of as many clips; 1 on a CPU, which does not tell."""
    device: str


def measure(recipe: Recipe, workers: int, classes: int) -> Measured:
    """Take one step and time three more, with a worker's part of the batch; on a CPU with what is quick.

    Raises:
        TrainingError: a step is not finite.
    """
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    clips = recipe.batch_size // workers // recipe.accumulate
    if not gpu:
        clips = min(clips, max(2, int(_FLOPS_ON_CPU / step_flops(recipe))))
    small = recipe.model_copy(update={"batch_size": clips, "accumulate": 1})
    threads = torch.get_num_threads()
    if not gpu:  # as a worker does
        torch.set_num_threads(1)
        keep_freed_memory()
    try:
        seconds, used = _timed(small, classes, device)
    finally:
        torch.set_num_threads(threads)
    estimated = step_memory(small, 1, classes)
    if not gpu:
        return Measured(seconds, 1.0, str(device))
    activations = used - estimated.weights - estimated.gradients - estimated.optimizer
    return Measured(seconds, max(0.1, activations / estimated.activations), str(device))


def _timed(recipe: Recipe, classes: int, device: torch.device) -> tuple[float, float]:
    """Return seconds a clip, and on a GPU the bytes at the peak."""
    before = 0
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    step = _stepper(recipe, classes, World(device=device))
    # On a CPU its seconds: those of one thread that has it for itself, whatever else runs here.
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    clip, taken = recipe.clip, []
    samples = getattr(recipe, "samples_per_clip", 1) * recipe.batch_size
    for number in range(_STEPS + 1):
        video_BCTHW = torch.randn(samples, 3, clip.frames, clip.height, clip.width, device=device)
        label_B = torch.randint(classes, (samples,), device=device)
        began = clock()
        step(video_BCTHW, label_B, number)
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(clock() - began)
    return median(taken[1:]) / samples, metrics.peak_memory_mb(device) * 2**20 - before


def _stepper(recipe: Recipe, classes: int, world: World) -> Callable[[Tensor, Tensor, int], object]:
    if isinstance(recipe, PretrainConfig):
        trainer = JointTrainer(recipe, world)
        return lambda video_BCTHW, label_B, number: trainer.step(video_BCTHW, 1e-6)
    classifier = FinetuneTrainer(recipe, classes, world)
    classifier.start()
    return lambda video_BCTHW, label_B, number: classifier.step(video_BCTHW, label_B, number, 1e-6)

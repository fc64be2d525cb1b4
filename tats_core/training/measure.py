"""Times real steps of a recipe on this machine, on random pixels."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import psutil
import torch
from torch import Tensor

from tats_core.training import metrics
from tats_core.training.arithmetic import Recipe, step_flops, step_memory
from tats_core.training.finetune import FinetuneTrainer
from tats_core.training.pretrain import JointTrainer, PretrainConfig
from tats_core.training.world import World

_STEPS = 3
_FLOPS_ON_CPU = 4e11  # of a step: two clips of a ViT-B
_VISIBLE = 2**28  # bytes of activations that stand out beside what the process holds anyway


@dataclass(frozen=True)
class Measured:
    """Three steps on one worker."""

    seconds: float
    """Of a clip."""
    memory: float
    """Measured activations over the estimated ones of as many clips; 1 where they are too few to see."""
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
    if not gpu:
        torch.set_num_threads(1)  # as a worker has
    try:
        seconds, used = _timed(small, classes, device)
    finally:
        torch.set_num_threads(threads)
    activations = step_memory(small, 1, classes).activations
    is_visible = gpu or activations > _VISIBLE
    memory = max(0.1, used / activations) if used is not None and is_visible else 1.0
    return Measured(seconds, memory, str(device))


def _timed(recipe: Recipe, classes: int, device: torch.device) -> tuple[float, float | None]:
    """Return seconds a clip, and the bytes at the peak beyond weights, gradients and moments.

    None where the process has held more before, as for the stage measured last: its own peak is not seen.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    earlier = metrics.peak_memory_mb(device)
    step = _stepper(recipe, classes, World(device=device))
    memory = step_memory(recipe, 1, classes)
    before = memory.weights if device.type == "cuda" else psutil.Process().memory_info().rss
    clip, taken = recipe.clip, []
    samples = getattr(recipe, "samples_per_clip", 1) * recipe.batch_size
    for number in range(_STEPS + 1):
        video_BCTHW = torch.randn(samples, 3, clip.frames, clip.size, clip.size, device=device)
        label_B = torch.randint(classes, (samples,), device=device)
        began = time.perf_counter()
        step(video_BCTHW, label_B, number)
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    peak, seconds = metrics.peak_memory_mb(device), median(taken[1:]) / samples
    if peak <= earlier:
        return seconds, None
    return seconds, peak * 2**20 - before - memory.gradients - memory.optimizer


def _stepper(recipe: Recipe, classes: int, world: World) -> Callable[[Tensor, Tensor, int], object]:
    if isinstance(recipe, PretrainConfig):
        trainer = JointTrainer(recipe, world)
        return lambda video_BCTHW, label_B, number: trainer.step(video_BCTHW, 1e-6)
    classifier = FinetuneTrainer(recipe, classes, world)
    classifier.start()
    return lambda video_BCTHW, label_B, number: classifier.step(video_BCTHW, label_B, number, 1e-6)

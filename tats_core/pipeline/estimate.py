"""What a pipeline will cost, from its configuration alone: steps, FLOPs, memory, storage, decoding, hours.

FLOPs and memory are those of `training.arithmetic`. Hours are FLOPs over a stated share of the GPUs' peak, or
what a measured step takes; where the decoding processes that the recipe has are slower, they are the limit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from typing import Final, TypeVar, get_args

from tats_core.data.benchmarks import BENCHMARKS
from tats_core.data.benchmarks.base import Split
from tats_core.data.synthetic import VOCABULARIES
from tats_core.pipeline.graph import Graph, Instance
from tats_core.report.table import Table
from tats_core.report.units import duration, size
from tats_core.specs import StrictModel
from tats_core.stages.configs import Trained
from tats_core.stages.data import DataConfig
from tats_core.stages.evaluate import EvaluateStage
from tats_core.stages.finetune import FinetuneStage
from tats_core.stages.pretrain import PretrainStage
from tats_core.stages.probe import ProbeStage
from tats_core.training import arithmetic
from tats_core.training.arithmetic import GPUS, Gpu, Memory
from tats_core.training.measure import Measured, measure

__all__ = ["GPUS", "Gpu", "StageCost", "notes", "of", "table"]

Config = TypeVar("Config", bound=StrictModel)

DECODED: Final = 25.0
"""Clips that one core decodes and augments in a second (docs/operations.md)."""

_OF_A_STEP: Final = {
    *("model", "clip", "mae", "sampler", "precision", "compile", "samples_per_clip", "accumulate"),
    "batch_size",
}
_EVENT_BYTES: Final = 1000  # a line of metrics
_PICTURE_BYTES: Final = 400_000  # pictures and animation of a clip in a health check


@dataclass(frozen=True)
class StageCost:
    """The estimate of one stage."""

    name: str
    workers: int
    gpu: bool
    steps: int
    clips: float
    """That the model sees, over all epochs and workers."""
    videos: float
    """That are decoded."""
    flops: float
    memory: Memory | None
    seconds: float | None
    """Of computing, with `workers` workers; None without a GPU and a measurement."""
    decoding: int
    """Processes a worker."""
    checkpoints: float = 0.0
    logs: float = 0.0
    misfit: str | None = None
    on: str = ""
    """The device on which the seconds were measured."""

    @property
    def hours(self) -> float | None:
        """Hours of the stage: of computing, or of decoding if that takes longer."""
        if self.seconds is None:
            return None
        decode_seconds = self.videos / (DECODED * self.workers * max(1, self.decoding))
        return max(self.seconds, decode_seconds if self.gpu and not self.on else 0.0) / 3600

    @property
    def gpu_hours(self) -> float | None:
        """`hours` of all workers; None where no GPU computes."""
        if self.hours is None or not self.gpu or self.on == "cpu":
            return None
        return self.hours * self.workers

    @property
    def cores(self) -> int | None:
        """Decoding processes a worker for which the model never waits."""
        return ceil(self.videos / (DECODED * self.workers * self.seconds)) if self.seconds else None


def of(graph: Graph, gpu: Gpu, share: float, *, measured: bool = False) -> list[StageCost]:
    """Return the estimate of each stage that computes.

    Args:
        share: of the GPU's peak that a step reaches.
        measured: time three steps of each stage that trains here, and correct its estimate.
    """
    costs: list[StageCost] = []
    known: dict[str, Measured] = {}
    for instance in graph.instances.values():
        cost = _cost(instance, graph, gpu)
        if cost is None:
            continue
        if measured and cost.memory is not None:
            cost = _corrected(cost, instance.config, known)
        elif cost.gpu:
            peak = gpu.peak(instance.config.model_dump()["precision"])
            cost = replace(cost, seconds=cost.flops / (share * peak * cost.workers))
        costs.append(cost)
    return costs


def _corrected(cost: StageCost, config: StrictModel, known: dict[str, Measured]) -> StageCost:
    """Return the estimate of a training with the time and the memory of its steps here, or from `known`."""
    assert isinstance(config, Trained)
    assert cost.memory is not None
    recipe = config.recipe.among(cost.workers, config.workers)
    assert isinstance(recipe, arithmetic.Recipe)
    key = recipe.model_dump_json(include=_OF_A_STEP)
    if key not in known:
        known[key] = measure(recipe, cost.workers, BENCHMARKS[config.benchmark].classes)
    step = known[key]
    memory = replace(cost.memory, activations=cost.memory.activations * step.memory)
    return replace(cost, seconds=cost.clips * step.seconds / cost.workers, memory=memory, on=step.device)


def table(costs: list[StageCost], price: float | None) -> Table:
    """Return a row for each stage, and the sum; a price is of one GPU hour."""
    hours = [cost.hours for cost in costs if cost.hours is not None]
    gpu_hours = sum(cost.gpu_hours or 0 for cost in costs)
    total: list[object] = ["all", "", "", f"{sum(cost.flops for cost in costs):.2g}", ""]
    total += [size(sum(cost.checkpoints for cost in costs)), size(sum(cost.logs for cost in costs)), ""]
    total += [duration(3600 * sum(hours)) if hours else None, f"{gpu_hours:,.0f}" if gpu_hours else None]
    rows = [*map(_row, costs), total]
    headings = ["stage", "workers", "steps", "FLOPs", "memory", "checkpoints", "logs", "decode", "time"]
    headings.append("GPU h")
    if price is not None:
        headings.append("price")
        for row, spent in zip(rows, [*(cost.gpu_hours for cost in costs), gpu_hours], strict=True):
            row.append(None if spent is None else f"{spent * price:,.0f}")
    return Table.of(headings, rows)


def notes(costs: list[StageCost]) -> list[str]:
    """Return what would not work, or be slow, and the key to change; a sentence each."""
    measured = {cost.on: "times" if cost.on == "cpu" else "times and memory" for cost in costs if cost.on}
    sentences = [f"{what} are those of three steps here, on {on}" for on, what in measured.items()]
    sentences += [f"{cost.name}: {cost.misfit}" for cost in costs if cost.misfit]
    limited = {}
    for cost in costs:
        processes = max(1, cost.decoding)
        if cost.gpu and not cost.on and cost.cores and cost.cores > processes:
            words = f"({processes} processes a worker, {cost.cores} would feed it)"
            limited[cost.name.partition("[")[0]] = words
    if limited:
        listed = ", ".join(f"{name} {words}" for name, words in limited.items())
        advice = "raise data.decode_workers, or shrink the videos (docs/data.md)"
        sentences.append(f"decoding is the limit of {listed}: {advice}")
    return sentences


def _row(cost: StageCost) -> list[object]:
    return [
        cost.name,
        cost.workers,
        f"{cost.steps:,}",
        f"{cost.flops:.2g}",
        size(cost.memory.total) if cost.memory else None,
        size(cost.checkpoints) if cost.checkpoints else None,
        size(cost.logs) if cost.logs else None,
        cost.cores,
        None if cost.hours is None else duration(3600 * cost.hours),
        None if cost.gpu_hours is None else f"{cost.gpu_hours:,.0f}",
    ]


def _cost(instance: Instance, graph: Graph, gpu: Gpu) -> StageCost | None:
    config = instance.config
    if isinstance(config, PretrainStage | FinetuneStage):
        return _trained(instance, config, graph, gpu)
    if isinstance(config, EvaluateStage):
        benchmark = BENCHMARKS[config.benchmark]
        clips = config.clips or benchmark.test_clips
        views = clips * (config.crops or benchmark.test_crops)
        model = _read(FinetuneStage, instance, graph)
        videos = _videos(_read(DataConfig, instance, graph), config.benchmark, "test")
        work = arithmetic.encode(model.model, model.clip) * videos * views
        workers = max(1, config.started)
        steps = ceil(videos / config.batch_size / workers)
        return StageCost(
            instance.name, workers, config.gpu, steps, videos * views, videos * clips, work, None, None,
            config.data.decode_workers,
        )  # fmt: skip
    if isinstance(config, ProbeStage):
        data = _read(DataConfig, instance, graph)
        videos = sum(_videos(data, config.benchmark, split) for split in get_args(Split))
        work = arithmetic.encode(config.model, config.clip) * videos
        steps = ceil(videos / config.batch_size)
        return StageCost(instance.name, 1, config.gpu, steps, videos, videos, work, None, None, 0)
    return None


def _trained(instance: Instance, config: PretrainStage | FinetuneStage, graph: Graph, gpu: Gpu) -> StageCost:
    data = _read(DataConfig, instance, graph)
    classes = _classes(data, config.benchmark)
    listed = _videos(data, config.benchmark, "train")
    if isinstance(config, FinetuneStage) and config.labels_per_class:
        listed = min(listed, classes * config.labels_per_class)
    workers = config.started
    recipe = config.recipe.among(workers, config.workers)
    memory = arithmetic.step_memory(recipe, workers, classes)
    parameters = sum(arithmetic.step_parameters(recipe, classes))
    if isinstance(config, PretrainStage):
        epochs, samples = config.last_epoch, 1
        checks = config.last_epoch // config.health_every + 1 if config.health_every else 1
        pictures = checks * config.health_pictures
    else:
        epochs, samples, pictures = config.epochs, config.samples_per_clip, 0
    steps = epochs * (listed // recipe.batch_size)
    clips = steps * recipe.batch_size * samples
    return StageCost(
        name=instance.name,
        workers=workers,
        gpu=config.gpu,
        steps=steps,
        clips=clips,
        videos=clips / samples,
        flops=clips / samples * arithmetic.step_flops(recipe),
        memory=memory,
        seconds=None,
        decoding=config.data.decode_workers,
        # Weights and two moments; one more than are kept is being written. The final weights stay.
        checkpoints=parameters * (12 * (config.checkpoint.keep + 1) + 4),
        logs=steps / config.log_every * _EVENT_BYTES + pictures * _PICTURE_BYTES,
        misfit=arithmetic.misfit(recipe, workers, classes, gpu.memory * 1e9) if config.gpu else None,
    )


def _read(form: type[Config], instance: Instance, graph: Graph) -> Config:
    """Return the configuration of the stage of this kind that `instance` reads."""
    configs = [graph.instances[need].config for need in instance.needs]
    return next(config for config in configs if isinstance(config, form))


def _classes(data: DataConfig, benchmark: str) -> int:
    return len(VOCABULARIES[benchmark]) if benchmark in data.generated else BENCHMARKS[benchmark].classes


def _videos(data: DataConfig, benchmark: str, split: Split) -> int:
    """Return how many videos a stage reads: of a real data set, as many as it has officially."""
    if data.generate is not None and benchmark in data.generated:
        each = data.generate.clips_per_class if split == "train" else data.generate.test_clips_per_class
        count = _classes(data, benchmark) * each
    else:
        expected = BENCHMARKS[benchmark].expected[split]
        count = expected[min(data.fold, len(expected)) - 1]
    if data.first is not None:
        count = min(count, data.first if split == "train" else data.first // 2)
    return count

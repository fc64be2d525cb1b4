"""What `tats run pipeline … --estimate --measure` says of a step, against what a training really takes.

python benchmarks/estimates.py                    all rows: about ten minutes of one core
python benchmarks/estimates.py demo_pretrain …    some of them
python benchmarks/estimates.py --memory           memory alone, also against tokens, model and mask ratio

A row's processes run in turn, each with one thread as a worker has: the estimate's own measurement (three
steps), then the training's loop over `--steps` steps, `--rounds` times. Seconds are CPU seconds of a step,
its batch included: other work on the machine counts little, and the ratio is the median of the rounds'.
Memory is the peak of what the tensors of a step hold, by the allocator (a process holds its code besides).
The demo's rows train on its generated videos, as each of its two workers does; the others on random pixels.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from tats_core.data.clips import Batch
from tats_core.data.loaders import TrainLoader
from tats_core.data.manifest import Manifest
from tats_core.machine import keep_freed_memory
from tats_core.pipeline import graph, runner, spec
from tats_core.stages.finetune import FinetuneStage
from tats_core.stages.jobs import clip_options, labelled
from tats_core.stages.pretrain import PretrainStage
from tats_core.training import arithmetic
from tats_core.training.checkpoint import CheckpointConfig, CheckpointStore
from tats_core.training.events import EventLog
from tats_core.training.finetune import FinetuneConfig, FinetuneTrainer, finetune
from tats_core.training.loop import Loader
from tats_core.training.measure import measure
from tats_core.training.pretrain import JointTrainer, PretrainConfig, pretrain
from tats_core.training.world import World

CLASSES = 174
Row = Callable[[], PretrainStage | FinetuneStage | PretrainConfig | FinetuneConfig]


def _demo(stage: str) -> PretrainStage | FinetuneStage:
    config = graph.build(spec.load("demo")).instances[stage].config
    assert isinstance(config, PretrainStage | FinetuneStage)
    return config


def _joint(model: str, frames: int, mask_ratio: float, batch: int) -> PretrainConfig:
    clip, sampler = {"frames": frames}, {"mask_ratio": mask_ratio}
    raw = {"model": model, "clip": clip, "sampler": sampler, "batch_size": batch, "health_every": None}
    return PretrainConfig.model_validate(raw)


ROWS: dict[str, Row] = {
    "demo_pretrain": lambda: _demo("pretrain"),
    "demo_finetune": lambda: _demo("finetune[ssv2,pretrained]"),
    "vit_base_joint_90": lambda: _joint("vit_base", 16, 0.9, 2),
    "vit_base_joint_95": lambda: _joint("vit_base", 16, 0.95, 2),
}
MEMORY: dict[str, Row] = {
    "vit_base_finetune": lambda: FinetuneConfig.model_validate({"batch_size": 2}),
    "one_clip_of_4_frames": lambda: _joint("vit_base", 4, 0.95, 1),
    "one_clip_of_16_frames": lambda: _joint("vit_base", 16, 0.95, 1),
    "one_clip_of_64_frames": lambda: _joint("vit_base", 64, 0.95, 1),
    "one_clip_at_85": lambda: _joint("vit_base", 16, 0.85, 1),
    "one_clip_vit_small": lambda: _joint("vit_small", 16, 0.95, 1),
    "one_clip_vit_large": lambda: _joint("vit_large", 16, 0.95, 1),
}


def _recipe(row: str) -> tuple[arithmetic.Recipe, PretrainStage | FinetuneStage | None]:
    """Return what one worker computes, and the stage that it is a part of."""
    config = (ROWS | MEMORY)[row]()
    if not isinstance(config, PretrainStage | FinetuneStage):
        return config, None
    share = config.recipe.batch_size // config.workers
    changes = {"batch_size": share, "checkpoint": CheckpointConfig(epochs=None)}
    recipe = config.recipe.model_copy(update=changes)
    assert isinstance(recipe, arithmetic.Recipe)
    return recipe, config


class Random:
    """Batches of random clips."""

    def __init__(self, recipe: arithmetic.Recipe) -> None:
        self.recipe, self.steps = recipe, 1_000

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield always the same clips."""
        clip, clips = self.recipe.clip, self.recipe.batch_size
        video_BCTHW = torch.randint(256, (clips, 3, clip.frames, clip.size, clip.size), dtype=torch.uint8)
        index_B = torch.arange(clips)
        for _ in range(self.steps):
            yield Batch(video_BCTHW, index_B, index_B)


class _EnoughError(Exception):
    """As many steps as asked for are made."""


class Timed:
    """The batches of a loader, and the CPU seconds from one to the next."""

    def __init__(self, loader: Loader, steps: int) -> None:
        self.loader, self.steps, self.most = loader, loader.steps, steps
        self.seconds: list[float] = []
        self.asked: float | None = None

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield what the loader does, until enough steps are made."""
        for batch in self.loader.epoch(epoch, first_step):
            if self.asked is not None:
                self.seconds.append(time.process_time() - self.asked)
            if len(self.seconds) == self.most:
                raise _EnoughError
            self.asked = time.process_time()
            yield batch


def _loader(row: str, data: Path) -> tuple[Loader, int]:
    """Return a row's clips, decoded once already, and the number of their classes."""
    recipe, config = _recipe(row)
    if config is None:
        return Random(recipe), CLASSES
    manifest = Manifest.load(data / f"{config.benchmark}.train.json")
    if isinstance(config, FinetuneStage):
        manifest = labelled(manifest)
    loader = TrainLoader(
        manifest,
        clip_options(recipe.clip, config.data),
        batch_size=recipe.batch_size,
        seed=0,
        purpose="pretrain" if isinstance(config, PretrainStage) else "finetune",
    )
    for _ in loader.epoch(0):
        pass
    return loader, len(manifest.classes)


def _train(row: str, timed: Timed, classes: int) -> None:
    """Run the training's loop until `timed` has enough."""
    recipe, _ = _recipe(row)
    with tempfile.TemporaryDirectory() as name, suppress(_EnoughError):
        events, store = EventLog(Path(name) / "events.jsonl"), CheckpointStore(Path(name))
        if isinstance(recipe, PretrainConfig):
            trainer = JointTrainer(recipe, World())
            pretrain(trainer, timed, events=events, store=store, health=lambda *_: {})
        else:
            classifier = FinetuneTrainer(recipe, classes, World())
            classifier.start()
            finetune(classifier, timed, events=events, store=store)


def real(row: str, data: Path, steps: int) -> float:
    """Return the median CPU seconds of a step of the training's loop, without the first."""
    loader, classes = _loader(row, data)
    timed = Timed(loader, steps + 1)
    _train(row, timed, classes)
    return statistics.median(timed.seconds[1:])


def memory(row: str, data: Path, steps: int) -> float:
    """Return the most that tensors hold in two steps, MiB, however many `steps` a real run has."""
    loader, classes = _loader(row, data)
    timed = Timed(loader, 2)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        _train(row, timed, classes)
    assert profiled.profiler is not None
    events: list[Any] = profiled.profiler.kineto_results.events()
    moves = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = peak = 0
    for _, bytes_ in moves:
        held += bytes_
        peak = max(peak, held)
    return peak / 2**20


def estimated(row: str, data: Path, steps: int) -> float:
    """Return the seconds of a step that `--measure` finds."""
    recipe, _ = _recipe(row)
    return measure(recipe, 1, CLASSES).seconds * recipe.batch_size * getattr(recipe, "samples_per_clip", 1)


def counted(row: str, data: Path, steps: int) -> float:
    """Return the GFLOP of a clip by torch's counter, which sees what is computed twice, too."""
    recipe = _recipe(row)[0].model_copy(update={"batch_size": 2})
    clip, ops = recipe.clip, torch.ops.aten
    mapping: dict[Any, Any] = {  # torch's counter does not know the fused attention of CPUs
        ops._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        ops._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: (
            sdpa_backward_flop_count(g, q, k, v)
        ),
    }
    video_BCTHW = torch.randn(2, 3, clip.frames, clip.size, clip.size)
    step: Callable[[], object]
    if isinstance(recipe, PretrainConfig):
        step = partial(JointTrainer(recipe, World()).step, video_BCTHW, 1e-6)
    else:
        classifier = FinetuneTrainer(recipe, CLASSES, World())
        classifier.start()
        step = partial(classifier.step, video_BCTHW, torch.tensor([0, 1]), 0, 1e-6)
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        step()
    return counter.get_total_flops() / 2 / 1e9


MEASURES = {function.__name__: function for function in (real, memory, estimated, counted)}


def _process(what: str, row: str, data: Path, steps: int = 0) -> float:
    words = [sys.executable, __file__, row, "--only", what, "--data", str(data), "--steps", str(steps)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)} failed:\n{done.stderr}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def line(row: str, data: Path, steps: int, rounds: int) -> list[str]:
    """Return the cells of a row, of processes in turn."""
    recipe, _ = _recipe(row)
    expected, held = arithmetic.step_memory(recipe, 1, CLASSES).total / 2**20, _process("memory", row, data)
    cells = [f"{expected:,.0f}", f"{held:,.0f}", f"{expected / held:.2f}"]
    if rounds:
        pairs = [
            (_process("estimated", row, data), _process("real", row, data, steps)) for _ in range(rounds)
        ]
        before, after = (statistics.median(seconds) for seconds in zip(*pairs, strict=True))
        ratio = statistics.median(first / second for first, second in pairs)
        cells += [f"{before:.3g}", f"{after:.3g}", f"{ratio:.2f}"]
        by_hand, by_torch = arithmetic.step_flops(recipe) / 1e9, _process("counted", row, data)
        cells += [f"{by_hand:.3g}", f"{by_torch:.3g}", f"{by_hand / by_torch:.2f}"]
    return cells


def main() -> None:
    """Print the table, or what one process has to say."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; default: all")
    parser.add_argument("--steps", type=int, default=8, help="of each real run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="memory alone, of more rows")
    parser.add_argument("--only", choices=MEASURES, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, default=Path(), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        (row,) = options.rows
        torch.set_num_threads(1)
        keep_freed_memory()
        print(json.dumps(MEASURES[options.only](row, options.data, options.steps)))
        return
    headings = ["step", "MiB estimated", "measured", "ratio"]
    if not options.memory:
        headings += ["seconds after --measure", "of a longer run", "ratio"]
        headings += ["GFLOP a clip by hand", "by torch's counter", "ratio"]
    print(f"| {' | '.join(headings)} |\n|---{'|---:' * (len(headings) - 1)}|", flush=True)
    rows = options.rows or [*ROWS, *(MEMORY if options.memory else ())]
    with tempfile.TemporaryDirectory() as name:
        data = Path(name)
        if any(row.startswith("demo") for row in rows):
            fewer = ("data.generate.benchmarks=[ssv2]", "data.generate.clips_per_class=16")
            pipeline = spec.load("demo", (*fewer, "data.generate.test_clips_per_class=2"))
            data = runner.run(pipeline, data, only=("data",)).outputs("data")[0]
        for row in rows:
            cells = line(row, data, options.steps, 0 if options.memory else options.rounds)
            print(f"| {row.replace('_', ' ')} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

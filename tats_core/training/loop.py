"""What the training loops share: their batches, how far they are, and how fast they go."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any, Final, Protocol, Self

import torch
from torch import Tensor, nn

from tats_core.data.clips import Batch
from tats_core.errors import SpecError, WeightsError, brief
from tats_core.training.checkpoint import on_cpu
from tats_core.training.events import EventLog
from tats_core.training.metrics import on_host, peak_memory_mb
from tats_core.training.optim import GuardedStep
from tats_core.training.sharding import Sharded, gathered
from tats_core.training.world import StepConfig, World

WAITS: Final = 0.1
"""Share of an epoch from which a wait for data is worth a sentence."""


class Loader(Protocol):
    """Batches of one worker; `data.loaders.TrainLoader` is one."""

    steps: int
    """Batches of an epoch."""

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of `epoch` from `first_step` on; a function of the two alone."""


@dataclass
class Position:
    """How far a training is, and its latest metrics: all that a resume needs besides the trainer's state."""

    epoch: int = 0
    """Finished epochs."""
    batch: int = 0
    """Finished batches of the current epoch."""
    step: int = 0
    """Optimiser steps in all."""
    metrics: dict[str, float | Tensor] = field(default_factory=dict)
    """The latest value of each metric of a step."""
    sums: dict[str, float | Tensor] = field(default_factory=dict)
    """Over the current epoch."""
    health: dict[str, float] = field(default_factory=dict)
    """The latest check of features and policy."""

    @classmethod
    def joined(cls, ranks: Sequence[Mapping[str, Any]]) -> Self:
        """The common position of ranks, for any rank of another number of them: metrics and sums averaged."""
        means = {
            field: {name: fmean(rank[field][name] for rank in ranks) for name in ranks[0][field]}
            for field in ("metrics", "sums")
        }
        return cls(**{**ranks[0], **means})

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, from which a resume makes it again; metrics leave the device for them."""
        return asdict(self) | {"metrics": on_host(self.metrics), "sums": on_host(self.sums)}

    def check(self, steps: int) -> None:
        """Refuse a position that epochs of `steps` steps do not lead to.

        Raises:
            SpecError: the checkpoint is of a training with another batch size or other clips.
        """
        if self.epoch * steps + self.batch != self.step:
            raise SpecError(
                f"the checkpoint of step {self.step}, in epoch {self.epoch + 1}, is of a training whose "
                f"epochs do not have {steps} steps; keep its batch size and its clips"
            )

    def next_batch(self) -> None:
        """Count a finished step."""
        self.batch += 1
        self.step += 1

    def next_epoch(self) -> None:
        """Count a finished epoch."""
        self.epoch += 1
        self.batch = 0
        self.sums = {}


class Trainer(ABC):
    """A model in training: everything that a step changes."""

    config: StepConfig
    world: World
    parallel: nn.Module
    """The model as a step calls it: its gradients are averaged over the workers."""
    guarded_steps: list[GuardedStep]
    last: LastStep | None = None

    @property
    def skipped(self) -> int:
        """Steps whose gradient was not finite."""
        return sum(step.skipped for step in self.guarded_steps)

    def parts(self, values_BX: Tensor) -> tuple[Tensor, ...]:
        """The parts of a batch over which gradients are accumulated."""
        return values_BX.tensor_split(self.config.accumulate)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on.

        Every worker must call it; of what they divide among them, the first has it all.
        """
        state = self.state()
        return gathered(state, receives=self.world.is_first) if isinstance(self.parallel, Sharded) else state

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """This worker's part of `state_dict`; its entry `rank`, if any, differs between workers."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo `state_dict`."""


def restore(trainer: Trainer, state: Mapping[str, Any]) -> None:
    """Put the state of a checkpoint into `trainer`.

    Raises:
        WeightsError: it is the state of another model, or of another sampler.
    """
    try:
        trainer.load_state_dict(state)
    except (RuntimeError, ValueError, KeyError) as error:  # as torch has them
        reason = brief(str(error).strip().splitlines()[-1].strip())
        raise WeightsError(f"the checkpoint is of another model or sampler than this ({reason})") from error


@dataclass(frozen=True)
class LastStep:
    """What the latest step of a trainer was given, by which it can be replayed (`training.replay`)."""

    number: int
    epoch: int
    """Finished epochs."""
    batch: Batch
    arguments: Mapping[str, Any]
    """Of the trainer's `step`, besides the videos."""
    before: dict[str, Any] | None
    """The state before it, on the CPU; copied only where the step before it was not finite."""

    @classmethod
    def of(cls, trainer: Trainer, at: Position, batch: Batch, arguments: Mapping[str, Any]) -> Self:
        """Return what the step that comes now is given."""
        struggles = any(step.in_a_row for step in trainer.guarded_steps)
        before = on_cpu(trainer.state_dict()) if struggles else None
        return cls(at.step, at.epoch, batch, arguments, before)


@dataclass
class Watch:
    """How fast a training goes, epoch by epoch, and how much of it is spent waiting for data."""

    flops: float = 0.0
    """Of a video in a step; 0: not known."""
    peak: float = 0.0
    """FLOP/s of all workers' GPUs by their data sheet; 0: not known."""
    device: torch.device = torch.device("cpu")
    advice: str = ""
    """What to change where an epoch waits for data; "": nothing would help."""
    epochs: int = field(default=0, init=False)
    latest: dict[str, float] = field(default_factory=dict, init=False)
    """Of the last epoch, for the display."""

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the `batches` of an epoch, counting them and the wait for each."""
        self.began, self.waited, self.batches = time.perf_counter(), 0.0, 0
        asked = self.began
        for batch in batches:
            self.waited += time.perf_counter() - asked
            self.batches += 1
            yield batch
            asked = time.perf_counter()

    def metrics(self, batch_size: int, events: EventLog) -> dict[str, float]:
        """Return how the epoch went, none for no batch; say once where data are too slow.

        Args:
            batch_size: videos of a step, over all workers.
        """
        if not self.batches:  # resumed at the very end of an epoch
            return {}
        took = time.perf_counter() - self.began
        speed = self.batches * batch_size / took
        metrics = {"clips_per_second": speed, "data_wait_share": self.waited / took}
        self.latest = {**metrics}
        if self.flops:
            metrics["tflops"] = speed * self.flops / 1e12
        if self.flops and self.peak:
            metrics["mfu"] = speed * self.flops / self.peak
            self.latest["mfu"] = metrics["mfu"]
        metrics["memory_mb"] = peak_memory_mb(self.device)
        self.epochs += 1
        # The first epoch fills caches and starts processes.
        if self.epochs > 1 and metrics["data_wait_share"] > WAITS and self.advice:
            events.note(
                f"{metrics['data_wait_share']:.0%} of an epoch is spent waiting for data: {self.advice}"
            )
            self.advice = ""
        return metrics

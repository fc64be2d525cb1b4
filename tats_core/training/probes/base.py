"""What a probe is: a classifier on the features of a frozen encoder.

Axes: B clips (videos, where a video's clips are joined), N tokens, D width, C classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from tats_core.report.metrics import Metric
from tats_core.specs import StrictModel
from tats_core.training.checkpoint import CheckpointStore
from tats_core.training.events import EventLog

Tokens = Iterable[tuple[Tensor, Tensor]]
"""Batches of `tokens_BND` of a frozen encoder and `label_B`, the tokens on the probe's device."""


class Pooled(NamedTuple):
    """Mean-pooled tokens of one central clip of each video, on the CPU, with the classes."""

    train_BD: Tensor
    train_label_B: Tensor
    test_BD: Tensor
    test_label_B: Tensor


@dataclass
class Frozen:
    """A frozen encoder and the labelled videos that a probe learns from and is tested on.

    `training_tokens(batch, clips)` returns the number of steps of an epoch, and a function from an epoch
    (from 0) to its batches of `batch` videos, the same whenever it is asked: the tokens of `clips` random
    clips of each video side by side. `test_tokens(clips)` yields those of evenly spread clips.
    """

    classes: int
    width: int
    heads: int
    seed: int
    device: torch.device
    events: EventLog
    store: CheckpointStore
    """For the checkpoints of this probe alone."""
    pool: Callable[[], Pooled]
    training_tokens: Callable[[int, int], tuple[int, Callable[[int], Tokens]]]
    test_tokens: Callable[[int], Tokens]


class ProbeConfig(StrictModel, ABC):
    """Base of the probes' configurations; each stands in its probe's file.

    Attributes:
        metric: its top-1, with the key `<name>_top1`: heading and meaning in every table.
        by_default: whether a stage has this probe unless it is set to null.
    """

    metric: ClassVar[Metric]
    by_default: ClassVar[bool] = False

    @abstractmethod
    def score(self, frozen: Frozen) -> tuple[Tensor, Tensor]:
        """Return `scores_BC` and `label_B` of the test videos, on the CPU."""


class PooledProbe(ProbeConfig):
    """A probe of mean-pooled tokens."""

    @abstractmethod
    def classify(self, train_BD: Tensor, train_label_B: Tensor, test_BD: Tensor, classes: int) -> Tensor:
        """Return scores `[B, C]` of the test clips."""

    def score(self, frozen: Frozen) -> tuple[Tensor, Tensor]:
        pooled = frozen.pool()
        return self.classify(*pooled[:3], frozen.classes), pooled.test_label_B


def standardised(train_BD: Tensor, test_BD: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in units of the training clips' deviation from their mean, as a BatchNorm would."""
    mean_D, deviation_D = train_BD.mean(0), train_BD.std(0).clamp_min(1e-6)
    return (train_BD - mean_D) / deviation_D, (test_BD - mean_D) / deviation_D

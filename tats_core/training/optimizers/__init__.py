"""Optimisers, a file each. To add one, write its file and name it here."""

from __future__ import annotations

from typing import Final

from tats_core.registry import Registry
from tats_core.training.optimizers.base import OptimizerConfig

OPTIMIZERS: Final[Registry[type[OptimizerConfig]]] = Registry(
    "optimiser",
    "tats.optimizers",
    OptimizerConfig,
    {
        "adamw": "tats_core.training.optimizers.adamw:AdamWConfig",
        "lion": "tats_core.training.optimizers.lion:LionConfig",
        "sgd": "tats_core.training.optimizers.sgd:SGDConfig",
    },
)

__all__ = ["OPTIMIZERS", "OptimizerConfig"]

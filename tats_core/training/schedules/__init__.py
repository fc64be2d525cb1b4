"""How a learning rate falls from its peak, a file each. To add one, write its file and name it here."""

from __future__ import annotations

from typing import Final

from tats_core.registry import Registry
from tats_core.training.schedules.base import ScheduleConfig

SCHEDULES: Final[Registry[type[ScheduleConfig]]] = Registry(
    "schedule",
    "tats.schedules",
    ScheduleConfig,
    {
        "cosine": "tats_core.training.schedules.cosine:CosineConfig",
        "wsd": "tats_core.training.schedules.wsd:WSDConfig",
        "constant": "tats_core.training.schedules.constant:ConstantConfig",
    },
)

__all__ = ["SCHEDULES", "ScheduleConfig"]

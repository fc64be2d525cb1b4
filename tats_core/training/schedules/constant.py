"""No schedule: the peak to the end."""

from __future__ import annotations

from typing import Literal

from tats_core.training.schedules.base import ScheduleConfig


class ConstantConfig(ScheduleConfig):
    """The peak from the warm-up to the last step; `min_lr` has no effect."""

    kind: Literal["constant"] = "constant"

    def level(self, share: float) -> float:
        return 1.0

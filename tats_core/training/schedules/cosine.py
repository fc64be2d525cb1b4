"""Half a cosine, as in MAE and VideoMAE (SGDR, arXiv 1608.03983, without restarts)."""

from __future__ import annotations

import math
from typing import Literal

from tats_core.training.schedules.base import ScheduleConfig


class CosineConfig(ScheduleConfig):
    """Half a cosine from the peak to the end."""

    kind: Literal["cosine"] = "cosine"

    def level(self, share: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * share))

"""Warm-up, stable, decay (arXiv 2404.06395), with the square-root cooldown of arXiv 2405.18392."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from tats_core.training.schedules.base import ScheduleConfig


class WSDConfig(ScheduleConfig):
    """The peak for most of the training, then a fast decay: it can be prolonged from before the decay."""

    kind: Literal["wsd"] = "wsd"
    decay_share: float = Field(0.2, gt=0, le=1, description="share of the steps in which it falls")
    decay: Literal["sqrt", "linear"] = Field(
        "sqrt", description="after a share d of the decay, 1 - sqrt(d) or 1 - d"
    )

    def level(self, share: float) -> float:
        """Return 1 until the decay begins, then what is left of it."""
        decayed = max(0.0, 1 - (1 - share) / self.decay_share)
        return 1 - (math.sqrt(decayed) if self.decay == "sqrt" else decayed)

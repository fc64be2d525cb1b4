"""What a schedule is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from pydantic import Field

from tats_core.specs import StrictModel


class ScheduleConfig(StrictModel, ABC):
    """How the learning rate goes from its peak to its end, once the warm-up is over."""

    kind: str = Field(description="which")

    @abstractmethod
    def level(self, share: float) -> float:
        """Return the learning rate, 1 at its peak and 0 at its end, after `share` (0 to 1) of the steps."""

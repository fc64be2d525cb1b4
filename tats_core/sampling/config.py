"""The configuration of a sampler: which, how many tokens it shows, and how it learns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from pydantic import Field

from tats_core.errors import SpecError, did_you_mean
from tats_core.sampling.base import Sampler
from tats_core.sampling.objective import Objective
from tats_core.specs import StrictModel, merge, validate


@dataclass(frozen=True)
class SamplerSite:
    """Where a sampler works: the token grid, and the encoder whose tokens it sees.

    Tokens are numbered slice by slice, in a slice row by row.
    """

    slices: int
    rows: int
    columns: int
    width: int
    """Of the encoder's tokens."""
    heads: int
    """Of the encoder's attention."""

    @property
    def tokens(self) -> int:
        return self.slices * self.rows * self.columns


class WhileTraining:
    """Marks a key of a sampler that its objective can take up while it trains, with all keys below it."""


class SamplerConfig(StrictModel, ABC):
    """Base of the samplers' configurations; each stands in its sampler's file."""

    kind: str = Field(description="which sampler chooses the visible tokens")
    mask_ratio: float = Field(0.95, gt=0, lt=1, description="rho; K = max(1, round((1 - rho) N)) are visible")

    @property
    def with_autoencoder(self) -> bool:
        """Whether it learns as one with the autoencoder, as AdaMAE's: in the same step, by an optimiser of
        the same kind and rate, not at `sampler_lr`, with a gradient that also trains the cube embedding.
        """
        return False

    @property
    def rate_factor(self) -> float:
        """What `sampler_lr` is multiplied by."""
        return 1.0

    @abstractmethod
    def build(self, site: SamplerSite) -> Sampler:
        """Return the sampler, with fresh weights."""

    def objective(self, seed: int) -> Objective[Any] | None:
        """Return how the sampler is trained; None for a sampler that does not learn."""
        return None

    def changed(self, keys: Mapping[str, object], where: str) -> Self:
        """Return the configuration with other values of keys that can change while the sampler trains.

        Args:
            where: how the source of `keys` is named in messages.

        Raises:
            SpecError: another key, or a value that does not fit.
        """
        fields = type(self).model_fields
        free = [name for name, field in fields.items() if WhileTraining in field.metadata]
        for key in keys:
            if key not in fields:
                raise SpecError(
                    f"{where}: the sampler '{self.kind}' has no key '{key}'{did_you_mean(key, free)}"
                )
            if key not in free:
                can = f"only {', '.join(free)} can" if free else f"no key of the sampler '{self.kind}' can"
                raise SpecError(f"{where}: sampler.{key} cannot change while the sampler trains; {can}")
        return validate(type(self), merge(self.model_dump(), keys), where, prefix="sampler")

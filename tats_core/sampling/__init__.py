"""Token samplers under one interface; a new one is one file and one line of `SAMPLERS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pydantic import Field, model_validator

from tats_core.errors import did_you_mean
from tats_core.sampling.adaptive import AdaptiveSampler, SamplingObjective
from tats_core.sampling.base import LearnedSampler, Policy, Rollout, Sampler
from tats_core.sampling.fixed import FrameSampler, RandomSampler, TubeSampler
from tats_core.sampling.objective import Objective, Transition
from tats_core.sampling.ppo import PPO, PPOConfig
from tats_core.sampling.tats import TATSConfig, TATSSampler
from tats_core.specs import StrictModel

__all__ = [
    "SAMPLERS",
    "LearnedSampler",
    "Objective",
    "Policy",
    "Rollout",
    "Sampler",
    "SamplerConfig",
    "SamplerSite",
    "Transition",
]


class SamplerConfig(StrictModel):
    """Which sampler chooses the visible tokens, and how it learns."""

    kind: str = Field("tats", description="random, tube, frame, adaptive or tats")
    mask_ratio: float = Field(0.95, gt=0, lt=1, description="rho; K = max(1, round((1 - rho) N)) are visible")
    network: TATSConfig = Field(default_factory=TATSConfig, description="size and form, for tats")
    ppo: PPOConfig = Field(default_factory=PPOConfig, description="how tats learns")
    objective_weight: float = Field(
        1e-4,
        gt=0,
        description="weight of AdaMAE's sampling loss, for adaptive, whose error is the autoencoder's loss",
    )

    @model_validator(mode="before")
    @classmethod
    def _known_kind(cls, raw: object) -> object:
        kind = raw.get("kind", "tats") if isinstance(raw, dict) else None
        if kind is not None and kind not in SAMPLERS:
            raise ValueError(f"no sampler '{kind}'{did_you_mean(str(kind), SAMPLERS)}")
        return raw

    def build(self, site: SamplerSite) -> Sampler:
        """The sampler of this kind, with fresh weights."""
        return SAMPLERS[self.kind].build(self, site)

    def objective(self, seed: int) -> Objective | None:
        """The objective of this kind; None for a sampler that does not learn."""
        objective = SAMPLERS[self.kind].objective
        return objective(self, seed) if objective else None


class SamplerSite(StrictModel):
    """Where a sampler works: the token grid, and the encoder whose tokens it sees."""

    tokens: int
    slices: int
    width: int
    heads: int


@dataclass(frozen=True)
class Kind:
    """Builds a sampler and, for a sampler that learns, its objective (from a seed)."""

    build: Callable[[SamplerConfig, SamplerSite], Sampler]
    objective: Callable[[SamplerConfig, int], Objective] | None = None


SAMPLERS: Final[dict[str, Kind]] = {
    "random": Kind(lambda config, site: RandomSampler(site.tokens, config.mask_ratio)),
    "tube": Kind(lambda config, site: TubeSampler(site.tokens, config.mask_ratio, site.slices)),
    "frame": Kind(lambda config, site: FrameSampler(site.tokens, config.mask_ratio, site.slices)),
    "adaptive": Kind(
        lambda config, site: AdaptiveSampler(site.tokens, config.mask_ratio, site.width, site.heads),
        lambda config, seed: SamplingObjective(config.objective_weight),
    ),
    "tats": Kind(
        lambda config, site: TATSSampler(
            site.tokens, config.mask_ratio, site.slices, site.width, config.network
        ),
        lambda config, seed: PPO(config.ppo, seed),
    ),
}

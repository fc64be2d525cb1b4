"""Token samplers under one interface; a new one is one file and one line of `SAMPLERS`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from pydantic import Field, model_validator

from tats_core.errors import did_you_mean
from tats_core.sampling.adaptive import AdaptiveSampler
from tats_core.sampling.base import LearnedSampler, Policy, Rollout, Sampler
from tats_core.sampling.fixed import FrameSampler, RandomSampler, TubeSampler
from tats_core.sampling.ppo import PPOConfig
from tats_core.sampling.tats import TATSConfig, TATSSampler
from tats_core.specs import StrictModel

__all__ = [
    "SAMPLERS",
    "LearnedSampler",
    "Policy",
    "Rollout",
    "Sampler",
    "SamplerConfig",
    "SamplerSite",
    "build_sampler",
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
        description="weight of AdaMAE's sampling loss, for adaptive, whose error is that of ppo.error_space "
        "(AdaMAE's own: normalized)",
    )

    @model_validator(mode="before")
    @classmethod
    def _known_kind(cls, raw: Any) -> Any:
        kind = raw.get("kind", "tats") if isinstance(raw, dict) else None
        if kind is not None and kind not in SAMPLERS:
            raise ValueError(f"no sampler '{kind}'{did_you_mean(str(kind), SAMPLERS)}")
        return raw


class SamplerSite(StrictModel):
    """Where a sampler works: the token grid and the encoder it looks at."""

    tokens: int
    slices: int
    width: int
    heads: int


SAMPLERS: Final[dict[str, Callable[[SamplerConfig, SamplerSite], Sampler]]] = {
    "random": lambda config, site: RandomSampler(site.tokens, config.mask_ratio),
    "tube": lambda config, site: TubeSampler(site.tokens, config.mask_ratio, site.slices),
    "frame": lambda config, site: FrameSampler(site.tokens, config.mask_ratio, site.slices),
    "adaptive": lambda config, site: AdaptiveSampler(site.tokens, config.mask_ratio, site.width, site.heads),
    "tats": lambda config, site: TATSSampler(
        site.tokens, config.mask_ratio, site.slices, site.width, config.network
    ),
}


def build_sampler(config: SamplerConfig, site: SamplerSite) -> Sampler:
    """Build the sampler that `config` names, with fresh weights."""
    return SAMPLERS[config.kind](config, site)

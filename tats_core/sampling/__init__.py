"""Token samplers under one interface; a new one is one file and one line of `SAMPLERS`."""

from __future__ import annotations

from typing import Annotated, Final

from tats_core.registry import Registry
from tats_core.sampling.base import LearnedSampler, Policy, Rollout, Sampler
from tats_core.sampling.config import SamplerConfig, SamplerSite, WhileTraining
from tats_core.sampling.objective import Learner, LossObjective, Objective, Transition
from tats_core.sampling.plackett_luce import Noise
from tats_core.specs import OneOf

__all__ = [
    "CHOICE",
    "SAMPLERS",
    "AnySampler",
    "LearnedSampler",
    "Learner",
    "LossObjective",
    "Noise",
    "Objective",
    "Policy",
    "Rollout",
    "Sampler",
    "SamplerConfig",
    "SamplerSite",
    "Transition",
    "WhileTraining",
]

SAMPLERS: Final[Registry[type[SamplerConfig]]] = Registry(
    "sampler",
    "tats.samplers",
    SamplerConfig,
    {
        "random": "tats_core.sampling.fixed:RandomConfig",
        "tube": "tats_core.sampling.fixed:TubeConfig",
        "frame": "tats_core.sampling.fixed:FrameConfig",
        "adaptive": "tats_core.sampling.adaptive:AdaptiveConfig",
        "tats": "tats_core.sampling.tats:TATSConfig",
    },
)
CHOICE: Final = OneOf(SAMPLERS, "tats")
AnySampler = Annotated[SamplerConfig, CHOICE]
"""A field that holds the configuration of one of the samplers."""

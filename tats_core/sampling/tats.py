"""The trajectory-aware adaptive token sampler: an actor and a critic on trajectory attention.

Axes: B clips, N tokens, D encoder width, W sampler width.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from tats_core.sampling.base import LearnedSampler, Policy
from tats_core.sampling.config import SamplerSite
from tats_core.sampling.entropy import hold_entropy
from tats_core.sampling.ppo import PPOSamplerConfig
from tats_core.sampling.trajectory_attention import TrajectoryAttention
from tats_core.specs import StrictModel


class NetworkConfig(StrictModel):
    """Size and form of the TATS sampler."""

    width: int = Field(384, ge=8, description="W; tokens are projected to it first, unless it is D")
    depth: int = Field(1, ge=1, description="blocks of trajectory attention and MLP")
    heads: int = Field(6, ge=1, description="attention heads")
    mlp_ratio: float = Field(2.0, gt=0, description="hidden width of the MLP over W")
    values: Literal["paper", "shipped"] = Field(
        "paper", description="temporal values projected (the paper's eq. 7) or not (Motionformer's code)"
    )
    spread: float = Field(
        1.5,
        gt=0,
        description="how open the policy stays: it spreads over at least so many times K tokens (the "
        "exponential of its entropy), or over 95% of all where that is less",
    )

    @model_validator(mode="after")
    def _heads_divide_width(self) -> NetworkConfig:
        if self.width % self.heads:
            raise ValueError(f"width ({self.width}) must be a multiple of heads ({self.heads})")
        return self


class TATSConfig(PPOSamplerConfig):
    """The trajectory-aware adaptive token sampler."""

    kind: Literal["tats"] = "tats"
    network: NetworkConfig = Field(default_factory=NetworkConfig, description="size and form")

    @property
    def rate_factor(self) -> float:
        """48 / W: a step of Adam moves the logits in proportion to the width, and `sampler_lr` is for 48."""
        return 48 / self.network.width

    def build(self, site: SamplerSite) -> TATSSampler:
        return TATSSampler(site.tokens, self.mask_ratio, site.slices, site.width, self.network)


class TrajectoryBlock(nn.Module):
    """Pre-norm trajectory attention and MLP, each with a residual."""

    def __init__(self, config: NetworkConfig, slices: int) -> None:
        super().__init__()
        width, hidden = config.width, int(config.width * config.mlp_ratio)
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = TrajectoryAttention(width, config.heads, slices, config.values)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, tokens_BNW: Tensor) -> Tensor:
        tokens_BNW = tokens_BNW + self.attention(self.norm1(tokens_BNW))
        mixed: Tensor = tokens_BNW + self.mlp(self.norm2(tokens_BNW))
        return mixed


class TATSSampler(LearnedSampler):
    """Trajectory attention, then two linear heads: the actor's logits and the critic's values.

    It sees the cube embedding with learned positions (at first 0) in place of the encoder's, as AdaMAE's
    sampler does.
    """

    sees_positions = False

    def __init__(
        self, tokens: int, mask_ratio: float, slices: int, encoder_width: int, config: NetworkConfig
    ) -> None:
        super().__init__(tokens, mask_ratio)
        self.config = config
        self.project = (
            nn.Identity() if config.width == encoder_width else nn.Linear(encoder_width, config.width)
        )
        # Of the same size as the residual branches, whatever the scale of the cube embedding.
        self.enter = nn.LayerNorm(config.width, eps=1e-6)
        # The encoder's fixed positions are as large as what the cubes show, and would hide it for long.
        self.position_NW = nn.Parameter(torch.zeros(tokens, config.width))
        self.blocks = nn.Sequential(*(TrajectoryBlock(config, slices) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        # A bias would be the same for all tokens and drop out of the policy's softmax.
        self.actor = nn.Linear(config.width, 1, bias=False)
        self.critic = nn.Linear(config.width, 1)
        # The first policy is (nearly) uniform and the first value (nearly) the mean reward, which is 0.
        for head in (self.actor, self.critic):
            nn.init.normal_(head.weight, std=0.01)
        nn.init.zeros_(self.critic.bias)

    def forward(self, tokens_BND: Tensor) -> Policy:
        """Policy and values of clips embedded without positions; no gradient reaches the autoencoder."""
        entered_BNW = self.enter(self.project(tokens_BND.detach())) + self.position_NW
        mixed_BNW = self.norm(self.blocks(entered_BNW))
        # In bfloat16 a logit of 4 moves by steps of 1/32, a sixth of what PPO's clip allows in one update.
        with torch.autocast(mixed_BNW.device.type, enabled=False):
            mixed_BNW = mixed_BNW.to(self.actor.weight.dtype)
            logits_BN, value_BN = self.actor(mixed_BNW).squeeze(-1), self.critic(mixed_BNW).squeeze(-1)
        lowest = math.log(min(self.config.spread * self.visible, 0.95 * self.tokens))
        return Policy(hold_entropy(logits_BN.float(), lowest), value_BN.float())

"""AdaMAE's sampler (arXiv 2211.09120), the baseline with a policy but without trajectories or PPO.

Axes: B clips, N tokens, M masked ones, D encoder width, H heads, E = D / H.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from tats_core.errors import SpecError
from tats_core.sampling.base import LearnedSampler, Policy
from tats_core.sampling.config import SamplerConfig, SamplerSite, WhileTraining
from tats_core.sampling.objective import LossObjective, Transition

_HEADS = 8  # of the published network, whatever the encoder has


class AdaptiveConfig(SamplerConfig):
    """AdaMAE's sampler."""

    kind: Literal["adaptive"] = "adaptive"
    architecture: Literal["published", "light"] = Field(
        "published",
        description="published: a transformer block, trained as one with the autoencoder, as in AdaMAE's "
        "code (sampler_lr is not used); light: one attention, trained beside it at sampler_lr",
    )
    objective_weight: Annotated[float, WhileTraining] = Field(
        1e-4, gt=0, description="weight of the sampling loss, whose error is the autoencoder's loss"
    )

    @property
    def with_autoencoder(self) -> bool:
        return self.architecture == "published"

    def build(self, site: SamplerSite) -> PublishedSampler | LightSampler:
        """Return the sampler, with fresh weights.

        Raises:
            SpecError: the published network's heads do not divide the encoder's width.
        """
        if self.architecture == "light":
            return LightSampler(site.tokens, self.mask_ratio, site.width, site.heads)
        if site.width % _HEADS:
            raise SpecError(
                f"sampler.architecture: published has {_HEADS} heads, which do not divide the encoder's "
                f"width ({site.width}); set sampler.architecture: light, or another model.width"
            )
        return PublishedSampler(site.tokens, self.mask_ratio, site.width)

    def objective(self, seed: int) -> SamplingObjective:
        return SamplingObjective(self)


class PublishedSampler(LearnedSampler):
    """A transformer block over all tokens and a linear actor, as in models/pretrain/vit.py of AdaMAE's code.

    Eight heads without biases of query, key and value, an MLP of 4 D, dropout of .1 after the attention and
    after the MLP, norms with PyTorch's epsilon. It sees the cube embedding with learned positions in place
    of the fixed ones. The tokens are not detached: its loss trains the cube embedding too.
    """

    sees_positions = False

    def __init__(self, tokens: int, mask_ratio: float, encoder_width: int) -> None:
        from timm.models.vision_transformer import Block

        super().__init__(tokens, mask_ratio)
        self.position_1ND = nn.Parameter(torch.zeros(1, tokens, encoder_width))
        self.block = Block(
            encoder_width, _HEADS, mlp_ratio=4, qkv_bias=False, proj_drop=0.1, norm_layer=nn.LayerNorm
        )
        self.block.mlp.drop1 = nn.Identity()  # timm's MLP has dropout after its activation, AdaMAE's has not
        self.actor = nn.Linear(encoder_width, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, tokens_BND: Tensor) -> Policy:
        """Policy of clips embedded without positions."""
        mixed_BND = self.block(tokens_BND + self.position_1ND)
        return Policy(self.actor(mixed_BND).squeeze(-1).float())


class LightSampler(LearnedSampler):
    """One multi-head attention of encoder width over the encoder's tokens, then a linear actor."""

    def __init__(self, tokens: int, mask_ratio: float, encoder_width: int, heads: int) -> None:
        super().__init__(tokens, mask_ratio)
        self.heads = heads
        self.norm = nn.LayerNorm(encoder_width, eps=1e-6)
        self.qkv = nn.Linear(encoder_width, 3 * encoder_width)
        self.out = nn.Linear(encoder_width, encoder_width)
        self.actor = nn.Linear(encoder_width, 1, bias=False)  # a bias would drop out of the softmax
        nn.init.normal_(self.actor.weight, std=0.01)

    def forward(self, tokens_BND: Tensor) -> Policy:
        b, n, d = tokens_BND.shape
        tokens_BND = tokens_BND.detach()
        qkv_3BHNE = self.qkv(self.norm(tokens_BND)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed_BHNE = functional.scaled_dot_product_attention(*qkv_3BHNE.unbind(0))
        mixed_BND = tokens_BND + self.out(mixed_BHNE.transpose(1, 2).reshape(b, n, d))
        return Policy(self.actor(mixed_BND).squeeze(-1).float())


class SamplingObjective(LossObjective[AdaptiveConfig]):
    """One step on AdaMAE's loss after every draw; the reward is the autoencoder's own loss, as published."""

    def loss(self, policy: Policy, transition: Transition) -> Tensor:
        """`-weight * mean over masked i of log pi(i) * error(i)`, mean over clips.

        Large errors raise the probability of being visible. The paper's eq. 3 has the sum over masked
        tokens, its code the mean.
        """
        log_probs_BM = policy.log_probs_BN.gather(1, transition.rollout.masked_BM)
        return -self.config.objective_weight * (log_probs_BM * transition.reward_BM.detach()).mean()

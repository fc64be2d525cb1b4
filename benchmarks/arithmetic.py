"""Floating-point operations of a step, counted by hand: two for each multiplication that is added up.

Backward of a matrix product is two of its size; of attention, two and a half times forward, since fused
kernels compute the scores again. What is not a matrix product (norms, GELU, softmax) is not counted: it is
the gap between a step's rate and that of a matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass

from tats_core.models.mae import MAEConfig
from tats_core.models.tokens import ClipConfig
from tats_core.models.vit import ViTConfig
from tats_core.sampling.tats import NetworkConfig, TATSConfig


@dataclass(frozen=True)
class Work:
    """FLOPs of matrix products with weights, and of attention, forward."""

    products: float = 0.0
    attention: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.products + other.products, self.attention + other.attention)

    def __mul__(self, times: float) -> Work:
        return Work(self.products * times, self.attention * times)

    @property
    def forward(self) -> float:
        return self.products + self.attention

    @property
    def training(self) -> float:
        """Forward and backward."""
        return 3 * self.products + 3.5 * self.attention


def block(tokens: int, width: int, mlp_ratio: float) -> Work:
    """A transformer block: q, k, v, out (4 D^2 a token), the MLP (2 r D^2), and scores and values (2 N D)."""
    return Work(2 * tokens * width**2 * (4 + 2 * mlp_ratio), 4 * tokens**2 * width)


def mae(vit: ViTConfig, config: MAEConfig, clip: ClipConfig, visible: int) -> Work:
    """The masked autoencoder on one clip; the embedding's input needs no gradient."""
    decoded = max(1, round(config.decoded_share * (clip.tokens - visible)))
    encoder = block(visible, vit.width, vit.mlp_ratio) * vit.depth
    decoder = block(visible + decoded, config.decoder_width, vit.mlp_ratio) * config.decoder_depth
    ends = Work(
        2 * visible * vit.width * config.decoder_width + 2 * decoded * config.decoder_width * clip.pixels
    )
    embedding = Work(2 * visible * clip.pixels * vit.width * 2 / 3)  # backward is one product, not two
    return encoder + decoder + ends + embedding


def sampler(vit: ViTConfig, config: NetworkConfig, clip: ClipConfig) -> Work:
    """The TATS sampler on one clip."""
    n, w, slices = clip.tokens, config.width, clip.slices
    project = Work(2 * n * vit.width * w * 2 / 3 if w != vit.width else 0.0)
    dense = 3 + 1 + 1 + (1 if config.values == "paper" else 0) + 1 + 2 * config.mlp_ratio
    along = 2 * 2 * n * config.heads * slices * w
    block_work = Work(2 * n * w**2 * dense + along, 4 * n**2 * w)
    return project + block_work * config.depth


def joint_step(vit: ViTConfig, config: MAEConfig, tats: TATSConfig, clip: ClipConfig, visible: int) -> float:
    """FLOPs of one joint step for one clip: all tokens embedded for the sampler, rollout, MAE, PPO's passes.

    What the sampler's backward recomputes to save memory is not counted.
    """
    tokenized = 2 * clip.tokens * clip.pixels * vit.width
    policy = sampler(vit, tats.network, clip)
    learning = policy.forward + tats.ppo.epochs * policy.training
    return tokenized + mae(vit, config, clip, visible).training + learning


def finetune_step(vit: ViTConfig, clip: ClipConfig) -> float:
    """FLOPs of one fine-tuning step for one clip: all tokens through the encoder."""
    embedding = 2 * 2 * clip.tokens * clip.pixels * vit.width
    return embedding + (block(clip.tokens, vit.width, vit.mlp_ratio) * vit.depth).training

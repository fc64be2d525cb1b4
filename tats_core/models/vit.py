"""The encoder: a plain video ViT over any choice of tokens, on timm's blocks.

Axes: B clips, N tokens, M some of the tokens, P pixel values a token, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Final, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tats_core.errors import did_you_mean
from tats_core.models.tokens import ClipConfig, CubeEmbedding, positions
from tats_core.specs import NotIdentity, StrictModel

# The functions that build import timm, which takes 2 s: a plan needs only the configuration.

PRESETS: Final[dict[str, dict[str, int]]] = {
    "vit_micro": {"width": 96, "depth": 4, "heads": 4},
    "vit_mini": {"width": 128, "depth": 4, "heads": 4},
    "vit_tiny": {"width": 192, "depth": 12, "heads": 3},
    "vit_small": {"width": 384, "depth": 12, "heads": 6},
    "vit_base": {"width": 768, "depth": 12, "heads": 12},
    "vit_large": {"width": 1024, "depth": 24, "heads": 16},
    "vit_huge": {"width": 1280, "depth": 32, "heads": 16},
}
"""Widths, depths and heads of VideoMAE's encoders, and two that train on a laptop."""


class ViTConfig(StrictModel):
    """The encoder; a bare name in YAML (`model: vit_base`) is its preset."""

    preset: str = Field("vit_base", description="name of the preset that gives width, depth and heads")
    width: int = Field(768, ge=8, description="D")
    depth: int = Field(12, ge=1, description="blocks")
    heads: int = Field(12, ge=1, description="attention heads")
    mlp_ratio: float = Field(4.0, gt=0, description="hidden width of a block's MLP over D")
    positions: Literal["separable", "joint"] = Field(
        "joint", description="joint: VideoMAE's table over N; separable: slice, row and column apart"
    )
    attention_init: Literal["xavier", "mimetic"] = Field(
        "xavier",
        description="mimetic: heads attend to similar tokens from the start; for few steps",
    )
    gradient_checkpointing: Annotated[bool, NotIdentity] = Field(
        False, description="recompute blocks (a decoder's too) in backward: less memory"
    )

    @model_validator(mode="before")
    @classmethod
    def _expand_preset(cls, raw: Any) -> Any:
        raw = {"preset": raw} if isinstance(raw, str) else dict(raw)
        preset = raw.get("preset", "vit_base")
        if preset not in PRESETS:
            raise ValueError(f"no model preset '{preset}'{did_you_mean(str(preset), PRESETS)}")
        return {**PRESETS[preset], **raw}

    @model_validator(mode="after")
    def _heads_divide_width(self) -> ViTConfig:
        if self.width % self.heads:
            raise ValueError(f"width ({self.width}) must be a multiple of heads ({self.heads})")
        return self


def blocks(width: int, depth: int, heads: int, mlp_ratio: float, drop_path: float) -> nn.ModuleList:
    """Pre-norm transformer blocks; the rate of stochastic depth grows linearly from 0 to `drop_path`."""
    from timm.models.vision_transformer import Block

    rates = torch.linspace(0, drop_path, depth).tolist()
    return nn.ModuleList(
        Block(
            width,
            heads,
            mlp_ratio,
            qkv_bias=True,
            drop_path=rate,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),  # type: ignore[arg-type]
        )
        for rate in rates
    )


def run_blocks(blocks: nn.ModuleList, tokens_BMD: Tensor, recompute: bool) -> Tensor:
    """Run tokens through the blocks; with `recompute`, backward computes activations again to save memory."""
    for block in blocks:
        tokens_BMD = checkpoint(block, tokens_BMD, use_reentrant=False) if recompute else block(tokens_BMD)
    return tokens_BMD


Matrices = Callable[[Tensor], object]
"""Draws the first weights of a Linear layer in place."""


def small_normal(weight: Tensor) -> None:
    """The matrices of VideoMAE's fine-tuning model, where no checkpoint replaces them.

    Its truncation, at +-2 and not at two deviations, cuts nothing.
    """
    nn.init.trunc_normal_(weight, std=0.02)


def initialise(module: nn.Module, matrices: Matrices = nn.init.xavier_uniform_) -> None:
    """Initialise the Linear layers in `module`: Xavier-uniform (VideoMAE's pre-training), zero biases."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            matrices(layer.weight)
            nn.init.zeros_(layer.bias)


def initialise_blocks(
    blocks: nn.ModuleList, config: ViTConfig, matrices: Matrices = nn.init.xavier_uniform_
) -> None:
    """Initialise transformer blocks as `config` says."""
    initialise(blocks, matrices)
    if config.attention_init == "mimetic":
        for block in blocks:
            initialise_mimetic(block)


@torch.no_grad()
def initialise_mimetic(block: nn.Module) -> None:
    """Initialise attention as trained attention ends up (Trockman and Kolter 2023, arXiv 2305.09828).

    Per head `W_q W_k^T = 0.7 I + 0.7 Z` (a token attends to similar tokens: near positions, same content) and
    `W_v W_o = 0.4 Z - 0.4 I`, Z normal with variance 1/D, each cut to the rank of the head.
    """
    attention: Any = block.attn
    out, heads = attention.proj, attention.num_heads
    width = out.in_features
    head = width // heads
    identity = torch.eye(width)
    query, key, value = attention.qkv.weight.view(3, heads, head, width)
    for index in range(heads):
        noise = torch.randn(width, width) / width**0.5
        left, size, right = torch.linalg.svd(0.7 * identity + 0.7 * noise)
        root = size[:head].sqrt()
        query[index].copy_((left[:, :head] * root).T)
        key[index].copy_(right[:head] * root[:, None])
    noise = torch.randn(width, width) / width**0.5
    left, size, right = torch.linalg.svd(0.4 * noise - 0.4 * identity)
    value.view(width, width).copy_((left * size.sqrt()).T)
    out.weight.copy_((size.sqrt()[:, None] * right).T)


class VideoViT(nn.Module):
    """Cube embedding, fixed positions and transformer blocks; encodes all tokens or a choice of them."""

    position_ND: Tensor

    def __init__(
        self,
        config: ViTConfig,
        clip: ClipConfig,
        drop_path: float = 0.0,
        matrices: Matrices = nn.init.xavier_uniform_,
    ) -> None:
        super().__init__()
        self.config, self.clip = config, clip
        self.embedding = CubeEmbedding(clip, config.width)
        # Not in the checkpoint: it follows from the configuration.
        self.register_buffer("position_ND", positions(clip, config.width, config.positions), persistent=False)
        self.blocks = blocks(config.width, config.depth, config.heads, config.mlp_ratio, drop_path)
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        initialise_blocks(self.blocks, config, matrices)

    def tokenize(self, patches_BNP: Tensor, positions: bool = True) -> Tensor:
        """Embed all tokens and add their positions, unless without: `[B, N, P]` to `[B, N, D]`."""
        embedded: Tensor = self.embedding(patches_BNP)
        return embedded + self.position_ND if positions else embedded

    def encode(self, tokens_BMD: Tensor) -> Tensor:
        """Run the blocks on tokens that carry their positions; the final norm is not applied."""
        return run_blocks(self.blocks, tokens_BMD, self.config.gradient_checkpointing and self.training)

    def forward(self, patches_BNP: Tensor, visible_BK: Tensor | None = None) -> Tensor:
        """Encode all tokens, or those of `visible_BK` alone: `[B, N, P]` to `[B, N or K, D]`, normed.

        Only the visible tokens are embedded with gradients; the weight gradient of the embedding would
        otherwise be a product over all N tokens of which most rows are zero.
        """
        if visible_BK is None:
            return self.norm(self.encode(self.tokenize(patches_BNP)))  # type: ignore[no-any-return]
        embedded_BKD = self.embedding(take(patches_BNP, visible_BK))
        tokens_BKD = embedded_BKD + self.position_ND[visible_BK]
        return self.norm(self.encode(tokens_BKD))  # type: ignore[no-any-return]


def take(values_BNX: Tensor, index_BM: Tensor) -> Tensor:
    """Pick tokens by index: `[B, N, X]` and `[B, M]` to `[B, M, X]`."""
    b, n = values_BNX.shape[:2]
    # Whole rows of the flat batch: `gather` would look up an index for every value.
    row_BM = index_BM + n * torch.arange(b, device=index_BM.device)[:, None]
    picked = values_BNX.flatten(0, 1).index_select(0, row_BM.flatten())
    return picked.view(*index_BM.shape, *values_BNX.shape[2:])

"""The encoder with a linear head on its mean-pooled tokens, for fine-tuning.

Axes: B clips, N tokens, P pixel values a token, D width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from tats_core.models.tokens import ClipConfig, patchify
from tats_core.models.vit import VideoViT, ViTConfig, initialise, small_normal

HeadNorm = Literal["layer", "batch"]


class VideoClassifier(nn.Module):
    """All tokens through the encoder, mean, norm, dropout, linear (VideoMAE's fine-tuning model).

    `head_norm="layer"` is VideoMAE's. `"batch"` (no affine) subtracts what all clips share: at small scale
    the pooled features of clips differ by little from their common mean, which a layer norm, computed
    clip by clip, does not remove.
    """

    def __init__(
        self,
        vit: ViTConfig,
        clip: ClipConfig,
        classes: int,
        *,
        head_norm: HeadNorm = "layer",
        drop_path: float = 0.0,
        head_dropout: float = 0.0,
        head_scale: float = 0.001,
    ) -> None:
        super().__init__()
        self.encoder = VideoViT(vit, clip, drop_path, small_normal)
        # Mean pooling has its own norm; the encoder's, trained for single tokens, is removed.
        self.encoder.norm = nn.Identity()  # type: ignore[assignment]
        self.head_norm: nn.Module = (
            nn.LayerNorm(vit.width, eps=1e-6)
            if head_norm == "layer"
            else nn.BatchNorm1d(vit.width, affine=False)
        )
        self.head_dropout = nn.Dropout(head_dropout)
        self.head = nn.Linear(vit.width, classes)
        initialise(self.head, small_normal)
        with torch.no_grad():
            self.head.weight.mul_(head_scale)

    def features(self, video_BCTHW: Tensor) -> Tensor:
        """Mean-pooled tokens `[B, D]` of clips with normalised pixels."""
        pooled: Tensor = self.encoder(patchify(video_BCTHW, self.encoder.clip)).mean(1)
        return pooled

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        """Class logits `[B, classes]` of clips with normalised pixels."""
        logits: Tensor = self.head(self.head_dropout(self.head_norm(self.features(video_BCTHW))))
        return logits

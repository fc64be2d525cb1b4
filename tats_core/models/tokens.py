"""From pixels to tokens and back: the token grid, cube embedding, fixed positions.

Axes: B clips, C=3 channels, T frames, H W pixels, F temporal slices, S patches a slice, N=F*S tokens,
P=3*t*p*p pixel values a token, D width.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from tats_core.specs import Size, StrictModel, sides


class ClipConfig(StrictModel):
    """The clip that a model sees, and how it is cut into tokens; the defaults are VideoMAE's."""

    frames: int = Field(16, ge=1, description="T, frames a clip")
    size: Size = Field(224, description="H = W, pixels; or a list of H and W")
    tubelet: int = Field(2, ge=1, description="t, frames a token")
    patch: int = Field(16, ge=1, description="p, pixels a token's side")

    @model_validator(mode="after")
    def _divides(self) -> ClipConfig:
        if self.frames % self.tubelet:
            raise ValueError(f"frames ({self.frames}) must be a multiple of tubelet ({self.tubelet})")
        for side in sides(self.size):
            if side % self.patch:
                raise ValueError(f"size ({side}) must be a multiple of patch ({self.patch})")
        return self

    @property
    def height(self) -> int:
        return sides(self.size)[0]

    @property
    def width(self) -> int:
        return sides(self.size)[1]

    @property
    def slices(self) -> int:
        """F, temporal slices."""
        return self.frames // self.tubelet

    @property
    def rows(self) -> int:
        """Patches from top to bottom of a slice; S = rows * columns."""
        return self.height // self.patch

    @property
    def columns(self) -> int:
        """Patches from left to right of a slice."""
        return self.width // self.patch

    @property
    def tokens(self) -> int:
        """N = F * S."""
        return self.slices * self.rows * self.columns

    @property
    def pixels(self) -> int:
        return self.tubelet * self.patch**2 * 3


def patchify(video_BCTHW: Tensor, clip: ClipConfig) -> Tensor:
    """Cut clips into tokens of pixels `[B, N, P]`; P is ordered (c, t, p, p), as in a convolution's kernel.

    VideoMAE's order is (t, p, p, c). Ours copies whole rows of p pixels, fits the embedding's weight as it
    is, and has each channel's values side by side for the target's mean and deviation; `hugging_face`
    reorders the rows of VideoMAE's prediction head.
    """
    b, c = video_BCTHW.shape[:2]
    t, p, f, rows, columns = clip.tubelet, clip.patch, clip.slices, clip.rows, clip.columns
    cut = video_BCTHW.reshape(b, c, f, t, rows, p, columns, p)
    return cut.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(b, f * rows * columns, c * t * p * p)


def unpatchify(patches_BNP: Tensor, clip: ClipConfig) -> Tensor:
    """Undo `patchify`: `[B, N, P]` to `[B, 3, T, H, W]`."""
    b = patches_BNP.shape[0]
    t, p, f, rows, columns = clip.tubelet, clip.patch, clip.slices, clip.rows, clip.columns
    cut = patches_BNP.reshape(b, f, rows, columns, 3, t, p, p)
    return cut.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(b, 3, f * t, rows * p, columns * p)


def per_token(values_BTHW: Tensor, clip: ClipConfig) -> Tensor:
    """Mean of a pixel map over each token's cube: `[B, T, H, W]` to `[B, N]`."""
    return patchify(values_BTHW.unsqueeze(1), clip).mean(-1)


class CubeEmbedding(nn.Module):
    """Linear embedding of each token's pixels; its weight has Conv3d's shape `[D, 3, t, p, p]`.

    A 3-D convolution with kernel = stride is this matrix product, which is several times faster on a CPU
    and can be applied to the visible tokens alone. The shape is kept so that VideoMAE's weights load, and so
    are PyTorch's first weights of a convolution, which VideoMAE leaves as they are: weights and biases
    uniform in +-1 / sqrt(P). (The image MAE and timm draw Xavier's here, which is wider.)
    """

    def __init__(self, clip: ClipConfig, width: int) -> None:
        super().__init__()
        convolution = nn.Conv3d(3, width, (clip.tubelet, clip.patch, clip.patch))
        self.weight, self.bias = convolution.weight, convolution.bias

    def forward(self, patches_BMP: Tensor) -> Tensor:
        """Embed any choice of tokens: `[B, M, P]` to `[B, M, D]`."""
        return functional.linear(patches_BMP, self.weight.flatten(1), self.bias)


def _sine_cosine(coordinates: Tensor, width: int) -> Tensor:
    """Sine-cosine code of `coordinates`, interleaved sin, cos as in VideoMAE: `[coordinates, width]`."""
    exponent = 2 * torch.div(torch.arange(width), 2, rounding_mode="floor").double() / width
    angle = coordinates.double()[:, None] / torch.pow(torch.tensor(10000.0, dtype=torch.float64), exponent)
    code = torch.empty_like(angle)
    code[:, 0::2], code[:, 1::2] = angle[:, 0::2].sin(), angle[:, 1::2].cos()
    return code


def positions(clip: ClipConfig, width: int, kind: Literal["separable", "joint"]) -> Tensor:
    """Fixed sine-cosine positions `[N, D]`.

    `joint` is VideoMAE's table: one code over the token's number 0..N-1. `separable` joins codes of slice,
    row and column, so tokens at the same position in two slices share most of their code.
    """
    if kind == "joint":
        return _sine_cosine(torch.arange(clip.tokens), width).float()
    space = 2 * (width // 6)
    time = width - 2 * space
    slices, rows, columns = torch.meshgrid(
        torch.arange(clip.slices), torch.arange(clip.rows), torch.arange(clip.columns), indexing="ij"
    )
    # 16 slices or patches span what thousands of tokens do in the joint table: spread them alike.
    scale = math.sqrt(width)
    codes = [
        _sine_cosine(coordinates.flatten() * scale / max(count, 1), part)
        for coordinates, count, part in (
            (slices, clip.slices, time),
            (rows, clip.rows, space),
            (columns, clip.columns, space),
        )
    ]
    return torch.cat(codes, 1).float()

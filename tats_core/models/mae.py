"""The video masked autoencoder (VideoMAE, arXiv 2203.12602): encode what is visible, predict the rest.

Axes: B clips, N tokens, K visible and M masked ones, P pixel values a token, D encoder and E decoder width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tats_core.models.tokens import ClipConfig, positions
from tats_core.models.vit import VideoViT, ViTConfig, blocks, initialise, start_blocks, take
from tats_core.specs import StrictModel


class MAEConfig(StrictModel):
    """Decoder and target; the defaults are VideoMAE's for ViT-B."""

    decoder_width: int = Field(384, ge=8, description="E")
    decoder_depth: int = Field(4, ge=1, description="decoder blocks")
    decoder_heads: int = Field(6, ge=1, description="decoder attention heads")
    global_token: bool = Field(
        False,
        description="mask tokens also carry the mean of the encoded tokens, so that the pooled features that "
        "fine-tuning and probes use must describe the clip (RetroMAE's bottleneck, arXiv 2205.12035)",
    )
    decoded_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="part of the masked tokens that is decoded (VideoMAE V2's idea)",
    )
    target: Literal["normalized", "floored", "pixel"] = Field(
        "normalized",
        description="normalized: each token's pixels per channel to mean 0, deviation 1 (VideoMAE); floored: "
        "the same with the deviation not below target_floor, so that flat tokens are not all noise; "
        "pixel: as the encoder sees them, in units of ImageNet's deviation",
    )
    motion_weight: float = Field(
        1.0,
        ge=1,
        description="weight of the part of the error that changes within a tubelet (1: plain mean squared "
        "error); more makes motion worth more than appearance, which fills most of a clip",
    )
    target_floor: float = Field(0.1, gt=0, description="smallest deviation (of [0,1] pixels) for `floored`")


@dataclass(frozen=True)
class Reconstruction:
    """What the decoder predicted for the masked tokens, in the target's space."""

    prediction_BMP: Tensor
    target_BMP: Tensor
    mean_BMP: Tensor
    """Subtracted from the pixels to get the target (broadcastable)."""
    scale_BMP: Tensor
    """The pixels were divided by it (broadcastable)."""
    tubelet: int
    motion_weight: float = 1.0

    @property
    def error_BM(self) -> Tensor:
        """Mean squared error of each masked token in the target's space: the MAE's loss is its mean.

        A token's error is the sum of two orthogonal parts, of its mean over the tubelet's frames and of
        what changes between them; `motion_weight` multiplies the second.
        """
        difference_BMP: Tensor = self.prediction_BMP.float() - self.target_BMP
        error_BM: Tensor = difference_BMP.square().mean(-1)
        if self.motion_weight == 1:
            return error_BM
        b, m, p = difference_BMP.shape
        frames_BMTQ = difference_BMP.view(b, m, self.tubelet, p // self.tubelet)
        change_BMTQ = frames_BMTQ - frames_BMTQ.mean(2, keepdim=True)
        return error_BM + (self.motion_weight - 1) * change_BMTQ.square().mean((2, 3))

    @property
    def pixel_error_BM(self) -> Tensor:
        """Mean squared error of each masked token in pixels: what a viewer would see as wrong."""
        return ((self.prediction_BMP.float() - self.target_BMP) * self.scale_BMP).square().mean(-1)


class VideoMAE(nn.Module):
    """Encoder over the K visible tokens, decoder over all N, prediction of the M masked ones."""

    decoder_position_NE: Tensor

    def __init__(self, vit: ViTConfig, mae: MAEConfig, clip: ClipConfig) -> None:
        super().__init__()
        self.config, self.clip = mae, clip
        width = mae.decoder_width
        self.encoder = VideoViT(vit, clip)
        self.to_decoder = nn.Linear(vit.width, width, bias=False)
        self.global_to_decoder = nn.Linear(vit.width, width) if mae.global_token else None
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("decoder_position_NE", positions(clip, width, vit.positions), persistent=False)
        self.decoder = blocks(width, mae.decoder_depth, mae.decoder_heads, vit.mlp_ratio, 0.0)
        self.decoder_norm = nn.LayerNorm(width, eps=1e-6)
        self.to_pixels = nn.Linear(width, clip.pixels)
        start_blocks(self.decoder, vit)
        for module in (self.to_decoder, self.to_pixels):
            module.apply(initialise)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, patches_BNP: Tensor, visible_BK: Tensor, masked_BM: Tensor) -> Reconstruction:
        """Predict `masked_BM` from `visible_BK`; `patches_BNP` are normalised pixels cut by `patchify`.

        The decoder may be asked for a part of the masked tokens (VideoMAE V2's decoder masking).
        """
        encoded_BKD = self.encoder(patches_BNP, visible_BK)
        decoded_BME = self.decode(encoded_BKD, visible_BK, masked_BM)
        prediction_BMP = self.to_pixels(self.decoder_norm(decoded_BME))
        target_BMP, mean_BMP, scale_BMP = self.target(take(patches_BNP, masked_BM))
        return Reconstruction(
            prediction_BMP, target_BMP, mean_BMP, scale_BMP, self.clip.tubelet, self.config.motion_weight
        )

    def decode(self, encoded_BKD: Tensor, visible_BK: Tensor, masked_BM: Tensor) -> Tensor:
        """Run the decoder over visible and masked tokens; return the masked ones `[B, M, E]`."""
        visible_BKE = self.to_decoder(encoded_BKD) + self.decoder_position_NE[visible_BK]
        masked_BME = self.mask_token + self.decoder_position_NE[masked_BM]
        if self.global_to_decoder is not None:
            masked_BME = masked_BME + self.global_to_decoder(encoded_BKD.mean(1, keepdim=True))
        tokens_BNE = torch.cat([visible_BKE, masked_BME.to(visible_BKE.dtype)], 1)
        for block in self.decoder:
            tokens_BNE = block(tokens_BNE)
        return tokens_BNE[:, visible_BK.shape[1] :]

    def target(self, patches_BMP: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return target, mean and scale (to get back to pixels in [0, 1]) of tokens, each `[B, M, P]`."""
        if self.config.target == "pixel":
            mean_P, deviation_P = _imagenet(patches_BMP)
            return patches_BMP, mean_P.expand_as(patches_BMP), deviation_P.expand_as(patches_BMP)
        # P is ordered (t, p, p, c): the statistics are per channel, over the token's t*p*p pixels.
        b, m, p = patches_BMP.shape
        pixels_BMQC = raw_pixels(patches_BMP).view(b, m, p // 3, 3)
        mean_BM1C = pixels_BMQC.mean(2, keepdim=True)
        scale_BM1C = (pixels_BMQC.var(2, keepdim=True) + 1e-12).sqrt() + 1e-6
        if self.config.target == "floored":
            scale_BM1C = scale_BM1C.clamp_min(self.config.target_floor)
        target_BMP = ((pixels_BMQC - mean_BM1C) / scale_BM1C).flatten(2)
        mean_BMP, scale_BMP = (x.expand_as(pixels_BMQC).flatten(2) for x in (mean_BM1C, scale_BM1C))
        return target_BMP, mean_BMP, scale_BMP


def raw_pixels(patches_BMP: Tensor) -> Tensor:
    """Undo ImageNet's normalisation of the videos: tokens of pixels in [0, 1]."""
    mean_P, deviation_P = _imagenet(patches_BMP)
    return patches_BMP * deviation_P + mean_P


def _imagenet(patches_BMP: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation that the videos were normalised with, for pixels ordered (t, p, p, c): `[P]`."""
    pixels = patches_BMP.shape[-1] // 3
    mean_P = patches_BMP.new_tensor((0.485, 0.456, 0.406)).repeat(pixels)
    return mean_P, patches_BMP.new_tensor((0.229, 0.224, 0.225)).repeat(pixels)

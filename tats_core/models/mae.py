"""The video masked autoencoder (VideoMAE, arXiv 2203.12602): encode what is visible, predict the rest.

Axes: B clips, N tokens, K visible and M masked ones, P pixel values a token, C=3 channels and Q=P/C values of
each, D encoder and E decoder width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tats_core import imagenet
from tats_core.models.tokens import ClipConfig, positions
from tats_core.models.vit import VideoViT, ViTConfig, blocks, initialise, initialise_blocks, run_blocks, take
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

    def decoded(self, masked: int) -> int:
        """Return how many of a clip's masked tokens are decoded."""
        return max(1, round(self.decoded_share * masked))

    @model_validator(mode="after")
    def _heads_divide_width(self) -> MAEConfig:
        if self.decoder_width % self.decoder_heads:
            raise ValueError(
                f"decoder_width ({self.decoder_width}) must be a multiple of decoder_heads "
                f"({self.decoder_heads})"
            )
        return self


@dataclass(frozen=True)
class Reconstruction:
    """What the decoder predicted for the masked tokens, in the target's space."""

    prediction_BMP: Tensor
    target_BMP: Tensor
    mean_BMC: Tensor
    scale_BMC: Tensor
    """With the mean, they lead from the target's space to pixels of [0, 1]."""
    tubelet: int
    motion_weight: float = 1.0

    @property
    def error_BM(self) -> Tensor:
        """Mean squared error of each masked token in the target's space: the MAE's loss is its mean.

        A token's error is the sum of two orthogonal parts, of its mean over the tubelet's frames and of
        what changes between them; `motion_weight` multiplies the second.
        """
        error_BM: Tensor = _SquaredError.apply(self.prediction_BMP.float(), self.target_BMP)
        if self.motion_weight == 1:
            return error_BM
        difference_BMP = self.prediction_BMP.float() - self.target_BMP
        b, m, _ = difference_BMP.shape
        frames_BMCTX = difference_BMP.view(b, m, 3, self.tubelet, -1)
        change_BMCTX = frames_BMCTX - frames_BMCTX.mean(3, keepdim=True)
        extra_BM: Tensor = change_BMCTX.square().mean((2, 3, 4))
        return error_BM + (self.motion_weight - 1) * extra_BM

    @property
    def pixels_BMP(self) -> Tensor:
        """The prediction as pixels that the encoder sees, without gradients."""
        mean_C, deviation_C = _moments(self.mean_BMC)
        pixels = self.prediction_BMP.shape[-1]
        factor_BMP = per_pixel(self.scale_BMC / deviation_C, pixels)
        return self.prediction_BMP.detach().float() * factor_BMP + per_pixel(
            (self.mean_BMC - mean_C) / deviation_C, pixels
        )


class _SquaredError(torch.autograd.Function):
    """Mean squared error of each token: prediction and target `[B, M, P]` to `[B, M]`.

    At ViT-B these are the largest tensors of a step. Autograd (difference, square, mean, and back) would
    allocate and pass over five tensors of this size; here it is one.
    """

    @staticmethod
    def forward(ctx: Any, prediction_BMP: Tensor, target_BMP: Tensor) -> Tensor:
        difference_XP = (prediction_BMP - target_BMP).flatten(0, 1)
        ctx.save_for_backward(difference_XP)
        squares_X = torch.bmm(difference_XP.unsqueeze(1), difference_XP.unsqueeze(2))
        return squares_X.view(prediction_BMP.shape[:2]) / difference_XP.shape[1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BM: Tensor) -> tuple[Tensor, None]:
        (difference_XP,) = ctx.saved_tensors
        factor_X1 = grad_BM.reshape(-1, 1) * (2 / difference_XP.shape[1])
        # In place: nothing else reads it, and torch refuses a second backward, since its version has changed.
        return difference_XP.mul_(factor_X1).view(*grad_BM.shape, -1), None


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
        # VideoMAE's first weights: Xavier's inside encoder and decoder, which `to_pixels` is a part of;
        # PyTorch's own for `to_decoder`; a mask token cut at one deviation, so that .0108 of .02 remain.
        initialise_blocks(self.decoder, vit)
        initialise(self.to_pixels)
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)

    def tokenize(self, patches_BNP: Tensor, positions: bool = True) -> Tensor:
        return self.encoder.tokenize(patches_BNP, positions)

    def forward(self, patches_BNP: Tensor, visible_BK: Tensor, masked_BM: Tensor) -> Reconstruction:
        """Predict `masked_BM` from `visible_BK`; `patches_BNP` are normalised pixels cut by `patchify`.

        The decoder may be asked for a part of the masked tokens (VideoMAE V2's decoder masking).
        """
        encoded_BKD = self.encoder(patches_BNP, visible_BK)
        decoded_BME = self.decode(encoded_BKD, visible_BK, masked_BM)
        prediction_BMP = self.to_pixels(self.decoder_norm(decoded_BME))
        target = self.target(take(patches_BNP, masked_BM))
        return Reconstruction(prediction_BMP, *target, self.clip.tubelet, self.config.motion_weight)

    def decode(self, encoded_BKD: Tensor, visible_BK: Tensor, masked_BM: Tensor) -> Tensor:
        """Run the decoder over visible and masked tokens; return the masked ones `[B, M, E]`."""
        visible_BKE = self.to_decoder(encoded_BKD) + self.decoder_position_NE[visible_BK]
        masked_BME = self.mask_token + self.decoder_position_NE[masked_BM]
        if self.global_to_decoder is not None:
            masked_BME = masked_BME + self.global_to_decoder(encoded_BKD.mean(1, keepdim=True))
        tokens_BNE = torch.cat([visible_BKE, masked_BME.to(visible_BKE.dtype)], 1)
        # With all N tokens in it, the decoder holds most of a step's memory.
        recompute = self.encoder.config.gradient_checkpointing and self.training
        return run_blocks(self.decoder, tokens_BNE, recompute)[:, visible_BK.shape[1] :]

    def target(self, patches_BMP: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the target `[B, M, P]` of tokens; mean and scale `[B, M, C]` lead back to [0, 1]."""
        mean_C, deviation_C = _moments(patches_BMP)
        if self.config.target == "pixel":
            token_BMC = (*patches_BMP.shape[:2], 3)
            return patches_BMP, mean_C.expand(token_BMC), deviation_C.expand(token_BMC)
        pixels_BMCQ = patches_BMP.view(*patches_BMP.shape[:2], 3, -1)
        # The scale is in [0, 1]; statistics of the normalised pixels need no copy of them in [0, 1].
        centre_BMC = pixels_BMCQ.mean(-1)
        target_BMCQ = pixels_BMCQ - centre_BMC.unsqueeze(-1)
        # On a CPU, `torch.var_mean` takes many times as long.
        variance_BMC = target_BMCQ.square().sum(-1) / (pixels_BMCQ.shape[-1] - 1)
        scale_BMC = (variance_BMC * deviation_C.square() + 1e-12).sqrt() + 1e-6
        if self.config.target == "floored":
            scale_BMC = scale_BMC.clamp_min(self.config.target_floor)
        target_BMCQ.mul_((deviation_C / scale_BMC).unsqueeze(-1))
        return target_BMCQ.flatten(2), centre_BMC * deviation_C + mean_C, scale_BMC


def _moments(like: Tensor) -> tuple[Tensor, Tensor]:
    mean_C, deviation_C = (
        imagenet.vector(values, like.device, like.dtype) for values in (imagenet.MEAN, imagenet.STD)
    )
    return mean_C, deviation_C


def per_pixel(values_XC: Tensor, pixels: int) -> Tensor:
    """Repeat a value of each channel for all pixels of a token: `[..., C]` to `[..., P]`."""
    return values_XC.repeat_interleave(pixels // 3, -1)

"""What a masked token earns the sampler by its reconstruction.

Only the reconstruction and the clip's pixels enter: no optical flow, no ground truth, no labels. All pixels
are those that the encoder sees, in units of ImageNet's deviation, whatever the autoencoder's target is.

Axes: B clips, N=F*S tokens in F temporal slices of S patches, M decoded masked tokens, P=C*T*Q pixel values
a token: C=3 channels, T frames of its tubelet, Q pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor
from torch.nn import functional

RewardKind = Literal["pixel", "normalized", "dynamic", "motion"]
RewardScale = Literal["global", "clip", "rank", "top"]


@dataclass(frozen=True)
class Outcome:
    """What the autoencoder made of a draw, without gradients."""

    patches_BNP: Tensor
    prediction_BMP: Tensor
    """Of the decoded tokens, in the units of `patches_BNP`."""
    loss_BM: Tensor
    """The autoencoder's loss of each decoded token."""
    masked_BM: Tensor
    slices: int
    tubelet: int

    @property
    def index_BMP(self) -> Tensor:
        """The token of each predicted value."""
        return self.masked_BM.unsqueeze(-1).expand_as(self.prediction_BMP)

    @property
    def difference_BMP(self) -> Tensor:
        """Prediction minus pixels."""
        return self.prediction_BMP - self.patches_BNP.gather(1, self.index_BMP)

    def by_frame(self, values_BNP: Tensor) -> Tensor:
        """View a value of each pixel by slice, patch, channel and frame: `[B, F, S, C, T, Q]`."""
        values_BFSP = values_BNP.unflatten(1, (self.slices, -1))  # type: ignore[no-untyped-call]
        values_BFSCTQ: Tensor = values_BFSP.unflatten(-1, (3, self.tubelet, -1))
        return values_BFSCTQ

    def masked(self, values_BN: Tensor) -> Tensor:
        """Pick the decoded tokens' values: `[B, M]`."""
        return values_BN.gather(1, self.masked_BM)

    def contrast(self, floor: float) -> Tensor:
        """Variance over space within a token's frames, channels alike, plus `floor^2`: `[B, N]`."""
        return variance(self.by_frame(self.patches_BNP)).mean((3, 4)).flatten(1) + floor**2

    def change(self) -> Tensor:
        """Mean squared difference of a token's frames to the next frame at the same place: `[B, N]`.

        The last frame of the clip repeats the difference of the one before.
        """
        line_BSCXQ = self.by_frame(self.patches_BNP).permute(0, 2, 3, 1, 4, 5).flatten(3, 4)
        step_BSX = (line_BSCXQ[:, :, :, 1:] - line_BSCXQ[:, :, :, :-1]).square().mean((2, 4))
        step_BSX = torch.cat([step_BSX, step_BSX[:, :, -1:]], 2)
        return step_BSX.unfold(2, self.tubelet, self.tubelet).mean(3).transpose(1, 2).flatten(1)


def variance(values_X: Tensor) -> Tensor:
    """Variance over the last axis; on a CPU in a fraction of the time that `Tensor.var` takes."""
    return (values_X - values_X.mean(-1, keepdim=True)).square().mean(-1)


def pixel(outcome: Outcome, floor: float) -> Tensor:
    """Mean squared error of a token's pixels, `[B, M]`: what a viewer would see as wrong.

    While the decoder still predicts one mean colour, it is how far a token lies from that colour: the
    policy goes to what is bright. `floor` is not used.
    """
    return outcome.difference_BMP.square().mean(-1)


def normalized(outcome: Outcome, floor: float) -> Tensor:
    """Error over the token's variance over space, `[B, M]`: `e / (var + floor^2)`.

    It is the share of the token's pattern that the prediction left unexplained: an error in proportion to
    contrast, which any token has, drops out, and the floor keeps flat noise from being as hard as motion.
    e is the variance of prediction - target within each channel of the token: an error of its mean colour,
    which targets without a mean do not have, would count most where the token is flat.
    """
    return _unexplained(outcome, outcome.contrast(floor))


def _unexplained(outcome: Outcome, contrast_BN: Tensor) -> Tensor:
    difference_BMCX = outcome.difference_BMP.unflatten(-1, (3, -1))  # type: ignore[no-untyped-call]
    return variance(difference_BMCX).mean(-1) / outcome.masked(contrast_BN)


def dynamic(outcome: Outcome, floor: float) -> Tensor:
    """Mean squared error of what changes, `[B, M]`: of target and prediction minus their means over time.

    The mean is that of each pixel of the frame over all slices, tokens that were visible (or not decoded)
    as they are. With d = prediction - target, zero at those, `(p - mean p) - (y - mean y) = d - mean d`:
    an error that is the same in all slices, as of a texture that stands still, earns nothing. The error of
    a moving edge still grows with its contrast. `floor` is not used.
    """
    zero_BNP = torch.zeros_like(outcome.patches_BNP)
    difference_BNP = zero_BNP.scatter(1, outcome.index_BMP, outcome.difference_BMP)
    difference_BFSCTQ = outcome.by_frame(difference_BNP)
    moving_BFSCTQ = difference_BFSCTQ - difference_BFSCTQ.mean((1, 4), keepdim=True)
    return outcome.masked(moving_BFSCTQ.square().mean((3, 4, 5)).flatten(1))


def motion(outcome: Outcome, floor: float) -> Tensor:
    """Unexplained share times motion, `[B, M]`: `e / (var + floor^2) * d / (var + floor^2)`.

    A pattern I that moves by u changes by `dI/dt = -u . grad I` (the brightness constancy of optical flow),
    so d, its mean squared change to the next frame, is about `|u|^2 |grad I|^2`. Its quotient by the
    variance over space grows with the speed and not with the contrast, and the floor keeps the noise of flat
    tokens from having a speed. The first factor (`normalized`) makes it what is *hard* about motion: what
    the visible tokens already explain earns little.
    """
    contrast_BN = outcome.contrast(floor)
    return _unexplained(outcome, contrast_BN) * outcome.masked(outcome.change() / contrast_BN)


REWARDS: Final[dict[RewardKind, Callable[[Outcome, float], Tensor]]] = {
    "pixel": pixel,
    "normalized": normalized,
    "dynamic": dynamic,
    "motion": motion,
}


def _places(values_BX: Tensor, weight_BX: Tensor) -> tuple[Tensor, Tensor]:
    """The weight of the values of the same row that are below each one, and of those that equal it."""
    sorted_BX, order_BX = values_BX.sort(1)
    total_BX = functional.pad(weight_BX.gather(1, order_BX).cumsum(1), (1, 0))
    values_BX = values_BX.contiguous()
    below_BX = total_BX.gather(1, torch.searchsorted(sorted_BX, values_BX))
    return below_BX, total_BX.gather(1, torch.searchsorted(sorted_BX, values_BX, right=True)) - below_BX


def ranks(values_BX: Tensor, weight_BX: Tensor) -> Tensor:
    """The weight that lies below each value in its row; equal values share the mean of their places."""
    below_BX, equal_BX = _places(values_BX, weight_BX)
    return below_BX + equal_BX / 2


def top(values_BX: Tensor, share: float, weight_BX: Tensor) -> Tensor:
    """1 for the highest values that make up `share` of a row's weight, 0 for others.

    What straddles the edge gets a part: one token, or all that are equal where little moves in a clip.
    """
    below_BX, equal_BX = _places(values_BX, weight_BX)
    edge_B1 = (1 - share) * weight_BX.sum(1, keepdim=True)
    return ((below_BX + equal_BX - edge_B1) / equal_BX).clamp(0, 1)


def within_clips(values_BX: Tensor, weight_BX: Tensor) -> Tensor:
    """Bring each row to weighted mean 0 and deviation 1; a row of equal values becomes 0."""
    share_BX = weight_BX / weight_BX.sum(1, keepdim=True)
    values_BX = values_BX - values_BX[:, :1]  # then a mean of equal values is exact
    centred_BX = values_BX - (share_BX * values_BX).sum(1, keepdim=True)
    deviation_B1 = (share_BX * centred_BX.square()).sum(1, keepdim=True).sqrt()
    return centred_BX / deviation_B1.clamp_min(1e-8)

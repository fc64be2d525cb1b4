"""How much each token of a clip moves, for clips of any video: yardsticks of a policy, never its reward.

Axes: B clips, C=3 channels, T frames, H W pixels, N tokens.
"""

from __future__ import annotations

from importlib.util import find_spec
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from tats_core.models.tokens import ClipConfig, patchify
from tats_core.sampling.reward import ranks

_LEAST = 16
"""Pixels of a side that optical flow can be computed of."""

NO_FLOW = "no flow lift is measured: optical flow needs OpenCV (pip install 'tats-core[flow]')"


def pixel_motion(video_BCTHW: Tensor) -> Tensor:
    """Mean absolute temporal difference of each pixel, `[B, T, H, W]`; the first frame repeats the next.

    It grows with contrast, and a moving camera moves everything. A single frame has none.
    """
    if video_BCTHW.shape[2] == 1:
        return torch.zeros_like(video_BCTHW[:, 0])
    change_BTHW = (video_BCTHW[:, :, 1:] - video_BCTHW[:, :, :-1]).abs().mean(1)
    return torch.cat([change_BTHW[:, :1], change_BTHW], 1)


def has_flow() -> bool:
    """Whether OpenCV is installed (the extra `flow`)."""
    return find_spec("cv2") is not None


def flow_motion(video_BCTHW: Tensor) -> Tensor:
    """Length of the optical flow from the frame before, the camera taken out, in pixels: `[B, T, H, W]`.

    Dense inverse search (DIS, arXiv 1603.03590) between grey frames of uint8 clips, minus the frame's median
    flow, which is what a camera that pans leaves everywhere. The first frame repeats the next; a single frame
    has no flow.
    """
    import cv2

    B, _, T, H, W = video_BCTHW.shape
    if T == 1:
        return torch.zeros(B, T, H, W)

    cv2.setNumThreads(1)  # its parts of a frame, and so its bits, would depend on the number of threads
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    clips = []
    for video_THWC in video_BCTHW.permute(0, 2, 3, 4, 1).cpu().numpy():
        grey = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in video_THWC]
        # The search needs a few of its patches; an edge that is repeated moves as the frame does.
        below, beside = max(0, _LEAST - H), max(0, _LEAST - W)
        grey = [cv2.copyMakeBorder(frame, 0, below, 0, beside, cv2.BORDER_REPLICATE) for frame in grey]
        lengths = []
        for before, after in pairwise(grey):
            flow_HW2 = flow.calc(before, after, np.zeros((*before.shape, 2), np.float32))[:H, :W]
            flow_HW2 = flow_HW2 - np.median(flow_HW2, axis=(0, 1))
            lengths.append(np.hypot(flow_HW2[..., 0], flow_HW2[..., 1]))
        clips.append(np.stack([lengths[0], *lengths]))
    return torch.from_numpy(np.stack(clips))


def brightness(video_BCTHW: Tensor, clip: ClipConfig) -> Tensor:
    """Mean pixel of each token: `[B, N]`."""
    return patchify(video_BCTHW, clip).mean(-1)


def contrast(video_BCTHW: Tensor, clip: ClipConfig) -> Tensor:
    """Deviation over space within each token's frames and channels, their mean: `[B, N]`."""
    pixels_BNXQ = patchify(video_BCTHW, clip).unflatten(-1, (3 * clip.tubelet, -1))  # type: ignore[no-untyped-call]
    deviation_BN: Tensor = pixels_BNXQ.std(-1, correction=0).mean(-1)
    return deviation_BN


def lift(chosen_B: Tensor, mean_B: Tensor) -> float:
    """Return the mean over clips of motion of the chosen tokens over motion of all: 1 for a blind choice.

    Clips in which next to nothing moves, less than a fifth of the median clip, do not count: their quotient
    is noise. Where nothing moves in any clip, every choice is blind.
    """
    moves_B = (mean_B > 0) & (mean_B >= 0.2 * mean_B.median())
    return float((chosen_B[moves_B] / mean_B[moves_B]).mean()) if moves_B.any() else 1.0


def share_of_oracle(lift: float, oracle: float) -> float:
    """Return how much of what the best choice gains over a blind one was gained: `(lift - 1) / (oracle - 1)`.

    0 where the best choice gains nothing.
    """
    return (lift - 1) / (oracle - 1) if oracle > 1 else 0.0


def rank_correlation(first_BN: Tensor, second_BN: Tensor) -> Tensor:
    """Spearman's rank correlation within each clip, `[B]`; 0 where all tokens have the same value."""
    one_BN = torch.ones_like(first_BN, dtype=torch.float64)
    mean = first_BN.shape[1] / 2
    centred = [ranks(values_BN.double(), one_BN) - mean for values_BN in (first_BN, second_BN)]
    length_B = centred[0].norm(dim=1) * centred[1].norm(dim=1)
    correlation_B: Tensor = (centred[0] * centred[1]).sum(1) / length_B.clamp_min(1e-12)
    return correlation_B

"""What a sampler shows of clips and the autoencoder makes of them, as pictures on disk.

Axes: B clips, C=3 channels, T frames, H W pixels, N tokens, K visible and M masked ones, P pixel values a
token.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tats_core.data import transforms
from tats_core.models.mae import VideoMAE, per_pixel
from tats_core.models.tokens import patchify, unpatchify
from tats_core.models.vit import take
from tats_core.report import masks
from tats_core.report.masks import Picture
from tats_core.sampling import Sampler
from tats_core.training.motion import flow_motion, has_flow, pixel_motion

_FLOW = ("optical flow, pixels", "without the camera's")
_CHANGE = ("change of the pixels,", "of 255")


def reconstructions(
    mae: VideoMAE,
    sampler: Sampler,
    video_BCTHW: Tensor,
    generator: torch.Generator,
) -> list[Picture]:
    """Return what the sampler selects and the MAE predicts, for each clip of `video_BCTHW` (normalised).

    The MAE may predict in units of each token's own mean and deviation, which it does not know of masked
    tokens. The mean and deviation over the clip's *visible* tokens replace them, so that nothing leaks.
    """
    clip = mae.clip
    patches_BNP = patchify(video_BCTHW, clip)
    rollout = sampler.act(mae.encoder.tokenize(patches_BNP, sampler.sees_positions), generator)
    reconstruction = mae(patches_BNP, rollout.visible_BK, rollout.masked_BM)
    _, *seen = mae.target(take(patches_BNP, rollout.visible_BK))
    mean_BXC, scale_BXC = (x_BKC.mean(1, keepdim=True) for x_BKC in seen)
    scale_BXP, mean_BXP = (per_pixel(x_BXC, clip.pixels) for x_BXC in (scale_BXC, mean_BXC))
    guess_BMP = reconstruction.prediction_BMP * scale_BXP + mean_BXP
    true_BNP = patchify(transforms.to_display(video_BCTHW), clip)
    index_BMP = rollout.masked_BM.unsqueeze(-1).expand_as(guess_BMP)
    prediction_BNP = true_BNP.scatter(1, index_BMP, guess_BMP.clamp(0, 1))
    error_BN = (prediction_BNP - true_BNP).abs().mean(-1).masked_fill(rollout.visible_BN, torch.nan)
    maps = {"visible_THW": rollout.visible_BN, "error_THW": error_BN}
    frames_BCTHW = (transforms.to_display(video_BCTHW) * 255).round().to(torch.uint8)
    motion_BTHW = flow_motion(frames_BCTHW) if has_flow() else pixel_motion(frames_BCTHW.float())
    if rollout.policy is not None:
        maps["policy_THW"] = rollout.policy.log_probs_BN.exp() * rollout.tokens
        if rollout.policy.value_BN is not None:
            maps["value_THW"] = rollout.policy.value_BN
    grid = (-1, clip.slices, clip.rows, clip.columns)
    drawn = {name: values_BN.view(grid).cpu().numpy() for name, values_BN in maps.items()}
    prediction_BTHWC = unpatchify(prediction_BNP, clip).permute(0, 2, 3, 4, 1).cpu().numpy()
    return [
        Picture(
            frames_THWC=frames_BCTHW[clip_index].permute(1, 2, 3, 0).cpu().numpy(),
            prediction_THWC=prediction_BTHWC[clip_index],
            motion_THW=motion_BTHW[clip_index].cpu().numpy(),
            motion_remarks=_FLOW if has_flow() else _CHANGE,
            **{name: values_BTHW[clip_index] for name, values_BTHW in drawn.items()},
        )
        for clip_index in range(len(video_BCTHW))
    ]


def write(mae: VideoMAE, picture: Picture, base: Path, title: str) -> tuple[Path, Path]:
    """Write the picture as a grid and as an animation; return their files, `<base>.png` and `<base>.gif`."""
    by_pixel = mae.config.target == "pixel"
    painted = "as predicted" if by_pixel else "with the mean and deviation of the visible ones"
    remark = f"masked tokens are painted {painted}"
    base.parent.mkdir(parents=True, exist_ok=True)
    grid, animation = (base.with_name(f"{base.name}.{suffix}") for suffix in ("png", "gif"))
    masks.mask_grid(picture, title=title, remark=remark).save(grid)
    masks.mask_gif(picture, animation, title=title, remark=remark)
    return grid, animation

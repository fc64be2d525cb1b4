"""What the loss does not tell: do the features carry anything, and does the sampler look at motion?

A small pre-training can lower its loss while its features collapse to one colour, so these figures are
taken on held-out clips every few epochs.

Axes: B clips, C=3 channels, T frames, H W pixels, N tokens, K visible and M masked ones, P pixel values a
token, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tats_core.models.mae import VideoMAE, per_pixel, raw_pixels
from tats_core.models.tokens import patchify, per_token, unpatchify
from tats_core.models.vit import take
from tats_core.report import figures
from tats_core.sampling import Sampler
from tats_core.sampling.fixed import RandomSampler
from tats_core.training import metrics
from tats_core.training.events import EventLog
from tats_core.training.optim import evaluating
from tats_core.training.world import World

_BLIND_DRAWS = 16


@dataclass(frozen=True)
class HeldOut:
    """Clips that the model never trains on; all tensors on the CPU."""

    train_BCTHW: Tensor
    """This worker's share of labelled training clips, for the probes' training half."""
    train_label_B: Tensor
    test_BCTHW: Tensor
    """This worker's share of held-out clips."""
    test_label_B: Tensor
    motion_BTHW: Tensor | None
    """Ground truth of motion of the held-out clips, 1 where something moves; None for filmed videos."""
    classes: int


def pixel_motion(video_BCTHW: Tensor) -> Tensor:
    """Mean absolute temporal difference of each pixel, `[B, T, H, W]`; the first frame repeats the next."""
    change_BTHW = (video_BCTHW[:, :, 1:] - video_BCTHW[:, :, :-1]).abs().mean(1)
    return torch.cat([change_BTHW[:, :1], change_BTHW], 1)


class HealthCheck:
    """Figures and pictures of the model after an epoch; every worker must call it (features are gathered)."""

    def __init__(
        self, held_out: HeldOut, mask_ratio: float, world: World, events: EventLog, folder: Path, seed: int
    ) -> None:
        self.held_out, self.world, self.events, self.folder, self.seed = held_out, world, events, folder, seed
        self.mask_ratio = mask_ratio

    def __call__(self, mae: VideoMAE, sampler: Sampler, step: int) -> dict[str, float]:
        """Return the figures; rank 0 also writes a picture grid and an animation."""
        with evaluating(mae, sampler):
            figures_found = self.features(mae) | self.policy(mae, sampler)
            if self.world.is_first:
                self.pictures(mae, sampler, step)
        return figures_found

    def features(self, mae: VideoMAE) -> dict[str, float]:
        """Effective rank, variance between clips, linear and kNN probe of the mean-pooled features."""
        held = self.held_out
        train_BD = self.world.gather(self._pooled(mae, held.train_BCTHW))
        test_BD = self.world.gather(self._pooled(mae, held.test_BCTHW))
        train_label_B = self.world.gather(held.train_label_B.to(train_BD.device))
        test_label_B = self.world.gather(held.test_label_B.to(train_BD.device))
        linear_BC = metrics.ridge_probe(train_BD, train_label_B, test_BD, held.classes)
        knn_BC = metrics.knn_probe(train_BD, train_label_B, test_BD, held.classes)
        return {
            "effective_rank": metrics.effective_rank(test_BD),
            "between_clip_variance": float(test_BD.var(0).mean()),
            "linear_top1": metrics.top_k_percent(linear_BC, test_label_B, 1),
            "knn_top1": metrics.top_k_percent(knn_BC, test_label_B, 1),
            "probe_chance": 100 / held.classes,
        }

    def _pooled(self, mae: VideoMAE, video_BCTHW: Tensor) -> Tensor:
        encoder = mae.encoder
        parts = []
        for part_BCTHW in torch.split(video_BCTHW, 32):
            patches_BNP = patchify(part_BCTHW.to(self.world.device), encoder.clip)
            # Before the final norm, as the fine-tuned model pools them.
            parts.append(encoder.encode(encoder.tokenize(patches_BNP)).mean(1).float())
        return torch.cat(parts)

    def policy(self, mae: VideoMAE, sampler: Sampler) -> dict[str, float]:
        """Motion lift of the sampler and of blind drawing, entropy and coverage, on held-out clips."""
        held, device = self.held_out, self.world.device
        blind = RandomSampler(sampler.tokens, self.mask_ratio)
        generator = torch.Generator(device).manual_seed(self.seed)
        covered_N = torch.zeros(sampler.tokens, device=device)
        found: list[Tensor] = []
        for start in range(0, len(held.test_BCTHW), 32):
            part = slice(start, start + 32)
            video_BCTHW = held.test_BCTHW[part].to(device)
            tokens_BND = mae.encoder.tokenize(patchify(video_BCTHW, mae.clip))
            rollout = sampler.act(tokens_BND, generator)
            # Several draws: one has too few tokens to tell 1.0 from its own noise.
            draws = [blind.act(tokens_BND, generator).visible_BK for _ in range(_BLIND_DRAWS)]
            blind_BK = torch.cat(draws, 1)
            change_BN = per_token(pixel_motion(video_BCTHW), mae.clip)
            motion_BN = change_BN
            if held.motion_BTHW is not None:
                motion_BN = per_token(held.motion_BTHW[part].float().to(device), mae.clip)
            entropy_B = rollout.policy.entropy_B if rollout.policy is not None else None
            share_B = entropy_B / math.log(sampler.tokens) if entropy_B is not None else torch.ones(1)
            figures_found = (
                metrics.motion_lift(motion_BN, rollout.visible_BK),
                metrics.motion_lift(motion_BN, blind_BK),
                metrics.motion_lift(change_BN, rollout.visible_BK),
                float(share_B.mean()),
            )
            found.append(torch.tensor(figures_found, device=device) * len(video_BCTHW))
            covered_N += rollout.visible_BN.sum(0)
        clips = torch.tensor(float(len(held.test_BCTHW)), device=device)
        means = (self.world.sum(torch.stack(found).sum(0)) / self.world.sum(clips)).tolist()
        names = ("motion_lift", "random_lift", "pixel_motion_lift", "entropy_share")
        coverage = (self.world.sum(covered_N) > 0).float().mean()
        return dict(zip(names, means, strict=True)) | {"coverage": float(coverage)}

    def pictures(self, mae: VideoMAE, sampler: Sampler, step: int, clips: int = 4) -> None:
        """Write video, visible tokens, policy, prediction and error of the first held-out clips."""
        video_BCTHW = self.held_out.test_BCTHW[:clips].to(self.world.device)
        generator = torch.Generator(self.world.device).manual_seed(self.seed)
        title = f"step {step}: {sampler.visible} of {sampler.tokens} tokens visible"
        (self.folder / "pictures").mkdir(parents=True, exist_ok=True)
        for place, picture in enumerate(reconstructions(mae, sampler, video_BCTHW, generator)):
            name = f"pictures/masks-{step:06d}-clip{place}"
            figures.mask_grid(*picture, title=title).save(self.folder / f"{name}.png")
            figures.mask_gif(*picture, self.folder / f"{name}.gif", title=title)
            for suffix in ("png", "gif"):
                self.events.file(step, f"masks/clip{place}", f"{name}.{suffix}")


class Picture(NamedTuple):
    """One clip as the mask pictures show it; frames uint8 RGB, maps per pixel."""

    frames_THWC: NDArray[np.uint8]
    visible_THW: NDArray[Any]
    policy_THW: NDArray[Any]
    prediction_THWC: NDArray[Any]
    error_THW: NDArray[Any]


def reconstructions(
    mae: VideoMAE, sampler: Sampler, video_BCTHW: Tensor, generator: torch.Generator
) -> list[Picture]:
    """What the sampler shows and the MAE makes of it, for each clip of `video_BCTHW` (normalised).

    Leak-free: a prediction in units of each token's own mean and deviation is turned into pixels with the
    mean and deviation over the clip's *visible* tokens, which the model has seen.
    """
    clip = mae.clip
    patches_BNP = patchify(video_BCTHW, clip)
    rollout = sampler.act(mae.encoder.tokenize(patches_BNP), generator)
    found = mae(patches_BNP, rollout.visible_BK, rollout.masked_BM)
    _, *seen = mae.target(take(patches_BNP, rollout.visible_BK))
    mean_B1P, scale_B1P = (per_pixel(x_BKC.mean(1, keepdim=True), clip.pixels) for x_BKC in seen)
    true_BNP = raw_pixels(patches_BNP)
    guess_BMP = found.prediction_BMP * scale_B1P + mean_B1P
    place_BMP = rollout.masked_BM.unsqueeze(-1).expand_as(guess_BMP)
    shown_BNP = true_BNP.scatter(1, place_BMP, guess_BMP.clamp(0, 1))
    logits_BN = torch.zeros_like(true_BNP[..., 0])
    policy_BN = (rollout.policy.logits_BN if rollout.policy is not None else logits_BN).softmax(1)
    maps_BN3 = torch.stack([rollout.visible_BN.float(), policy_BN, (shown_BNP - true_BNP).abs().mean(-1)], -1)
    maps_B3THW = unpatchify(per_pixel(maps_BN3, clip.pixels), clip).cpu().numpy()
    both = [unpatchify(x, clip).permute(0, 2, 3, 4, 1).cpu().numpy() for x in (true_BNP, shown_BNP)]
    return [
        Picture(
            frames_THWC=(true.clip(0, 1) * 255).round().astype(np.uint8),
            visible_THW=visible > 0.5,
            policy_THW=policy,
            prediction_THWC=shown,
            error_THW=np.where(visible > 0.5, np.nan, error),
        )
        for true, shown, (visible, policy, error) in zip(*both, maps_B3THW, strict=True)
    ]

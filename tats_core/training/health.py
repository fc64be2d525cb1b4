"""What the loss does not show: whether the features carry anything, and whether the sampler follows motion.

A small pre-training can lower its loss while its features collapse to one colour, so these metrics are
measured on held-out clips every few epochs.

Axes: B clips, C=3 channels (classes, in scores), T frames, H W pixels, N tokens, K visible ones, P pixel
values a token, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tats_core.data.clips import normalise
from tats_core.data.manifest import UNLABELLED
from tats_core.models.mae import VideoMAE
from tats_core.models.tokens import patchify, per_token
from tats_core.sampling import Sampler
from tats_core.sampling.fixed import RandomSampler
from tats_core.training import metrics, pictures, probes
from tats_core.training.events import EventLog
from tats_core.training.optim import evaluating
from tats_core.training.world import World

_BLIND_DRAWS = 16


@dataclass(frozen=True)
class HeldOut:
    """Clips that the model never trains on, as uint8; all tensors on the CPU."""

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
    """Metrics and pictures of the model after an epoch; every worker must call it (features are gathered)."""

    def __init__(
        self,
        held_out: HeldOut,
        mask_ratio: float,
        world: World,
        events: EventLog,
        folder: Path,
        seed: int,
        drawn: int = 4,
    ) -> None:
        """Pictures are drawn of the first `drawn` held-out clips."""
        self.held_out, self.world, self.events, self.folder, self.seed = held_out, world, events, folder, seed
        self.mask_ratio = mask_ratio
        self.drawn = drawn

    def __call__(self, mae: VideoMAE, sampler: Sampler, step: int) -> dict[str, float]:
        """Return the metrics; rank 0 also writes a picture grid and an animation."""
        with evaluating(mae, sampler):
            health = self.features(mae) | self.policy(mae, sampler)
            if self.world.is_first and self.drawn:
                self.pictures(mae, sampler, step)
        return health

    def features(self, mae: VideoMAE) -> dict[str, float]:
        """Effective rank and variance between clips of the mean-pooled features; linear and kNN probe.

        Without labels, the probes are left out.
        """
        held = self.held_out
        train_BD = self.world.gather(self._pooled(mae, held.train_BCTHW))
        test_BD = self.world.gather(self._pooled(mae, held.test_BCTHW))
        train_label_B = self.world.gather(held.train_label_B.to(train_BD.device))
        test_label_B = self.world.gather(held.test_label_B.to(train_BD.device))
        health = {
            "effective_rank": metrics.effective_rank(test_BD),
            "between_clip_variance": float(test_BD.var(0).mean()),
        }
        if UNLABELLED in train_label_B or UNLABELLED in test_label_B:
            return health
        linear_BC = probes.ridge_probe(train_BD, train_label_B, test_BD, held.classes)
        knn_BC = probes.knn_probe(train_BD, train_label_B, test_BD, held.classes)
        return health | {
            "linear_top1": metrics.top_k_percent(linear_BC, test_label_B, 1),
            "knn_top1": metrics.top_k_percent(knn_BC, test_label_B, 1),
            "probe_chance": 100 / held.classes,
        }

    def _pooled(self, mae: VideoMAE, video_BCTHW: Tensor) -> Tensor:
        encoder = mae.encoder
        parts = []
        for part_BCTHW in torch.split(video_BCTHW, 32):
            patches_BNP = patchify(normalise(part_BCTHW.to(self.world.device)), encoder.clip)
            # Before the final norm, as the fine-tuned model pools them.
            parts.append(encoder.encode(encoder.tokenize(patches_BNP)).mean(1).float())
        return torch.cat(parts)

    def policy(self, mae: VideoMAE, sampler: Sampler) -> dict[str, float]:
        """Motion lift of the sampler and of blind drawing, entropy and coverage, on held-out clips."""
        held, device = self.held_out, self.world.device
        blind = RandomSampler(sampler.tokens, self.mask_ratio)
        generator = torch.Generator(device).manual_seed(self.seed)
        covered_N = torch.zeros(sampler.tokens, device=device)
        sums: list[Tensor] = []
        for start in range(0, len(held.test_BCTHW), 32):
            part = slice(start, start + 32)
            video_BCTHW = normalise(held.test_BCTHW[part].to(device))
            tokens_BND = mae.encoder.tokenize(patchify(video_BCTHW, mae.clip))
            rollout = sampler.act(tokens_BND, generator)
            # Several draws: a single one has too few tokens to distinguish 1.0 from noise.
            draws = [blind.act(tokens_BND, generator).visible_BK for _ in range(_BLIND_DRAWS)]
            blind_BK = torch.cat(draws, 1)
            change_BN = per_token(pixel_motion(video_BCTHW), mae.clip)
            motion_BN = change_BN
            if held.motion_BTHW is not None:
                motion_BN = per_token(held.motion_BTHW[part].float().to(device), mae.clip)
            entropy_B = rollout.policy.entropy_B if rollout.policy is not None else None
            share_B = entropy_B / math.log(sampler.tokens) if entropy_B is not None else torch.ones(1)
            lifts_and_share = (
                metrics.motion_lift(motion_BN, rollout.visible_BK),
                metrics.motion_lift(motion_BN, blind_BK),
                metrics.motion_lift(change_BN, rollout.visible_BK),
                float(share_B.mean()),
            )
            sums.append(torch.tensor(lifts_and_share, device=device) * len(video_BCTHW))
            covered_N += rollout.visible_BN.sum(0)
        clips = torch.tensor(float(len(held.test_BCTHW)), device=device)
        means = (self.world.sum(torch.stack(sums).sum(0)) / self.world.sum(clips)).tolist()
        names = ("motion_lift", "random_lift", "pixel_motion_lift", "entropy_share")
        coverage = (self.world.sum(covered_N) > 0).float().mean()
        return dict(zip(names, means, strict=True)) | {"coverage": float(coverage)}

    def pictures(self, mae: VideoMAE, sampler: Sampler, step: int) -> None:
        """Write video, visible tokens, policy, value, prediction and error of the first held-out clips."""
        video_BCTHW = normalise(self.held_out.test_BCTHW[: self.drawn].to(self.world.device))
        generator = torch.Generator(self.world.device).manual_seed(self.seed)
        title = f"step {step}: {sampler.visible} of {sampler.tokens} tokens visible"
        for clip, picture in enumerate(pictures.reconstructions(mae, sampler, video_BCTHW, generator)):
            base = self.folder / f"pictures/masks-{step:06d}-clip{clip}"
            for path in pictures.write(picture, base, title=title, remark=pictures.remark(mae)):
                self.events.file(step, f"masks/clip{clip}", str(path.relative_to(self.folder)))

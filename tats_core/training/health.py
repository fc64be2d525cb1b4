"""What the loss does not show: whether the features carry anything, and whether the sampler follows motion.

A small pre-training can lower its loss while its features collapse to one colour, so these metrics are
measured on held-out clips every few epochs.

Axes: B clips, C=3 channels (classes, in scores), T frames, H W pixels, N tokens, K visible ones, P pixel
values a token, D width.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from tats_core.data.clips import normalise
from tats_core.data.manifest import UNLABELLED
from tats_core.models.mae import VideoMAE
from tats_core.models.tokens import ClipConfig, patchify, per_token
from tats_core.sampling import Sampler
from tats_core.sampling.fixed import RandomSampler
from tats_core.training import metrics, motion, pictures
from tats_core.training.events import EventLog
from tats_core.training.optim import evaluating
from tats_core.training.probes.knn import KNNConfig
from tats_core.training.probes.linear import LinearConfig
from tats_core.training.world import World

_BLIND_DRAWS = 16
_PART = 32
"""Clips that are looked at side by side."""


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


@dataclass
class HealthCheck:
    """Metrics and pictures of the model after an epoch; every worker must call it (features are gathered)."""

    held_out: HeldOut
    mask_ratio: float
    world: World
    events: EventLog
    folder: Path
    seed: int
    drawn: int = 4
    """Pictures are drawn of so many of the first held-out clips."""
    flow_BN: Tensor | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if not motion.has_flow():
            self.events.note(motion.NO_FLOW)

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
        held_out = self.held_out
        train_BD = self.world.gather(self._pooled(mae, held_out.train_BCTHW))
        test_BD = self.world.gather(self._pooled(mae, held_out.test_BCTHW))
        train_label_B = self.world.gather(held_out.train_label_B.to(train_BD.device))
        test_label_B = self.world.gather(held_out.test_label_B.to(train_BD.device))
        health = {
            "effective_rank": metrics.effective_rank(test_BD),
            "between_clip_variance": float(test_BD.var(0).mean()),
        }
        if UNLABELLED in train_label_B or UNLABELLED in test_label_B:
            return health
        linear_BC = LinearConfig().classify(train_BD, train_label_B, test_BD, held_out.classes)
        knn_BC = KNNConfig().classify(train_BD, train_label_B, test_BD, held_out.classes)
        return health | {
            "linear_top1": metrics.top_k_percent(linear_BC, test_label_B, 1),
            "knn_top1": metrics.top_k_percent(knn_BC, test_label_B, 1),
            "probe_chance": 100 / held_out.classes,
        }

    def _pooled(self, mae: VideoMAE, video_BCTHW: Tensor) -> Tensor:
        encoder = mae.encoder
        parts = []
        for part_BCTHW in torch.split(video_BCTHW, _PART):
            patches_BNP = patchify(normalise(part_BCTHW.to(self.world.device)), encoder.clip)
            # Before the final norm, as the fine-tuned model pools them.
            parts.append(encoder.encode(encoder.tokenize(patches_BNP)).mean(1).float())
        return torch.cat(parts)

    def policy(self, mae: VideoMAE, sampler: Sampler) -> dict[str, float]:
        """What the sampler shows of the held-out clips, against blind drawing and against the best choice.

        For each kind of motion (`motion`: ground truth, else `pixel_motion`; `flow` where OpenCV is
        installed) the lift, the oracle's, whose K tokens have the most motion, and the share of it. Of a
        learned policy also its entropy, and what its scores are correlated with.
        """
        held_out, device = self.held_out, self.world.device
        blind = RandomSampler(sampler.tokens, self.mask_ratio)
        generator = torch.Generator(device).manual_seed(self.seed)
        covered_N = torch.zeros(sampler.tokens, device=device)
        columns: defaultdict[str, list[Tensor]] = defaultdict(list)
        for start in range(0, len(held_out.test_BCTHW), _PART):
            part = slice(start, start + _PART)
            video_BCTHW = normalise(held_out.test_BCTHW[part].to(device))
            tokens_BND = mae.encoder.tokenize(patchify(video_BCTHW, mae.clip), sampler.sees_positions)
            rollout = sampler.act(tokens_BND, generator)
            # Several draws: a single one has too few tokens to distinguish 1.0 from noise.
            draws = [blind.act(tokens_BND, generator).visible_BK for _ in range(_BLIND_DRAWS)]
            motions = self.motions(part, video_BCTHW, mae.clip)
            for name, motion_BN in motions.items():
                columns[name].append(motion_BN.mean(1))
                columns[f"{name}_lift"].append(motion_BN.gather(1, rollout.visible_BK).mean(1))
                columns[f"{name}_oracle"].append(motion_BN.topk(sampler.visible, 1).values.mean(1))
            columns["random_lift"].append(motions["motion"].gather(1, torch.cat(draws, 1)).mean(1))
            if rollout.policy is not None:
                columns["entropy_share"].append(rollout.policy.entropy_B / math.log(sampler.tokens))
                properties = {
                    name: motion_BN for name, motion_BN in motions.items() if name != "pixel_motion"
                }
                properties["brightness"] = motion.brightness(video_BCTHW, mae.clip)
                properties["contrast"] = motion.contrast(video_BCTHW, mae.clip)
                for name, property_BN in properties.items():
                    correlation_B = motion.rank_correlation(rollout.policy.logits_BN, property_BN)
                    columns[f"{name}_correlation"].append(correlation_B.float())
            covered_N += rollout.visible_BN.sum(0)
        of_clips = {name: self.world.gather(torch.cat(parts)) for name, parts in columns.items()}
        health = {"random_lift": motion.lift(of_clips["random_lift"], of_clips["motion"])}
        for name in motions:
            lift, oracle = (
                motion.lift(of_clips[f"{name}_{choice}"], of_clips[name]) for choice in ("lift", "oracle")
            )
            share = motion.share_of_oracle(lift, oracle)
            health |= {f"{name}_lift": lift, f"{name}_oracle": oracle, f"{name}_share": share}
        means = [name for name in of_clips if name == "entropy_share" or name.endswith("_correlation")]
        coverage = (self.world.sum(covered_N) > 0).float().mean()
        return {
            **health,
            "entropy_share": 1.0,  # of a sampler without a policy
            **{name: float(of_clips[name].mean()) for name in means},
            "coverage": float(coverage),
        }

    def motions(self, part: slice, video_BCTHW: Tensor, clip: ClipConfig) -> dict[str, Tensor]:
        """Each kind of motion of a part of the held-out clips, given its normalised videos: `[B, N]`."""
        device = self.world.device
        change_BN = per_token(motion.pixel_motion(video_BCTHW), clip)
        motions = {"motion": change_BN, "pixel_motion": change_BN}
        if self.held_out.motion_BTHW is not None:
            motions["motion"] = per_token(self.held_out.motion_BTHW[part].float().to(device), clip)
        if motion.has_flow():
            if self.flow_BN is None:  # once: the clips stay the same
                videos = torch.split(self.held_out.test_BCTHW, _PART)
                self.flow_BN = torch.cat([per_token(motion.flow_motion(video), clip) for video in videos])
            motions["flow"] = self.flow_BN[part].to(device)
        return motions

    def pictures(self, mae: VideoMAE, sampler: Sampler, step: int) -> None:
        """Write video, motion, visible tokens, policy, value, prediction and error of the first clips."""
        video_BCTHW = normalise(self.held_out.test_BCTHW[: self.drawn].to(self.world.device))
        generator = torch.Generator(self.world.device).manual_seed(self.seed)
        title = f"step {step}: {sampler.visible} of {sampler.tokens} tokens visible"
        for clip, picture in enumerate(pictures.reconstructions(mae, sampler, video_BCTHW, generator)):
            base = self.folder / f"pictures/masks-{step:06d}-clip{clip}"
            for path in pictures.write(mae, picture, base, title):
                self.events.file(step, f"masks/clip{clip}", str(path.relative_to(self.folder)))

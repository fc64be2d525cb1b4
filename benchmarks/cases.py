"""The cases by name; each builder returns a function that takes one step.

To add one: write a builder here (or a peer in `peers.py`) and give it a line in `CASES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import peers
import torch
from measure import Step, forward_backward
from torch import Tensor

from tats_core.models.tokens import ClipConfig
from tats_core.models.vit import ViTConfig
from tats_core.sampling.plackett_luce import visible_count
from tats_core.sampling.trajectory_attention import TrajectoryAttention
from tats_core.training.finetune import FinetuneConfig, FinetuneTrainer
from tats_core.training.pretrain import JointTrainer, PretrainConfig
from tats_core.training.world import World


@dataclass(frozen=True)
class Scale:
    """Sizes of a case; the defaults are the paper's."""

    model: str = "vit_base"
    frames: int = 16
    size: int = 224
    patch: int = 16
    batch: int = 2
    mask_ratio: float = 0.95
    device: str = "cpu"

    @property
    def clip(self) -> ClipConfig:
        return ClipConfig(frames=self.frames, size=self.size, tubelet=2, patch=self.patch)

    @property
    def vit(self) -> ViTConfig:
        return ViTConfig.model_validate(self.model)

    @property
    def visible(self) -> int:
        return visible_count(self.clip.tokens, self.mask_ratio)

    def options(self) -> list[str]:
        """As options of `run.py`."""
        return [f"--{name.replace('_', '-')}={value}" for name, value in vars(self).items()]


PAPER = Scale()


def recipe(scale: Scale, **changes: Any) -> PretrainConfig:
    """Our joint pre-training with its default sampler and decoder."""
    sampler = {"mask_ratio": scale.mask_ratio, **changes.pop("sampler", {})}
    raw = {"model": scale.model, "clip": scale.clip.model_dump(), "sampler": sampler, **changes}
    return PretrainConfig.model_validate(raw)


def joint(scale: Scale, **changes: Any) -> Step:
    """Our step: rollout, MAE, one PPO epoch of mini-batches (unless the sampler is another one)."""
    trainer = JointTrainer(recipe(scale, **changes), World(device=torch.device(scale.device)))
    shape = (scale.batch, 3, scale.frames, scale.size, scale.size)
    video_BCTHW = torch.randn(shape, device=scale.device)
    return lambda: trainer.step(video_BCTHW, 1e-4)


def finetune(scale: Scale) -> Step:
    """Our fine-tuning step, without what the peer lacks (mixing, stochastic depth)."""
    plain = {"mixup": 0, "cutmix": 0, "label_smoothing": 0, "drop_path": 0}
    raw = {"model": scale.model, "clip": scale.clip.model_dump(), **plain}
    trainer = FinetuneTrainer(
        FinetuneConfig.model_validate(raw), CLASSES, World(device=torch.device(scale.device))
    )
    trainer.start()
    shape = (scale.batch, 3, scale.frames, scale.size, scale.size)
    video_BCTHW = torch.randn(shape, device=scale.device)
    label_B = torch.arange(scale.batch, device=scale.device) % CLASSES
    trainer.model.train()
    return lambda: trainer.step(video_BCTHW, label_B, 0, 1e-4)


def attention(
    scale: Scale, form: Callable[[TrajectoryAttention, Tensor], Tensor] = TrajectoryAttention.__call__
) -> Step:
    """Trajectory attention of the encoder's width, forward and backward, on one clip."""
    torch.manual_seed(0)
    clip, vit = scale.clip, scale.vit
    ours = TrajectoryAttention(vit.width, vit.heads, clip.slices).to(scale.device)
    tokens_BND = torch.randn(1, clip.tokens, vit.width, device=scale.device)
    return forward_backward(partial(form, ours), tokens_BND)


CLASSES = 174

CASES: dict[str, Callable[[Scale], Step]] = {
    "hf_pretrain": lambda s: peers.hf_pretrain(s.vit, s.clip, s.batch, s.visible, torch.device(s.device)),
    "hf_finetune": lambda s: peers.hf_finetune(s.vit, s.clip, s.batch, CLASSES, torch.device(s.device)),
    "attention_literal": lambda s: attention(s, peers.literal_trajectory_attention),
    "attention": attention,
    "joint": joint,
    "joint_half_decoder": lambda s: joint(s, mae={"decoded_share": 0.5}),
    "joint_bf16": lambda s: joint(s, precision="bf16"),
    "joint_compiled": lambda s: joint(s, compile=True),
    "no_sampler": lambda s: joint(s, sampler={"kind": "random"}),
    "adamae": lambda s: joint(s, sampler={"kind": "adaptive"}),
    "finetune": finetune,
}

"""Joint pre-training of masked autoencoder and token sampler (TATS, arXiv 2505.08561).

Axes: B clips, C=3 channels, T frames, H W pixels, N tokens, M masked ones, P pixel values a token.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from tats_core.models.mae import MAEConfig, VideoMAE
from tats_core.models.tokens import ClipConfig, patchify
from tats_core.models.vit import ViTConfig
from tats_core.sampling import Policy, Rollout, Sampler, SamplerConfig, SamplerSite, build_sampler
from tats_core.sampling.adaptive import AdaptiveSampler, sampling_loss
from tats_core.sampling.fixed import RandomSampler
from tats_core.sampling.ppo import EntropyController, Transition, improve
from tats_core.specs import StrictModel
from tats_core.training.checkpoint import CheckpointStore
from tats_core.training.events import EventLog
from tats_core.training.optim import GuardedStep, OptimizerConfig, adamw, cosine, fresh_weights
from tats_core.training.world import World


class PretrainConfig(StrictModel):
    """The recipe of joint pre-training."""

    model: ViTConfig = Field(default_factory=lambda: ViTConfig.model_validate("vit_base"))
    clip: ClipConfig = Field(default_factory=ClipConfig)
    mae: MAEConfig = Field(default_factory=MAEConfig)
    sampler: SamplerConfig = Field(default_factory=SamplerConfig)
    sampler_warmup_epochs: float = Field(
        0, ge=0, description="epochs of random masking before the sampler draws (it has nothing to hunt yet)"
    )
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    sampler_lr: float = Field(
        5e-4, gt=0, description="AdamW's learning rate of the sampler, constant, not scaled by the batch"
    )
    epochs: int = Field(800, ge=1, description="passes over the clips")
    batch_size: int = Field(256, ge=1, description="clips of one step, over all workers")
    seed: int = Field(0, ge=0, description="weights, order of clips, augmentation, draws")
    log_every: int = Field(10, ge=1, description="steps between two points of a curve")
    health_every: int = Field(20, ge=1, description="epochs between two looks at features and policy")
    checkpoint_every: int = Field(5, ge=1, description="epochs between two checkpoints")


class Loader(Protocol):
    """Batches of one worker; `data.loaders.TrainLoader` is one."""

    steps: int

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield `(video_BCTHW, label_B, index_B)`; a function of `epoch` alone."""
        ...


Health = Callable[[VideoMAE, Sampler, int], dict[str, float]]
"""Looks at the model after an epoch: figures of the features and the policy on held-out clips."""


@dataclass
class JointTrainer:
    """MAE, sampler, their optimisers and the rollout memory: everything a step changes."""

    config: PretrainConfig
    world: World
    mae: VideoMAE = field(init=False)
    sampler: Sampler = field(init=False)
    last_index_B: Tensor | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        config, device = self.config, self.world.device
        clip, vit = config.clip, config.model
        site = SamplerSite(tokens=clip.tokens, slices=clip.slices, width=vit.width, heads=vit.heads)
        # Equal weights on all workers; DistributedDataParallel would broadcast rank 0's anyway.
        with fresh_weights(config.seed):
            self.mae = VideoMAE(vit, config.mae, clip).to(device)
            self.sampler = build_sampler(config.sampler, site).to(device)
        self.warmup_sampler = RandomSampler(clip.tokens, config.sampler.mask_ratio)
        self.mae_parallel = self.world.parallel(self.mae)
        self.mae_step = GuardedStep(
            adamw(self.mae, config.optimizer), config.optimizer.clip_grad, "masked autoencoder"
        )
        ppo = config.sampler.ppo
        self.controller = EntropyController(ppo.entropy_weight, ppo.target_entropy)
        self.memory: list[Transition] = []
        if self.sampler.learns:
            self.sampler_parallel: nn.Module = self.world.parallel(self.sampler)
            optimizer = torch.optim.AdamW(
                self.sampler.parameters(), lr=config.sampler_lr, betas=(0.9, 0.95), weight_decay=0.0
            )
            self.sampler_step = GuardedStep(optimizer, 1.0, "sampler")
        # Draws differ between workers; mini-batches are shuffled alike on all.
        self.draws = torch.Generator(device).manual_seed(config.seed * 1000 + self.world.rank)
        self.shuffles = torch.Generator().manual_seed(config.seed)

    def step(self, video_BCTHW: Tensor, lr: float, *, warming_up: bool = False) -> dict[str, float]:
        """One iteration: rollout, MAE step, PPO update. The videos are normalised; returns health figures."""
        patches_BNP = patchify(video_BCTHW, self.config.clip)
        with torch.no_grad():
            tokens_BND = self.mae.encoder.tokenize(patches_BNP)
        sampler = self.warmup_sampler if warming_up else self.sampler
        rollout = self.decoded(sampler.act(tokens_BND, self.draws))

        reconstruction = self.mae_parallel(patches_BNP, rollout.visible_BK, rollout.masked_BM)
        error_BM = reconstruction.error_BM
        self.mae_step.set_lr(lr)
        stepped = self.mae_step(error_BM.mean())

        figures = {"loss": error_BM.detach().mean(), "lr": lr, "grad_norm": self.mae_step.last_norm}
        # Errors that are not finite are no rewards: one such batch would poison policy and controller.
        if self.sampler.learns and not warming_up and stepped:
            in_pixels = self.config.sampler.ppo.error_space == "pixel"
            reward_BM = (reconstruction.pixel_error_BM if in_pixels else error_BM).detach()
            figures |= self.update_sampler(tokens_BND, rollout, reward_BM)
        return {name: float(figure) for name, figure in figures.items()}

    def decoded(self, rollout: Rollout) -> Rollout:
        """Keep a random part of the masked tokens for the decoder (VideoMAE V2); the others earn nothing."""
        share = self.config.mae.decoded_share
        if share == 1:
            return rollout
        batch, masked = rollout.masked_BM.shape
        noise_BM = torch.rand(batch, masked, generator=self.draws, device=self.world.device)
        place_BM = noise_BM.topk(max(1, round(share * masked)), dim=1).indices
        return replace(rollout, masked_BM=rollout.masked_BM.gather(1, place_BM))

    def update_sampler(self, tokens_BND: Tensor, rollout: Rollout, reward_BM: Tensor) -> dict[str, float]:
        """Teach the sampler what this draw earned; `reward_BM` are the errors of the masked tokens."""
        mean, deviation = self.world.moments(reward_BM)
        figures = {"reward_mean": float(mean), "reward_std": float(deviation)}
        if isinstance(self.sampler, AdaptiveSampler):
            policy = self.sampler_parallel(tokens_BND)
            loss = sampling_loss(policy, rollout, reward_BM, self.config.sampler.objective_weight)
            self.sampler_step(loss)
            share = policy.entropy_B.detach().mean() / math.log(rollout.tokens)
            return figures | {"sampling_loss": loss.item(), "entropy_share": share.item()}
        standard_BM = ((reward_BM - mean) / deviation.clamp_min(1e-8)).float()
        self.memory.append(Transition(tokens_BND, rollout, standard_BM))
        ppo = self.config.sampler.ppo
        if len(self.memory) < ppo.rollout_length:
            return figures
        figures |= improve(
            self.sampler_parallel,
            self.memory,
            ppo,
            self.controller,
            self.sampler_step,
            lambda values: self.world.sum(values) / self.world.size,
            self.shuffles,
        )
        self.memory.clear()
        return figures

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on; `rank` holds what is this worker's own."""
        state: dict[str, Any] = {
            "mae": self.mae.state_dict(),
            "sampler": self.sampler.state_dict(),
            "mae_step": self.mae_step.state_dict(),
            "entropy_weight": self.controller.weight,
            "shuffles": self.shuffles.get_state(),
            "rank": {"draws": self.draws.get_state(), "memory": [_pack(one) for one in self.memory]},
        }
        if self.sampler.learns:
            state["sampler_step"] = self.sampler_step.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo `state_dict`."""
        self.mae.load_state_dict(state["mae"])
        self.sampler.load_state_dict(state["sampler"])
        self.mae_step.load_state_dict(state["mae_step"])
        if self.sampler.learns:
            self.sampler_step.load_state_dict(state["sampler_step"])
        self.controller.weight = state["entropy_weight"]
        self.shuffles.set_state(state["shuffles"])
        self.draws.set_state(state["rank"]["draws"])
        self.memory = [_unpack(one, self.world.device) for one in state["rank"]["memory"]]


def _pack(transition: Transition) -> dict[str, Any]:
    """Plain tensors, so that a checkpoint loads with `weights_only`."""
    rollout = transition.rollout
    assert rollout.policy is not None
    return {
        "tokens_BND": transition.tokens_BND,
        "reward_BM": transition.reward_BM,
        "visible_BK": rollout.visible_BK,
        "masked_BM": rollout.masked_BM,
        "logits_BN": rollout.policy.logits_BN,
        "value_BN": rollout.policy.value_BN,
    }


def _unpack(packed: Mapping[str, Tensor], device: torch.device) -> Transition:
    held = {name: tensor.to(device) for name, tensor in packed.items()}
    policy = Policy(held["logits_BN"], held["value_BN"])
    rollout = Rollout(held["visible_BK"], held["masked_BM"], held["tokens_BND"].shape[1], policy)
    return Transition(held["tokens_BND"], rollout, held["reward_BM"])


def pretrain(
    trainer: JointTrainer,
    loader: Loader,
    *,
    events: EventLog,
    store: CheckpointStore,
    health: Health,
) -> dict[str, float]:
    """Run joint pre-training to its end, from the newest state in `store` if there is one.

    Returns:
        The figures of the last health check.

    Raises:
        TrainingError: too many non-finite steps in a row.
        DataError: too many videos cannot be read.
    """
    config, world = trainer.config, trainer.world
    steps = config.epochs * loader.steps
    recipe = config.optimizer
    peak, end, start = (
        recipe.scaled(lr, config.batch_size) for lr in (recipe.base_lr, recipe.min_lr, recipe.warmup_lr)
    )
    warmup = recipe.warmup_epochs * loader.steps
    first_epoch, step = 0, 0
    state = store.latest()
    if state is not None:
        trainer.load_state_dict({**state["trainer"], "rank": state["rank"]})
        first_epoch, step = state["epoch"], state["step"]
        events.note(f"resumed after epoch {first_epoch} of {config.epochs}")
    figures: dict[str, float] = dict(state["figures"]) if state is not None else {}
    if state is None:
        # Where features and policy start from: without it, a curve that stays low looks healthy.
        events.metrics(0, health(trainer.mae, trainer.sampler, 0))
    looked: dict[str, float] = dict(state["health"]) if state is not None else {}
    for epoch in range(first_epoch, config.epochs):
        warming_up = epoch < config.sampler_warmup_epochs
        began, waited = time.perf_counter(), 0.0
        asked = began
        for video_BCTHW, _, trainer.last_index_B in loader.epoch(epoch):
            waited += time.perf_counter() - asked
            lr = cosine(step, steps, warmup, peak, start, end)
            video_BCTHW = video_BCTHW.to(world.device, non_blocking=True)
            figures |= trainer.step(video_BCTHW, lr, warming_up=warming_up)
            step += 1
            if step % config.log_every == 0 or step == steps:
                events.metrics(step, _averaged(figures, world))
                shown = {"loss": figures["loss"]} | {k: v for k, v in looked.items() if k == "motion_lift"}
                events.progress(step=step, steps=steps, epoch=epoch + 1, epochs=config.epochs, shown=shown)
            asked = time.perf_counter()
        took = time.perf_counter() - began
        pace = {
            "epoch": epoch + 1,
            "clips_per_second": loader.steps * config.batch_size / took,
            "data_wait_share": waited / took,
            "skipped_steps": trainer.mae_step.skipped,
        }
        if (epoch + 1) % config.health_every == 0 or epoch + 1 == config.epochs:
            looked = health(trainer.mae, trainer.sampler, step)
            pace |= looked
        events.metrics(step, pace)
        if (epoch + 1) % config.checkpoint_every == 0 or epoch + 1 == config.epochs:
            state = trainer.state_dict()
            done = {"epoch": epoch + 1, "step": step, "health": looked, "figures": figures}
            saved = {"rank": state.pop("rank"), "trainer": state, **done}
            store.save(saved, step=step, metrics=looked | {"loss": figures["loss"]})
    return looked | {"loss": figures.get("loss", math.nan), "steps": float(steps)}


def _averaged(figures: Mapping[str, float], world: World) -> dict[str, float]:
    """Mean of each figure over workers; they all hold the same ones after the same step."""
    if world.size == 1:
        return dict(figures)
    own = torch.tensor(list(figures.values()), dtype=torch.float64, device=world.device)
    return dict(zip(figures, (world.sum(own) / world.size).tolist(), strict=True))

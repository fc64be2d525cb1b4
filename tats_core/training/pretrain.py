"""Joint pre-training of masked autoencoder and token sampler (TATS, arXiv 2505.08561).

Axes: B clips (b: of a part of the batch), C=3 channels, T frames, H W pixels, N tokens, K visible and M
masked ones, P pixel values a token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from typing import Annotated, Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from tats_core.errors import SpecError
from tats_core.models.mae import MAEConfig, VideoMAE
from tats_core.models.tokens import ClipConfig, patchify
from tats_core.models.vit import ViTConfig
from tats_core.sampling import (
    CHOICE,
    AnySampler,
    Policy,
    Rollout,
    Sampler,
    SamplerConfig,
    SamplerSite,
    Transition,
)
from tats_core.sampling.fixed import RandomSampler
from tats_core.sampling.objective import Metrics
from tats_core.sampling.plackett_luce import Noise
from tats_core.sampling.reward import Outcome
from tats_core.specs import NotIdentity, OneOf, StrictModel
from tats_core.training.checkpoint import CheckpointConfig, CheckpointStore
from tats_core.training.events import EventLog
from tats_core.training.loop import LastStep, Loader, Position, Trainer, Watch, restore
from tats_core.training.metrics import on_host
from tats_core.training.optim import GuardedStep, fresh_weights
from tats_core.training.optimizers import OPTIMIZERS, OptimizerConfig
from tats_core.training.sharding import Sharded
from tats_core.training.world import Precision, StepConfig, World


class Change(StrictModel):
    """Other settings of the sampler's learning from the start of an epoch on."""

    epoch: int = Field(ge=0, description="finished epochs at which it begins")
    sampler: dict[str, object] = Field(
        default_factory=dict, description="keys of `sampler` that its objective can take up while it trains"
    )
    sampler_lr: float | None = Field(None, gt=0, description="null: as before")


_OPTIMIZER = OneOf(OPTIMIZERS, "adamw")
_SAMPLER_OPTIMIZER = OneOf(
    OPTIMIZERS,
    "adamw",
    shared={
        "min_lr": 0.0,
        "warmup_epochs": 0.0,
        "schedule": {"kind": "constant"},
        "weight_decay": 0.0,
        "clip_grad": 1.0,
    },
)


class PretrainConfig(StepConfig):
    """The recipe of joint pre-training."""

    model: ViTConfig = Field(default_factory=lambda: ViTConfig.model_validate("vit_base"))
    clip: ClipConfig = Field(default_factory=ClipConfig)
    mae: MAEConfig = Field(default_factory=MAEConfig)
    sampler: AnySampler = Field(
        default_factory=CHOICE.build, description="what chooses the visible tokens, and how it learns"
    )
    sampler_warmup_epochs: float = Field(
        0, ge=0, description="epochs of random masking before the sampler draws (it has nothing to hunt yet)"
    )
    optimizer: Annotated[OptimizerConfig, _OPTIMIZER] = Field(
        default_factory=_OPTIMIZER.build, description="update rule and learning rates; VideoMAE's by default"
    )
    sampler_optimizer: Annotated[OptimizerConfig, _SAMPLER_OPTIMIZER] = Field(
        default_factory=_SAMPLER_OPTIMIZER.build,
        description="the sampler's own; the batch does not scale its rates, and the peak is sampler_lr",
    )
    sampler_lr: float = Field(
        5e-4,
        gt=0,
        description="peak learning rate of the sampler, not scaled by the batch; for tats that of a width of "
        "48: another sampler.network.width takes 48 / width of it",
    )
    schedule: tuple[Change, ...] = Field(
        (), description="changes of the sampler's learning while it trains; each holds until the next"
    )
    epochs: int = Field(800, ge=1, description="passes over the clips")
    until: int | None = Field(
        None,
        ge=1,
        description="stop after so many of the epochs, with a checkpoint to resume from; null: after all",
    )
    seed: int = Field(0, ge=0, description="weights, order of clips, augmentation, draws")
    log_every: Annotated[int, NotIdentity] = Field(
        10, ge=1, description="steps between two points of a curve"
    )
    health_every: int | None = Field(
        20, ge=1, description="epochs between two checks of features and policy; null: one check, at the end"
    )
    checkpoint: Annotated[CheckpointConfig, NotIdentity] = Field(
        default_factory=CheckpointConfig, description="when checkpoints are saved, and how many are kept"
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        for name, optimizer in (("optimizer", self.optimizer), ("sampler_optimizer", self.sampler_optimizer)):
            if optimizer.layer_decay != 1:
                raise ValueError(f"{name}.layer_decay is for fine-tuning; leave it out")
        if "base_lr" in self.sampler_optimizer.model_fields_set:
            raise ValueError("sampler_optimizer.base_lr has no effect; set sampler_lr")
        if self.until is not None and self.until > self.epochs:
            raise ValueError(f"until is {self.until}, but there are {self.epochs} epochs")
        begins = [change.epoch for change in self.schedule]
        if any(later <= earlier for earlier, later in pairwise(begins)):
            raise ValueError(f"the epochs of the schedule must rise, not {', '.join(map(str, begins))}")
        if begins and begins[-1] >= self.last_epoch:
            raise ValueError(
                f"the schedule's epoch {begins[-1]} never begins: training ends after {self.last_epoch}"
            )
        for change in self.schedule:
            try:
                self.learning(change.epoch)
            except SpecError as error:
                raise ValueError(str(error)) from error
        return self

    @property
    def last_epoch(self) -> int:
        """After how many epochs training ends."""
        return self.until or self.epochs

    def learning(self, epoch: int) -> tuple[SamplerConfig, float]:
        """Return how the sampler learns after `epoch` finished epochs: its configuration, learning rate."""
        sampler, rate = self.sampler, self.sampler_lr
        for change in self.schedule:
            if change.epoch <= epoch:
                sampler = sampler.changed(change.sampler, f"the schedule's epoch {change.epoch}")
                rate = change.sampler_lr or rate
        return sampler, rate * sampler.rate_factor

    def sampler_rate(self, peak: float, step: int, steps_per_epoch: int) -> float:
        """Return the sampler's learning rate at a step; `learning` has its peak."""
        optimizer = self.sampler_optimizer.model_copy(update={"base_lr": peak})
        return optimizer.lr(step, steps_per_epoch, self.epochs, global_batch=256)  # not scaled

    def beginning(self, until: int) -> Self:
        """Return the configuration of the first epochs of this training."""
        schedule = tuple(change for change in self.schedule if change.epoch < until)
        return self.model_copy(update={"until": until, "schedule": schedule})


SHOWN = ("loss", "motion_lift", "clips_per_second", "data_wait_share", "mfu")
"""What a display shows of a running pre-training."""

Health = Callable[[VideoMAE, Sampler, int], dict[str, float]]
"""Checks the model after an epoch: metrics of the features and the policy on held-out clips."""


@dataclass
class SamplerLearner:
    """The sampler's network, optimiser and precision (`sampling.objective.Learner`)."""

    network: nn.Module
    guarded: GuardedStep
    world: World
    precision: Precision
    accumulate: int

    def policy(self, tokens_BND: Tensor, *, last: bool) -> Policy:
        with self.world.accumulating(self.network, last=last), self.world.autocast(self.precision):
            policy: Policy = self.network(tokens_BND)
        return policy

    def backward(self, loss: Tensor, *, last: bool) -> None:
        with self.world.accumulating(self.network, last=last):
            self.guarded.backward(loss)

    def step(self, stop: Tensor | None = None) -> bool | None:
        """Clip and step, then free the gradients' memory for the MAE's next step."""
        stepped = self.guarded.step(stop)
        self.guarded.clear()
        return stepped

    def mean(self, values: Tensor) -> Tensor:
        return self.world.sum(values) / self.world.size

    def moments(self, values: Tensor) -> tuple[Tensor, Tensor]:
        return self.world.moments(values)


@dataclass
class JointTrainer(Trainer):
    """MAE, sampler, their optimisers and the rollout memory: everything a step changes."""

    config: PretrainConfig
    world: World
    mae: VideoMAE = field(init=False)
    sampler: Sampler = field(init=False)

    def __post_init__(self) -> None:
        config, device = self.config, self.world.device
        clip, vit = config.clip, config.model
        site = SamplerSite(clip.slices, clip.rows, clip.columns, vit.width, vit.heads)
        # Equal weights on all workers; DistributedDataParallel would broadcast rank 0's anyway.
        with fresh_weights(config.seed):
            self.mae = VideoMAE(vit, config.mae, clip).to(device)
            self.sampler = config.sampler.build(site).to(device)
        config.compiled(self.mae, self.sampler)
        self.warmup_sampler = RandomSampler(clip.tokens, config.sampler.mask_ratio)
        self.parallel = self.world.parallel(self.mae, config)
        self.mae_step = config.optimizer.build(self.mae, "masked autoencoder")
        self.guarded_steps = [self.mae_step]
        learning, self.sampler_lr = config.learning(0)
        self.objective = learning.objective(config.seed)
        if self.sampler.learns != (self.objective is not None):
            raise SpecError(
                f"the sampler '{config.sampler.kind}' {'lacks' if self.sampler.learns else 'cannot use'} an "
                "objective: a LearnedSampler needs one, and no other sampler has anything to learn"
            )
        if self.objective is not None:
            self.objective.to(device)
            together = config.sampler.with_autoencoder
            optimizer = config.optimizer if together else config.sampler_optimizer
            network = self.world.parallel(self.sampler)
            sampler_step = optimizer.build(self.sampler, "sampler")
            sampler_step.set_lr(self.sampler_lr)
            self.guarded_steps.append(sampler_step)
            self.learner = SamplerLearner(
                network, sampler_step, self.world, config.precision, config.accumulate
            )
        # All workers have the same generator; each takes its rows of the noise for the global batch.
        generator = torch.Generator(device).manual_seed(config.seed)
        self.noise = Noise(generator, self.world.rank, self.world.size)

    def whole_mae(self) -> VideoMAE:
        """The autoencoder with all its weights; of a divided one a copy, and every worker must call it."""
        network = self.parallel.whole() if isinstance(self.parallel, Sharded) else self.mae
        assert isinstance(network, VideoMAE)
        return network

    def begin_epoch(self, epoch: int) -> None:
        """Apply the schedule of the sampler's learning, at the start of an epoch or on a resume within it."""
        sampler, self.sampler_lr = self.config.learning(epoch)
        if self.objective is not None:
            self.objective.configure(sampler)

    def step(self, video_BCTHW: Tensor, lr: float, *, warming_up: bool = False) -> Metrics:
        """One iteration on normalised videos: rollout, MAE step, update of the sampler; returns metrics.

        It waits for the device once in each optimiser step, for the norm of its gradient; what is measured
        stays there until it is logged.
        """
        # Freed before the forward pass, the last step's gradients leave their memory to its activations.
        self.mae_step.clear()
        patches_BNP = patchify(video_BCTHW, self.config.clip)
        sampler = self.warmup_sampler if warming_up else self.sampler
        policy, together = None, sampler.learns and self.config.sampler.with_autoencoder
        if sampler.learns:
            tokens_BND = self.tokenize(patches_BNP)
            if together:
                tokens_BND.requires_grad_()  # what reaches it goes on to the cube embedding
                # Dropout draws from the global generator: tie it to what a checkpoint holds.
                seed = self.noise.seed()
                torch.manual_seed(seed)
            policy = self.policy(tokens_BND)
        rollout = self.decoded(sampler.draw(len(video_BCTHW), self.noise, policy))
        loss_BM, reward_BM = self.reconstruct(patches_BNP, rollout)
        transition = None if reward_BM is None else Transition(tokens_BND, rollout, reward_BM)
        update: Metrics = {}
        if transition is not None and together:
            self.learner.guarded.set_lr(lr)
            torch.manual_seed(seed)  # parts of a batch that run again meet the dropout of the draw
            update = self.update(transition)
            self.train_embedding(patches_BNP, tokens_BND.grad)
        self.mae_step.set_lr(lr)
        stepped = self.mae_step.step()
        # Non-finite errors are no rewards: a single such batch would make policy and objective non-finite.
        if transition is not None and stepped and not together:
            update = self.update(transition)
        return {"loss": loss_BM.mean(), "lr": lr, "grad_norm": self.mae_step.last_norm, **update}

    def update(self, transition: Transition) -> Metrics:
        """Let the sampler learn from a draw; returns metrics."""
        assert self.objective is not None
        metrics = self.objective.update(transition, self.learner)
        self.average_buffers(self.sampler, self.objective)
        return metrics

    def train_embedding(self, patches_BNP: Tensor, grad_BND: Tensor | None) -> None:
        """Add a gradient of all tokens to that of the cube embedding, its mean over workers."""
        if isinstance(self.parallel, Sharded):  # whose backward takes the mean
            with self.world.autocast(self.config.precision):
                tokens_BND = self.mae.tokenize(patches_BNP)
            tokens_BND.backward(grad_BND)  # type: ignore[no-untyped-call]
            return
        parameters = list(self.mae.encoder.embedding.parameters())
        with self.world.autocast(self.config.precision):
            embedded_BND = self.mae.encoder.embedding(patches_BNP)
        for parameter, grad in zip(
            parameters, torch.autograd.grad(embedded_BND, parameters, grad_BND), strict=True
        ):
            assert parameter.grad is not None
            parameter.grad += self.world.sum(grad) / self.world.size

    @torch.no_grad()
    def average_buffers(self, *modules: nn.Module) -> None:
        """Average floating-point buffers over workers: running means become those of all clips."""
        if self.world.size > 1:
            for buffer in chain.from_iterable(module.buffers() for module in modules):
                if buffer.is_floating_point():
                    buffer.copy_(self.world.sum(buffer) / self.world.size)

    @torch.no_grad()
    def tokenize(self, patches_BNP: Tensor) -> Tensor:
        """Embed all tokens without gradients: the sampler's state."""
        with self.world.autocast(self.config.precision):
            return self.mae.tokenize(patches_BNP, self.sampler.sees_positions)

    def policy(self, tokens_BND: Tensor) -> Policy:
        """Return the sampler's current policy; with its graph where the objective learns from that."""
        assert self.objective is not None
        with torch.set_grad_enabled(self.objective.learns_from_the_draw and self.config.accumulate == 1):
            parts = [self.learner.policy(part_BND, last=True) for part_BND in self.parts(tokens_BND)]
        return Policy.joined(parts)

    def reconstruct(self, patches_BNP: Tensor, rollout: Rollout) -> tuple[Tensor, Tensor | None]:
        """Losses `[B, M]` of the decoded tokens, and what they earn a policy; adds up the MAE's gradients."""
        losses: list[Tensor] = []
        rewards: list[Tensor] = []
        batch = (self.parts(x) for x in (patches_BNP, rollout.visible_BK, rollout.masked_BM))
        clip = self.config.clip
        for number, (patches_bNP, visible_bK, masked_bM) in enumerate(zip(*batch, strict=True), start=1):
            with self.world.accumulating(self.parallel, last=number == self.config.accumulate):
                with self.world.autocast(self.config.precision):
                    reconstruction = self.parallel(patches_bNP, visible_bK, masked_bM)
                loss_bM = reconstruction.error_BM
                losses.append(loss_bM.detach())
                if rollout.policy is not None and self.objective is not None:
                    pixels_bMP = reconstruction.pixels_BMP
                    outcome = Outcome(
                        patches_bNP, pixels_bMP, losses[-1], masked_bM, clip.slices, clip.tubelet
                    )
                    rewards.append(self.objective.reward(outcome))
                    del pixels_bMP, outcome
                # Prediction and target are the largest tensors of a step, and backward needs neither.
                del reconstruction
                self.mae_step.backward(loss_bM.mean() * (len(loss_bM) / len(patches_BNP)))
        return torch.cat(losses), torch.cat(rewards) if rewards else None

    def decoded(self, rollout: Rollout) -> Rollout:
        """Choose a random part of the masked tokens to decode (VideoMAE V2); the others get no reward."""
        if self.config.mae.decoded_share == 1:
            return rollout
        clips, masked = rollout.masked_BM.shape
        chance_BM = self.noise.uniform(clips, masked)
        chosen_BM = chance_BM.topk(self.config.mae.decoded(masked), dim=1).indices
        return replace(rollout, masked_BM=rollout.masked_BM.gather(1, chosen_BM))

    def state(self) -> dict[str, Any]:
        memory = self.objective.memory if self.objective is not None else []
        state: dict[str, Any] = {
            "mae": self.mae.state_dict(),
            "sampler": self.sampler.state_dict(),
            "mae_step": self.mae_step.state_dict(),
            "noise": self.noise.generator.get_state(),
            "rank": {"memory": [transition.state_dict() for transition in memory]},
        }
        if self.objective is not None:
            state["sampler_step"] = self.learner.guarded.state_dict()
            state["objective"] = self.objective.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.mae.load_state_dict(state["mae"])
        self.sampler.load_state_dict(state["sampler"])
        self.mae_step.load_state_dict(state["mae_step"])
        self.noise.generator.set_state(state["noise"])
        if self.objective is not None:
            self.learner.guarded.load_state_dict(state["sampler_step"])
            self.objective.load_state_dict(state["objective"])
            memory, device = state["rank"]["memory"], self.world.device
            self.objective.memory = [Transition.restored(transition, device) for transition in memory]


def _redistributed(ranks: Sequence[Mapping[str, Any]], world: World) -> dict[str, Any]:
    """Return this rank's rows of the global batches in a state that another number of ranks saved."""
    memory = []
    for shares in zip(*(rank["memory"] for rank in ranks), strict=True):
        # Row i of rank r of n is row i * n + r of the global batch.
        batch = {name: torch.stack([s[name] for s in shares], dim=1).flatten(0, 1) for name in shares[0]}
        memory.append({name: rows[world.rank :: world.size] for name, rows in batch.items()})
    return {"memory": memory, "position": Position.joined([rank["position"] for rank in ranks]).state_dict()}


def pretrain(
    trainer: JointTrainer,
    loader: Loader,
    *,
    events: EventLog,
    store: CheckpointStore,
    health: Health,
    before: CheckpointStore | None = None,
    after: CheckpointStore | None = None,
    watch: Watch | None = None,
) -> dict[str, float]:
    """Run joint pre-training to its end, from the newest checkpoint in `store` if it has any.

    Args:
        before: holds the checkpoint in which the first epochs of this training ended, in another stage.
        after: gets the checkpoint at the end.

    Returns:
        The metrics of the last health check, and the loss of the last step over all workers.

    Raises:
        TrainingError: too many non-finite steps in a row.
        DataError: too many videos cannot be read.
    """
    config, world, watch = trainer.config, trainer.world, watch or Watch()
    steps = config.last_epoch * loader.steps
    at = Position()
    state = store.begin(config.checkpoint)
    if state is None and before is not None:
        state = before.begin(config.checkpoint)
    if state is not None:
        rank = state["rank"] if "rank" in state else _redistributed(state["ranks"], world)
        at = Position(**rank["position"])
        at.check(loader.steps)
        restore(trainer, {**state["trainer"], "rank": rank})
        events.note(f"resumed after step {at.step} of {steps}")
    elif config.health_every is not None:
        # Without a point at step 0, a curve that stays low looks healthy.
        events.metrics(0, health(trainer.whole_mae(), trainer.sampler, 0))

    def save(store: CheckpointStore) -> None:
        if trainer.mae_step.in_a_row:
            return  # no training should resume within a storm of NaNs
        shared = trainer.state_dict()
        position = at.state_dict()
        rank = shared.pop("rank") | {"position": position}
        metrics = at.health | {"loss": position["metrics"]["loss"]}
        store.save({"trainer": shared, "rank": rank}, step=at.step, metrics=metrics)

    while at.epoch < config.last_epoch:
        trainer.begin_epoch(at.epoch)
        for batch in watch.timed(loader.epoch(at.epoch, at.batch)):
            lr = config.optimizer.lr(at.step, loader.steps, config.epochs, config.batch_size)
            if trainer.objective is not None:
                rate = config.sampler_rate(trainer.sampler_lr, at.step, loader.steps)
                trainer.learner.guarded.set_lr(rate)
            warming_up = at.step < config.sampler_warmup_epochs * loader.steps
            arguments: dict[str, Any] = {"lr": lr, "warming_up": warming_up}
            trainer.last = LastStep.of(trainer, at, batch, arguments)
            at.metrics |= trainer.step(batch.normalised(world.device), **arguments)
            at.next_batch()
            if at.step % config.log_every == 0 or at.step == steps:
                metrics = on_host(at.metrics)
                events.metrics(at.step, world.mean(metrics))
                latest = metrics | at.health | watch.latest
                events.progress(
                    step=at.step,
                    steps=steps,
                    epoch=at.epoch + 1,
                    epochs=config.last_epoch,
                    shown={name: latest[name] for name in SHOWN if name in latest},
                )
            if at.batch < loader.steps and store.due(at.step):
                save(store)
        at.next_epoch()
        ended = watch.metrics(config.batch_size, events) | {"skipped_steps": trainer.skipped}
        if at.epoch == config.last_epoch or (config.health_every and at.epoch % config.health_every == 0):
            at.health = health(trainer.whole_mae(), trainer.sampler, at.step)
            ended |= at.health
        events.metrics(at.step, {"epoch": at.epoch, **ended})
        if store.due(at.step, epochs=at.epoch) or at.epoch == config.last_epoch:
            save(store)
    if after is not None:
        save(after)
    last = world.mean({"loss": at.metrics.get("loss", math.nan)})
    return at.health | last | {"steps": float(steps)}

"""Joint pre-training of masked autoencoder and token sampler (TATS, arXiv 2505.08561).

Axes: B clips, C=3 channels, T frames, H W pixels, N tokens, M masked ones, P pixel values a token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Annotated, Any, Self

import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor, nn

from tats_core.models.mae import MAEConfig, VideoMAE
from tats_core.models.tokens import ClipConfig, patchify
from tats_core.models.vit import ViTConfig
from tats_core.sampling import Policy, Rollout, Sampler, SamplerConfig, SamplerSite, build_sampler
from tats_core.sampling.adaptive import AdaptiveSampler, sampling_loss
from tats_core.sampling.fixed import RandomSampler
from tats_core.sampling.plackett_luce import Noise
from tats_core.sampling.ppo import EntropyController, PPOConfig, Transition, improve
from tats_core.specs import NotIdentity, StrictModel
from tats_core.training.checkpoint import CheckpointConfig, CheckpointStore
from tats_core.training.events import EventLog
from tats_core.training.loop import Loader, Pace, Position
from tats_core.training.optim import GuardedStep, OptimizerConfig, adamw, fresh_weights
from tats_core.training.world import Precision, StepConfig, World


class Change(StrictModel):
    """Other settings of the sampler's learning from the start of an epoch on."""

    epoch: int = Field(ge=0, description="finished epochs at which it begins")
    ppo: dict[str, bool | int | float | str | None] = Field(
        default_factory=dict, description="keys of sampler.ppo; an entropy_weight starts its control anew"
    )
    sampler_lr: float | None = Field(None, gt=0, description="null: as before")


class PretrainConfig(StepConfig):
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
    schedule: tuple[Change, ...] = Field(
        (), description="changes of sampler.ppo and sampler_lr while it trains; each holds until the next"
    )
    epochs: int = Field(800, ge=1, description="passes over the clips")
    until: int | None = Field(
        None,
        ge=1,
        description="stop after so many of the epochs, with a state to go on from; null: after all",
    )
    seed: int = Field(0, ge=0, description="weights, order of clips, augmentation, draws")
    log_every: Annotated[int, NotIdentity] = Field(
        10, ge=1, description="steps between two points of a curve"
    )
    health_every: int | None = Field(
        20, ge=1, description="epochs between two looks at features and policy; null: one look, at the end"
    )
    checkpoint: Annotated[CheckpointConfig, NotIdentity] = Field(
        default_factory=CheckpointConfig, description="when states to go on from are kept, and how many"
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.until is not None and self.until > self.epochs:
            raise ValueError(f"until is {self.until}, but there are {self.epochs} epochs")
        begins = [one.epoch for one in self.schedule]
        if any(later <= earlier for earlier, later in pairwise(begins)):
            raise ValueError(f"the epochs of the schedule must rise, not {', '.join(map(str, begins))}")
        if begins and begins[-1] >= self.last_epoch:
            raise ValueError(
                f"the schedule's epoch {begins[-1]} never begins: training ends after {self.last_epoch}"
            )
        for one in self.schedule:
            try:
                self.learning(one.epoch)
            except ValidationError as error:
                first = error.errors()[0]
                key = ".".join(map(str, first["loc"]))
                raise ValueError(f"the schedule's ppo.{key} at epoch {one.epoch}: {first['msg']}") from error
        return self

    @property
    def last_epoch(self) -> int:
        """After how many epochs training ends."""
        return self.until or self.epochs

    def learning(self, epoch: int) -> tuple[PPOConfig, float]:
        """Return how the sampler learns after `epoch` finished epochs: PPO's keys, learning rate."""
        ppo, rate = self.sampler.ppo.model_dump(), self.sampler_lr
        for one in self.schedule:
            if one.epoch <= epoch:
                ppo |= one.ppo
                rate = one.sampler_lr or rate
        return PPOConfig.model_validate(ppo), rate

    def beginning(self, until: int) -> Self:
        """Return the configuration of the first epochs of this training."""
        begun = tuple(one for one in self.schedule if one.epoch < until)
        return self.model_copy(update={"until": until, "schedule": begun})


Health = Callable[[VideoMAE, Sampler, int], dict[str, float]]
"""Looks at the model after an epoch: figures of the features and the policy on held-out clips."""


@dataclass
class SamplerLearner:
    """The sampler's network, optimiser and precision (`sampling.ppo.Learner`)."""

    network: nn.Module
    guarded: GuardedStep
    world: World
    precision: Precision

    def policy(self, tokens_BND: Tensor, *, last: bool) -> Policy:
        """The policy as it is now."""
        with self.world.accumulating(self.network, last=last), self.world.autocast(self.precision):
            policy: Policy = self.network(tokens_BND)
        return policy

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of one part."""
        with self.world.accumulating(self.network, last=last):
            self.guarded.backward(loss)

    def step(self) -> bool:
        """Clip and step, then free the gradients: the MAE's turn is next."""
        stepped = self.guarded.step()
        self.guarded.clear()
        return stepped

    def discard(self) -> None:
        """Forget the gradients added since the last step."""
        self.guarded.clear()

    def mean(self, values: Tensor) -> Tensor:
        """Average over workers."""
        return self.world.sum(values) / self.world.size

    def moments(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation over all workers."""
        return self.world.moments(values)


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
        config.compiled(self.mae, self.sampler)
        self.warmup_sampler = RandomSampler(clip.tokens, config.sampler.mask_ratio)
        self.mae_parallel = self.world.parallel(self.mae)
        self.mae_step = GuardedStep(
            adamw(self.mae, config.optimizer), config.optimizer.clip_grad, "masked autoencoder"
        )
        self.ppo, sampler_lr = config.learning(0)
        self.controller = EntropyController(self.ppo.entropy_weight, self.ppo.target_entropy)
        self.memory: list[Transition] = []
        if self.sampler.learns:
            optimizer = torch.optim.AdamW(
                self.sampler.parameters(),
                lr=sampler_lr,
                betas=(0.9, 0.95),
                weight_decay=0.0,
                fused=True,
            )
            self.learner = SamplerLearner(
                self.world.parallel(self.sampler),
                GuardedStep(optimizer, 1.0, "sampler"),
                self.world,
                config.precision,
            )
        # All workers hold the same generators: of the noise for the global batch each takes its rows.
        generator = torch.Generator(device).manual_seed(config.seed)
        self.noise = Noise(generator, self.world.rank, self.world.size)
        self.shuffles = torch.Generator().manual_seed(config.seed)

    @property
    def skipped(self) -> int:
        """Steps whose gradient was not finite, the autoencoder's and the sampler's."""
        return self.mae_step.skipped + (self.learner.guarded.skipped if self.sampler.learns else 0)

    def begin_epoch(self, epoch: int, batch: int) -> None:
        """Let the sampler learn as the schedule says from here on, at the start of an epoch or within it."""
        self.ppo, sampler_lr = self.config.learning(epoch)
        anew = batch == 0 and any(
            one.epoch == epoch and "entropy_weight" in one.ppo for one in self.config.schedule
        )
        weight = self.ppo.entropy_weight if anew else self.controller.weight
        self.controller = EntropyController(self.ppo.entropy_weight, self.ppo.target_entropy)
        self.controller.weight = weight
        if self.sampler.learns:
            self.learner.guarded.set_lr(sampler_lr)

    def step(self, video_BCTHW: Tensor, lr: float, *, warming_up: bool = False) -> dict[str, float]:
        """One iteration: rollout, MAE step, PPO update. The videos are normalised; returns health figures."""
        # The last step's gradients would only stand in the way of this one's activations.
        self.mae_step.clear()
        patches_BNP = patchify(video_BCTHW, self.config.clip)
        sampler = self.warmup_sampler if warming_up else self.sampler
        policy = old_policy = None
        if sampler.learns:
            with torch.no_grad(), self.world.autocast(self.config.precision):
                tokens_BND = self.mae.encoder.tokenize(patches_BNP)
            policy = self.policy(tokens_BND)
            old_policy = policy.detached()
        rollout = self.decoded(sampler.draw(len(video_BCTHW), self.noise, old_policy))

        error_BM, pixel_error_BM = self.reconstruct(patches_BNP, rollout)
        self.mae_step.set_lr(lr)
        stepped = self.mae_step.step()

        figures: dict[str, Any] = {"loss": error_BM.mean(), "lr": lr, "grad_norm": self.mae_step.last_norm}
        # Errors that are not finite are no rewards: one such batch would poison policy and controller.
        if policy is not None and stepped:
            in_pixels = self.ppo.error_space == "pixel"
            reward_BM = pixel_error_BM if in_pixels else error_BM
            figures |= self.update_sampler(tokens_BND, rollout, reward_BM, policy)
        return {name: float(figure) for name, figure in figures.items()}

    def policy(self, tokens_BND: Tensor) -> Policy:
        """The sampler's policy now; with its graph where the update's first pass can go on from it."""
        one_pass = self.config.accumulate == self.ppo.rollout_length == self.ppo.minibatches == 1
        with torch.set_grad_enabled(one_pass):
            parts = [self.learner.policy(part_BND, last=True) for part_BND in self.parts(tokens_BND)]
        if one_pass:
            return parts[0]
        return Policy(torch.cat([p.logits_BN for p in parts]), torch.cat([p.value_BN for p in parts]))

    def parts(self, values_BX: Tensor) -> tuple[Tensor, ...]:
        """The parts of a batch over which gradients are accumulated."""
        return values_BX.tensor_split(self.config.accumulate)

    def reconstruct(self, patches_BNP: Tensor, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Errors of the decoded tokens in the target's space and in pixels; leaves the MAE's gradients."""
        errors: list[Tensor] = []
        pixel_errors: list[Tensor] = []
        batch = (self.parts(x) for x in (patches_BNP, rollout.visible_BK, rollout.masked_BM))
        for place, part in enumerate(zip(*batch, strict=True)):
            with self.world.accumulating(self.mae_parallel, last=place == self.config.accumulate - 1):
                with self.world.autocast(self.config.precision):
                    reconstruction = self.mae_parallel(*part)
                error_BM = reconstruction.error_BM
                errors.append(error_BM.detach())
                pixel_errors.append(reconstruction.pixel_error_BM.detach())
                # Prediction and target are the largest tensors of a step, and backward needs neither.
                del reconstruction
                self.mae_step.backward(error_BM.mean() * (len(error_BM) / len(patches_BNP)))
        return torch.cat(errors), torch.cat(pixel_errors)

    def decoded(self, rollout: Rollout) -> Rollout:
        """Keep a random part of the masked tokens for the decoder (VideoMAE V2); the others earn nothing."""
        share = self.config.mae.decoded_share
        if share == 1:
            return rollout
        clips, masked = rollout.masked_BM.shape
        chance_BM = self.noise.uniform(clips, masked)
        place_BM = chance_BM.topk(max(1, round(share * masked)), dim=1).indices
        return replace(rollout, masked_BM=rollout.masked_BM.gather(1, place_BM))

    def update_sampler(
        self, tokens_BND: Tensor, rollout: Rollout, reward_BM: Tensor, policy: Policy
    ) -> dict[str, float]:
        """Teach the sampler what this draw earned; `reward_BM` are the errors of the masked tokens.

        `policy` is the one that drew, with its graph where the first pass can use it.
        """
        mean, deviation = self.world.moments(reward_BM)
        figures = {"reward_mean": float(mean), "reward_std": float(deviation)}
        first = policy if policy.logits_BN.requires_grad else None
        if isinstance(self.sampler, AdaptiveSampler):
            return figures | self.adapt(tokens_BND, rollout, reward_BM, first)
        standard_BM = ((reward_BM - mean) / deviation.clamp_min(1e-8)).float()
        self.memory.append(Transition(tokens_BND, rollout, standard_BM))
        if len(self.memory) < self.ppo.rollout_length:
            return figures
        figures |= improve(
            self.learner,
            self.memory,
            self.ppo,
            self.controller,
            self.shuffles,
            parts=self.config.accumulate,
            first=first,
        )
        self.memory.clear()
        return figures

    def adapt(
        self, tokens_BND: Tensor, rollout: Rollout, reward_BM: Tensor, first: Policy | None
    ) -> dict[str, float]:
        """AdaMAE's update of its sampler."""
        batch = (self.parts(x) for x in (tokens_BND, rollout.visible_BK, rollout.masked_BM, reward_BM))
        loss_sum, share_sum = 0.0, 0.0
        for place, (tokens, visible_BK, masked_BM, reward) in enumerate(zip(*batch, strict=True)):
            last = place == self.config.accumulate - 1
            policy = first or self.learner.policy(tokens, last=last)
            drawn = Rollout(visible_BK, masked_BM, rollout.tokens)
            weight = len(tokens) / len(tokens_BND)
            loss = weight * sampling_loss(policy, drawn, reward, self.config.sampler.objective_weight)
            self.learner.backward(loss, last=last)
            loss_sum += loss.item()
            share_sum += weight * policy.entropy_B.detach().mean().item() / math.log(rollout.tokens)
        self.learner.step()
        return {"sampling_loss": loss_sum, "entropy_share": share_sum}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on; `rank` holds what is this worker's own."""
        state: dict[str, Any] = {
            "mae": self.mae.state_dict(),
            "sampler": self.sampler.state_dict(),
            "mae_step": self.mae_step.state_dict(),
            "entropy_weight": self.controller.weight,
            "shuffles": self.shuffles.get_state(),
            "noise": self.noise.generator.get_state(),
            "rank": {"memory": [_pack(one) for one in self.memory]},
        }
        if self.sampler.learns:
            state["sampler_step"] = self.learner.guarded.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo `state_dict`."""
        self.mae.load_state_dict(state["mae"])
        self.sampler.load_state_dict(state["sampler"])
        self.mae_step.load_state_dict(state["mae_step"])
        if self.sampler.learns:
            self.learner.guarded.load_state_dict(state["sampler_step"])
        self.controller.weight = state["entropy_weight"]
        self.shuffles.set_state(state["shuffles"])
        self.noise.generator.set_state(state["noise"])
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


def _dealt_anew(ranks: Sequence[Mapping[str, Any]], world: World) -> dict[str, Any]:
    """What is this rank's own of what another number of ranks kept: its rows of the global batches."""
    memory = []
    for kept in zip(*(one["memory"] for one in ranks), strict=True):
        # Row i of rank r of n is row i * n + r of the global batch.
        whole = {name: torch.stack([one[name] for one in kept], dim=1).flatten(0, 1) for name in kept[0]}
        memory.append({name: rows[world.rank :: world.size] for name, rows in whole.items()})
    return {"memory": memory, "position": asdict(Position.joined([one["position"] for one in ranks]))}


def pretrain(
    trainer: JointTrainer,
    loader: Loader,
    *,
    events: EventLog,
    store: CheckpointStore,
    health: Health,
    before: CheckpointStore | None = None,
    after: CheckpointStore | None = None,
) -> dict[str, float]:
    """Run joint pre-training to its end, from the newest state in `store` if there is one.

    Args:
        before: holds the state in which the first epochs of this very training ended elsewhere.
        after: gets the state at the end.

    Returns:
        The figures of the last health check, and the loss of the last step over all workers.

    Raises:
        TrainingError: too many non-finite steps in a row.
        DataError: too many videos cannot be read.
    """
    config, world = trainer.config, trainer.world
    steps = config.last_epoch * loader.steps
    at = Position()
    state = store.begin(config.checkpoint)
    if state is None and before is not None:
        state = before.begin(config.checkpoint)
    if state is not None:
        own = state["rank"] if "rank" in state else _dealt_anew(state["ranks"], world)
        trainer.load_state_dict({**state["trainer"], "rank": own})
        at = Position(**own["position"])
        events.note(f"resumed after step {at.step} of {steps}")
    elif config.health_every is not None:
        # Where features and policy start from: without it, a curve that stays low looks healthy.
        events.metrics(0, health(trainer.mae, trainer.sampler, 0))

    def keep(place: CheckpointStore = store) -> None:
        if trainer.mae_step.in_a_row:
            return  # a state from within a storm of NaNs is no place to go back to
        shared = trainer.state_dict()
        own = shared.pop("rank") | {"position": asdict(at)}
        state = {"trainer": shared, "rank": own}
        place.save(state, step=at.step, metrics=at.health | {"loss": at.figures["loss"]})

    while at.epoch < config.last_epoch:
        trainer.begin_epoch(at.epoch, at.batch)
        pace = Pace()
        for batch in pace.timed(loader.epoch(at.epoch, at.batch)):
            trainer.last_index_B = batch.index_B
            lr = config.optimizer.lr(at.step, loader.steps, config.epochs, config.batch_size)
            warming_up = at.step < config.sampler_warmup_epochs * loader.steps
            at.figures |= trainer.step(batch.normalised(world.device), lr, warming_up=warming_up)
            at.next_batch()
            if at.step % config.log_every == 0 or at.step == steps:
                events.metrics(at.step, world.mean(at.figures))
                everything = at.figures | at.health
                shown: dict[str, float] = {
                    name: everything[name] for name in ("loss", "motion_lift") if name in everything
                }
                events.progress(
                    step=at.step, steps=steps, epoch=at.epoch + 1, epochs=config.last_epoch, shown=shown
                )
            if at.batch < loader.steps and store.due(at.step):
                keep()
        at.next_epoch()
        ended = pace.figures(config.batch_size) | {"skipped_steps": trainer.skipped}
        if at.epoch == config.last_epoch or (config.health_every and at.epoch % config.health_every == 0):
            at.health = health(trainer.mae, trainer.sampler, at.step)
            ended |= at.health
        events.metrics(at.step, {"epoch": at.epoch, **ended})
        if store.due(at.step, epochs=at.epoch) or at.epoch == config.last_epoch:
            keep()
    if after is not None:
        keep(after)
    last = world.mean({"loss": at.figures.get("loss", math.nan)})
    return at.health | last | {"steps": float(steps)}

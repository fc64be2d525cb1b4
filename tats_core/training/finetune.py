"""Fine-tuning of the encoder for action recognition.

Axes: B clips, C=3 channels (or classes, in logits), T frames, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from tats_core.errors import SpecError
from tats_core.models.classifier import HeadNorm, VideoClassifier
from tats_core.models.tokens import ClipConfig
from tats_core.models.vit import ViTConfig
from tats_core.specs import NotIdentity, OneOf
from tats_core.training.checkpoint import CheckpointConfig, CheckpointStore
from tats_core.training.events import EventLog
from tats_core.training.loop import LastStep, Loader, Position, Trainer, Watch, restore
from tats_core.training.metrics import on_host
from tats_core.training.optim import AverageConfig, fresh_weights
from tats_core.training.optimizers import OPTIMIZERS, OptimizerConfig
from tats_core.training.sharding import Sharded
from tats_core.training.world import StepConfig, World

_OPTIMIZER = OneOf(
    OPTIMIZERS,
    "adamw",
    shared={"min_lr": 1e-6, "warmup_epochs": 5, "layer_decay": 0.75},
    of_default_kind={"base_lr": 5e-4, "betas": (0.9, 0.999)},
)


class FinetuneConfig(StepConfig):
    """The recipe of fine-tuning; the defaults are VideoMAE's for Something-Something v2."""

    model: ViTConfig = Field(default_factory=lambda: ViTConfig.model_validate("vit_base"))
    clip: ClipConfig = Field(default_factory=ClipConfig)
    optimizer: Annotated[OptimizerConfig, _OPTIMIZER] = Field(
        default_factory=_OPTIMIZER.build,
        description="update rule and learning rates; VideoMAE's for fine-tuning",
    )
    epochs: int = Field(50, ge=1, description="passes over the labelled clips")
    batch_size: int = Field(512, ge=1, description="videos of one step, over all workers")
    samples_per_clip: int = Field(1, ge=1, description="augmented clips of each video in a batch (repeated)")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="share of the target spread over all classes")
    mixup: float = Field(0.8, ge=0, description="mixup's alpha; 0: off")
    cutmix: float = Field(1.0, ge=0, description="cutmix's alpha; 0: off")
    drop_path: float = Field(0.1, ge=0, lt=1, description="stochastic depth of the last block")
    head_dropout: float = Field(0.0, ge=0, lt=1, description="dropout before the head")
    head_norm: HeadNorm = Field("layer", description="norm of the pooled tokens: layer (VideoMAE) or batch")
    head_scale: float = Field(0.001, gt=0, description="factor on the head's first weights")
    ema: AverageConfig | None = Field(
        None, description="moving average of the weights, which is then the model that is saved; null: none"
    )
    seed: int = Field(0, ge=0, description="weights, order of clips, augmentation, mixing")
    log_every: Annotated[int, NotIdentity] = Field(5, ge=1, description="steps between two points of a curve")
    checkpoint: Annotated[CheckpointConfig, NotIdentity] = Field(
        default_factory=CheckpointConfig, description="when checkpoints are saved, and how many are kept"
    )

    @model_validator(mode="after")
    def _batch_norm_needs_the_whole_batch(self) -> Self:
        if self.head_norm == "batch" and self.accumulate > 1:
            raise ValueError(
                "head_norm: batch takes its statistics over the whole batch, which accumulate would cut; "
                "use head_norm: layer or accumulate: 1"
            )
        return self

    @property
    def mixes(self) -> bool:
        """Whether clips are mixed."""
        return self.mixup > 0 or self.cutmix > 0

    def per_worker(self, workers: int) -> int:
        """The videos of one of `workers` workers in a step.

        Raises:
            SpecError: shares or their parts would not be equal, or clips that are mixed would not pair up.
        """
        share = super().per_worker(workers)
        if self.mixes and share * self.samples_per_clip % 2:
            raise SpecError(
                f"mixup and cutmix pair the clips of a worker, and its share of batch_size "
                f"({self.batch_size}) is odd ({share * self.samples_per_clip}); "
                "make it even, or set mixup: 0 and cutmix: 0"
            )
        return share


@dataclass
class FinetuneTrainer(Trainer):
    """Classifier, optimiser and mixing: everything a step changes."""

    config: FinetuneConfig
    classes: int
    world: World
    model: VideoClassifier = field(init=False)

    def __post_init__(self) -> None:
        config = self.config
        with fresh_weights(config.seed):
            model = VideoClassifier(
                config.model,
                config.clip,
                self.classes,
                head_norm=config.head_norm,
                drop_path=config.drop_path,
                head_dropout=config.head_dropout,
                head_scale=config.head_scale,
            )
        self.model = model.to(self.world.device)

    def start(self) -> None:
        """Build optimiser, average and mixing; call it after the initial weights are loaded."""
        config = self.config
        config.compiled(self.model)
        # Before the model is divided, which cannot be copied then.
        self.average = config.ema.build(self.model) if config.ema else None
        self.parallel = self.world.parallel(self.model, config)
        self.result = self.model if self.average is None else self.average.module
        if isinstance(self.parallel, Sharded):
            self.result = self.world.parallel(self.result, config) if self.average else self.parallel
        self.guarded = config.optimizer.build(self.model, "classifier", depth=config.model.depth)
        self.guarded_steps = [self.guarded]
        self.mix = None
        if config.mixes:
            from timm.data.mixup import Mixup  # here: timm takes 2 s to import

            self.mix = Mixup(  # type: ignore[no-untyped-call]
                mixup_alpha=config.mixup,
                cutmix_alpha=config.cutmix,
                label_smoothing=config.label_smoothing,
                num_classes=self.classes,
            )
        # The targets of mixed clips are smooth already.
        self.loss = nn.CrossEntropyLoss(label_smoothing=0.0 if self.mix else config.label_smoothing)

    def finished(self) -> VideoClassifier:
        """The trained model: with the averaged weights if weights are averaged, else with the last.

        Of a divided one a copy, and every worker must call it.
        """
        trained = self.result.whole() if isinstance(self.result, Sharded) else self.result
        assert isinstance(trained, VideoClassifier)
        return trained

    def step(self, video_BCTHW: Tensor, label_B: Tensor, step: int, lr: float) -> dict[str, float | Tensor]:
        """Optimiser step number `step` on this worker's normalised videos.

        Returns:
            Loss, and `train_top1`: the share of these clips, augmented and mixed as they are, whose best
            class is the right one; of a mixed clip, that with the larger share. Both stay on the device: a
            step waits for the norm of its gradient alone.
        """
        # Freed before the forward pass, the last step's gradients leave their memory to its activations.
        self.guarded.clear()
        # Mixing pairs clips over the whole share, so it comes before the cut.
        mixed_BCTHW, target = self.mixed(video_BCTHW, label_B, step)
        parts = list(zip(self.parts(mixed_BCTHW), self.parts(target), strict=True))
        losses, hits = [], []
        for number, (part_BCTHW, truth) in enumerate(parts, start=1):
            with self.world.accumulating(self.parallel, last=number == len(parts)):
                with self.world.autocast(self.config.precision):
                    logits_BC = self.parallel(part_BCTHW)
                loss = self.loss(logits_BC.float(), truth) * (len(truth) / len(target))
                self.guarded.backward(loss)
            losses.append(loss.detach())
            hits.append(logits_BC.argmax(1) == (truth if self.mix is None else truth.argmax(1)))
        self.guarded.set_lr(lr)
        if self.guarded.step() and self.average is not None:
            self.average.update_parameters(self.model)
        return {
            "loss": torch.stack(losses).sum().double(),
            "lr": lr,
            "grad_norm": self.guarded.last_norm,
            "train_top1": 100 * torch.cat(hits).float().mean().double(),
        }

    def mixed(self, video_BCTHW: Tensor, label_B: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Mixup or cutmix of a batch, one draw for all its clips; targets are `[B, classes]` then."""
        # Dropout, stochastic depth and mixing draw from global generators: tie them to the step, so that
        # a resumed run draws what it would have drawn.
        draw = (self.config.seed * 1_000_003 + step) * self.world.size + self.world.rank
        torch.manual_seed(draw)
        if self.mix is None:
            return video_BCTHW, label_B
        np.random.seed(draw % 2**32)  # noqa: NPY002, timm draws from it
        # timm mixes pictures; frames pass as channels, so that a clip is cut by one box.
        mixed_BXHW, target_BC = self.mix(video_BCTHW.flatten(1, 2), label_B)
        return mixed_BXHW.view_as(video_BCTHW), target_BC

    def state(self) -> dict[str, Any]:
        state = {"model": self.model.state_dict(), "step": self.guarded.state_dict()}
        return state | ({"average": self.average.state_dict()} if self.average is not None else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.guarded.load_state_dict(state["step"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])


def finetune(
    trainer: FinetuneTrainer,
    loader: Loader,
    *,
    events: EventLog,
    store: CheckpointStore,
    watch: Watch | None = None,
) -> dict[str, float]:
    """Run fine-tuning to its end, from the newest checkpoint in `store` if it has any.

    Returns:
        Mean loss and accuracy (as in `FinetuneTrainer.step`) over the last epoch and all workers; steps that
        were skipped do not count.

    Raises:
        TrainingError: too many non-finite steps in a row.
        DataError: too many videos cannot be read.
    """
    config, world, watch = trainer.config, trainer.world, watch or Watch()
    steps = config.epochs * loader.steps
    at = Position()
    state = store.begin(config.checkpoint)
    if state is not None:
        ranks = [state["rank"]] if "rank" in state else state["ranks"]
        at = Position.joined([rank["position"] for rank in ranks])
        at.check(loader.steps)
        restore(trainer, state["trainer"])
        events.note(f"resumed after step {at.step} of {steps}")

    def save() -> None:
        if trainer.guarded.in_a_row:
            return  # no training should resume within a storm of NaNs
        position = at.state_dict()
        state = {"trainer": trainer.state_dict(), "rank": {"position": position}}
        store.save(state, step=at.step, metrics=position["metrics"])

    while at.epoch < config.epochs:
        trainer.model.train()
        for batch in watch.timed(loader.epoch(at.epoch, at.batch)):
            lr = config.optimizer.lr(at.step, loader.steps, config.epochs, config.batch_size)
            label_B = batch.label_B.to(world.device, non_blocking=True)
            arguments: dict[str, Any] = {"label_B": label_B, "step": at.step, "lr": lr}
            trainer.last = LastStep.of(trainer, at, batch, arguments)
            metrics = trainer.step(batch.normalised(world.device), **arguments)
            if not trainer.guarded.in_a_row:  # a skipped step has no metrics
                for name in ("loss", "train_top1"):
                    at.sums[name] = at.sums.get(name, 0.0) + metrics[name] / loader.steps
                at.sums["taken"] = at.sums.get("taken", 0.0) + 1
            at.next_batch()
            if at.step % config.log_every == 0 or at.step == steps:
                events.metrics(at.step, world.mean(metrics))
            if at.batch < loader.steps and store.due(at.step):
                save()
        share = loader.steps / max(1.0, at.sums.get("taken", 0.0))
        means = {name: share * at.sums.get(name, math.nan) for name in ("loss", "train_top1")}
        latest = world.mean(means)
        at.metrics |= latest
        at.next_epoch()
        ended = watch.metrics(config.batch_size, events) | {"skipped_steps": trainer.skipped}
        events.metrics(at.step, {"epoch": at.epoch, **ended})
        shown = latest | watch.latest
        events.progress(step=at.step, steps=steps, epoch=at.epoch, epochs=config.epochs, shown=shown)
        if store.due(at.step, epochs=at.epoch) or at.epoch == config.epochs:
            save()
    return on_host(at.metrics)

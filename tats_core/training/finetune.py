"""Fine-tuning of the encoder for action recognition.

Axes: B clips, C=3 channels (or classes, in logits), T frames, H W pixels.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from pydantic import Field
from timm.data.mixup import Mixup
from timm.loss.cross_entropy import SoftTargetCrossEntropy
from torch import Tensor, nn

from tats_core.models.classifier import HeadNorm, VideoClassifier
from tats_core.models.tokens import ClipConfig
from tats_core.models.vit import ViTConfig
from tats_core.specs import StrictModel
from tats_core.training.checkpoint import CheckpointStore
from tats_core.training.events import EventLog
from tats_core.training.optim import GuardedStep, OptimizerConfig, adamw, cosine, fresh_weights
from tats_core.training.pretrain import Loader
from tats_core.training.world import World


class FinetuneOptimizerConfig(OptimizerConfig):
    """AdamW as in VideoMAE's fine-tuning."""

    base_lr: float = Field(5e-4, gt=0, description="peak learning rate at a global batch of 256")
    min_lr: float = Field(1e-6, ge=0, description="learning rate at the end, scaled alike")
    warmup_epochs: float = Field(5, ge=0, description="epochs of linear warm-up")
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW's betas")
    layer_decay: float = Field(
        0.75, gt=0, le=1, description="factor on the rate from one block to the one below"
    )


class FinetuneConfig(StrictModel):
    """The recipe of fine-tuning; the defaults are VideoMAE's for Something-Something v2."""

    model: ViTConfig = Field(default_factory=lambda: ViTConfig.model_validate("vit_base"))
    clip: ClipConfig = Field(default_factory=ClipConfig)
    optimizer: FinetuneOptimizerConfig = Field(default_factory=FinetuneOptimizerConfig)
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
    seed: int = Field(0, ge=0, description="weights, order of clips, augmentation, mixing")
    log_every: int = Field(5, ge=1, description="steps between two points of a curve")
    checkpoint_every: int = Field(5, ge=1, description="epochs between two checkpoints")


@dataclass
class FinetuneTrainer:
    """Classifier, optimiser and mixing: everything a step changes."""

    config: FinetuneConfig
    classes: int
    world: World
    model: VideoClassifier = field(init=False)
    last_index_B: Tensor | None = field(default=None, init=False)

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
        """Make what depends on the first weights; call it after they are loaded."""
        config = self.config
        self.parallel = self.world.parallel(self.model)
        optimizer = adamw(self.model, config.optimizer, config.model.depth)
        self.guarded = GuardedStep(optimizer, config.optimizer.clip_grad, "classifier")
        self.mix = None
        if config.mixup or config.cutmix:
            self.mix = Mixup(  # type: ignore[no-untyped-call]
                mixup_alpha=config.mixup,
                cutmix_alpha=config.cutmix,
                label_smoothing=config.label_smoothing,
                num_classes=self.classes,
            )
        self.loss: nn.Module = (
            SoftTargetCrossEntropy()  # type: ignore[no-untyped-call]
            if self.mix
            else nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
        )

    def step(self, video_BCTHW: Tensor, label_B: Tensor, step: int, lr: float) -> dict[str, float]:
        """Optimiser step number `step` on normalised videos; returns loss and accuracy on the batch."""
        config = self.config
        # Dropout, stochastic depth and mixing draw from global generators: tie them to the step, so that
        # a resumed run draws what it would have drawn.
        draw = (config.seed * 1_000_003 + step) * self.world.size + self.world.rank
        torch.manual_seed(draw)
        target: Tensor = label_B
        if self.mix is not None:
            np.random.seed(draw % 2**32)  # noqa: NPY002, timm draws from it
            # timm mixes pictures; frames pass as channels, so that a clip is cut by one box.
            flat_BXHW, target = self.mix(video_BCTHW.flatten(1, 2), label_B)
            video_BCTHW = flat_BXHW.view_as(video_BCTHW)
        logits_BC = self.parallel(video_BCTHW)
        loss = self.loss(logits_BC, target)
        self.guarded.set_lr(lr)
        self.guarded(loss)
        hits = (logits_BC.argmax(1) == label_B).float().mean()
        return {
            "loss": loss.item(),
            "lr": lr,
            "grad_norm": self.guarded.last_norm,
            "train_top1": 100 * hits.item(),
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {"model": self.model.state_dict(), "step": self.guarded.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo `state_dict`."""
        self.model.load_state_dict(state["model"])
        self.guarded.load_state_dict(state["step"])


def finetune(
    trainer: FinetuneTrainer, loader: Loader, *, events: EventLog, store: CheckpointStore
) -> dict[str, float]:
    """Run fine-tuning to its end, from the newest state in `store` if there is one.

    Returns:
        Mean loss and accuracy on the augmented training clips of the last epoch.

    Raises:
        TrainingError: too many non-finite steps in a row.
        DataError: too many videos cannot be read.
    """
    config, world, recipe = trainer.config, trainer.world, trainer.config.optimizer
    steps = config.epochs * loader.steps
    peak, end, begin = (
        recipe.scaled(lr, config.batch_size) for lr in (recipe.base_lr, recipe.min_lr, recipe.warmup_lr)
    )
    first_epoch, step = 0, 0
    figures: dict[str, float] = {}
    state = store.latest()
    if state is not None:
        trainer.load_state_dict(state["trainer"])
        first_epoch, step, figures = state["epoch"], state["step"], dict(state["figures"])
        events.note(f"resumed after epoch {first_epoch} of {config.epochs}")
    for epoch in range(first_epoch, config.epochs):
        trainer.model.train()
        sums: dict[str, float] = {}
        began = time.perf_counter()
        for video_BCTHW, label_B, trainer.last_index_B in loader.epoch(epoch):
            lr = cosine(step, steps, recipe.warmup_epochs * loader.steps, peak, begin, end)
            video_BCTHW, label_B = (x.to(world.device, non_blocking=True) for x in (video_BCTHW, label_B))
            found = trainer.step(video_BCTHW, label_B, step, lr)
            step += 1
            sums = {name: sums.get(name, 0.0) + value / loader.steps for name, value in found.items()}
            if step % config.log_every == 0 or step == steps:
                events.metrics(step, found)
        figures = {"loss": sums["loss"], "train_top1": sums["train_top1"]}
        pace = loader.steps * config.batch_size / (time.perf_counter() - began)
        skipped = trainer.guarded.skipped
        events.metrics(step, {"epoch": epoch + 1, "clips_per_second": pace, "skipped_steps": skipped})
        events.progress(step=step, steps=steps, epoch=epoch + 1, epochs=config.epochs, shown=figures)
        if (epoch + 1) % config.checkpoint_every == 0 or epoch + 1 == config.epochs:
            done = {"epoch": epoch + 1, "step": step, "figures": figures}
            store.save({"trainer": trainer.state_dict(), **done, "rank": {}}, step=step, metrics=figures)
    return figures

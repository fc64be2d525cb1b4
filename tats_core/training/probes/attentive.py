"""One attention layer with a linear classifier, trained on all tokens of a frozen encoder.

Axes: B clips (videos, where a video's clips are joined), N tokens, D width, C classes, H heads, E = D / H.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from tats_core.report.metrics import METRICS
from tats_core.training.checkpoint import CheckpointConfig
from tats_core.training.optim import GuardedStep, evaluating, fresh_weights
from tats_core.training.probes.base import Frozen, ProbeConfig, Tokens
from tats_core.training.schedules.cosine import CosineConfig


class AttentiveConfig(ProbeConfig):
    """How an attentive probe is trained; AdamW's settings are V-JEPA's (arXiv 2404.08471)."""

    metric = METRICS["attentive_top1"]
    epochs: int = Field(20, ge=1, description="passes over the labelled videos; each encodes them anew")
    # Not `batch_size`: a probe's key leaves that out, since for the other probes it changes the speed alone.
    batch: int = Field(64, ge=2, description="videos of one step")
    clips: int = Field(1, ge=1, description="clips of a video whose tokens the probe attends to together")
    lr: float = Field(1e-3, gt=0, description="AdamW's learning rate at the start; a cosine takes it to 0")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's decoupled weight decay")

    def score(self, frozen: Frozen) -> tuple[Tensor, Tensor]:
        """Learn from random clips of fine-tuning's augmentation, test on central crops."""
        return score_attentive(fit_attentive(self, frozen), frozen.test_tokens(self.clips))


class AttentiveProbe(nn.Module):
    """One cross-attention of a learned query over all tokens, then a linear head.

    Each token is normed by itself, since the encoder ends before its final norm. V-JEPA's probe has an
    MLP of four times the width besides; without it, the probe measures what the tokens hold and not what a
    network on top could make of it. The pooled features are standardised over the batch before the head
    (BatchNorm without affine, as in MAE's linear probe, arXiv 2111.06377), since two clips of a small
    encoder differ by little beside their common mean.
    """

    def __init__(self, width: int, heads: int, classes: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.empty(width))
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.head = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.query, std=0.02)
        for layer in (self.key_value, self.out, self.head):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Class logits `[B, C]`."""
        b, n, d = tokens_BND.shape
        normed_BND = functional.layer_norm(tokens_BND.float(), (d,), eps=1e-6)
        key_BHNE, value_BHNE = (
            self.key_value(normed_BND).view(b, n, 2, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        )
        query_BH1E = self.query.view(1, self.heads, 1, -1).expand(b, -1, -1, -1)
        pooled_BHE = functional.scaled_dot_product_attention(query_BH1E, key_BHNE, value_BHNE).squeeze(2)
        logits: Tensor = self.head(self.norm(self.out(pooled_BHE.flatten(1))))
        return logits


def fit_attentive(config: AttentiveConfig, frozen: Frozen) -> AttentiveProbe:
    """Train an attentive probe on the tokens of a frozen encoder, from the newest checkpoint.

    The tokens are streamed: those of a whole data set would not fit (SSv2 at ViT-B: 400 GB in half
    precision). The result depends on the seed and the batches alone. Each epoch is followed by a checkpoint
    and an event with its mean loss (`attentive_loss`).

    Raises:
        TrainingError: too many non-finite steps in a row.
    """
    events, store = frozen.events, frozen.store
    steps, batches = frozen.training_tokens(config.batch, config.clips)
    with fresh_weights(frozen.seed):
        probe = AttentiveProbe(frozen.width, frozen.heads, frozen.classes).to(frozen.device)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    guarded = GuardedStep(optimizer, clip_grad=None, name="attentive probe")
    first_epoch, done, total = 0, 0, config.epochs * steps
    state = store.begin(CheckpointConfig(epochs=1))
    if state is not None:
        probe.load_state_dict(state["probe"])
        guarded.load_state_dict(state["step"])
        first_epoch, done = state["epoch"], state["done"]
        events.note(f"resumed after epoch {first_epoch} of {config.epochs}")
    for epoch in range(first_epoch, config.epochs):
        losses = []
        for tokens_BND, label_B in batches(epoch):
            guarded.set_lr(config.lr * CosineConfig().level(done / total))
            loss = functional.cross_entropy(probe(tokens_BND), label_B)
            guarded(loss)
            losses.append(loss.detach())
            done += 1
        mean = float(torch.stack(losses).mean())
        events.metrics(done, {"attentive_loss": mean})
        progress = {"attentive loss": mean}
        events.progress(step=done, steps=total, epoch=epoch + 1, epochs=config.epochs, shown=progress)
        saved = {"probe": probe.state_dict(), "step": guarded.state_dict(), "epoch": epoch + 1, "done": done}
        if store.due(done, epochs=epoch + 1):
            store.save(saved, step=done, metrics={"attentive_loss": mean})
    return probe


def score_attentive(probe: AttentiveProbe, batches: Tokens) -> tuple[Tensor, Tensor]:
    """Return `scores_BC` (logits) and `label_B` of all videos of `batches`, on the CPU."""
    scores, labels = [], []
    with evaluating(probe):
        for tokens_BND, label_B in batches:
            scores.append(probe(tokens_BND).cpu())
            labels.append(label_B.cpu())
    return torch.cat(scores), torch.cat(labels)

"""The attentive probe, on tokens whose classes are known."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tats_core.training import metrics
from tats_core.training.checkpoint import CheckpointConfig, CheckpointStore
from tats_core.training.events import EventLog, read_events
from tats_core.training.probes.attentive import (
    AttentiveConfig,
    AttentiveProbe,
    fit_attentive,
    score_attentive,
)
from tats_core.training.probes.base import Frozen
from tats_core.training.probes.linear import LinearConfig

WIDTH, HEADS, TOKENS = 8, 2, 6


def _marked(clips: int, seed: int) -> tuple[Tensor, Tensor]:
    """Clips whose class is what one marked token holds; the token after it holds the opposite.

    So the mean over a clip's tokens is the same for all clips, wherever the marked token stands.
    """
    generator = torch.Generator().manual_seed(seed)
    label_B = torch.randint(2, (clips,), generator=generator)
    place_B = torch.randint(TOKENS, (clips,), generator=generator)
    tokens_BND = torch.zeros(clips, TOKENS, WIDTH)
    row_B = torch.arange(clips)
    content_B = 2.0 * label_B - 1
    tokens_BND[row_B, place_B, 0] = 3.0
    tokens_BND[row_B, place_B, 1] = content_B
    tokens_BND[row_B, (place_B + 1) % TOKENS, 1] = -content_B
    return tokens_BND, label_B


class NoStore(CheckpointStore):
    """Keeps nothing."""

    def __init__(self) -> None:
        pass

    def begin(self, config: CheckpointConfig) -> None:
        return None

    def due(self, step: int, *, epochs: int | None = None) -> bool:
        return False


def _fit(
    seed: int = 0,
    *,
    epochs: int = 20,
    events: EventLog | None = None,
    store: CheckpointStore | None = None,
) -> AttentiveProbe:
    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(4):
            yield _marked(64, 1000 + 4 * epoch + step)

    frozen = Frozen(
        classes=2,
        width=WIDTH,
        heads=HEADS,
        seed=seed,
        device=torch.device("cpu"),
        events=events or EventLog(None),
        store=store or NoStore(),
        pool=pytest.fail,
        training_tokens=lambda batch, clips: (4, batches),
        test_tokens=pytest.fail,
    )
    return fit_attentive(AttentiveConfig(epochs=epochs, lr=1e-2), frozen)


def test_an_attentive_probe_finds_what_mean_pooling_cannot(tmp_path: Path) -> None:
    (train_BND, train_label_B), (test_BND, test_label_B) = _marked(400, 0), _marked(400, 1)
    mean_BD = train_BND.mean(1)
    assert torch.equal(mean_BD, mean_BD[:1].expand_as(mean_BD))
    pooled_BC = LinearConfig().classify(mean_BD, train_label_B, test_BND.mean(1), 2)
    # Chance is 50%, with a deviation of 2.5 on 400 clips.
    assert metrics.top_k_percent(pooled_BC, test_label_B, 1) < 60

    probe = _fit(events=EventLog(tmp_path / "events.jsonl"))
    events = [event for _, event in read_events(tmp_path / "events.jsonl")]
    losses = [event["values"]["attentive_loss"] for event in events if event["kind"] == "metrics"]
    scores_BC, label_B = score_attentive(probe, [(test_BND, test_label_B)])
    assert torch.equal(label_B, test_label_B)
    assert metrics.top_k_percent(scores_BC, label_B, 1) > 99
    assert len(losses) == 20
    assert losses[-1] < 0.2 < losses[0]


def test_the_same_seed_gives_the_same_attentive_probe_bit_for_bit() -> None:
    torch.manual_seed(5)
    probe = _fit()
    torch.manual_seed(6)
    same, other = _fit(), _fit(seed=1)
    assert all(torch.equal(a, b) for a, b in zip(probe.parameters(), same.parameters(), strict=True))
    assert not torch.equal(probe.head.weight, other.head.weight)


def test_a_killed_attentive_probe_resumes_and_ends_bit_for_bit_as_if_it_had_not_been(tmp_path: Path) -> None:
    class Killed(CheckpointStore):
        def save(self, state: Mapping[str, Any], *, step: int, metrics: Mapping[str, float]) -> None:
            super().save(state, step=step, metrics=metrics)
            if state["epoch"] == 2:
                raise KeyboardInterrupt

    uninterrupted = _fit(epochs=5)
    with pytest.raises(KeyboardInterrupt):
        _fit(epochs=5, store=Killed(tmp_path))
    resumed = _fit(epochs=5, events=EventLog(tmp_path / "events.jsonl"), store=CheckpointStore(tmp_path))
    events = [event for _, event in read_events(tmp_path / "events.jsonl")]
    assert [event["text"] for event in events if event["kind"] == "note"] == ["resumed after epoch 2 of 5"]
    assert [event["epoch"] for event in events if event["kind"] == "progress"] == [3, 4, 5]
    other = resumed.state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in uninterrupted.state_dict().items())


def test_the_attention_is_the_softmax_of_query_and_keys_over_the_tokens() -> None:
    torch.manual_seed(0)
    probe = AttentiveProbe(WIDTH, HEADS, 3).eval()
    with torch.no_grad():
        for parameter in probe.parameters():
            parameter.normal_()
    tokens_BND = 5 * torch.randn(2, TOKENS, WIDTH) + 1
    normed_BND = (tokens_BND - tokens_BND.mean(-1, keepdim=True)) / (
        tokens_BND.var(-1, unbiased=False, keepdim=True) + 1e-6
    ).sqrt()
    key_BND, value_BND = probe.key_value(normed_BND).split(WIDTH, -1)
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        weight_BN = (key_BND[..., head] @ probe.query[head] / math.sqrt(4)).softmax(-1)
        heads.append((weight_BN.unsqueeze(-1) * value_BND[..., head]).sum(1))
    # A BatchNorm that has seen nothing divides by the root of 1 + its epsilon.
    pooled_BD = probe.out(torch.cat(heads, -1)) / math.sqrt(1 + 1e-5)
    torch.testing.assert_close(probe(tokens_BND), probe.head(pooled_BD))


def test_scoring_leaves_the_probe_as_it_was() -> None:
    probe = _fit()
    before = {name: tensor.clone() for name, tensor in probe.state_dict().items()}
    assert probe.training
    first, _ = score_attentive(probe, [_marked(5, 0)])
    again, _ = score_attentive(probe, [(part, label) for part, label in [_marked(5, 0)]])
    assert probe.training
    assert torch.equal(first, again)
    assert not first.requires_grad
    assert all(torch.equal(before[name], tensor) for name, tensor in probe.state_dict().items())

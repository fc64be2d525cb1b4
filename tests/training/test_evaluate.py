from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from tats_core.training.evaluate import score_views
from tats_core.training.world import World


class Prepared(NamedTuple):
    """Test views that are normalised already."""

    views_BVCTHW: Tensor
    label_B: Tensor
    index_B: Tensor

    def normalised(self, device: torch.device) -> Tensor:
        return self.views_BVCTHW.to(device)


class Reader(nn.Module):
    """Its logits are the first pixels of a clip; batches are counted, and it must not be training."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.seen.append(len(video_BCTHW))
        return video_BCTHW[:, 0, 0, 0, :2]


def _views(*logits: list[list[float]]) -> Tensor:
    views_BV2 = torch.tensor(logits)
    return views_BV2[:, :, None, None, None].expand(-1, -1, 3, 1, 1, 2).contiguous()


def test_a_videos_score_is_the_mean_of_its_views_probabilities() -> None:
    log3 = math.log(3)
    batches = [
        # Probabilities (1/2, 1/2) and (3/4, 1/4); the other video (1/4, 3/4) twice.
        Prepared(
            _views([[0, 0], [log3, 0]], [[0, log3], [0, log3]]), torch.tensor([0, 1]), torch.tensor([4, 2])
        ),
        Prepared(_views([[log3, 0], [0, log3]]), torch.tensor([1]), torch.tensor([3])),
    ]
    model = Reader().train()
    scores_BC, label_B, index_B = score_views(model, batches, World())  # type: ignore[arg-type]
    assert scores_BC.flatten().tolist() == pytest.approx([0.625, 0.375, 0.25, 0.75, 0.5, 0.5])
    assert (label_B.tolist(), index_B.tolist()) == ([0, 1, 1], [4, 2, 3])
    assert model.seen == [4, 2]
    assert model.training


def test_in_bfloat16_scores_are_still_exact_probabilities() -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 3)
            self.made: list[torch.dtype] = []

        def forward(self, video_BCTHW: Tensor) -> Tensor:
            logits_BC: Tensor = self.layer(video_BCTHW[:, 0, 0, 0, :2])
            self.made.append(logits_BC.dtype)
            return logits_BC

    model = Linear()
    batches = [Prepared(_views([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), torch.tensor([1]), torch.tensor([0]))]
    scores_BC, _, _ = score_views(model, batches, World(), "bf16")  # type: ignore[arg-type]
    exact_BC, _, _ = score_views(model, batches, World())  # type: ignore[arg-type]
    assert model.made == [torch.bfloat16, torch.float32]
    assert scores_BC.dtype == torch.float32
    assert scores_BC.sum().item() == pytest.approx(1, abs=1e-6)
    assert 0 < (scores_BC - exact_BC).abs().max().item() < 0.05


def test_one_certain_view_does_not_outvote_two_others_as_averaged_logits_would() -> None:
    batches = [Prepared(_views([[50.0, 0], [0, 2], [0, 2]]), torch.tensor([1]), torch.tensor([0]))]
    scores_BC, _, _ = score_views(Reader(), batches, World())  # type: ignore[arg-type]
    assert scores_BC.argmax(1).item() == 1

"""Probes of pooled features whose classes are known, and what is true of every probe."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor
from torch.nn import functional

from tats_core.training import metrics
from tats_core.training.probes import PROBES, PooledProbe, knn
from tats_core.training.probes.knn import KNNConfig
from tats_core.training.probes.linear import LinearConfig
from tats_core.training.probes.nearest_centroid import NearestCentroidConfig


def _groups(clips: int, seed: int) -> tuple[Tensor, Tensor]:
    """Three classes around three far points, in units that differ between dimensions."""
    generator = torch.Generator().manual_seed(seed)
    label_B = torch.arange(clips) % 3
    centre_BD = 10 * functional.one_hot(label_B, 5).float()
    noise_BD = torch.randn(clips, 5, generator=generator)
    return (centre_BD + noise_BD) * torch.tensor([1e-3, 1.0, 1e3, 1.0, 1.0]) + 7, label_B


POOLED = [name for name, probe in PROBES.items() if issubclass(probe, PooledProbe)]


def _classify(probe: str, *features: Any) -> Tensor:
    return PROBES[probe]().classify(*features)  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("probe", POOLED)
def test_a_probe_tells_classes_apart_that_lie_apart(probe: str) -> None:
    (train_BD, train_label_B), (test_BD, test_label_B) = _groups(60, 0), _groups(30, 1)
    scores_BC = _classify(probe, train_BD, train_label_B, test_BD, 3)
    assert metrics.top_k_percent(scores_BC, test_label_B, 1) == 100


@pytest.mark.parametrize("probe", POOLED)
def test_a_probe_of_noise_finds_nothing(probe: str) -> None:
    generator = torch.Generator().manual_seed(0)
    train_BD, test_BD = torch.randn(300, 5, generator=generator), torch.randn(600, 5, generator=generator)
    label_B = torch.randint(4, (900,), generator=generator)
    scores_BC = _classify(probe, train_BD, label_B[:300], test_BD, 4)
    # Chance is 25%, with a deviation of 1.8 on 600 clips.
    assert abs(metrics.top_k_percent(scores_BC, label_B[300:], 1) - 25) < 4 * 1.8


def test_the_ridge_probe_is_ridge_regression_on_standardised_features() -> None:
    (train_BD, label_B), (test_BD, _) = _groups(40, 0), _groups(10, 1)
    mean_D, deviation_D = train_BD.mean(0), train_BD.std(0)
    train, test = (((x - mean_D) / deviation_D).double().numpy() for x in (train_BD, test_BD))
    target = functional.one_hot(label_B, 3).double().numpy() - 1 / 3
    # The probe's strength is per training clip, scikit-learn's in all.
    reference = Ridge(alpha=0.1 * 40, fit_intercept=False).fit(train, target)
    expected_BC = torch.from_numpy(reference.predict(test))
    torch.testing.assert_close(
        LinearConfig().classify(train_BD, label_B, test_BD, 3), expected_BC, rtol=1e-4, atol=1e-5
    )


def test_the_nearest_neighbour_has_the_heaviest_vote() -> None:
    train_BD = torch.tensor([[1.0, 0.0], [-0.2, 1.0], [-0.8, -1.0]])
    votes_BC = KNNConfig(neighbours=1).classify(train_BD, torch.tensor([0, 1, 1]), train_BD[:1], 2)
    # The only neighbour is the clip itself: similarity 1 at temperature 0.07.
    assert votes_BC[0].tolist() == pytest.approx([math.exp(1 / 0.07), 0], rel=1e-4)


def test_the_nearest_neighbours_of_many_clips_are_found_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    (train_BD, train_label_B), (test_BD, _) = _groups(60, 0), _groups(31, 1)
    at_once_BC = KNNConfig().classify(train_BD, train_label_B, test_BD, 3)
    monkeypatch.setattr(knn, "_CLIPS", 8)
    topk, rows = Tensor.topk, []

    def watched(similarity: Tensor, *rest: Any, **more: Any) -> Any:
        rows.append(len(similarity))
        return topk(similarity, *rest, **more)

    monkeypatch.setattr(Tensor, "topk", watched)
    torch.testing.assert_close(KNNConfig().classify(train_BD, train_label_B, test_BD, 3), at_once_BC)
    assert rows == [8, 8, 8, 7]


def test_the_nearest_centroid_is_the_class_mean_at_the_smallest_angle() -> None:
    # Standardised by hand: the mean is 0 and both deviations are 1 at these four points.
    train_BD = torch.tensor([[1.0, 0.5], [1.0, -0.5], [-1.0, 1.0], [-1.0, -1.0]]) * math.sqrt(3) / 2
    train_BD = train_BD / train_BD.std(0)
    scores_BC = NearestCentroidConfig().classify(
        train_BD, torch.tensor([0, 0, 1, 1]), torch.tensor([[1.0, 1.0], [-2.0, 0.0]]), 3
    )
    # The means lie at (1, 0) and (-1, 0) of some length; the third class has no clip.
    expected_BC = torch.tensor([[math.sqrt(0.5), -math.sqrt(0.5), -1], [-1, 1, -1]])
    torch.testing.assert_close(scores_BC, expected_BC)


@pytest.mark.parametrize("name", list(PROBES))
def test_every_probe_says_what_its_number_means(name: str) -> None:
    metric = PROBES[name].metric
    assert metric.key == f"{name}_top1", "the key of its number is made of the name in YAML"
    assert metric.title
    assert metric.meaning
    assert (metric.unit, metric.better) == ("%", "more")

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, recall_score

from tats_core.training import metrics


def test_top_k_counts_clips_whose_class_is_among_the_best() -> None:
    scores_BC = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    label_B = torch.tensor([0, 1, 2, 2])
    assert metrics.top_k_percent(scores_BC, label_B, 1) == 50
    assert metrics.top_k_percent(scores_BC, label_B, 2) == 75
    # Top-5 of three classes is everything.
    assert metrics.top_k_percent(scores_BC, label_B, 5) == 100


@pytest.mark.parametrize(
    ("hits", "clips", "low", "high"),
    # Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3: Wilson's score interval.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_is_the_published_one(hits: int, clips: int, low: float, high: float) -> None:
    interval = metrics.wilson_interval(100 * hits / clips, clips)
    assert interval == pytest.approx((100 * low, 100 * high), abs=0.006)


@settings(max_examples=50)
@given(st.integers(1, 500), st.data())
def test_wilsons_interval_holds_the_share_and_stays_within_0_and_100(clips: int, data: st.DataObject) -> None:
    percent = 100 * data.draw(st.integers(0, clips)) / clips
    low, high = metrics.wilson_interval(percent, clips)
    assert 0 <= low <= percent <= high <= 100
    mirrored = metrics.wilson_interval(100 - percent, clips)
    assert mirrored == pytest.approx((100 - high, 100 - low), abs=1e-9)


def test_the_effective_rank_of_even_directions_is_their_number() -> None:
    # Centred already: plus and minus each axis.
    features_BD = torch.cat([torch.eye(6)[:3], -torch.eye(6)[:3]])
    assert metrics.effective_rank(features_BD) == pytest.approx(3)
    assert metrics.effective_rank(features_BD + 100) == pytest.approx(3, rel=1e-4)


def test_the_effective_rank_of_uneven_directions_is_the_exponential_of_their_entropy() -> None:
    features_BD = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    # Singular values 3 sqrt 2 and sqrt 2: shares 3/4 and 1/4.
    expected = math.exp(0.75 * math.log(4 / 3) + 0.25 * math.log(4))
    assert metrics.effective_rank(features_BD) == pytest.approx(expected)


def test_features_on_one_line_have_effective_rank_one() -> None:
    line_BD = torch.linspace(-1, 1, 9)[:, None] * torch.tensor([1.0, 2.0, -1.0]) + 5
    assert metrics.effective_rank(line_BD) == pytest.approx(1, abs=1e-3)


def test_a_confusion_counts_true_classes_in_rows_and_predictions_in_columns() -> None:
    predicted_B, label_B = torch.tensor([0, 1, 1, 0, 1]), torch.tensor([0, 0, 0, 2, 1])
    confusion_CC = metrics.confusion(predicted_B, label_B, 4)
    assert confusion_CC.tolist() == [[1, 2, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    # Classes 0, 1 and 2 are found to 1/3, 1 and 0; class 3 has no clips and does not count.
    assert metrics.mean_class_accuracy(confusion_CC) == pytest.approx(100 * 4 / 9)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=60))
def test_confusion_and_mean_class_accuracy_are_scikit_learns(clips: list[tuple[int, int]]) -> None:
    label_B, predicted_B = torch.tensor(clips).T
    confusion_CC = metrics.confusion(predicted_B, label_B, 6)
    np.testing.assert_array_equal(confusion_CC, confusion_matrix(label_B, predicted_B, labels=range(6)))
    expected = recall_score(
        label_B, predicted_B, labels=label_B.unique().tolist(), average="macro", zero_division=0
    )
    assert metrics.mean_class_accuracy(confusion_CC) == pytest.approx(100 * expected)


def test_the_calibration_error_is_the_bins_gap_weighted_by_their_clips() -> None:
    sure_B = torch.tensor([0.55, 0.55, 0.55, 0.95, 0.95])
    probability_BC = torch.stack([sure_B, 1 - sure_B], 1)
    label_B = torch.tensor([0, 1, 1, 0, 0])
    calibration = metrics.calibration(probability_BC, label_B, bins=10)
    # Bin (.5, .6]: 3 clips, sure 55, right 33.3; bin (.9, 1]: 2 clips, sure 95, right 100.
    assert calibration.clips_K.tolist() == [0] * 5 + [3, 0, 0, 0, 2]
    assert calibration.confidence_K[[5, 9]].tolist() == pytest.approx([55, 95])
    assert calibration.accuracy_K[[5, 9]].tolist() == pytest.approx([100 / 3, 100])
    assert calibration.ece == pytest.approx(0.6 * (55 - 100 / 3) + 0.4 * 5)


def test_a_bin_holds_its_upper_edge_and_the_first_one_zero() -> None:
    # 1/2 and 1 are edges of 2 bins that floating point holds exactly.
    probability_BC = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.0, 0.0]])
    assert metrics.calibration(probability_BC, torch.zeros(3).long(), bins=2).clips_K.tolist() == [2, 1]


def test_a_model_that_is_as_sure_as_it_is_right_has_no_calibration_error() -> None:
    generator = torch.Generator().manual_seed(0)
    probability_BC = torch.randn(20_000, 5, generator=generator).mul(2).softmax(1)
    label_B = probability_BC.multinomial(1, generator=generator).squeeze(1)
    # 15 bins of 1,333 clips: each gap has a deviation of at most 1.4 points.
    assert metrics.calibration(probability_BC, label_B).ece < 1.4
    always_B = probability_BC.argmax(1)
    assert metrics.calibration(probability_BC, always_B).ece > 20


def test_peak_memory_is_that_of_a_process_with_torch_in_it() -> None:
    assert 50 < metrics.peak_memory_mb(torch.device("cpu")) < 100_000


def test_metrics_on_a_device_become_numbers_in_their_places() -> None:
    mixed = {"loss": torch.tensor(0.1), "lr": 0.5, "kl": torch.tensor(0.2, dtype=torch.float64)}
    read = metrics.on_host(mixed)
    assert list(read.items()) == [("loss", torch.tensor(0.1).item()), ("lr", 0.5), ("kl", 0.2)]
    assert {type(value) for value in read.values()} == {float}

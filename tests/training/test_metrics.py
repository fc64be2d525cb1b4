from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from torch import Tensor

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
    found = metrics.wilson_interval(100 * hits / clips, clips)
    assert found == pytest.approx((100 * low, 100 * high), abs=0.006)


@settings(deadline=None, max_examples=50)
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


def test_motion_lift_is_motion_of_the_visible_over_motion_of_all() -> None:
    motion_BN = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 0.0, 4.0]])
    # All: 8 / 8 tokens. Visible: (2 + 0 + 4 + 0) / 4.
    assert metrics.motion_lift(motion_BN, torch.tensor([[2, 0], [3, 1]])) == pytest.approx(1.5)
    everything_BK = torch.arange(4).expand(2, 4)
    assert metrics.motion_lift(motion_BN, everything_BK) == pytest.approx(1)
    assert metrics.motion_lift(motion_BN, torch.zeros(2, 1, dtype=torch.long)) == 0


def test_motion_lift_of_still_clips_is_zero_and_not_undefined() -> None:
    assert metrics.motion_lift(torch.zeros(2, 4), torch.tensor([[0], [1]])) == 0


def _groups(clips: int, seed: int) -> tuple[Tensor, Tensor]:
    """Three classes around three far points, in units that differ between dimensions."""
    generator = torch.Generator().manual_seed(seed)
    label_B = torch.arange(clips) % 3
    centre_BD = 10 * torch.nn.functional.one_hot(label_B, 5).float()
    noise_BD = torch.randn(clips, 5, generator=generator)
    return (centre_BD + noise_BD) * torch.tensor([1e-3, 1.0, 1e3, 1.0, 1.0]) + 7, label_B


@pytest.mark.parametrize("probe", [metrics.ridge_probe, metrics.knn_probe])
def test_a_probe_tells_classes_apart_that_lie_apart(probe) -> None:  # type: ignore[no-untyped-def]
    (train_BD, train_label_B), (test_BD, test_label_B) = _groups(60, 0), _groups(30, 1)
    scores_BC = probe(train_BD, train_label_B, test_BD, 3)
    assert metrics.top_k_percent(scores_BC, test_label_B, 1) == 100


@pytest.mark.parametrize("probe", [metrics.ridge_probe, metrics.knn_probe])
def test_a_probe_of_noise_finds_nothing(probe) -> None:  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(0)
    train_BD, test_BD = torch.randn(300, 5, generator=generator), torch.randn(600, 5, generator=generator)
    label_B = torch.randint(4, (900,), generator=generator)
    scores_BC = probe(train_BD, label_B[:300], test_BD, 4)
    # Chance is 25%, with a deviation of 1.8 on 600 clips.
    assert abs(metrics.top_k_percent(scores_BC, label_B[300:], 1) - 25) < 4 * 1.8


def test_the_ridge_probe_is_ridge_regression_on_standardised_features() -> None:
    (train_BD, label_B), (test_BD, _) = _groups(40, 0), _groups(10, 1)
    mean_D, deviation_D = train_BD.mean(0), train_BD.std(0)
    train, test = (((x - mean_D) / deviation_D).double().numpy() for x in (train_BD, test_BD))
    target = torch.nn.functional.one_hot(label_B, 3).double().numpy() - 1 / 3
    # The probe's strength is per training clip, scikit-learn's in all.
    reference = Ridge(alpha=0.1 * 40, fit_intercept=False).fit(train, target)
    expected_BC = torch.from_numpy(reference.predict(test))
    torch.testing.assert_close(
        metrics.ridge_probe(train_BD, label_B, test_BD, 3), expected_BC, rtol=1e-4, atol=1e-5
    )


def test_the_nearest_neighbour_has_the_heaviest_vote() -> None:
    train_BD = torch.tensor([[1.0, 0.0], [-0.2, 1.0], [-0.8, -1.0]])
    votes_BC = metrics.knn_probe(train_BD, torch.tensor([0, 1, 1]), train_BD[:1], 2, neighbours=1)
    # The only neighbour is the clip itself: similarity 1 at temperature 0.07.
    assert votes_BC[0].tolist() == pytest.approx([math.exp(1 / 0.07), 0], rel=1e-4)


def test_peak_memory_is_that_of_a_process_with_torch_in_it() -> None:
    assert 50 < metrics.peak_memory_mb(torch.device("cpu")) < 100_000

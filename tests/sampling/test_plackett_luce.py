from __future__ import annotations

import itertools
import math

import pytest
import scipy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tats_core.sampling.plackett_luce import (
    Noise,
    complement,
    gumbel_top_k,
    masked_chances,
    ordered_log_probs,
    visible_count,
)

LOGITS = [0.0, 1.0, -1.0, 2.0, 0.5]


def _probability(logits: list[float], order: tuple[int, ...]) -> float:
    """Plackett-Luce by its definition: each pick among what is left."""
    left = {token: math.exp(logit) for token, logit in enumerate(logits)}
    probability = 1.0
    for pick in order:
        probability *= left[pick] / sum(left.values())
        del left[pick]
    return probability


@pytest.mark.parametrize(("mask_ratio", "visible"), [(0.75, 392), (0.85, 235), (0.9, 157), (0.95, 78)])
def test_one_rule_gives_the_visible_tokens_of_videomaes_1568(mask_ratio: float, visible: int) -> None:
    assert visible_count(1568, mask_ratio) == visible


def _uniform(clips: int, columns: int, seed: int) -> torch.Tensor:
    return Noise(torch.Generator().manual_seed(seed)).uniform(clips, columns)


def test_at_least_one_token_is_visible() -> None:
    assert visible_count(8, 0.99) == 1


def test_every_ordered_draw_is_as_frequent_as_plackett_luce_says() -> None:
    draws = 60_000
    drawn_BK = gumbel_top_k(torch.tensor([LOGITS]).expand(draws, -1), 2, _uniform(draws, 5, seed=0))
    orders = list(itertools.permutations(range(5), 2))
    expected = [draws * _probability(LOGITS, order) for order in orders]
    observed = [(drawn_BK == torch.tensor(order)).all(1).sum().item() for order in orders]
    assert sum(observed) == draws
    assert scipy.stats.chisquare(observed, expected).pvalue > 0.001


def test_tokens_are_included_as_often_as_all_draws_of_three_enumerated_say() -> None:
    draws = 60_000
    drawn_BK = gumbel_top_k(torch.tensor([LOGITS]).expand(draws, -1), 3, _uniform(draws, 5, seed=1))
    for token in range(5):
        exact = sum(
            _probability(LOGITS, order) for order in itertools.permutations(range(5), 3) if token in order
        )
        deviation = math.sqrt(exact * (1 - exact) / draws)
        assert (drawn_BK == token).any(1).double().mean().item() == pytest.approx(exact, abs=4 * deviation)


def test_of_256_tokens_each_stays_masked_as_often_as_in_20000_draws() -> None:
    draws, k = 20_000, 26
    logits_BN = 1.5 * torch.randn(1, 256, generator=torch.Generator().manual_seed(2))
    drawn_BK = gumbel_top_k(logits_BN.expand(draws, -1), k, _uniform(draws, 256, seed=3))
    masked_N = 1 - drawn_BK.flatten().bincount(minlength=256) / draws
    chance_BN = masked_chances(logits_BN, k)
    assert chance_BN.min() < 0.2
    assert (masked_N - chance_BN[0]).abs().max() < 0.02


@settings(max_examples=50)
@given(st.integers(2, 40), st.floats(0, 4), st.data())
def test_chances_to_stay_masked_leave_k_visible_and_fall_with_the_logit(
    n: int, spread: float, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, n - 1))
    logits_BN = spread * torch.randn(3, n).sort(1).values
    chance_BN = masked_chances(logits_BN, k)
    assert chance_BN.sum(1).tolist() == pytest.approx([n - k] * 3, rel=1e-3)
    assert (chance_BN.diff(dim=1) <= 0).all()


def test_where_k_tokens_have_all_the_probability_the_others_stay_masked() -> None:
    chance_BN = masked_chances(torch.tensor([[200.0, 200.0, 0.0, 0.0]]), 2)
    assert chance_BN[0].tolist() == pytest.approx([0, 0, 1, 1], abs=1e-3)


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(0, 2**31 - 1), st.data())
def test_a_draw_has_no_token_twice_and_is_repeated_by_its_seed(
    n: int, seed: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, n))
    logits_BN = 5 * torch.randn(3, n)
    first, again = (gumbel_top_k(logits_BN, k, _uniform(3, n, seed)) for _ in range(2))
    assert torch.equal(first, again)
    assert all(len(set(row)) == k for row in first.tolist())


def test_another_seed_draws_other_tokens_and_clips_draw_apart() -> None:
    first, second = (gumbel_top_k(torch.zeros(2, 100), 10, _uniform(2, 100, seed)) for seed in (0, 1))
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


def test_a_certain_token_is_always_drawn_first() -> None:
    logits_BN = torch.zeros(500, 20)
    logits_BN[:, 7] = 60.0
    assert gumbel_top_k(logits_BN, 3, _uniform(500, 20, seed=0))[:, 0].unique().tolist() == [7]


@settings(max_examples=40)
@given(st.lists(st.floats(-8, 8), min_size=2, max_size=7), st.data())
def test_ordered_log_probs_equal_brute_force(logits: list[float], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(logits))))[: data.draw(st.integers(1, len(logits)))]
    log_prob_BK = ordered_log_probs(torch.tensor([logits]), torch.tensor([order]))
    by_hand = [
        math.log(_probability(logits, tuple(order[: rank + 1])) / _probability(logits, tuple(order[:rank])))
        for rank in range(len(order))
    ]
    assert log_prob_BK[0].tolist() == pytest.approx(by_hand, rel=1e-3, abs=1e-4)


def test_the_probabilities_of_all_ordered_draws_sum_to_one() -> None:
    orders = torch.tensor(list(itertools.permutations(range(5), 3)))
    total = ordered_log_probs(torch.tensor([LOGITS]).expand(len(orders), -1), orders).sum(1).exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-5)


def test_the_last_token_left_is_drawn_with_certainty() -> None:
    logits_BN = torch.tensor([[1.0, -2.0, 0.5]], requires_grad=True)
    log_probs_BK = ordered_log_probs(logits_BN, torch.tensor([[2, 0, 1]]))
    assert log_probs_BK[0, 2].item() == pytest.approx(0, abs=1e-6)
    log_probs_BK.sum().backward()
    assert logits_BN.grad is not None
    assert logits_BN.grad.isfinite().all()


def test_logits_far_apart_stay_finite_with_their_gradients() -> None:
    logits_BN = torch.tensor([[90.0, -90.0, 0.0, -90.0]], requires_grad=True)
    log_probs_BK = ordered_log_probs(logits_BN, torch.tensor([[1, 0]]))
    # Drawing the least likely token first costs 180 nats; the most likely one then costs nothing.
    assert log_probs_BK[0].tolist() == pytest.approx([-180, 0], abs=1e-4)
    log_probs_BK.sum().backward()
    assert logits_BN.grad is not None
    assert logits_BN.grad[0].tolist() == pytest.approx([-1, 1, 0, 0], abs=1e-5)


@settings(max_examples=30)
@given(st.integers(1, 30), st.data())
def test_the_complement_is_what_was_not_drawn_in_ascending_order(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, n))
    drawn = [data.draw(st.permutations(range(n)))[:k] for _ in range(3)]
    masked_BM = complement(torch.tensor(drawn), n)
    assert masked_BM.tolist() == [sorted(set(range(n)) - set(row)) for row in drawn]


@settings(max_examples=20)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 9), st.integers(0, 2**31 - 1))
def test_workers_share_out_the_noise_that_one_worker_would_draw(
    workers: int, clips: int, columns: int, seed: int
) -> None:
    alone = _uniform(workers * clips, columns, seed)
    shares = [
        Noise(torch.Generator().manual_seed(seed), rank, workers).uniform(clips, columns)
        for rank in range(workers)
    ]
    # The loader deals clips out in turn: clip i of worker r is clip i * workers + r of the global batch.
    assert torch.equal(torch.stack(shares, 1).flatten(0, 1), alone)

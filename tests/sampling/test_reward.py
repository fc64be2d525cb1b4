"""Rewards of clips small enough to work out by hand.

Two slices of two tokens (left, right) of two frames and two pixels; the three channels are alike, so that a
mean over channels is the value of each.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tats_core.sampling.adaptive import AdaptiveConfig
from tats_core.sampling.ppo import PPO, PPOConfig
from tats_core.sampling.reward import Outcome, dynamic, motion, normalized, pixel, ranks, top, within_clips
from tats_core.sampling.tats import TATSConfig

FLOOR = 0.5


def _patches(*tokens: list[float]) -> Tensor:
    """One clip: of each token, frame by frame, the pixels of each channel."""
    token_N4 = torch.tensor(tokens, dtype=torch.float32)
    return token_N4[None, :, None].expand(-1, -1, 3, -1).flatten(2)


def _outcome(patches_BNP: Tensor, prediction_BMP: Tensor, masked: list[int]) -> Outcome:
    loss_BM = torch.full((1, len(masked)), 7.0)
    return Outcome(patches_BNP, prediction_BMP, loss_BM, torch.tensor([masked]), slices=2, tubelet=2)


# Tokens 0 and 2 are the left place in slices 0 and 1, tokens 1 and 3 the right one. The left place moves: its
# pixels 1 and -1 are exchanged in the second slice. The right one stands still and is bright.
CLIP = _patches([1, -1, 1, -1], [9, 7, 9, 7], [-1, 1, -1, 1], [9, 7, 9, 7])


def test_the_pixel_reward_is_the_squared_error_and_follows_brightness() -> None:
    outcome = _outcome(CLIP, torch.zeros(1, 2, 12), [1, 2])
    # Against a prediction of 0: (81 + 49) / 2 of the bright token that stands still, 1 of the one that moves.
    assert pixel(outcome, FLOOR).tolist() == [[65, 1]]


def test_the_normalised_reward_divides_by_the_variance_in_space() -> None:
    # Off by 2 or -2. Pixels 9 and 7 deviate by 1 from their mean, 8 and 4 by 2; the floor adds 0.25.
    clip = _patches([5, 5, 5, 5], [9, 7, 9, 7], [-1, 1, -1, 1], [8, 4, 8, 4])
    outcome = _outcome(clip, clip[:, [0, 1, 3]] + _patches([2, -2, -2, 2]), [0, 1, 3])
    assert normalized(outcome, FLOOR)[0].tolist() == pytest.approx([4 / 0.25, 4 / 1.25, 4 / 4.25])
    # A wrong mean colour earns nothing: of flat tokens it would be all.
    outcome = _outcome(clip, clip[:, [0, 1, 3]] + 2, [0, 1, 3])
    assert normalized(outcome, FLOOR).tolist() == [[0, 0, 0]]


def test_the_dynamic_reward_of_an_error_that_stays_is_nothing() -> None:
    # The right place is off by 2 in both slices: that is its mean over time, and nothing is left of it.
    outcome = _outcome(CLIP, CLIP[:, [1, 3]] + 2, [1, 3])
    assert dynamic(outcome, FLOOR).tolist() == [[0, 0]]
    # Off by 2 in the first slice alone, right in the second: the mean over time is 1, and 1 is left in each.
    prediction_BMP = CLIP[:, [1, 3]] + torch.tensor([2.0, 0.0]).view(1, 2, 1)
    assert dynamic(_outcome(CLIP, prediction_BMP, [1, 3]), FLOOR).tolist() == [[1, 1]]


def test_the_dynamic_reward_takes_visible_tokens_as_they_are() -> None:
    # Token 1 alone was masked, off by 2: its mean over time with the visible token 3 is 1.
    assert dynamic(_outcome(CLIP, CLIP[:, [1]] + 2, [1]), FLOOR).tolist() == [[1]]


def test_the_change_of_a_token_is_that_to_the_next_frame_of_its_place() -> None:
    # Left: pixels change by 2 between frames 1 and 2 alone. Frame 1 is the second of token 0, whose mean is
    # 2; frames 2 and 3 are token 2's, and the last repeats the one before.
    assert _outcome(CLIP, CLIP, [0]).change().tolist() == [[2, 0, 0, 0]]
    # 1, 2, 4, 7: squares 1, 4, 9, and 9 again.
    rising = _patches([1, 1, 2, 2], [0, 0, 0, 0], [4, 4, 7, 7], [0, 0, 0, 0])
    assert _outcome(rising, rising, [0]).change().tolist() == [[2.5, 0, 9, 0]]


def test_the_motion_reward_is_the_unexplained_share_times_the_change() -> None:
    # Off by 3 or -3: the error is 9, the variance in space 1, the change 2 on the left, 0 on the right.
    outcome = _outcome(CLIP, CLIP[:, [0, 1]] + _patches([3, -3, 3, -3]), [0, 1])
    assert motion(outcome, FLOOR)[0].tolist() == pytest.approx([9 / 1.25 * 2 / 1.25, 0])


def test_the_motion_reward_does_not_depend_on_contrast() -> None:
    faint, bold = (_outcome(scale * CLIP, scale * 1.5 * CLIP[:, [0]], [0]) for scale in (1.0, 10.0))
    # Both leave a quarter of the variance unexplained, and change by twice of it.
    assert motion(faint, 0.001).item() == pytest.approx(0.5, rel=1e-4)
    assert motion(bold, 0.001).item() == pytest.approx(0.5, rel=1e-4)
    assert dynamic(bold, 0.001).item() == pytest.approx(100 * dynamic(faint, 0.001).item())


def test_of_what_is_predicted_no_reward_is_left() -> None:
    outcome = _outcome(CLIP, CLIP[:, [0, 3]], [0, 3])
    for reward in (pixel, normalized, dynamic, motion):
        assert reward(outcome, FLOOR).tolist() == [[0, 0]]


def _objective(**ppo: Any) -> PPO:
    return TATSConfig(ppo=PPOConfig(**ppo)).objective(0)


def test_each_objective_pays_its_own_reward() -> None:
    outcome = _outcome(CLIP, CLIP[:, [0, 1]] + _patches([3, -3, 3, -3]), [0, 1])
    assert _objective(reward="pixel").reward(outcome).tolist() == [[9, 9]]
    expected = [9 / 1.25 * 2 / 1.25, 0]
    assert _objective(reward="motion", reward_floor=0.5).reward(outcome)[0].tolist() == pytest.approx(
        expected
    )
    assert AdaptiveConfig().objective(0).reward(outcome).tolist() == [[7, 7]], (
        "AdaMAE's is the autoencoder's loss"
    )


def test_a_rank_is_the_weight_below_and_half_that_of_the_equals() -> None:
    values_BX = torch.tensor([[0.3, 0.1, 0.3, 0.2], [5.0, 5.0, 5.0, 5.0]])
    assert ranks(values_BX, torch.ones(2, 4)).tolist() == [[3, 0.5, 3, 1.5], [2, 2, 2, 2]]
    weight_BX = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]])
    assert ranks(values_BX, weight_BX).tolist() == [[8, 1, 8, 4], [5, 5, 5, 5]]


def test_ranks_do_not_know_by_how_much_a_value_is_larger() -> None:
    one_BX = torch.ones(1, 3)
    rows = [torch.tensor([[0.0, 1.0, large]]) for large in (2.0, 1e6)]
    scaled = [within_clips(ranks(row, one_BX), one_BX)[0].tolist() for row in rows]
    # Half a place above 0, 1, 2: deviation sqrt(2/3).
    assert scaled[0] == pytest.approx([-math.sqrt(1.5), 0, math.sqrt(1.5)])
    assert scaled[1] == scaled[0]


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([3.0, 1.0, 9.0, 2.0, 0.0], 0.4, [1, 0, 1, 0, 0]),
        # Four that are equal share two places; the largest has one, and half of each of the four.
        ([7.0, 7.0, 7.0, 7.0, 0.0], 0.4, [0.5, 0.5, 0.5, 0.5, 0]),
        ([7.0, 9.0, 7.0, 7.0, 7.0], 0.6, [0.5, 1, 0.5, 0.5, 0.5]),
        # Half a place, and one and a half.
        ([3.0, 1.0, 9.0, 2.0, 0.0], 0.1, [0, 0, 0.5, 0, 0]),
        ([3.0, 1.0, 9.0, 2.0, 0.0], 0.3, [0.5, 0, 1, 0, 0]),
    ],
)
def test_the_top_is_a_share_of_each_clip(values: list[float], share: float, expected: list[float]) -> None:
    top_BX = top(torch.tensor([values]), share, torch.ones(1, 5))
    assert top_BX[0].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, [0, 0, 1, 0]), (0.625, [1, 0, 1, 0]), (0.75, [1, 0, 1, 0.5])]
)
def test_a_token_that_counts_several_times_takes_as_many_places_in_the_top(
    share: float, expected: list[float]
) -> None:
    values_BX, weight_BX = torch.tensor([[3.0, 1.0, 9.0, 2.0]]), torch.tensor([[1.0, 1.0, 4.0, 2.0]])
    assert top(values_BX, share, weight_BX)[0].tolist() == expected


def test_within_a_clip_the_weighted_mean_becomes_0_and_the_deviation_1() -> None:
    # Mean (1 * 1 + 3 * 5) / 4 = 4, variance (1 * 9 + 3 * 1) / 4 = 3.
    scaled_BX = within_clips(torch.tensor([[1.0, 5.0]]), torch.tensor([[1.0, 3.0]]))
    assert scaled_BX[0].tolist() == pytest.approx([-math.sqrt(3), 1 / math.sqrt(3)])


def test_a_clip_whose_tokens_all_earn_the_same_teaches_nothing() -> None:
    values_BX, weight_BX = torch.full((1, 5), 3.3), torch.tensor([[0.1, 0.2, 0.3, 0.7, 9.0]])
    for scaled_BX in (values_BX, top(values_BX, 0.1, weight_BX), ranks(values_BX, weight_BX)):
        assert within_clips(scaled_BX, weight_BX).tolist() == [[0] * 5]

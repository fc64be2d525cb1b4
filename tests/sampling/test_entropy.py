"""The bound below a policy's entropy."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tats_core.sampling.entropy import entropy, hold_entropy


def test_the_entropy_of_a_policy_is_that_of_its_probabilities() -> None:
    logits_BN = torch.tensor([[0.0, 0.0, 0.0, 0.0], [math.log(3), 0.0, -math.inf, -math.inf]])
    logits_BN = logits_BN.clamp_min(-100)
    expected = [math.log(4), -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))]
    assert entropy(logits_BN).tolist() == pytest.approx(expected, abs=1e-5)


def test_a_policy_that_is_open_enough_is_left_as_it_is() -> None:
    logits_BN = torch.tensor([[0.1, 0.0, -0.2, 0.3]])
    assert torch.equal(hold_entropy(logits_BN, 0.8), logits_BN)


def test_two_tokens_are_held_at_the_temperature_worked_by_hand() -> None:
    # H = .75 log(4/3) + .25 log 4 for logits log 3 apart; a policy ten times as sharp is cooled back to it.
    lowest = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    held_BN = hold_entropy(torch.tensor([[10 * math.log(3), 0.0]]), lowest)
    assert held_BN[0].tolist() == pytest.approx([math.log(3), 0.0], rel=1e-4)


@given(
    st.integers(0, 1000), st.integers(2, 200), st.floats(0.05, 0.95), st.sampled_from([1e-3, 0.1, 3.0, 1e3])
)
def test_no_policy_is_sharper_than_asked_for_and_the_order_of_its_tokens_stays(
    seed: int, tokens: int, share: float, size: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_BN = size * torch.randn(3, tokens, generator=generator, dtype=torch.float64)
    lowest = share * math.log(tokens)
    held_BN = hold_entropy(logits_BN, lowest)
    assert (entropy(held_BN) >= lowest - 1e-4).all()
    assert torch.equal(held_BN.argsort(1), logits_BN.argsort(1))
    is_held_B = entropy(logits_BN) < lowest
    assert entropy(held_BN)[is_held_B].tolist() == pytest.approx([lowest] * int(is_held_B.sum()), abs=1e-4)


def test_the_gradient_is_that_of_finite_differences() -> None:
    generator, lowest = torch.Generator().manual_seed(0), 0.7 * math.log(10)
    logits_BN = 3 * torch.randn(3, 10, generator=generator, dtype=torch.float64)
    logits_BN[2] *= 0.05  # open enough
    weights_BN = torch.randn(3, 10, generator=generator, dtype=torch.float64)
    logits_BN.requires_grad_()
    (hold_entropy(logits_BN, lowest) * weights_BN).sum().backward()
    assert logits_BN.grad is not None
    step = 1e-3
    for clip in range(3):
        for token in range(10):
            moved = torch.zeros_like(weights_BN)
            moved[clip, token] = step
            with torch.no_grad():
                up, down = (
                    (hold_entropy(logits_BN + sign * moved, lowest) * weights_BN).sum() for sign in (1, -1)
                )
            numeric = float(up - down) / (2 * step)
            assert float(logits_BN.grad[clip, token]) == pytest.approx(numeric, abs=2e-3)
    # Where the bound holds, nothing depends on the scale of a clip's logits.
    along_scale_B = (logits_BN.grad * logits_BN.detach()).sum(1)
    assert along_scale_B[:2].abs().max() < 1e-4
    assert along_scale_B[2].abs() > 0.1


def test_equal_logits_stay_uniform_and_have_a_finite_gradient() -> None:
    logits_BN = torch.zeros(1, 5, requires_grad=True)
    held_BN = hold_entropy(logits_BN, 1.5)
    held_BN.square().sum().backward()
    assert torch.equal(held_BN, torch.zeros(1, 5))
    assert logits_BN.grad is not None
    assert torch.isfinite(logits_BN.grad).all()

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tats_core.sampling import ppo
from tats_core.sampling.base import Policy, Rollout
from tats_core.sampling.objective import Transition
from tats_core.sampling.plackett_luce import complement, gumbel_top_k
from tats_core.sampling.ppo import (
    PPOConfig,
    explained_variance,
    improve,
    ppo_loss,
    surrogate,
    value_loss,
    weights,
)
from tats_core.sampling.tats import TATSConfig


@pytest.mark.parametrize(
    ("ratio", "advantage", "earned", "slope"),
    [
        # Better than expected: the ratio earns up to 1.2, and then nothing more.
        (1.0, 1.0, 1.0, 1.0),
        (1.1, 2.0, 2.2, 2.0),
        (1.5, 1.0, 1.2, 0.0),
        # A ratio that fell although the token was good is always corrected.
        (0.5, 1.0, 0.5, 1.0),
        # Worse than expected: lowering the ratio earns down to 0.8.
        (0.9, -2.0, -1.8, -2.0),
        (0.5, -1.0, -0.8, 0.0),
        # A ratio that rose although the token was bad is always corrected.
        (1.5, -1.0, -1.5, -1.0),
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_the_clipped_objective_of_each_case(
    ratio: float, advantage: float, earned: float, slope: float
) -> None:
    ratio_tensor = torch.tensor(ratio, requires_grad=True)
    objective = surrogate(ratio_tensor, torch.tensor(advantage), clip=0.2)
    objective.backward()
    assert objective.item() == pytest.approx(earned)
    assert ratio_tensor.grad is not None
    assert ratio_tensor.grad.item() == pytest.approx(slope)


@pytest.mark.parametrize(
    ("value", "old", "target", "clip", "expected"),
    [
        (2.0, 1.0, 0.0, None, 4.0),
        # Moved away from the target by 1, held 0.5 from the old value: 1.5, and the worse error counts.
        (2.0, 1.0, 0.0, 0.5, 4.0),
        # On the target, but by a larger move than allowed: as if it stood at 1.5, half way.
        (3.0, 1.0, 3.0, 0.5, 2.25),
        (1.2, 1.0, 3.0, 0.5, 3.24),
    ],
)
def test_the_value_loss_of_each_case(
    value: float, old: float, target: float, clip: float | None, expected: float
) -> None:
    loss = value_loss(torch.tensor([value]), torch.tensor([old]), torch.tensor([target]), clip)
    assert loss.item() == pytest.approx(expected)


def _two_clips() -> tuple[Policy, Transition]:
    """Old policy (1/2, 1/2), new one (3/4, 1/4); each clip masks one token of two."""
    old = Policy(torch.zeros(2, 2), torch.tensor([[0.1, 0.3], [0.1, 0.3]]))
    new_logits = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0]], requires_grad=True)
    new = Policy(new_logits, torch.tensor([[0.4, 0.6], [-0.4, -0.6]]))
    rollout = Rollout(torch.tensor([[0], [1]]), torch.tensor([[1], [0]]), 2, old)
    return new, Transition(torch.zeros(2, 2, 1), rollout, torch.tensor([[1.0], [-1.0]]))


def test_the_whole_objective_with_credit_to_masked_tokens() -> None:
    config = PPOConfig(clip=0.2, value_weight=0.5, entropy_weight=0.1)
    loss, parts = ppo_loss(*_two_clips(), config)
    metrics = {name: part.item() for name, part in parts.items()}
    # Clip 0: ratio 1/4 : 1/2 = 0.5, advantage 1 - 0.2, min(0.4, 0.64).
    # Clip 1: ratio 3/4 : 1/2 = 1.5, advantage -1 - 0.2, min(-1.8, -1.44).
    assert metrics["policy_loss"] == pytest.approx(-(0.4 - 1.8) / 2)
    # Values 0.5 and -0.5 of returns 1 and -1.
    assert metrics["value_loss"] == pytest.approx(0.25)
    entropy = (0.75 * math.log(4 / 3) + 0.25 * math.log(4)) / math.log(2)
    assert metrics["entropy_share"] == pytest.approx(entropy)
    assert loss.item() == pytest.approx(0.7 + 0.5 * 0.25 - 0.1 * entropy)
    # KL((1/2, 1/2) || (3/4, 1/4)) = 1/2 log(2/3) + 1/2 log 2, the same for both clips.
    assert metrics["kl"] == pytest.approx(math.log(4 / 3) / 2, rel=1e-5)
    assert metrics["clip_fraction"] == 1
    # A hundredth of the way from the smaller of two ratios to the larger one, and back.
    assert (metrics["ratio_q01"], metrics["ratio_q99"]) == pytest.approx((0.51, 1.49))


def _drawn(logits_BN: Tensor, k: int, seed: int) -> Transition:
    uniform_BN = torch.rand(logits_BN.shape, generator=torch.Generator().manual_seed(seed))
    visible_BK = gumbel_top_k(logits_BN, k, uniform_BN)
    masked_BM = complement(visible_BK, logits_BN.shape[1])
    policy = Policy(logits_BN, torch.zeros_like(logits_BN))
    rollout = Rollout(visible_BK, masked_BM, logits_BN.shape[1], policy)
    return Transition(torch.zeros(*logits_BN.shape, 1), rollout, torch.zeros(masked_BM.shape))


def test_on_average_over_draws_all_tokens_count_alike() -> None:
    logits_BN = torch.linspace(-1.5, 1.5, 64).expand(20_000, -1)
    transition = _drawn(logits_BN, 16, seed=0)
    # The likeliest stays masked in 37 of 100 draws, the least likely in 96.
    for most, counted in ((1.0, (1.27, 0.49)), (10.0, (1.0, 1.0))):
        weight_BM = weights(transition, PPOConfig(max_weight=most))
        total_N = torch.zeros(64).scatter_add(0, transition.rollout.masked_BM.flatten(), weight_BM.flatten())
        share_N = total_N / total_N.mean()
        assert (share_N[0].item(), share_N[-1].item()) == pytest.approx(counted, abs=0.06)


def test_no_token_counts_more_than_max_weight_times_another() -> None:
    weight_BM = weights(
        _drawn(torch.linspace(-4, 4, 64).expand(500, -1), 16, seed=0), PPOConfig(max_weight=3)
    )
    assert (weight_BM.amax(1) / weight_BM.amin(1)).max().item() == pytest.approx(3, rel=1e-2)
    assert weight_BM.mean(1).tolist() == pytest.approx([1] * 500)


def test_the_clipped_objective_is_the_weighted_mean() -> None:
    # Tokens of probabilities 1/2, 1/4, 1/4; the first two are masked. K = 1, so a token stays masked with
    # exp(-t pi), where 2 exp(-t/4) + exp(-t/2) = 2: exp(-t/4) = x, x^2 + 2x = 2, x = sqrt(3) - 1. The weights
    # are 1/x^2 and 1/x, or 1 and x by their mean (1 + x) / 2 = sqrt(3) / 2.
    x = math.sqrt(3) - 1
    policy = Policy(torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.zeros(1, 3))
    rollout = Rollout(torch.tensor([[2]]), torch.tensor([[0, 1]]), 3, policy)
    transition = Transition(torch.zeros(1, 3, 1), rollout, torch.tensor([[1.0, -2.0]]))
    assert weights(transition, PPOConfig())[0].tolist() == pytest.approx(
        [2 / math.sqrt(3), 2 * x / math.sqrt(3)], rel=1e-5
    )
    _, parts = ppo_loss(policy, transition, PPOConfig())
    assert parts["policy_loss"].item() == pytest.approx((-1 + 2 * x) / math.sqrt(3), rel=1e-5)


def test_normalised_advantages_are_those_of_the_reference() -> None:
    # Advantages 0.8 and -1.2 have mean -0.2 and deviation 1: (A - mean) / deviation is 1 and -1.
    _, parts = ppo_loss(*_two_clips(), PPOConfig(clip=0.2), mean=-0.2)
    # Clip 0: ratio 0.5, min(0.5, 0.8). Clip 1: ratio 1.5, min(-1.5, -1.2).
    assert parts["policy_loss"].item() == pytest.approx(-(0.5 - 1.5) / 2)


@pytest.mark.parametrize("wrong_by", [-3.0, 0.77, 50.0])
def test_a_critic_that_is_wrong_about_all_clips_alike_does_not_move_the_policy(wrong_by: float) -> None:
    # Masked tokens are no sample of the policy: unless it is taken out, a constant in all advantages pushes
    # all of them up (or down) against the visible ones, and the policy goes blind (or collapses).
    moved, metrics = [], []
    for shift in (0.0, wrong_by):
        (transition,) = _memory(6)
        old = transition.rollout.policy
        assert old is not None
        rollout = replace(transition.rollout, policy=Policy(old.logits_BN, old.value_BN + shift))
        table = Table(6)
        learner = Taught(table, torch.optim.SGD(table.parameters(), lr=1.0))
        generator = torch.Generator().manual_seed(0)
        metrics.append(improve(learner, [replace(transition, rollout=rollout)], PPOConfig(), generator))
        moved.append(table.logits_N.detach().clone())
    torch.testing.assert_close(moved[0], moved[1], rtol=0, atol=1e-5)
    assert moved[0].abs().max() > 0.01
    right, wrong = (float(measured["advantage_mean"]) for measured in metrics)
    assert wrong == pytest.approx(right - wrong_by, abs=1e-4)


def _returns_and_values(returns: list[float], values: list[float]) -> Transition:
    """Clips of two tokens, one of them masked and rewarded."""
    clips = len(returns)
    policy = Policy(torch.zeros(clips, 2), torch.tensor(values).view(-1, 1).expand(-1, 2))
    rollout = Rollout(torch.zeros(clips, 1, dtype=torch.int64), torch.ones(clips, 1).long(), 2, policy)
    return Transition(torch.zeros(clips, 2, 1), rollout, torch.tensor(returns).view(-1, 1))


def test_the_explained_variance_is_that_of_all_clips_in_the_memory() -> None:
    learner = Taught(lambda tokens_BND: Policy(torch.zeros(0), torch.zeros(0)))
    # Residuals 0.5, -0.5, 0.5, -0.5 of returns 1, -1, 1, -1: a quarter of their variance is left.
    memory = [_returns_and_values([1.0, -1.0], [0.5, -0.5]), _returns_and_values([1.0, -1.0], [0.5, -0.5])]
    explained = explained_variance(learner, memory, PPOConfig(reward_scale="global"))
    assert explained == {"explained_variance": pytest.approx(0.75)}
    assert explained_variance(learner, memory, PPOConfig(reward_scale="top")) == {}


@pytest.mark.parametrize("returns", [[0.3], [0.3, 0.3]], ids=["a single clip", "clips with the same return"])
def test_where_returns_do_not_differ_no_explained_variance_is_logged(returns: list[float]) -> None:
    learner = Taught(lambda tokens_BND: Policy(torch.zeros(0), torch.zeros(0)))
    memory = [_returns_and_values(returns, [0.1, 0.7][: len(returns)])]
    explained = explained_variance(learner, memory, PPOConfig(reward_scale="global"))
    assert math.isnan(explained["explained_variance"])


def test_only_the_unclipped_clip_moves_the_policy() -> None:
    new, transition = _two_clips()
    ppo_loss(new, transition, PPOConfig())[0].backward()
    gradient_BN = new.logits_BN.grad
    assert gradient_BN is not None
    # -1/2 d(r A)/dl of clip 0, with r = pi_new(1) / pi_old(1): dr/dl_1 = r (1 - 1/4), dr/dl_0 = -r 3/4.
    assert gradient_BN[0].tolist() == pytest.approx([0.5 * 0.8 * 0.5 * 0.75, -0.5 * 0.8 * 0.5 * 0.75])
    assert gradient_BN[1].tolist() == pytest.approx([1.2 / 2 * 1.5 * 0.25, -1.2 / 2 * 1.5 * 0.25])


def test_the_whole_objective_with_credit_to_the_sequence() -> None:
    # Three tokens, two drawn in order (0, 1); old policy uniform, new one (2, 1, 1) / 4.
    old = Policy(torch.zeros(2, 3), torch.zeros(2, 3))
    new = Policy(torch.tensor([[math.log(2), 0, 0]] * 2), torch.tensor([[3.0, 0, 0], [0, 0, 0]]))
    rollout = Rollout(torch.tensor([[0, 1], [1, 0]]), torch.tensor([[2], [2]]), 3, old)
    # Errors below the mean, which is 0: returns 1 and 2.
    transition = Transition(torch.zeros(2, 3, 1), rollout, torch.tensor([[-1.0], [-2.0]]))
    _, parts = ppo_loss(new, transition, PPOConfig(credit="sequence", reward_scale="global", clip=0.2))
    # Clip 0: 2/4 : 1/3 = 1.5 (clipped to 1.2), then 1/2 : 1/2 = 1; advantage 1.
    # Clip 1: 1/4 : 1/3 = 0.75, then 2/3 : 1/2 = 4/3 (clipped to 1.2); advantage 2.
    assert parts["policy_loss"].item() == pytest.approx(-(1.2 + 1 + 2 * 0.75 + 2 * 1.2) / 4)
    # Values 1 and 0 of returns 1 and 2.
    assert parts["value_loss"].item() == pytest.approx((0 + 4) / 2)


@pytest.mark.parametrize("credit", ["masked_token", "sequence"])
def test_tokens_that_are_hardly_ever_drawn_do_not_make_the_policies_differ(credit: str) -> None:
    # Half of the tokens have next to no probability; what moves among them moves nothing.
    rare_N = torch.tensor([0.0] * 8 + [-20.0] * 8)
    old = Policy(rare_N.expand(2, -1), torch.zeros(2, 16))
    new = Policy((rare_N + torch.tensor([0.0] * 8 + [3.0] * 8)).expand(2, -1), torch.zeros(2, 16))
    rollout = Rollout(torch.tensor([[0, 1]] * 2), complement(torch.tensor([[0, 1]] * 2), 16), 16, old)
    config = PPOConfig.model_validate({"credit": credit, "reward_scale": "global"})
    _, parts = ppo_loss(new, Transition(torch.zeros(2, 16, 1), rollout, torch.zeros(2, 14)), config)
    assert parts["kl"].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("credit", ["masked_token", "sequence"])
def test_before_the_first_step_old_and_new_policy_are_one(credit: str) -> None:
    policy = Policy(torch.randn(4, 10), torch.randn(4, 10))
    visible_BK = gumbel_top_k(
        policy.logits_BN, 3, torch.rand(policy.logits_BN.shape, generator=torch.Generator().manual_seed(0))
    )
    rollout = Rollout(visible_BK, complement(visible_BK, 10), 10, policy)
    transition = Transition(torch.zeros(4, 10, 1), rollout, torch.randn(4, 7))
    parts = ppo_loss(policy, transition, PPOConfig(credit=credit, reward_scale="global"))[1]  # type: ignore[arg-type]
    assert parts["ratio_q01"].item() == parts["ratio_q99"].item() == 1
    assert parts["kl"].item() == parts["clip_fraction"].item() == 0


def test_a_token_that_became_far_likelier_leaves_loss_and_gradient_finite() -> None:
    old = Policy(torch.zeros(1, 3), torch.zeros(1, 3))
    new_logits_BN = torch.tensor([[0.0, 300.0, 0.0]], requires_grad=True)
    rollout = Rollout(torch.tensor([[0]]), torch.tensor([[1, 2]]), 3, old)
    transition = Transition(torch.zeros(1, 3, 1), rollout, torch.tensor([[-1.0, 1.0]]))
    loss, parts = ppo_loss(Policy(new_logits_BN, torch.zeros(1, 3)), transition, PPOConfig())
    # Log-ratios are log 3 and log 3 - 300, a ratio of 0.
    assert parts["policy_loss"].item() == pytest.approx(3 / 2)
    loss.backward()
    assert new_logits_BN.grad is not None
    assert torch.isfinite(new_logits_BN.grad).all()


@pytest.mark.parametrize(("moved", "advantage", "is_corrected"), [(2.5, -1.0, False), (-2.5, 1.0, True)])
def test_the_bound_of_the_ratio_is_from_above_alone(
    moved: float, advantage: float, is_corrected: bool
) -> None:
    # A token that became far likelier although it was bad is not the whole gradient; one that became far
    # less likely although it was good is still pulled back, in proportion to its ratio.
    new_logits_BN = torch.tensor([[0.0, math.log(3) + moved, 0.0]], requires_grad=True)
    new = Policy(new_logits_BN, torch.zeros(1, 3))
    old = Policy(new_logits_BN.detach() - torch.tensor([[0.0, 2 * moved, 0.0]]), torch.zeros(1, 3))
    rollout = Rollout(torch.tensor([[0, 2]]), torch.tensor([[1]]), 3, old)
    transition = Transition(torch.zeros(1, 3, 1), rollout, torch.tensor([[advantage]]))
    loss, _ = ppo_loss(new, transition, PPOConfig(value_weight=0))
    loss.backward()
    assert new_logits_BN.grad is not None
    assert (new_logits_BN.grad[0, 1].item() < 0) == is_corrected
    assert bool(new_logits_BN.grad.any()) == is_corrected


class Taught:
    """A learner whose parts are functions."""

    def __init__(
        self, policy: Callable[[Tensor], Policy], optimizer: torch.optim.Optimizer | None = None
    ) -> None:
        self.of, self.optimizer, self.losses, self.stopped = policy, optimizer, list[float](), 0
        self.accumulate = 1

    def policy(self, tokens_BND: Tensor, *, last: bool) -> Policy:
        return self.of(tokens_BND)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self.losses.append(loss.item())
        if self.optimizer is not None:
            loss.backward()  # type: ignore[no-untyped-call]

    def step(self, stop: Tensor | None = None) -> bool | None:
        if stop is not None and stop:
            self.stopped += 1
            return None
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()
        return True

    def mean(self, values: Tensor) -> Tensor:
        return values

    def moments(self, values: Tensor) -> tuple[Tensor, Tensor]:
        return values.detach().mean(), values.detach().std(correction=0)


class Table(nn.Module):
    """A policy that is a table of logits, the same for every clip."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.logits_N = nn.Parameter(torch.zeros(tokens))
        self.value = nn.Parameter(torch.zeros(()))

    def forward(self, tokens_BND: Tensor) -> Policy:
        shape = tokens_BND.shape[:2]
        return Policy(self.logits_N.expand(shape), self.value.expand(shape))


def _draw(table: Table, reward_N: Tensor, clips: int, generator: torch.Generator) -> Transition:
    tokens_BND = torch.zeros(clips, len(reward_N), 1)
    with torch.no_grad():
        drawn = table(tokens_BND)
    policy = Policy(drawn.logits_BN.clone(), drawn.value_BN.clone())  # no view of the table, which moves
    visible_BK = gumbel_top_k(policy.logits_BN, 2, torch.rand(policy.logits_BN.shape, generator=generator))
    rollout = Rollout(visible_BK, complement(visible_BK, len(reward_N)), len(reward_N), policy)
    return Transition(tokens_BND, rollout, reward_N[rollout.masked_BM])


def _train(config: PPOConfig, updates: int) -> tuple[Table, dict[str, float]]:
    """Tokens 0 and 1 of 10 are hard to reconstruct when masked, the others easy."""
    reward_N = torch.full((10,), -0.5)
    reward_N[:2] = 2.0
    table, generator = Table(10), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(table.parameters(), lr=0.05)
    health: dict[str, float] = {}
    for _ in range(updates):
        memory = [_draw(table, reward_N, 16, generator)]
        health = improve(Taught(table, optimizer), memory, config, generator)
    return table, health


@pytest.mark.parametrize(("credit", "updates"), [("masked_token", 40), ("sequence", 80)])
def test_tokens_that_are_hard_when_masked_become_likelier_to_be_visible(credit: str, updates: int) -> None:
    table, _ = _train(PPOConfig.model_validate({"credit": credit, "reward_scale": "global"}), updates)
    probability_N = table.logits_N.detach().softmax(0)
    assert probability_N[:2].min() > 2 * probability_N[2:].max()


def test_a_bonus_on_the_entropy_keeps_a_policy_from_collapsing_that_would_without_it() -> None:
    _, alone = _train(PPOConfig(), updates=150)
    _, held = _train(PPOConfig(entropy_weight=4.0), updates=150)
    assert alone["entropy_share"] < 0.6
    assert held["entropy_share"] > 0.8


def _count_clips(config: PPOConfig, memory: list[Transition], kl: float = 0.0) -> tuple[list[int], float]:
    """Run an update that changes nothing; returns the size of each mini-batch and the number of steps."""
    sizes: list[int] = []

    def policy(tokens_BND: Tensor) -> Policy:
        sizes.append(len(tokens_BND))
        shift = math.log(2) if kl else 0.0
        logits_BN = torch.zeros(tokens_BND.shape[:2])
        logits_BN[:, 0] += shift
        return Policy(logits_BN, torch.zeros(tokens_BND.shape[:2]))

    generator = torch.Generator().manual_seed(0)
    health = improve(Taught(policy), memory, config, generator)
    return sizes, health["ppo_steps"]


def _memory(*clips: int) -> list[Transition]:
    generator = torch.Generator().manual_seed(0)
    return [_draw(Table(6), torch.randn(6, generator=generator), count, generator) for count in clips]


def test_an_update_passes_over_the_whole_memory_in_mini_batches() -> None:
    sizes, steps = _count_clips(PPOConfig(epochs=2, minibatches=2), _memory(5, 4))
    assert sorted(sizes[:4]) == sorted(sizes[4:]) == [2, 2, 2, 3]
    assert steps == 8


def test_every_clip_is_seen_once_in_a_pass() -> None:
    (transition,) = _memory(7)
    marked = Transition(
        torch.arange(7.0).view(7, 1, 1).expand(7, 6, 1), transition.rollout, transition.reward_BM
    )
    seen: list[float] = []

    def policy(tokens_BND: Tensor) -> Policy:
        seen.extend(tokens_BND[:, 0, 0].tolist())
        return Policy(torch.zeros(tokens_BND.shape[:2]), torch.zeros(tokens_BND.shape[:2]))

    config = PPOConfig(epochs=1, minibatches=3)
    generator = torch.Generator().manual_seed(0)
    improve(Taught(policy), [marked], config, generator)
    # Neighbours form a mini-batch, and the order of the mini-batches is random.
    assert seen == [5, 6, 0, 1, 2, 3, 4]


def test_a_part_of_a_transition_keeps_what_belongs_together() -> None:
    (transition,) = _memory(5)
    part = transition.part(torch.tensor([3, 1]))
    for whole, piece in (
        (transition.reward_BM, part.reward_BM),
        (transition.rollout.visible_BK, part.rollout.visible_BK),
        (transition.rollout.masked_BM, part.rollout.masked_BM),
        (transition.rollout.policy.logits_BN, part.rollout.policy.logits_BN),  # type: ignore[union-attr]
    ):
        assert torch.equal(whole[[3, 1]], piece)


def test_an_update_stops_when_the_policy_has_moved_too_far_but_never_before_its_first_step() -> None:
    sizes, steps = _count_clips(PPOConfig(epochs=5, minibatches=1, kl_stop=0.01), _memory(4), kl=1.0)
    # The second pass measures the KL and takes no step.
    assert (sizes, steps) == ([4, 4], 1)
    sizes, steps = _count_clips(PPOConfig(epochs=5, minibatches=1, kl_stop=None), _memory(4), kl=1.0)
    assert (len(sizes), steps) == (5, 5)


def test_a_skipped_step_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(tokens_BND: Tensor) -> Policy:
        return Policy(torch.full(tokens_BND.shape[:2], math.nan), torch.zeros(tokens_BND.shape[:2]))

    learner = Taught(broken)
    monkeypatch.setattr(learner, "step", lambda stop: False)
    health = improve(learner, _memory(4), PPOConfig(), torch.Generator().manual_seed(0))
    assert health["ppo_steps"] == 0


def test_a_pass_that_moved_too_far_leaves_no_gradient_behind() -> None:
    learner = Taught(lambda tokens_BND: _shifted(tokens_BND))
    config = PPOConfig(epochs=3, minibatches=1, kl_stop=0.01)
    improve(learner, _memory(4), config, torch.Generator().manual_seed(0))
    assert learner.stopped == 1


def _shifted(tokens_BND: Tensor) -> Policy:
    logits_BN = torch.zeros(tokens_BND.shape[:2])
    logits_BN[:, 0] = math.log(2)
    return Policy(logits_BN, torch.zeros(tokens_BND.shape[:2]))


@pytest.mark.parametrize("credit", ["masked_token", "sequence"])
def test_a_mini_batch_in_parts_has_the_gradient_of_the_whole(credit: str) -> None:
    gradients = []
    for parts in (1, 2, 3):
        table = Table(6)
        with torch.no_grad():
            table.logits_N.copy_(torch.linspace(-1, 1, 6))
        optimizer = torch.optim.SGD(table.parameters(), lr=1.0)
        before = table.logits_N.detach().clone()
        config = PPOConfig.model_validate(
            {"credit": credit, "reward_scale": "global", "epochs": 1, "minibatches": 1}
        )
        health = improve(
            Taught(table, optimizer),
            _memory(7),
            config,
            torch.Generator().manual_seed(0),
            parts=parts,
        )
        gradients.append((before - table.logits_N.detach(), health["policy_loss"]))
    for gradient_N, loss in gradients[1:]:
        torch.testing.assert_close(gradient_N, gradients[0][0], rtol=0, atol=1e-6)
        assert loss == pytest.approx(float(gradients[0][1]), abs=1e-6)


def test_by_default_the_ratios_leave_1_after_the_first_mini_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    ratios: list[tuple[float, float]] = []

    def watched(*arguments: Any) -> Any:
        loss, parts = ppo_loss(*arguments)
        ratios.append((parts["ratio_q01"].item(), parts["ratio_q99"].item()))
        return loss, parts

    monkeypatch.setattr(ppo, "ppo_loss", watched)
    table = Table(6)
    learner = Taught(table, torch.optim.Adam(table.parameters(), lr=2e-3))
    (transition,) = _memory(8)
    metrics = TATSConfig().objective(0).update(transition, learner)
    assert metrics["ppo_steps"] == len(ratios) == 4
    assert ratios[0] == (1.0, 1.0)
    assert all(max(1 - low, high - 1) > 1e-4 for low, high in ratios[1:])


def test_credit_to_the_sequence_is_refused_where_all_clips_earn_the_same() -> None:
    with pytest.raises(
        ValueError, match="compares clips, of which all earn the same with reward_scale: rank"
    ):
        PPOConfig(credit="sequence", reward_scale="rank")


def test_one_pass_over_the_whole_memory_is_reinforce() -> None:
    # Its ratios are 1 and its clip never acts: the gradient is that of log pi times the advantage.
    (transition,) = _memory(5)
    table = Table(6)
    learner = Taught(table, torch.optim.SGD(table.parameters(), lr=1.0))
    config = PPOConfig(epochs=1, minibatches=1, value_weight=0)
    improve(learner, [transition], config, torch.Generator().manual_seed(0))
    advantage_BM = transition.reward_BM - transition.policy.value_B1
    advantage_BM = (advantage_BM - advantage_BM.mean()) / advantage_BM.std(correction=0)
    plain = Table(6)
    log_probs_BM = plain(transition.tokens_BND).log_probs_BN.gather(1, transition.rollout.masked_BM)
    (log_probs_BM * advantage_BM).mean().backward()
    torch.testing.assert_close(table.logits_N, plain.logits_N.grad, rtol=0, atol=1e-6)

from __future__ import annotations

import logging
import math

import pytest
import torch

from tats_core.errors import SpecError
from tats_core.sampling import (
    CHOICE,
    SAMPLERS,
    LearnedSampler,
    Policy,
    Sampler,
    SamplerSite,
    Transition,
)
from tats_core.sampling.adaptive import AdaptiveConfig, LightSampler, SamplingObjective
from tats_core.sampling.base import Rollout
from tats_core.sampling.fixed import FrameSampler, RandomSampler, TubeSampler
from tats_core.sampling.tats import TATSSampler

F, S, D = 4, 9, 12
N = F * S
SITE = SamplerSite(slices=F, rows=3, columns=3, width=D, heads=2)
LEARNED = [kind for kind, config in SAMPLERS.items() if config().objective(0)]


def _build(kind: str, mask_ratio: float = 0.75, site: SamplerSite = SITE, **network: object) -> Sampler:
    torch.manual_seed(0)
    small: dict[str, dict[str, object]] = {
        "tats": {"network": {"width": 8, "heads": 2} | network},
        "adaptive": {"architecture": "light"},  # the published one: tests/training/test_adaptive.py
    }
    return SAMPLERS[kind].model_validate({"mask_ratio": mask_ratio, **small.get(kind, {})}).build(site)


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _tokens(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, N, D, generator=_seeded(9))


def test_a_misspelt_sampler_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(ValueError, match="no sampler 'tubes'; did you mean 'tube'"):
        CHOICE.validate({"kind": "tubes"})


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_sampler_is_registered_under_the_kind_that_it_has(kind: str) -> None:
    assert SAMPLERS[kind]().kind == kind
    assert CHOICE.validate({"kind": kind}) == SAMPLERS[kind]()


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_sampler_works_on_a_grid_that_is_not_square(kind: str) -> None:
    sampler = _build(kind, 0.5, SamplerSite(slices=2, rows=3, columns=6, width=D, heads=2))
    rollout = sampler.act(_tokens(), _seeded())
    assert rollout.visible_BK.shape == (3, 18)
    assert torch.cat([rollout.visible_BK, rollout.masked_BM], 1).unique().tolist() == list(range(N))
    assert sampler.learns == (kind in LEARNED)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_visible_and_masked_tokens_are_each_token_once(kind: str) -> None:
    rollout = _build(kind).act(_tokens(), _seeded())
    both = torch.cat([rollout.visible_BK, rollout.masked_BM], 1).sort(1).values
    assert torch.equal(both, torch.arange(N).expand(3, -1))
    assert torch.equal(rollout.masked_BM, rollout.masked_BM.sort(1).values)
    assert rollout.visible_BN.sum(1).tolist() == [rollout.visible_BK.shape[1]] * 3
    assert rollout.visible_BN.gather(1, rollout.visible_BK).all()


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_draw_is_repeated_by_its_generator_alone(kind: str) -> None:
    sampler = _build(kind)
    torch.manual_seed(1)
    first = sampler.act(_tokens(), _seeded(5))
    torch.manual_seed(2)
    again, other = sampler.act(_tokens(), _seeded(5)), sampler.act(_tokens(), _seeded(6))
    assert torch.equal(first.visible_BK, again.visible_BK)
    assert not torch.equal(first.visible_BN, other.visible_BN)


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize(("mask_ratio", "visible"), [(0.5, 18), (0.75, 9), (0.9, 4), (0.999, 1)])
def test_all_samplers_show_the_number_of_tokens_of_one_rule(
    kind: str, mask_ratio: float, visible: int
) -> None:
    if kind == "tube":
        # The nearest multiple of 4 slices: 18 / 4 = 4.5 rounds to 4 places, 9 / 4 to 2, and one at least.
        visible = {18: 16, 9: 8, 4: 4, 1: 4}[visible]
    sampler = _build(kind, mask_ratio)
    assert sampler.visible == visible
    assert sampler.act(_tokens(), _seeded()).visible_BK.shape == (3, visible)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_the_mask_ratio_may_change_between_draws(kind: str) -> None:
    sampler = _build(kind, 0.75)
    sampler.set_mask_ratio(1 - 12 / N)
    assert sampler.act(_tokens(), _seeded()).visible_BK.shape == (3, 12)


def test_videomaes_tube_shows_the_multiple_of_8_slices_nearest_to_the_rule(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        visible = [TubeSampler(1568, ratio, 8).visible for ratio in (0.75, 0.85, 0.9, 0.95)]
    # The rule's 392 is one; 235, 157 and 78 lie nearest to 232, 160 and 80, and each change is logged.
    assert visible == [392, 232, 160, 80]
    assert [r.getMessage() for r in caplog.records] == [
        f"tube masking shows {visible} tokens, the multiple of 8 slices nearest to {wanted}"
        for visible, wanted in ((232, 235), (160, 157), (80, 78))
    ]


def test_a_tube_shows_the_same_places_in_every_slice() -> None:
    visible_BFS = TubeSampler(N, 0.7, F).act(_tokens(50), _seeded()).visible_BN.view(50, F, S)
    assert torch.equal(visible_BFS, visible_BFS[:, :1].expand_as(visible_BFS))
    assert visible_BFS[:, 0].sum(1).unique().tolist() == [3]
    assert visible_BFS[:, 0].any(0).all()


def test_frames_are_visible_completely_but_for_the_last() -> None:
    # 24 of 36 tokens: two slices of 9 and 6 tokens of a third.
    visible_BFS = FrameSampler(N, 1 / 3, F).act(_tokens(50), _seeded()).visible_BN.view(50, F, S)
    visible_BF = visible_BFS.sum(2)
    assert visible_BF.sort(1).values.unique(dim=0).tolist() == [[0, 6, 9, 9]]
    # Every slice is in some draw complete, partly visible and hidden; the visible part varies.
    assert all(set(column) == {0, 6, 9} for column in visible_BF.T.tolist())
    assert len(visible_BFS[visible_BF == 6].unique(dim=0)) > 10


def test_random_tokens_are_all_shown_equally_often() -> None:
    rollout = RandomSampler(N, 0.75).act(torch.zeros(20_000, N, 1), _seeded())
    share_N = rollout.visible_BN.double().mean(0)
    deviation = math.sqrt(0.25 * 0.75 / 20_000)
    assert (share_N - 0.25).abs().max().item() < 4.5 * deviation


def test_a_policy_knows_its_log_probabilities_and_entropy() -> None:
    policy = Policy(torch.tensor([[0.0, 0.0, 0.0, 0.0], [math.log(3), 0.0, -1e4, -1e4]]), torch.zeros(2, 4))
    assert policy.entropy_B[0].item() == pytest.approx(math.log(4))
    # Probabilities 3/4 and 1/4.
    assert policy.entropy_B[1].item() == pytest.approx(0.75 * math.log(4 / 3) + 0.25 * math.log(4))
    assert policy.log_probs_BN[1, :2].exp().tolist() == pytest.approx([0.75, 0.25])


@pytest.mark.parametrize("kind", LEARNED)
def test_no_gradient_of_a_sampler_reaches_the_tokens(kind: str) -> None:
    sampler = _build(kind)
    assert isinstance(sampler, LearnedSampler)
    source = _tokens().requires_grad_()
    # Through an operation, as tokens come out of the MAE.
    policy = sampler(source * 1.0)
    value_BN = torch.zeros(1) if policy.value_BN is None else policy.value_BN
    (policy.logits_BN.square().sum() + value_BN.sum()).backward()
    assert source.grad is None
    assert [name for name, p in sampler.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("kind", LEARNED)
def test_a_rollout_keeps_the_old_policy_without_gradients(kind: str) -> None:
    sampler = _build(kind)
    rollout = sampler.act(_tokens().requires_grad_(), _seeded())
    assert rollout.policy is not None
    assert not rollout.policy.logits_BN.requires_grad
    assert torch.equal(rollout.policy.logits_BN, sampler(_tokens()).logits_BN)


@pytest.mark.parametrize("kind", LEARNED)
def test_a_fresh_policy_is_nearly_blind(kind: str) -> None:
    policy = _build(kind)(_tokens())
    assert (policy.entropy_B / math.log(N)).min().item() > 0.99
    assert policy.value_BN is None or policy.value_BN.abs().max().item() < 0.2


def test_a_fresh_sampler_of_the_encoders_width_has_no_projection() -> None:
    assert not list(_build("tats", width=D).project.parameters())  # type: ignore[union-attr, arg-type]
    assert list(_build("tats").project.parameters())  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize(("spread", "effective"), [(1.5, None), (3.0, None), (1000.0, 0.95)])
def test_a_sharp_policy_spreads_over_as_many_tokens_as_asked_for(
    spread: float, effective: float | None
) -> None:
    sampler = _build("tats", spread=spread)
    assert isinstance(sampler, TATSSampler)
    with torch.no_grad():
        sampler.actor.weight.mul_(1e4)
        perplexity_B = sampler(_tokens()).entropy_B.exp()
    expected = effective * sampler.tokens if effective else spread * sampler.visible
    torch.testing.assert_close(perplexity_B, torch.full_like(perplexity_B, expected), rtol=1e-3, atol=0)


def test_in_bfloat16_the_logits_are_finer_than_the_clip_of_ppo() -> None:
    sampler = _build("tats")
    assert isinstance(sampler, TATSSampler)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits_BN = sampler(_tokens()).logits_BN
    assert logits_BN.dtype == torch.float32
    assert not torch.equal(logits_BN, logits_BN.bfloat16().float())


def test_tats_draws_what_its_actor_prefers() -> None:
    sampler = _build("tats", spread=0.1)
    assert isinstance(sampler, TATSSampler)
    with torch.no_grad():
        sampler.actor.weight.mul_(1e4)
    rollout = sampler.act(_tokens(), _seeded())
    assert rollout.policy is not None
    best_BK = rollout.policy.logits_BN.topk(sampler.visible).indices
    agreement = [
        len(set(a) & set(b)) for a, b in zip(best_BK.tolist(), rollout.visible_BK.tolist(), strict=True)
    ]
    assert min(agreement) >= sampler.visible - 1


def test_adamaes_loss_is_as_worked_by_hand() -> None:
    # Two clips of 3 tokens under a uniform policy: log pi = -log 3 for every masked token.
    policy = Policy(torch.zeros(2, 3, requires_grad=True), torch.zeros(2, 3))
    rollout = Rollout(torch.tensor([[0], [1]]), torch.tensor([[1, 2], [0, 2]]), 3)
    error_BM = torch.tensor([[1.0, 3.0], [0.5, 0.5]])
    transition = Transition(torch.zeros(2, 3, 1), rollout, error_BM)
    loss = SamplingObjective(AdaptiveConfig(objective_weight=0.1)).loss(policy, transition)
    assert loss.item() == pytest.approx(0.1 * math.log(3) * (4 + 1) / 4)
    loss.backward()
    # d/dl_j of -v sum_i e_i log pi_i, v = w/(B M), is -v (e_j - pi_j sum e): token 2 of clip 0 rises most.
    gradient_BN = policy.logits_BN.grad
    assert gradient_BN is not None
    by_hand = [0.025 * (4 / 3 - 0), 0.025 * (4 / 3 - 1), 0.025 * (4 / 3 - 3)]
    assert gradient_BN[0].tolist() == pytest.approx(by_hand)


def test_an_objective_with_a_critic_refuses_a_policy_without_one() -> None:
    sampler = _build("adaptive")
    assert isinstance(sampler, LightSampler)
    with pytest.raises(SpecError, match="needs a critic, and its policy has no values"):
        sampler(_tokens()).value_B1  # noqa: B018


def test_a_ratio_that_masks_nothing_is_refused_with_a_sentence() -> None:
    with pytest.raises(SpecError, match=r"mask_ratio 0\.01 leaves all 16 tokens of a clip visible"):
        RandomSampler(16, 0.01)

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tats_core.errors import SpecError
from tats_core.specs import identity, validate
from tats_core.training.finetune import FinetuneConfig
from tats_core.training.optim import GuardedStep
from tats_core.training.optimizers import OPTIMIZERS, OptimizerConfig
from tats_core.training.optimizers.adamw import AdamWConfig
from tats_core.training.optimizers.lion import LionConfig
from tats_core.training.optimizers.sgd import SGDConfig
from tats_core.training.schedules.wsd import WSDConfig

STEPS = AdamWConfig(base_lr=10.0, warmup_lr=1.0, min_lr=2.0, warmup_epochs=10)


def rate(step: int, config: OptimizerConfig = STEPS, epochs: int = 110) -> float:
    return config.lr(step, steps_per_epoch=1, epochs=epochs, global_batch=256)


# --- the learning rate -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 1.0),  # the start
        (3, 4.0),  # a third of the warm-up: numpy.linspace(1, 10, 10)[3]
        (9, 10.0),  # its last step has the peak,
        (10, 10.0),  # and so has the first of the cosine
        (35, 2.0 + 8.0 * 0.5 * (1 + math.cos(math.pi / 4))),
        (60, 6.0),  # half way down: the mean of peak and end
        (110, 2.0),
        (200, 2.0),  # beyond the end it stays there
    ],
)
def test_the_rate_rises_linearly_and_falls_along_a_cosine(step: int, expected: float) -> None:
    assert rate(step) == pytest.approx(expected)


@settings(max_examples=50)
@given(st.integers(1, 300), st.floats(0, 400), st.integers(0, 400))
def test_the_rate_never_leaves_what_lies_between_its_ends(epochs: int, warmup: float, step: int) -> None:
    config = STEPS.model_copy(update={"warmup_epochs": warmup})
    assert 1.0 - 1e-9 <= rate(step, config, epochs) <= 10.0 + 1e-9


def test_a_warm_up_is_numpys_linspace_and_a_cosine_of_the_other_steps_as_in_videomae() -> None:
    # utils.py's cosine_scheduler: 4 steps of warm-up from 0 to the peak of 3, then 12 steps of the cosine.
    expected = [*np.linspace(0, 3, 4), *(0.1 + 1.45 * (1 + math.cos(math.pi * i / 12)) for i in range(12))]
    config = AdamWConfig(base_lr=3.0, min_lr=0.1, warmup_epochs=2)
    rates = [config.lr(step, steps_per_epoch=2, epochs=8, global_batch=256) for step in range(16)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize(("warmup", "step", "expected"), [(0, 0, 3), (1, 0, 1), (0.5, 0, 1), (1.5, 1, 3)])
def test_a_warm_up_of_no_step_one_or_a_part_of_one(warmup: float, step: int, expected: float) -> None:
    assert rate(step, AdamWConfig(base_lr=3.0, warmup_lr=1.0, min_lr=0, warmup_epochs=warmup)) == expected


def test_rates_are_for_256_clips_and_scale_with_the_batch() -> None:
    assert AdamWConfig().scaled(1.5e-4, 1024) == pytest.approx(6e-4)


def test_another_schedule_begins_after_the_warm_up_and_ends_at_the_lowest_rate() -> None:
    config = STEPS.model_copy(update={"schedule": WSDConfig(decay_share=0.5, decay="linear")})
    assert [rate(step, config) for step in (0, 9, 60, 85, 110)] == pytest.approx([1, 10, 10, 6, 2])


# --- the rules, by hand: a weight of 1 with a gradient of 2 ------------------------------------------------


def stepped(config: OptimizerConfig, steps: int = 1) -> float:
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    guarded = config.build(model, "toy")
    guarded.set_lr(0.1)
    for _ in range(steps):
        assert guarded(2 * model.weight.sum())
    return model.weight.item()


def test_a_first_step_of_adamw_is_the_rate_whatever_the_gradient() -> None:
    assert stepped(AdamWConfig(weight_decay=0)) == pytest.approx(1 - 0.1)


def test_a_step_of_lion_is_the_rate_in_the_direction_of_the_sign() -> None:
    assert stepped(LionConfig(weight_decay=0), steps=3) == pytest.approx(1 - 3 * 0.1)


def test_a_step_of_gradient_descent_is_the_rate_times_the_gradient_and_its_momentum() -> None:
    assert stepped(SGDConfig(weight_decay=0, momentum=0)) == pytest.approx(1 - 0.1 * 2)
    # Steps of 2, then 2 + 0.5 * 2.
    plain = SGDConfig(weight_decay=0, momentum=0.5, nesterov=False)
    assert stepped(plain, steps=2) == pytest.approx(1 - 0.1 * (2 + 3))


@pytest.mark.parametrize("kind", list(OPTIMIZERS))
def test_every_optimiser_learns_and_resumes_in_the_same_bits(kind: str) -> None:
    def trained(state: dict[str, object] | None, weights: torch.Tensor | None, steps: int) -> GuardedStep:
        model = nn.Linear(3, 1)
        with torch.no_grad():
            model.bias.zero_()
            model.weight.copy_(torch.ones(1, 3) if weights is None else weights[:3].view(1, 3))
            if weights is not None:
                model.bias.copy_(weights[3:])
        guarded = OPTIMIZERS[kind]().build(model, "toy")
        if state is not None:
            guarded.load_state_dict(state)
        for _ in range(steps):
            guarded.set_lr(1e-2)
            guarded(model(torch.eye(3)).square().sum())
        return guarded

    def weights_of(guarded: GuardedStep) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in guarded.parameters])

    half = trained(None, None, 3)
    resumed = trained(half.state_dict(), weights_of(half), 3)
    straight = trained(None, None, 6)
    assert torch.equal(weights_of(resumed), weights_of(straight))
    assert weights_of(straight)[:3].square().sum() < 3


@pytest.mark.parametrize("kind", list(OPTIMIZERS))
def test_every_optimiser_calls_itself_as_it_is_registered(kind: str) -> None:
    assert OPTIMIZERS[kind]().kind == kind


# --- as a key of a stage -----------------------------------------------------------------------------------


def finetuning(**optimizer: object) -> OptimizerConfig:
    return validate(FinetuneConfig, {"optimizer": optimizer}, "p.yaml").optimizer


def test_without_a_kind_it_is_adamw_with_the_defaults_of_the_stage() -> None:
    assert finetuning() == finetuning(kind="adamw") == FinetuneConfig().optimizer
    assert finetuning(weight_decay=0.1) == AdamWConfig(
        base_lr=5e-4, min_lr=1e-6, warmup_epochs=5, betas=(0.9, 0.999), layer_decay=0.75, weight_decay=0.1
    )


def test_another_kind_has_its_own_defaults_beside_those_of_the_stage() -> None:
    assert finetuning(kind="lion") == LionConfig(min_lr=1e-6, warmup_epochs=5, layer_decay=0.75)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"kind": "adam"}, "no optimiser 'adam'; did you mean 'adamw'?"),
        ({"kind": "sgd", "moment": 1}, " of kind 'sgd' has no key 'moment'; did you mean 'momentum'?"),
        ({"schedule": {"decay_share": 0.1}}, ".schedule of kind 'cosine' has no key 'decay_share'"),
        ({"schedule": {"kind": "wsd", "decay_share": 2}}, ".schedule.decay_share: input should be less"),
    ],
)
def test_a_key_of_another_kind_is_refused_where_it_stands(keys: dict[str, object], sentence: str) -> None:
    with pytest.raises(SpecError) as refused:
        finetuning(**keys)
    assert str(refused.value).startswith("p.yaml: optimizer")
    assert sentence in str(refused.value)


def test_each_kind_and_each_of_its_keys_is_part_of_the_identity() -> None:
    chosen = [{}, {"kind": "lion"}, {"kind": "sgd"}, {"schedule": {"kind": "wsd"}}, {"betas": [0.8, 0.9]}]
    identities = [identity(FinetuneConfig.model_validate({"optimizer": keys})) for keys in chosen]
    assert len({str(identity) for identity in identities}) == len(chosen)

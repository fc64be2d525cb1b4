from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from tats_core.errors import TrainingError
from tats_core.models.classifier import VideoClassifier
from tats_core.models.mae import MAEConfig, VideoMAE
from tats_core.models.tokens import ClipConfig
from tats_core.models.vit import ViTConfig
from tats_core.training.optim import (
    AverageConfig,
    GuardedStep,
    evaluating,
    fresh_weights,
    layer_of,
    parameter_count,
    parameter_groups,
)
from tats_core.training.optimizers.adamw import AdamWConfig


def _classifier() -> VideoClassifier:
    vit = ViTConfig.model_validate({"preset": "vit_micro", "width": 24, "depth": 2, "heads": 3})
    return VideoClassifier(vit, ClipConfig(frames=4, size=8, tubelet=2, patch=4), 5)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("encoder.embedding.weight", 0),
        ("encoder.blocks.0.attn.qkv.weight", 1),
        ("encoder.blocks.11.mlp.fc1.bias", 12),
        ("head.weight", 13),
        ("head_norm.weight", 13),
        ("decoder.0.norm1.weight", 13),
        ("mask_token", 13),
    ],
)
def test_a_layer_is_known_by_the_name_of_its_parameter(name: str, layer: int) -> None:
    assert layer_of(name, depth=12) == layer


def test_layer_decay_slows_what_lies_deeper() -> None:
    model = _classifier()
    guarded = AdamWConfig(layer_decay=0.5).build(model, "test", depth=2)
    guarded.set_lr(0.8)
    rate_of = {id(p): group["lr"] for group in guarded.optimizer.param_groups for p in group["params"]}
    rates = {name: rate_of[id(p)] for name, p in model.named_parameters()}
    assert rates["head.weight"] == rates["head_norm.bias"] == pytest.approx(0.8)
    assert rates["encoder.blocks.1.attn.qkv.weight"] == pytest.approx(0.4)
    assert rates["encoder.blocks.0.norm1.weight"] == pytest.approx(0.2)
    assert rates["encoder.embedding.weight"] == rates["encoder.embedding.bias"] == pytest.approx(0.1)
    assert len(rates) == len(list(model.parameters()))


def test_weight_decay_is_for_matrices_alone_and_every_parameter_has_one_group() -> None:
    model = _classifier()
    groups = parameter_groups(model, weight_decay=0.05)
    for group in groups:
        assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] == 0.05}
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in model.parameters())


def test_the_mask_token_does_not_decay_as_in_videomae() -> None:
    vit = ViTConfig.model_validate({"preset": "vit_micro", "width": 24, "depth": 1, "heads": 3})
    small = MAEConfig(decoder_width=8, decoder_depth=1, decoder_heads=2)
    mae = VideoMAE(vit, small, ClipConfig(frames=4, size=8, tubelet=2, patch=4))
    (group,) = (g for g in parameter_groups(mae, 0.05) if any(p is mae.mask_token for p in g["params"]))
    assert group["weight_decay"] == 0
    assert all(p.ndim == 1 or p is mae.mask_token for p in group["params"])


def test_a_frozen_parameter_is_in_no_group_and_not_counted() -> None:
    layer = nn.Linear(3, 2)
    layer.bias.requires_grad_(False)
    assert [p.shape for g in parameter_groups(layer, 0.05) for p in g["params"]] == [(2, 3)]
    assert parameter_count([layer, nn.Linear(2, 1)]) == 6 + 3


def _guarded(
    value: float, clip_grad: float | None = None, limit: int = 20
) -> tuple[nn.Parameter, GuardedStep]:
    parameter = nn.Parameter(torch.tensor([value, 0.0]))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    guarded = GuardedStep(optimizer, clip_grad, "toy", limit)
    guarded.set_lr(1.0)
    return parameter, guarded


def _loss(parameter: nn.Parameter, slope: float) -> Tensor:
    return (parameter * torch.tensor([3.0 * slope, 4.0 * slope])).sum()


def test_a_step_follows_the_gradient_and_records_its_norm() -> None:
    parameter, guarded = _guarded(1.0)
    assert guarded(_loss(parameter, 1.0))
    assert parameter.tolist() == [1 - 3, -4]
    assert guarded.last_norm == pytest.approx(5)


@pytest.mark.parametrize("size", [48, 2304, 6912])
def test_the_norm_does_not_depend_on_where_in_memory_the_gradient_lies(size: int) -> None:
    # DistributedDataParallel lays its buckets out anew after the first step: a resumed training's gradients
    # lie elsewhere than those of a model that was not restored, and BLAS' dot product then rounds otherwise.
    gradient = torch.randn(size, generator=torch.Generator().manual_seed(0))
    norms = set()
    for offset in range(32):
        parameter = nn.Parameter(torch.zeros(size))
        parameter.grad = torch.zeros(size + 32)[offset : offset + size].copy_(gradient)
        guarded = GuardedStep(torch.optim.SGD([parameter], lr=0.0), 1.0, "toy")
        guarded.step()
        norms.add(guarded.last_norm)
    assert len(norms) == 1


def test_a_long_gradient_is_clipped_to_its_limit_and_recorded_at_full_length() -> None:
    parameter, guarded = _guarded(1.0, clip_grad=0.5)
    guarded(_loss(parameter, 2.0))
    assert parameter.tolist() == pytest.approx([1 - 0.3, -0.4], rel=1e-4)
    assert guarded.last_norm == pytest.approx(10)


@pytest.mark.parametrize(("stop", "taken"), [(True, None), (False, True)])
def test_a_step_that_is_told_to_stop_is_not_taken(stop: bool, taken: bool | None) -> None:
    parameter, guarded = _guarded(1.0)
    guarded.backward(_loss(parameter, 1.0))
    assert guarded.step(torch.tensor(stop)) is taken
    assert parameter.tolist() == ([1 - 3, -4] if taken else [1, 0])
    assert guarded.skipped == 0


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_step_that_is_not_finite_is_skipped_and_counted(broken: float) -> None:
    parameter, guarded = _guarded(1.0)
    assert not guarded(_loss(parameter, broken))
    assert parameter.tolist() == [1, 0]
    assert (guarded.skipped, guarded.in_a_row) == (1, 1)
    assert guarded(_loss(parameter, 1.0))
    assert (guarded.skipped, guarded.in_a_row) == (1, 0)


def test_a_skipped_step_leaves_no_trace_in_adamw() -> None:
    model = nn.Linear(2, 1, bias=False)
    guarded = AdamWConfig().build(model, "toy")
    guarded.set_lr(0.1)
    guarded(model(torch.ones(1, 2)).sum())
    before = [x.clone() for x in (model.weight, *guarded.optimizer.state[model.weight].values())]
    guarded(model(torch.full((1, 2), math.nan)).sum())
    after = (model.weight, *guarded.optimizer.state[model.weight].values())
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_training_stops_after_too_many_skipped_steps_in_a_row() -> None:
    parameter, guarded = _guarded(1.0, limit=3)
    for slope in (math.nan, math.nan, 1.0, math.nan, math.nan):
        guarded(_loss(parameter, slope))
    with pytest.raises(
        TrainingError, match=r"toy: 3 steps in a row .* \(5 in all\); lower the learning rate"
    ):
        guarded(_loss(parameter, math.nan))


def test_the_counters_of_skipped_steps_survive_a_resume() -> None:
    parameter, guarded = _guarded(1.0, limit=3)
    guarded(_loss(parameter, math.nan))
    guarded(_loss(parameter, math.nan))
    resumed_parameter, resumed = _guarded(1.0, limit=3)
    resumed.load_state_dict(guarded.state_dict())
    with pytest.raises(TrainingError):
        resumed(_loss(resumed_parameter, math.nan))


def test_evaluation_is_without_gradients_and_every_module_gets_its_mode_back() -> None:
    training, resting = nn.Dropout().train(), nn.Dropout().eval()

    def fail() -> None:
        with evaluating(training, resting):
            assert not training.training
            assert not torch.is_grad_enabled()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.is_grad_enabled()
    assert (training.training, resting.training) == (True, False)


def _averaged(config: AverageConfig, weights: list[float]) -> list[float]:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(weights[0])
    average = config.build(model)
    averages = []
    for weight in weights[1:]:
        with torch.no_grad():
            model.weight.fill_(weight)
        average.update_parameters(model)
        averages.append(average.module.weight.item())
    return averages


def test_an_average_keeps_its_decay_of_the_old_and_takes_the_rest_of_the_new() -> None:
    config = AverageConfig(decay=0.75, warmup=False)
    # 0.75 * 8 + 0.25 * 4 = 7, 0.75 * 7 + 0.25 * 3 = 6.
    assert _averaged(config, [8.0, 4.0, 3.0]) == [7.0, 6.0]


def test_at_first_an_average_keeps_less_of_the_old() -> None:
    config = AverageConfig(decay=0.25)
    # Step 1 keeps 2/11 of 11, step 2 keeps 3/12 of 2, step 3 the decay: 1/4, not 4/13.
    assert _averaged(config, [11.0, 0.0, 0.0, 0.0]) == pytest.approx([2.0, 0.5, 0.125])


def test_an_average_holds_the_running_statistics_too_and_counts_as_they_do() -> None:
    model = nn.BatchNorm1d(1, affine=False)
    average = AverageConfig(decay=0.5, warmup=False).build(model)
    model(torch.tensor([[0.0], [20.0]]))  # the running mean becomes 0.1 * 10
    average.update_parameters(model)
    assert average.module.running_mean is not None
    assert average.module.running_mean.item() == pytest.approx(0.5)
    assert average.module.num_batches_tracked is not None
    assert average.module.num_batches_tracked.item() == 1


def test_models_built_side_by_side_have_the_weights_of_models_built_alone() -> None:
    def build(seed: int) -> torch.Tensor:
        with fresh_weights(seed):
            layers = [nn.Linear(16, 16) for _ in range(200)]
        return torch.stack([layer.weight.detach() for layer in layers])

    alone = [build(seed) for seed in range(6)]
    with ThreadPoolExecutor(6) as threads:
        together = list(threads.map(build, range(6)))
    for first, second in zip(alone, together, strict=True):
        assert torch.equal(first, second)

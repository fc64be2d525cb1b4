"""The FLOPs counted by hand are those that torch counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from tats_core.pipeline import graph, spec
from tats_core.training import arithmetic
from tats_core.training.finetune import FinetuneConfig, FinetuneTrainer
from tats_core.training.measure import measure
from tats_core.training.optim import parameter_count
from tats_core.training.pretrain import JointTrainer, PretrainConfig
from tats_core.training.world import World

MODEL = {"preset": "vit_micro", "width": 96, "depth": 3, "heads": 3}
CLIP = {"frames": 8, "size": 32, "tubelet": 2, "patch": 4}


def _counted(step: Any) -> float:
    # torch's counter does not know the fused attention of CPUs.
    mapping = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(
            q, k, v
        ),
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: (
            sdpa_backward_flop_count(g, q, k, v)
        ),
    }
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        step()
    return float(counter.get_total_flops())


@pytest.mark.parametrize("values", ["paper", "shipped"])
@pytest.mark.parametrize(("decoded_share", "epochs"), [(1.0, 1), (0.5, 3)])
def test_a_joint_step_does_the_work_that_was_counted_by_hand(
    decoded_share: float, epochs: int, values: str
) -> None:
    recipe = PretrainConfig.model_validate(
        {
            "model": MODEL,
            "clip": CLIP,
            "mae": {
                "decoder_width": 48,
                "decoder_heads": 2,
                "decoder_depth": 2,
                "decoded_share": decoded_share,
            },
            "sampler": {
                "kind": "tats",
                "mask_ratio": 0.9,
                "network": {"width": 48, "heads": 2, "values": values},
                "ppo": {"epochs": epochs, "kl_stop": None},
            },
        }
    )
    trainer = JointTrainer(recipe, World())
    video_BCTHW = torch.randn(2, 3, 8, 32, 32)
    found = _counted(lambda: trainer.step(video_BCTHW, 1e-4))
    by_hand = 2 * arithmetic.joint_step(recipe)
    # By hand leaves out what backward computes again, the error's own product, heads of width 1.
    assert by_hand < found < 1.06 * by_hand


def test_a_fine_tuning_step_does_the_work_that_was_counted_by_hand() -> None:
    plain = {"mixup": 0, "cutmix": 0, "label_smoothing": 0, "drop_path": 0}
    trainer = FinetuneTrainer(
        FinetuneConfig.model_validate({"model": MODEL, "clip": CLIP, **plain}), 5, World()
    )
    trainer.start()
    video_BCTHW, label_B = torch.randn(2, 3, 8, 32, 32), torch.tensor([0, 1])
    found = _counted(lambda: trainer.step(video_BCTHW, label_B, 0, 1e-4))
    by_hand = 2 * arithmetic.finetune_step(trainer.config.model, trainer.config.clip)
    assert found == pytest.approx(by_hand, rel=0.001)


@pytest.mark.parametrize("architecture", ["published", "light"])
def test_a_joint_step_of_adamaes_does_the_work_that_was_counted_by_hand(architecture: str) -> None:
    sampler = {"kind": "adaptive", "mask_ratio": 0.9, "architecture": architecture}
    decoder = {"decoder_width": 48, "decoder_heads": 2, "decoder_depth": 2}
    recipe = PretrainConfig.model_validate({"model": MODEL, "clip": CLIP, "mae": decoder, "sampler": sampler})
    trainer = JointTrainer(recipe, World())
    video_BCTHW = torch.randn(2, 3, 8, 32, 32)
    found = _counted(lambda: trainer.step(video_BCTHW, 1e-4))
    by_hand = 2 * arithmetic.joint_step(recipe)
    assert by_hand < found < 1.06 * by_hand


@pytest.mark.parametrize("kind", ["tats", "adaptive", "random"])
@pytest.mark.parametrize(
    "decoder", [{}, {"decoder_width": 96, "decoder_depth": 1, "decoder_heads": 2, "global_token": True}]
)
def test_the_parameters_counted_by_hand_are_those_of_the_built_models(kind, decoder) -> None:
    sampler = {"kind": kind, "mask_ratio": 0.9}
    recipe = PretrainConfig.model_validate({"model": MODEL, "clip": CLIP, "mae": decoder, "sampler": sampler})
    trainer = JointTrainer(recipe, World())
    by_hand = arithmetic.mae_parameters(recipe.model, recipe.mae, recipe.clip)
    assert by_hand == parameter_count([trainer.mae])
    counted = arithmetic.sampler_parameters(recipe.model, recipe.sampler, recipe.clip)
    assert counted == parameter_count([trainer.sampler])


def test_the_parameters_of_a_classifier_are_those_of_the_built_one() -> None:
    recipe = FinetuneConfig.model_validate({"model": MODEL, "clip": CLIP})
    by_hand = arithmetic.classifier_parameters(recipe.model, recipe.clip, 7)
    assert by_hand == parameter_count([FinetuneTrainer(recipe, 7, World()).model])


def test_a_vit_b_has_the_published_number_of_parameters() -> None:
    # The encoder's 86.2 M and the decoder's 7.1 M (VideoMAE's table of models: 94 M).
    recipe = PretrainConfig()
    assert arithmetic.encoder_parameters(recipe.model, recipe.clip) == 86_236_416 + 0
    assert round(arithmetic.mae_parameters(recipe.model, recipe.mae, recipe.clip) / 1e6, 1) == 94.2


def test_what_a_block_holds_is_what_was_added_up_by_hand() -> None:
    # 10 tokens of width 8, MLP of 4: (2 + 7 + 8) x 80 floats of 4 bytes; with autocast all but two halve.
    assert arithmetic.block_activations(10, 8, 4, depth=1, half=False, again=False) == 17 * 80 * 4
    assert arithmetic.block_activations(10, 8, 4, depth=1, half=True, again=False) == 80 * (2 * 4 + 15 * 2)
    # Recomputed: the inputs of three blocks, and all of one.
    assert arithmetic.block_activations(10, 8, 4, depth=3, half=False, again=True) == 80 * (3 * 4 + 17 * 4)


def _demo(stage: str) -> arithmetic.Recipe:
    """What one of the two workers computes."""
    recipe = graph.build(spec.load("demo")).instances[stage].config.recipe
    return recipe.model_copy(update={"batch_size": recipe.batch_size // 2})


def _joint(model: str, frames: int, mask_ratio: float, batch: int) -> arithmetic.Recipe:
    clip, sampler = {"frames": frames}, {"mask_ratio": mask_ratio}
    return PretrainConfig.model_validate(
        {"model": model, "clip": clip, "sampler": sampler, "batch_size": batch}
    )


@pytest.mark.parametrize(
    ("recipe", "mib"),
    [
        (lambda: _demo("pretrain"), 81),
        (lambda: _demo("finetune[ssv2,pretrained]"), 72),
        (lambda: _joint("vit_base", 16, 0.9, 2), 1761),
        (lambda: _joint("vit_base", 16, 0.95, 2), 1674),
        (lambda: FinetuneConfig.model_validate({"batch_size": 2}), 2865),
        (lambda: _joint("vit_base", 4, 0.95, 1), 1486),
        (lambda: _joint("vit_base", 16, 0.95, 1), 1577),
        (lambda: _joint("vit_base", 16, 0.85, 1), 1577),
        (lambda: _joint("vit_small", 16, 0.95, 1), 623),
        (lambda: _joint("vit_large", 16, 0.95, 1), 4905),
    ],
)
def test_the_memory_of_a_step_is_what_was_measured(recipe: Callable[[], arithmetic.Recipe], mib: int) -> None:
    # python benchmarks/estimates.py --memory, 2026-11-30
    assert arithmetic.step_memory(recipe(), 1, 174).total / 2**20 == pytest.approx(mib, rel=0.04)


def test_gradients_count_beside_the_activations_only_where_both_are_held() -> None:
    recipe = PretrainConfig.model_validate({"batch_size": 8})
    alone, shared = (arithmetic.step_memory(recipe, workers, 174) for workers in (1, 2))
    in_parts = arithmetic.step_memory(recipe.model_copy(update={"accumulate": 2}), 1, 174)
    assert (alone.gradients, shared.gradients, in_parts.gradients) == (0, shared.weights, in_parts.weights)
    # Of one clip they are more than the activations that backward frees for them.
    small = arithmetic.step_memory(recipe.model_copy(update={"batch_size": 1}), 1, 174)
    assert small.gradients + small.activations > small.weights > small.gradients > 0


def test_a_step_that_fits_is_not_refused_and_one_that_does_not_says_what_would() -> None:
    recipe = PretrainConfig.model_validate({"batch_size": 256, "precision": "bf16"})
    assert arithmetic.misfit(recipe, workers=8, classes=174, room=80e9) is None
    refused = arithmetic.misfit(recipe, workers=8, classes=174, room=5e9)
    assert refused is not None
    assert refused.startswith("a step needs ")
    assert "this would fit: accumulate=" in refused
    assert "workers=" in refused
    parts = int(refused.partition("accumulate=")[2].split()[0])
    fits = recipe.model_copy(update={"accumulate": parts})
    assert arithmetic.step_memory(fits, 8, 174).total <= 5e9
    assert "use a smaller model" in str(arithmetic.misfit(recipe, workers=8, classes=174, room=3e8))


def test_a_worker_holds_its_part_of_a_divided_model_and_what_is_gathered() -> None:
    # Width 8, depth 2, MLP of 4: a block of 4 x 64 + 2 x 256 + 32 + 72 = 872; embedding 96 x 8 + 8 = 776,
    # the head's norm 16, the head 9 x 5 = 45: 2581 in all, of which 837 are in no block.
    model = {"width": 8, "depth": 2, "heads": 2}
    clip = {"frames": 2, "size": 8, "tubelet": 2, "patch": 4}
    recipe = FinetuneConfig.model_validate({"model": model, "clip": clip, "batch_size": 2, "shard": True})
    assert arithmetic.step_parameters(recipe, 5) == (2581, 0)
    undivided = recipe.model_copy(update={"shard": False})
    whole, part = (arithmetic.step_memory(r, 2, 5) for r in (undivided, recipe))
    assert (whole.weights, whole.gradients, whole.optimizer) == (2581 * 4, 2581 * 4, 2581 * 8)
    assert (part.weights, part.gradients, part.optimizer) == (1291 * 4, 1291 * 4, 1291 * 8)
    assert part.activations == whole.activations + 872 * 4 * 4 + 837 * 4
    # Parts of a batch leave whole gradients on each worker until the last.
    parts = recipe.model_copy(update={"batch_size": 4, "accumulate": 2})
    assert arithmetic.step_memory(parts, 2, 5).gradients == 2581 * 4


def test_a_model_that_does_not_fit_is_advised_to_be_divided() -> None:
    recipe = PretrainConfig.model_validate({"model": "vit_huge", "batch_size": 64, "precision": "bf16"})
    refused = str(arithmetic.misfit(recipe, workers=8, classes=0, room=10e9))
    assert "this would fit: shard=true (" in refused
    assert "shard=true with workers=" in str(arithmetic.misfit(recipe, workers=1, classes=0, room=12e9))
    divided = recipe.model_copy(update={"shard": True})
    assert arithmetic.misfit(divided, workers=8, classes=0, room=10e9) is None
    whole = recipe.model_copy(update={"compile": True})
    assert "shard" not in str(arithmetic.misfit(whole, workers=8, classes=0, room=10e9))


def test_three_real_steps_are_measured() -> None:
    recipe = FinetuneConfig.model_validate({"model": MODEL, "clip": CLIP, "batch_size": 4})
    found = measure(recipe, workers=1, classes=5)
    assert 0 < found.seconds < 60
    assert found.memory > 0
    assert found.device in ("cpu", "cuda")

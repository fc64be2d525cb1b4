"""The recipes at the paper's scale, number by number, held against the public code that they name.

V1 is MCG-NJU/VideoMAE at 14ef8d8, EV sunilhoho/EVEREST at 8ebdd70, Ada wgcban/adamae at aa19850. What a
script does not pass is the default of V1's run_mae_pretraining.py or run_class_finetuning.py, or of its
models.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tats_core import specs
from tats_core.data.benchmarks import BENCHMARKS
from tats_core.data.loaders import clip_rules
from tats_core.pipeline import graph, spec
from tats_core.stages.finetune import FinetuneStage
from tats_core.stages.pretrain import PretrainStage

ROOT = Path(__file__).resolve().parent.parent
FULL = ("full_ssv2", "full_k400", "full_ucf101", "full_hmdb51")

MODEL: dict[str, Any] = {
    # pretrain_videomae_base_patch16_224 and vit_base_patch16_224
    "model.width": 768,
    "model.depth": 12,
    "model.heads": 12,
    "model.mlp_ratio": 4.0,
    "model.positions": "joint",
    "model.attention_init": "xavier",
    "clip.frames": 16,
    "clip.size": 224,
    "clip.tubelet": 2,
    "clip.patch": 16,
    "optimizer.weight_decay": 0.05,
    "optimizer.clip_grad": None,
    "optimizer.warmup_lr": 0.0,  # --warmup_lr 1e-6 is scaled and never used
    "data.protocol": "published",
    "data.colour_jitter": 0.0,  # --color_jitter is not used beside --aa
    "data.hue_jitter": 0.0,
}
PRETRAIN = MODEL | {
    "mae.decoder_width": 384,
    "mae.decoder_depth": 4,
    "mae.decoder_heads": 6,
    "mae.target": "normalized",
    "mae.decoded_share": 1.0,
    "mae.motion_weight": 1.0,
    "mae.global_token": False,
    "sampler.mask_ratio": 0.95,  # the paper's, and the best of Ada's README for ViT-B
    "optimizer.betas": [0.9, 0.95],
    "optimizer.min_lr": 1e-5,
    "optimizer.warmup_epochs": 40.0,
    "data.crop_scales": [1.0, 0.875, 0.75, 0.66],
    "data.rand_augment": None,
    "data.erase": 0.0,
}
FINETUNE = MODEL | {
    "optimizer.betas": [0.9, 0.999],
    "optimizer.warmup_epochs": 5.0,
    "optimizer.min_lr": 1e-6,
    "optimizer.layer_decay": 0.75,
    "label_smoothing": 0.1,
    "mixup": 0.8,
    "cutmix": 1.0,
    "drop_path": 0.1,
    "head_dropout": 0.0,
    "head_norm": "layer",
    "head_scale": 0.001,
    "ema": None,
    "samples_per_clip": 1,
    "data.rand_augment": "rand-m7-n4-mstd0.5-inc1",
    "data.erase": 0.25,
    "data.crop_area": [0.08, 1.0],
    "data.crop_ratio": [0.75, pytest.approx(1.3333, abs=1e-4)],
}
UNREAD = {
    # `target: normalized` does not read it; of a pre-training the other is 1, as no script has it.
    "pretrain": {"mae.target_floor", "optimizer.layer_decay", "data.crop_area", "data.crop_ratio"},
    "finetune": {"data.crop_scales"},
    # A test resizes and cuts, and changes nothing else.
    "evaluate": {
        *("data.crop_area", "data.crop_ratio", "data.crop_scales"),
        *("data.colour_jitter", "data.hue_jitter", "data.erase"),
    },
    "data": set(),
}
"""Numbers of a configuration that its stage does not use."""
OURS = {
    # How the batch is cut up, and on what: it leaves the step as it is.
    *("workers", "test_workers", "accumulate", "data.decode_workers", "data.cache_mb"),
    # What may go wrong.
    *("data.max_unreadable", "data.time_limit", "max_failures", "max_preemptions"),
    # What is logged, drawn and saved.
    *("log_every", "health_every", "health_clips", "health_pictures"),
    *("checkpoint.epochs", "checkpoint.keep", "checkpoint.minutes"),
    # The published code's seed draws other numbers here.
    "seed",
    # The sampler, of which the paper gives none of these: docs/method.md, "At the paper's scale".
    *("sampler_lr", "sampler_warmup_epochs"),
    *(f"sampler.network.{key}" for key in ("depth", "heads", "mlp_ratio", "spread", "width")),
    *(f"sampler.ppo.{key}" for key in ("clip", "entropy_weight", "epochs", "kl_stop", "minibatches")),
    *(f"sampler.ppo.{key}" for key in ("max_weight", "reward_floor", "rollout_length", "value_weight")),
    *(f"sampler_optimizer.{key}" for key in ("base_lr", "betas", "clip_grad", "layer_decay", "min_lr")),
    *(f"sampler_optimizer.{key}" for key in ("warmup_epochs", "warmup_lr", "weight_decay")),
}
"""Numbers of the recipes that no publication has."""
OURS_IN_SWEEPS = {
    "samples",
    *("searcher.seed", "searcher.every", "scheduler.grace", "scheduler.reduction", "seeds.values"),
    *(f"space.pretrain.sampler.{key}" for key in ("network.spread.uniform", "ppo.clip.uniform")),
    *(f"space.pretrain.sampler.ppo.{key}" for key in ("epochs.int", "minibatches", "rollout_length")),
    *("space.pretrain.sampler.ppo.value_weight.uniform", "space.pretrain.sampler_lr.loguniform"),
    # Of the pre-trainings that are short enough for two cores.
    *(
        f"set.pretrain.{key}"
        for key in ("workers", "epochs", "optimizer.warmup_epochs", "checkpoint.minutes")
    ),
    *("set.finetune.workers", "set.finetune.epochs"),
    *(f"set.pretrain.{key}" for key in ("health_every", "health_clips", "health_pictures")),
}


@cache
def _stages(pipeline: str, *sets: str) -> dict[str, Any]:
    built = graph.build(spec.load(str(ROOT / "pipelines" / f"{pipeline}.yaml"), sets)).instances
    return {instance.stage: instance.config for instance in built.values()}  # those of three folds are alike


def _numbers(raw: Mapping[str, Any]) -> set[str]:
    """Return the keys that hold a number, or a list of numbers."""
    values = {key: value if isinstance(value, list) else [value] for key, value in specs.flatten(raw).items()}
    return {key for key, value in values.items() if any(type(part) in (int, float) for part in value)}


def _assert_published(config: PretrainStage | FinetuneStage, published: dict[str, Any]) -> None:
    found = specs.flatten(config.model_dump(mode="json"))
    assert {key: found[key] for key in published} == published
    assert (found["data.frames"], found["data.size"]) == (found["clip.frames"], found["clip.size"])


@pytest.mark.parametrize(
    ("pipeline", "batch", "base_lr", "epochs", "stride"),
    [
        # V1 scripts/ssv2/…_epoch_800/pretrain.sh: 64 GPUs of 32 clips; --epochs 801, checkpoint-799 is used
        ("full_ssv2", 64 * 32, 1.5e-4, 800, 2),
        # V1 scripts/kinetics/…_epoch_800/pretrain.sh
        ("full_k400", 64 * 32, 1.5e-4, 800, 4),
        # V1 scripts/ucf101/…_epoch_3200/pretrain.sh: 8 GPUs of 24 clips, --epochs 3201
        ("full_ucf101", 8 * 24, 3e-4, 3200, 4),
        # EV scripts/hmdb51/pretrain.sh
        ("full_hmdb51", 8 * 24, 1e-3, 4800, 2),
    ],
)
def test_each_pre_training_has_the_published_numbers(
    pipeline: str, batch: int, base_lr: float, epochs: int, stride: int
) -> None:
    config = _stages(pipeline)["pretrain"]
    own = {"batch_size": batch, "optimizer.base_lr": base_lr, "epochs": epochs}
    _assert_published(config, PRETRAIN | own)
    rules = clip_rules(config.data, BENCHMARKS[config.benchmark], "pretrain")
    assert (rules.sampling, rules.stride, rules.crop, rules.flip) == ("dense", stride, "multi_scale", False)


@pytest.mark.parametrize("pipeline", FULL)
@pytest.mark.parametrize(
    ("stage", "own", "frames", "views"),
    [
        # V1 scripts/ssv2/…_epoch_800/finetune.sh: 64 GPUs of 8 clips; ssv2.py flips all but SSv2
        (
            "finetune_ssv2",
            {"batch_size": 64 * 8, "optimizer.base_lr": 5e-4, "epochs": 50},
            ("uniform", None, False),
            (2, 3),
        ),
        # V1 scripts/kinetics/…_epoch_800/finetune.sh
        (
            "finetune_k400",
            {"batch_size": 64 * 8, "optimizer.base_lr": 1e-3, "epochs": 100},
            ("dense", 4, True),
            (5, 3),
        ),
        # V1 scripts/ucf101/…_epoch_3200/finetune.sh: 8 GPUs of 16 videos, two samples of each
        (
            "finetune_ucf101",
            {"batch_size": 8 * 16, "samples_per_clip": 2, "optimizer.base_lr": 5e-4, "epochs": 100}
            | {"optimizer.min_lr": 1e-5, "optimizer.layer_decay": 0.7, "drop_path": 0.2, "head_dropout": 0.5},
            ("dense", 4, True),
            (5, 3),
        ),
        # EV scripts/hmdb51/finetune.sh, without --mcm
        (
            "finetune_hmdb51",
            {"batch_size": 8 * 16, "optimizer.base_lr": 1e-3, "epochs": 50, "mixup": 0.0, "cutmix": 0.0},
            ("dense", 2, True),
            (10, 3),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_fine_tuning_and_its_test_have_the_published_numbers(
    pipeline: str,
    stage: str,
    own: dict[str, Any],
    frames: tuple[str, int | None, bool],
    views: tuple[int, int],
) -> None:
    stages = _stages(pipeline)
    config, test = stages[stage], stages[stage.replace("finetune", "evaluate")]
    _assert_published(config, FINETUNE | own)
    benchmark = BENCHMARKS[config.benchmark]
    rules = clip_rules(config.data, benchmark, "finetune")
    assert (rules.sampling, rules.crop, rules.flip) == (frames[0], "random_resized", frames[2])
    assert frames[1] in (None, rules.stride)
    assert (test.clips or benchmark.test_clips, test.crops or benchmark.test_crops) == views
    assert test.data.protocol == "published"


@pytest.mark.parametrize(
    ("pipeline", "stage", "videos", "peak", "end"),
    [
        # lr * total_batch_size / 256; of repeated samples each video counts once.
        ("full_ssv2", "pretrain", 168_913, 1.5e-4 * 8, 1e-5 * 8),
        ("full_k400", "pretrain", 240_436, 1.5e-4 * 8, 1e-5 * 8),
        ("full_ucf101", "pretrain", 9_537, 3e-4 * 0.75, 1e-5 * 0.75),
        ("full_hmdb51", "pretrain", 3_570, 1e-3 * 0.75, 1e-5 * 0.75),
        ("full_ssv2", "finetune_ssv2", 168_913, 5e-4 * 2, 1e-6 * 2),
        ("full_ssv2", "finetune_k400", 240_436, 1e-3 * 2, 1e-6 * 2),
        ("full_ssv2", "finetune_ucf101", 9_537, 5e-4 / 2, 1e-5 / 2),
        ("full_ssv2", "finetune_hmdb51", 3_570, 1e-3 / 2, 1e-6 / 2),
    ],
)
def test_the_rate_of_a_step_is_that_of_the_published_schedule(
    pipeline: str, stage: str, videos: int, peak: float, end: float
) -> None:
    # utils.cosine_scheduler over epochs * (videos // batch) steps: a linspace from 0, then a cosine.
    config = _stages(pipeline)[stage]
    steps = videos // config.batch_size
    warmup, total = int(config.optimizer.warmup_epochs) * steps, config.epochs * steps

    def rate(step: int) -> float:
        return float(config.optimizer.lr(step, steps, config.epochs, config.batch_size))

    assert [rate(0), rate(1), rate(warmup - 1), rate(warmup)] == pytest.approx(
        [0, peak / (warmup - 1), peak, peak]
    )
    if (total - warmup) % 2 == 0:
        assert rate((total + warmup) // 2) == pytest.approx((peak + end) / 2)
    assert end < rate(total - 1) < end + 1e-4 * peak


@pytest.mark.parametrize("pipeline", FULL)
@pytest.mark.parametrize("most", [8, 1])
def test_one_key_runs_the_same_batch_on_eight_gpus_or_one(pipeline: str, most: int) -> None:
    sets = [f"defaults.max_workers={most}"]
    instances = graph.build(spec.load(str(ROOT / "pipelines" / f"{pipeline}.yaml"), sets)).instances
    built = {instance.stage: instance for instance in instances.values()}
    for name, config in _stages(pipeline).items():
        instance = built[name]
        assert instance.kind.gpus(instance.config) <= most
        if isinstance(config, PretrainStage | FinetuneStage):
            recipe = instance.config.recipe.among(instance.config.started, config.workers)
            assert recipe.batch_size == config.batch_size
            # A worker holds as many clips at once as one of the recipe's workers.
            at_once = recipe.per_worker(instance.config.started) // recipe.accumulate
            assert at_once == config.batch_size // config.workers


def test_each_number_of_a_recipe_is_published_and_tested_above_or_named_as_ours() -> None:
    tested = {
        "pretrain": {*PRETRAIN, "batch_size", "epochs", "optimizer.base_lr", "data.frames", "data.size"},
        "finetune": {*FINETUNE, "batch_size", "epochs", "optimizer.base_lr", "data.frames", "data.size"},
        "evaluate": {"clips", "crops", "data.frames", "data.size"},
        "data": {"fold"},  # the official splits; tests/test_pipelines.py
    }
    # Its batch only says how many clips are tested side by side.
    ours = {kind: OURS | ({"batch_size"} if kind == "evaluate" else set()) for kind in tested}
    met: set[str] = set()
    for pipeline in FULL:
        for instance in graph.build(
            spec.load(str(ROOT / "pipelines" / f"{pipeline}.yaml"))
        ).instances.values():
            kind, numbers = instance.kind.name, _numbers(instance.config.model_dump(mode="json"))
            if kind not in tested:
                assert not numbers, f"{pipeline}: {instance.name} has numbers: {numbers}"
                continue
            assert not tested[kind] & ours[kind]
            unlisted = numbers - tested[kind] - UNREAD[kind] - ours[kind]
            assert not unlisted, (
                f"{pipeline}: {instance.name}: give {unlisted} a source above, or list it in OURS"
            )
            met |= numbers
    assert met >= OURS, f"no recipe has {OURS - met}"


def test_each_number_of_a_sweep_is_a_published_ratio_or_named_as_ours() -> None:
    met: set[str] = set()
    for path in sorted((ROOT / "sweeps").glob("*.yaml")):
        numbers = _numbers(specs.read(path))
        unlisted = numbers - {"space.pretrain.sampler.mask_ratio"} - OURS_IN_SWEEPS
        assert not unlisted, f"{path.name}: give {unlisted} a source, or list it in OURS_IN_SWEEPS"
        met |= numbers
    assert met >= OURS_IN_SWEEPS, f"no sweep has {OURS_IN_SWEEPS - met}"


@pytest.mark.parametrize(
    "sweep", ["mask_ratio", "samplers", "demo_ratio", "filmed_samplers", "study", "study_real"]
)
def test_the_ratios_of_the_sweeps_are_published_ones(sweep: str) -> None:
    space = specs.read(ROOT / "sweeps" / f"{sweep}.yaml")["space"]
    ratios = set(space["pretrain.sampler.mask_ratio"])
    # V1's scripts: .75 and .9; the table of Ada's README: .8 to .98.
    assert ratios <= {0.75, 0.8, 0.85, 0.9, 0.95, 0.98}
    assert {0.9, 0.95} <= ratios

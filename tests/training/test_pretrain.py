from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tats_core import sampling
from tats_core.errors import SpecError, TrainingError
from tats_core.models.mae import VideoMAE
from tats_core.sampling import Sampler, Transition, ppo
from tats_core.sampling.ppo import weights
from tats_core.specs import validate
from tats_core.training.checkpoint import CheckpointStore
from tats_core.training.events import EventLog, read_events
from tats_core.training.metrics import on_host
from tats_core.training.optimizers import OPTIMIZERS
from tats_core.training.pretrain import JointTrainer, PretrainConfig, pretrain
from tats_core.training.world import World


def _tats(**ppo: Any) -> dict[str, Any]:
    return {"kind": "tats", "network": {"width": 12, "heads": 2}, "ppo": ppo}


SAMPLERS: dict[str, dict[str, Any]] = {
    **{kind: {"kind": kind} for kind in sampling.SAMPLERS},
    "adaptive, light": {"kind": "adaptive", "architecture": "light"},
    "tats": _tats(epochs=2, minibatches=2),
    "tats, sequence": _tats(credit="sequence", reward_scale="global"),
    # Three steps an epoch, two in the memory: a checkpoint falls between two updates.
    "tats, long rollout": _tats(rollout_length=2, epochs=2, minibatches=2),
}


def _recipe(tiny: dict[str, Any], sampler: dict[str, Any], **changes: Any) -> PretrainConfig:
    return PretrainConfig.model_validate(
        {
            **tiny,
            "mae": {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2, "decoded_share": 0.5},
            "sampler": {"mask_ratio": 0.8, **sampler},
            "optimizer": {"base_lr": 0.05, "warmup_epochs": 1},
            "epochs": 4,
            "batch_size": 4,
            "log_every": 1,
            "checkpoint": {"epochs": 1},
            "health_every": 2,
        }
        | changes
    )


def _health(mae: VideoMAE, sampler: Sampler, step: int) -> dict[str, float]:
    return {"checked_at": float(step)}


def _run(
    recipe: PretrainConfig, loader: Any, folder: Path, events: EventLog | None = None
) -> tuple[JointTrainer, dict[str, float]]:
    trainer = JointTrainer(recipe, World())
    events = events or EventLog(None)
    return trainer, pretrain(trainer, loader, events=events, store=CheckpointStore(folder), health=_health)


def _flat(state: Any, name: str = "") -> dict[str, Any]:
    if isinstance(state, dict):
        return {k: v for key in state for k, v in _flat(state[key], f"{name}.{key}").items()}
    if isinstance(state, (list, tuple)):
        return {k: v for index, item in enumerate(state) for k, v in _flat(item, f"{name}.{index}").items()}
    return {name: state}


def _assert_same(actual: Any, other: Any) -> None:
    flat, flat_other = _flat(actual), _flat(other)
    assert flat.keys() == flat_other.keys()
    for name, value in flat.items():
        same = (
            torch.equal(value, flat_other[name]) if isinstance(value, Tensor) else value == flat_other[name]
        )
        assert same, name


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
def test_a_resumed_run_ends_in_the_same_bits(
    sampler: dict[str, Any], tiny: dict[str, Any], clips: Any, tmp_path: Path
) -> None:
    recipe = _recipe(tiny, sampler)
    straight, metrics = _run(recipe, clips(), tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        _run(recipe, clips(fail_at=2), tmp_path / "killed")
    torch.manual_seed(999)
    loader = clips()
    resumed, resumed_metrics = _run(recipe, loader, tmp_path / "killed")
    assert loader.epochs_read == [2, 3]
    assert metrics == resumed_metrics
    _assert_same(straight.state_dict(), resumed.state_dict())


def test_statistics_in_buffers_become_those_of_all_workers(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = JointTrainer(_recipe(tiny, SAMPLERS["random"]), World())
    module = torch.nn.Module()
    module.register_buffer("mean", torch.tensor(1.0))
    module.register_buffer("steps", torch.tensor(1))
    trainer.world = World(size=2)
    monkeypatch.setattr(World, "sum", lambda self, values: values + 3)  # the other worker's mean is 3
    trainer.average_buffers(module)
    assert (module.mean.item(), module.steps.item()) == (2, 1)


@pytest.mark.parametrize("killed_at", [1, 4, 5, 8])
def test_a_run_killed_within_an_epoch_resumes_at_its_newest_step_and_ends_in_the_same_bits(
    killed_at: int, tiny: dict[str, Any], clips: Any, tmp_path: Path
) -> None:
    recipe = _recipe(
        tiny, SAMPLERS["tats, long rollout"], epochs=3, checkpoint={"epochs": None, "steps": 2, "keep": 1}
    )
    straight, metrics = _run(recipe, clips(), tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        _run(recipe, clips(fail_at_step=killed_at), tmp_path / "killed")
    events = EventLog(tmp_path / "events.jsonl")
    resumed, resumed_metrics = _run(recipe, clips(), tmp_path / "killed", events)
    assert metrics == resumed_metrics
    _assert_same(straight.state_dict(), resumed.state_dict())
    notes = [event["text"] for _, event in read_events(tmp_path / "events.jsonl") if event["kind"] == "note"]
    assert notes == ([f"resumed after step {killed_at // 2 * 2} of 9"] if killed_at > 1 else [])


@pytest.mark.parametrize("kind", list(OPTIMIZERS))
def test_the_sampler_learns_with_any_optimiser_along_its_own_schedule(
    kind: str, tiny: dict[str, Any], clips: Any, tmp_path: Path
) -> None:
    cosine = {"kind": kind, "schedule": {"kind": "cosine"}}
    recipe = _recipe(tiny, SAMPLERS["tats"], sampler_optimizer=cosine, sampler_lr=1e-4)
    before = JointTrainer(recipe, World()).sampler.state_dict()
    trainer, _ = _run(recipe, clips(), tmp_path)
    assert any(not torch.equal(before[name], value) for name, value in trainer.sampler.state_dict().items())
    # Four epochs of three steps: the last of twelve of half a cosine; a width of 12 takes 48 / 12 the rate.
    last = 4e-4 * 0.5 * (1 + math.cos(math.pi * 11 / 12))
    assert trainer.learner.guarded.optimizer.param_groups[0]["lr"] == pytest.approx(last)


def test_the_samplers_rate_is_constant_and_no_batch_scales_it_unless_its_schedule_says_otherwise() -> None:
    recipe = PretrainConfig(batch_size=8, epochs=4)
    assert {recipe.sampler_rate(1e-3, step, 3) for step in range(12)} == {1e-3}


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"sampler_optimizer": {"base_lr": 1}}, "sampler_optimizer.base_lr has no effect; set sampler_lr"),
        ({"optimizer": {"layer_decay": 0.5}}, "optimizer.layer_decay is for fine-tuning; leave it out"),
        (
            {"sampler_optimizer": {"kind": "sgd", "betas": 1}},
            "sampler_optimizer of kind 'sgd' has no key 'be",
        ),
    ],
)
def test_a_key_of_an_optimiser_that_has_no_effect_is_refused(keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SpecError) as refused:
        validate(PretrainConfig, keys, "p.yaml")
    assert sentence in str(refused.value)


@pytest.mark.parametrize("killed_at", [None, 7, 10])
def test_a_schedule_straight_through_and_in_parts_ends_in_the_same_bits(
    killed_at: int | None, tiny: dict[str, Any], clips: Any, tmp_path: Path
) -> None:
    later = {"clip": 0.05, "epochs": 1, "entropy_weight": 0.02}
    schedule = [
        {"epoch": 2, "sampler": {"ppo": later}, "sampler_lr": 0.01},
        {"epoch": 3, "sampler": {"ppo": {"clip": 0.3}}},
    ]
    recipe = _recipe(
        tiny, SAMPLERS["tats, long rollout"], schedule=schedule, checkpoint={"epochs": None, "steps": 1}
    )
    straight, metrics = _run(recipe, clips(), tmp_path / "straight")

    begun = recipe.beginning(2)
    assert begun == _recipe(
        tiny, SAMPLERS["tats, long rollout"], until=2, checkpoint={"epochs": None, "steps": 1}
    )
    state = CheckpointStore(tmp_path / "state")
    trainer = JointTrainer(begun, World())
    pretrain(
        trainer,
        clips(),
        events=EventLog(None),
        store=CheckpointStore(tmp_path / "a"),
        health=_health,
        after=state,
    )
    loader = clips(fail_at_step=killed_at)
    second = JointTrainer(recipe, World())
    parts = {
        "events": EventLog(None),
        "store": CheckpointStore(tmp_path / "b"),
        "health": _health,
        "before": state,
    }
    if killed_at is not None:
        with pytest.raises(KeyboardInterrupt):
            pretrain(second, loader, **parts)
        second, loader = JointTrainer(recipe, World()), clips()
    ended = pretrain(second, loader, **parts)
    assert set(loader.epochs_read) <= {2, 3}
    assert ended == metrics
    _assert_same(straight.state_dict(), second.state_dict())
    other, _ = _run(_recipe(tiny, SAMPLERS["tats, long rollout"]), clips(), tmp_path / "other")
    with pytest.raises(AssertionError):
        _assert_same(other.state_dict(), second.state_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"schedule": [{"epoch": 1, "sampler": {"ppo": {"clipp": 0.1}}}]},
            "the schedule's epoch 1: sampler.ppo has no key 'clipp'; did you mean 'clip'",
        ),
        (
            {"schedule": [{"epoch": 1, "sampler": {"ppo": {"clip": 1.5}}}]},
            r"the schedule's epoch 1: sampler\.ppo\.clip: input should be less than 1",
        ),
        (
            {"schedule": [{"epoch": 1, "sampler": {"mask_ratio": 0.5}}]},
            r"epoch 1: sampler\.mask_ratio cannot change while the sampler trains; only ppo can",
        ),
        (
            {"sampler": {"kind": "random"}, "schedule": [{"epoch": 1, "sampler": {"ppo": {"clip": 0.1}}}]},
            "epoch 1: the sampler 'random' has no key 'ppo'",
        ),
        ({"schedule": [{"epoch": 2}, {"epoch": 1}]}, "must rise, not 2, 1"),
        ({"schedule": [{"epoch": 3}], "until": 3}, "epoch 3 never begins: training ends after 3"),
        ({"until": 5}, "until is 5, but there are 4 epochs"),
    ],
)
def test_a_schedule_that_cannot_be_followed_is_refused(
    changes: dict[str, Any], message: str, tiny: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=message):
        _recipe(tiny, **{"sampler": SAMPLERS["tats"], **changes})


def test_no_checkpoint_is_saved_in_a_storm_of_nans(tiny: dict[str, Any], clips: Any, tmp_path: Path) -> None:
    class Stormy(clips):  # type: ignore[misc]
        def epoch(self, epoch: int, first_step: int = 0) -> Any:
            for step, batch in enumerate(super().epoch(epoch, first_step)):
                factor = math.nan if (epoch, step) >= (1, 1) else 1
                yield batch._replace(video_BCTHW=batch.video_BCTHW * factor)

    recipe = _recipe(tiny, SAMPLERS["tats"], epochs=20, checkpoint={"epochs": 1, "steps": 1, "keep": 9})
    with pytest.raises(TrainingError):
        _run(recipe, Stormy(), tmp_path)
    assert max(tmp_path.iterdir()).name == "step-000000004"


def test_a_finished_run_that_is_started_again_returns_its_metrics(
    tiny: dict[str, Any], clips: Any, tmp_path: Path
) -> None:
    recipe = _recipe(tiny, SAMPLERS["tats"], epochs=1)
    _, metrics = _run(recipe, clips(), tmp_path)
    loader = clips()
    _, again = _run(recipe, loader, tmp_path)
    assert loader.epochs_read == []
    assert again == metrics
    assert math.isfinite(metrics["loss"])


def test_the_same_seed_trains_the_same_model_and_another_one_does_not(
    tiny: dict[str, Any], clips: Any, tmp_path: Path
) -> None:
    states = [
        _run(_recipe(tiny, SAMPLERS["tats"], epochs=1, seed=seed), clips(), tmp_path / str(run))[
            0
        ].state_dict()
        for run, seed in enumerate((0, 0, 1))
    ]
    _assert_same(states[0], states[1])
    assert not torch.equal(states[0]["mae"]["mask_token"], states[2]["mae"]["mask_token"])


def test_a_pre_training_has_no_layer_decay(tiny: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"optimizer\.layer_decay is for fine-tuning"):
        validate(PretrainConfig, {**tiny, "optimizer": {"layer_decay": 0.75}}, "demo.yaml")
    trainer = JointTrainer(_recipe(tiny, SAMPLERS["random"]), World())
    trainer.mae_step.set_lr(0.1)
    assert {group["lr"] for group in trainer.mae_step.optimizer.param_groups} == {0.1}


def test_the_loss_falls_on_clips_that_repeat(tiny: dict[str, Any]) -> None:
    recipe = _recipe(
        tiny, SAMPLERS["random"], mae={"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
    )
    trainer = JointTrainer(recipe, World())
    # A still picture repeated over time: what is masked can be copied from another slice.
    picture_BCHW = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(0)).repeat(1, 1, 4, 4)
    video_BCTHW = picture_BCHW[:, :, None].expand(-1, -1, 4, -1, -1)
    losses = [trainer.step(video_BCTHW, lr=3e-3)["loss"] for _ in range(60)]
    assert losses[-1] < 0.6 * losses[0]


def test_while_warming_up_masking_is_random_and_the_sampler_rests(tiny: dict[str, Any], clips: Any) -> None:
    trainer = JointTrainer(_recipe(tiny, SAMPLERS["tats"]), World())
    before = {name: tensor.clone() for name, tensor in trainer.sampler.state_dict().items()}
    (video_BCTHW, _, _), *_ = clips().epoch(0)
    metrics = trainer.step(video_BCTHW, lr=1e-3, warming_up=True)
    assert "entropy_share" not in metrics
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.sampler.state_dict().items())
    metrics = trainer.step(video_BCTHW, lr=1e-3)
    assert metrics["entropy_share"] == pytest.approx(1, abs=0.01)
    assert not torch.equal(trainer.sampler.state_dict()["norm.weight"], before["norm.weight"])


def test_the_warm_up_of_the_sampler_may_end_within_an_epoch(
    tiny: dict[str, Any], clips: Any, tmp_path: Path
) -> None:
    recipe = _recipe(tiny, SAMPLERS["tats"], epochs=2, sampler_warmup_epochs=0.5)
    _run(recipe, clips(steps=4), tmp_path, EventLog(tmp_path / "events.jsonl"))
    points = [event for _, event in read_events(tmp_path / "events.jsonl") if event["kind"] == "metrics"]
    taught = [e["step"] for e in points if "loss" in e["values"] and "entropy_share" in e["values"]]
    # Steps 1 and 2 of four are random.
    assert taught == [3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("sampler", "warming_up", "passes"), [("random", False, 0), ("tats", True, 0), ("tats", False, 1)]
)
def test_all_tokens_are_embedded_only_for_a_sampler_that_reads_them(
    sampler: str,
    warming_up: bool,
    passes: int,
    tiny: dict[str, Any],
    clips: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = JointTrainer(_recipe(tiny, SAMPLERS[sampler]), World())
    seen: list[tuple[Tensor, bool]] = []
    tokenize = trainer.mae.encoder.tokenize
    monkeypatch.setattr(
        trainer.mae.encoder, "tokenize", lambda *given: (seen.append(given), tokenize(*given))[1]
    )
    (video_BCTHW, _, _), *_ = clips().epoch(0)
    trainer.step(video_BCTHW, lr=1e-3, warming_up=warming_up)
    assert len(seen) == passes


def test_by_default_a_joint_step_is_one_of_ppo(
    tiny: dict[str, Any], clips: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = {
        **tiny,
        "sampler": _tats(kl_stop=None),
        "batch_size": 4,
    }
    trainer = JointTrainer(PretrainConfig.model_validate(raw), World())
    ratios: list[tuple[float, float]] = []

    def watched(*arguments: Any) -> Any:
        loss, metrics = ppo_loss(*arguments)
        ratios.append((metrics["ratio_q01"].item(), metrics["ratio_q99"].item()))
        return loss, metrics

    ppo_loss = ppo.ppo_loss
    monkeypatch.setattr(ppo, "ppo_loss", watched)
    (video_BCTHW, _, _), *_ = clips().epoch(0)
    metrics = trainer.step(video_BCTHW, lr=1e-3)
    # The first mini-batch meets the policy that drew, but for the rounding of another batch size.
    assert ratios[0] == pytest.approx((1, 1), abs=1e-6)
    assert all(max(1 - low, high - 1) > 1e-4 for low, high in ratios[1:])
    assert metrics["ppo_steps"] == len(ratios) == 4


@pytest.mark.parametrize("scale", ["global", "clip", "rank", "top"])
def test_rewards_are_scaled_and_their_moments_logged(scale: str, tiny: dict[str, Any]) -> None:
    trainer = JointTrainer(_recipe(tiny, _tats(rollout_length=9, reward_scale=scale)), World())
    tokens_BND = torch.randn(2, 32, 24)
    policy = trainer.policy(tokens_BND)
    rollout = trainer.sampler.draw(2, trainer.noise, policy)
    reward_BM = torch.rand(rollout.masked_BM.shape)
    assert trainer.objective is not None
    metrics = trainer.objective.update(Transition(tokens_BND, rollout, reward_BM), trainer.learner)
    assert metrics["reward_mean"] == pytest.approx(reward_BM.mean().item())
    assert metrics["reward_std"] == pytest.approx(reward_BM.std(correction=0).item())
    (drawn,) = trainer.objective.memory
    scaled_BM, weight_BM = drawn.reward_BM, weights(drawn, trainer.objective.config.ppo)
    clips = [(scaled_BM, torch.ones(()))] if scale == "global" else zip(scaled_BM, weight_BM, strict=True)
    for rewards, weight in clips:
        assert (weight * rewards).mean().item() == pytest.approx(0, abs=1e-6)
        assert (weight * rewards.square()).mean().item() == pytest.approx(1, abs=1e-5)
    if scale == "rank":
        assert torch.equal(scaled_BM.argsort(1), reward_BM.argsort(1))
        assert scaled_BM.abs().max() < math.sqrt(3), "ranks are spread evenly"
    if scale == "top":  # 6 of 32 tokens are visible: 6 / 32 of the 26 masked ones, 4.875
        assert [len(rewards.unique()) for rewards in scaled_BM] == [3, 3], "four or five, and one in part"
        above_BM = (scaled_BM > 0) * weight_BM
        assert above_BM.sum(1).tolist() == pytest.approx([4.875] * 2, abs=1)


@pytest.mark.parametrize(
    ("scale", "explains"), [("global", True), ("clip", False), ("rank", False), ("top", False)]
)
def test_the_critic_is_judged_only_where_clips_earn_differently(
    scale: str, explains: bool, tiny: dict[str, Any], clips: Any
) -> None:
    trainer = JointTrainer(_recipe(tiny, _tats(reward_scale=scale)), World())
    (video_BCTHW, _, _), *_ = clips().epoch(0)
    assert ("explained_variance" in trainer.step(video_BCTHW, lr=1e-3)) == explains


def test_a_skipped_step_of_the_sampler_is_counted_and_logged(
    tiny: dict[str, Any], clips: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = _tats(epochs=2, minibatches=2, reward_scale="global")
    trainer = JointTrainer(_recipe(tiny, sampler, epochs=1), World())
    assert trainer.objective is not None
    update = trainer.objective.update
    monkeypatch.setattr(
        trainer.objective,
        "update",
        lambda drawn, learner: update(replace(drawn, reward_BM=drawn.reward_BM * math.nan), learner),
    )
    events = EventLog(tmp_path / "events.jsonl")
    pretrain(
        trainer, clips(steps=2), events=events, store=CheckpointStore(tmp_path / "states"), health=_health
    )
    logged = [
        event["values"] for _, event in read_events(tmp_path / "events.jsonl") if event["kind"] == "metrics"
    ]
    # Each of two updates has two passes of two mini-batches.
    assert [values["skipped_steps"] for values in logged if "skipped_steps" in values] == [8]
    assert trainer.mae_step.skipped == 0


@pytest.mark.parametrize(
    "sampler",
    # Dropout in AdaMAE's published network meets parts of a batch in another order.
    [*(SAMPLERS[kind] for kind in ("random", "tube", "frame", "adaptive, light")), _tats(epochs=2)],
    ids=str,
)
def test_an_accumulated_step_is_the_step_of_the_large_batch(
    sampler: dict[str, Any], tiny: dict[str, Any], clips: Any
) -> None:
    # In double precision: Adam makes a step of full size out of a gradient that is nothing but rounding.
    torch.set_default_dtype(torch.float64)
    try:
        trainers = [JointTrainer(_recipe(tiny, sampler, accumulate=parts), World()) for parts in (1, 2, 3)]
        for step, (video_BCTHW, _, _) in enumerate(clips(steps=5, batch=5).epoch(0)):
            metrics = [on_host(trainer.step(video_BCTHW.double(), lr=1e-3)) for trainer in trainers]
            for other in metrics[1:]:
                for name in {"loss", "reward_std", "policy_loss", "kl", "sampling_loss"} & other.keys():
                    assert other[name] == pytest.approx(metrics[0][name], abs=1e-5), (step, name)
    finally:
        torch.set_default_dtype(torch.float32)
    first, *others = (dict(t.mae.state_dict()) | dict(t.sampler.state_dict()) for t in trainers)
    for other in others:
        for name, tensor in first.items():
            torch.testing.assert_close(
                other[name], tensor, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("kind", sampling.SAMPLERS)
def test_a_step_in_bfloat16_stays_near_the_one_in_float32(
    kind: str, tiny: dict[str, Any], clips: Any
) -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        trainer = JointTrainer(_recipe(tiny, SAMPLERS[kind], precision=precision), World())
        losses.append(
            [float(trainer.step(video, lr=1e-3)["loss"]) for video, _, _ in clips(steps=4).epoch(0)]
        )
        assert {p.dtype for p in trainer.mae.parameters()} == {torch.float32}
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0]


def test_the_decoder_gets_a_random_share_of_the_masked_tokens(tiny: dict[str, Any]) -> None:
    trainer = JointTrainer(_recipe(tiny, SAMPLERS["random"]), World())
    rollout = trainer.sampler.draw(50, trainer.noise)
    part = trainer.decoded(rollout)
    # 6 of 32 tokens are visible; half of 26 is decoded.
    assert part.masked_BM.shape == (50, 13)
    assert torch.equal(part.visible_BK, rollout.visible_BK)
    for some, every in zip(part.masked_BM.tolist(), rollout.masked_BM.tolist(), strict=True):
        assert len(set(some)) == 13
        assert set(some) <= set(every)
    assert len(part.masked_BM.unique()) == 32


def test_a_broken_batch_is_skipped_and_does_not_reach_the_weights(tiny: dict[str, Any], clips: Any) -> None:
    trainer = JointTrainer(_recipe(tiny, SAMPLERS["random"]), World())
    (video_BCTHW, _, _), *_ = clips().epoch(0)
    before = trainer.mae.mask_token.detach().clone()
    trainer.step(video_BCTHW.clone().fill_(math.nan), lr=1e-2)
    assert trainer.mae_step.skipped == 1
    assert torch.equal(trainer.mae.mask_token, before)


@pytest.mark.parametrize(("every", "checks"), [(None, [12]), (3, [0, 9, 12]), (4, [0, 12])])
def test_health_is_checked_as_often_as_asked_and_at_the_end(
    every: int | None, checks: list[int], tiny: dict[str, Any], clips: Any, tmp_path: Path
) -> None:
    _, metrics = _run(
        _recipe(tiny, SAMPLERS["random"], health_every=every),
        clips(),
        tmp_path,
        EventLog(tmp_path / "events.jsonl"),
    )
    logged = [
        event["values"] for _, event in read_events(tmp_path / "events.jsonl") if event["kind"] == "metrics"
    ]
    assert [values["checked_at"] for values in logged if "checked_at" in values] == checks
    assert metrics["checked_at"] == 12


def test_the_log_has_every_step_the_health_metrics_and_the_end(
    tiny: dict[str, Any], clips: Any, tmp_path: Path
) -> None:
    recipe = _recipe(tiny, SAMPLERS["tats"], epochs=3)
    _, metrics = _run(recipe, clips(), tmp_path, EventLog(tmp_path / "events.jsonl"))
    events = [event for _, event in read_events(tmp_path / "events.jsonl")]
    points = [e for e in events if e["kind"] == "metrics" and "loss" in e["values"]]
    assert [e["step"] for e in points] == list(range(1, 10))
    assert points[-1]["values"]["loss"] == metrics["loss"]
    assert {"entropy_share", "kl", "clip_fraction", "ratio_q99", "reward_std"} <= points[0]["values"].keys()
    # One epoch of warm-up from 0 to 0.05 * 4 / 256 in three steps; the cosine begins at the peak.
    rates = [e["values"]["lr"] for e in points]
    assert rates[:4] == pytest.approx([share * 5e-2 / 64 for share in (0, 0.5, 1, 1)])
    # Health before the first step, every second epoch and at the end.
    checked = [(e["step"], e["values"]["checked_at"]) for e in events if "checked_at" in e.get("values", {})]
    assert checked == [(0, 0.0), (6, 6.0), (9, 9.0)]
    last = [e for e in events if e["kind"] == "progress"][-1]
    assert (last["step"], last["steps"], last["epoch"], last["epochs"]) == (9, 9, 3, 3)


def test_a_storm_of_nans_changes_no_weight_and_ends_training_with_a_sentence(
    tiny: dict[str, Any], clips: Any, tmp_path: Path
) -> None:
    class Broken(clips):  # type: ignore[misc]
        def epoch(self, epoch: int, first_step: int = 0) -> Any:
            for batch in super().epoch(epoch, first_step):
                yield batch._replace(video_BCTHW=batch.video_BCTHW * math.nan)

    recipe = _recipe(tiny, SAMPLERS["tats"], epochs=20)
    trainer = JointTrainer(recipe, World())
    before = {name: tensor.clone() for name, tensor in trainer.mae.state_dict().items()}
    with pytest.raises(TrainingError, match="20 steps in a row had a non-finite gradient"):
        pretrain(trainer, Broken(), events=EventLog(None), store=CheckpointStore(tmp_path), health=_health)
    _assert_same(before, dict(trainer.mae.state_dict()))
    assert trainer.last is not None


def test_one_broken_batch_is_skipped_and_counted(tiny: dict[str, Any], clips: Any, tmp_path: Path) -> None:
    class OnceBroken(clips):  # type: ignore[misc]
        def epoch(self, epoch: int, first_step: int = 0) -> Any:
            for step, batch in enumerate(super().epoch(epoch, first_step)):
                bad = math.inf if (epoch, step) == (1, 1) else 1.0
                yield batch._replace(video_BCTHW=batch.video_BCTHW * bad)

    trainer, metrics = _run(_recipe(tiny, SAMPLERS["tats"]), OnceBroken(), tmp_path)
    assert trainer.mae_step.skipped == 1
    assert trainer.learner.guarded.skipped == 0, "what cannot be rewarded is not learnt from"
    assert math.isfinite(metrics["loss"])
    for module in (trainer.mae, trainer.sampler):
        assert all(torch.isfinite(p).all() for p in module.parameters())


def test_the_rate_of_the_sampler_is_for_a_width_of_48() -> None:
    # The default network is 384 wide: at 1e-3 its policy moved by a KL of .06 a step, at an eighth by .004.
    assert PretrainConfig().learning(0)[1] == pytest.approx(6.25e-5)
    narrow = {"kind": "tats", "network": {"width": 48}}
    assert PretrainConfig.model_validate({"sampler": narrow}).learning(0)[1] == 5e-4
    light = {"kind": "adaptive", "architecture": "light"}
    assert PretrainConfig.model_validate({"sampler": light, "sampler_lr": 2e-3}).learning(0)[1] == 2e-3


@pytest.mark.parametrize(
    ("sampler", "optimiser_steps", "passes"),
    [
        ({"kind": "random"}, 1, 0),
        ({"kind": "adaptive", "architecture": "light"}, 2, 0),
        (_tats(minibatches=4), 5, 1),
        (_tats(minibatches=2, epochs=2, reward_scale="global"), 5, 2),
        (_tats(minibatches=1, credit="sequence", reward_scale="global"), 2, 1),
    ],
)
def test_a_step_waits_for_the_device_once_in_each_optimiser_step(
    sampler: dict[str, Any], optimiser_steps: int, passes: int, tiny: dict[str, Any], clips: Any, waits: Any
) -> None:
    trainer = JointTrainer(_recipe(tiny, sampler), World())
    video_BCTHW = next(clips().epoch(0)).video_BCTHW
    trainer.step(video_BCTHW, lr=1e-3)  # the first one makes the optimisers' moments
    with waits() as waiting:
        trainer.step(video_BCTHW, lr=1e-3)
    # The orders of the mini-batches are drawn on the host, one a pass; to read them waits for nothing.
    assert waiting.found == ["tolist"] * (optimiser_steps + passes)

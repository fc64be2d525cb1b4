from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tats_core.errors import SpecError
from tats_core.specs import validate
from tats_core.training.checkpoint import CheckpointStore
from tats_core.training.events import EventLog, read_events
from tats_core.training.finetune import FinetuneConfig, FinetuneTrainer, finetune
from tats_core.training.metrics import on_host
from tats_core.training.world import World

PLAIN: dict[str, Any] = {"mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.0, "drop_path": 0.0}
RECIPES: dict[str, dict[str, Any]] = {
    "VideoMAE's, everything drawn": {"drop_path": 0.3, "head_dropout": 0.2},
    "batch norm, no mixing": {**PLAIN, "head_norm": "batch"},
    "averaged weights": {"ema": {"decay": 0.9}, "accumulate": 2},
}


def _recipe(tiny: dict[str, Any], **changes: Any) -> FinetuneConfig:
    return FinetuneConfig.model_validate(
        {
            **tiny,
            "optimizer": {"base_lr": 0.05, "warmup_epochs": 1},
            "epochs": 4,
            "batch_size": 4,
            "log_every": 1,
            "checkpoint": {"epochs": 1},
        }
        | changes
    )


def _run(
    recipe: FinetuneConfig, loader: Any, folder: Path, events: EventLog | None = None
) -> tuple[FinetuneTrainer, dict[str, float]]:
    trainer = FinetuneTrainer(recipe, loader.classes, World())
    trainer.start()
    events = events or EventLog(None)
    return trainer, finetune(trainer, loader, events=events, store=CheckpointStore(folder))


def assert_equal(actual: nn.Module, expected: nn.Module) -> None:
    for (name, tensor), its in zip(actual.state_dict().items(), expected.state_dict().values(), strict=True):
        assert torch.equal(tensor, its), name


@pytest.mark.parametrize("changes", RECIPES.values(), ids=RECIPES.keys())
def test_a_resumed_run_ends_in_the_same_bits(
    changes: dict[str, Any], tiny: dict[str, Any], clips: Any, tmp_path: Path
) -> None:
    recipe = _recipe(tiny, **changes)
    straight, metrics = _run(recipe, clips(), tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        _run(recipe, clips(fail_at=2), tmp_path / "killed")
    torch.manual_seed(999)
    loader = clips()
    resumed, resumed_metrics = _run(recipe, loader, tmp_path / "killed")
    assert loader.epochs_read == [2, 3]
    assert metrics == resumed_metrics
    assert_equal(straight.model, resumed.model)
    assert_equal(straight.finished(), resumed.finished())
    moments, resumed_moments = (x.guarded.optimizer.state_dict()["state"] for x in (straight, resumed))
    assert all(
        torch.equal(value, resumed_moments[index][name])
        for index, state in moments.items()
        for name, value in state.items()
    )


@pytest.mark.parametrize("killed_at", [2, 4, 8])
def test_a_run_killed_within_an_epoch_resumes_at_its_newest_step_and_ends_in_the_same_bits(
    killed_at: int, tiny: dict[str, Any], clips: Any, tmp_path: Path
) -> None:
    recipe = _recipe(tiny, epochs=3, drop_path=0.5, ema={}, checkpoint={"epochs": None, "steps": 2})
    straight, metrics = _run(recipe, clips(), tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        _run(recipe, clips(fail_at_step=killed_at), tmp_path / "killed")
    resumed, resumed_metrics = _run(recipe, clips(), tmp_path / "killed")
    assert metrics == resumed_metrics, "the sums over the epoch are restored too"
    assert_equal(straight.finished(), resumed.finished())


def test_a_finished_run_that_is_started_again_returns_its_metrics(
    tiny: dict[str, Any], clips: Any, tmp_path: Path
) -> None:
    recipe = _recipe(tiny, epochs=1)
    _, metrics = _run(recipe, clips(), tmp_path)
    _, again = _run(recipe, clips(), tmp_path)
    assert again == metrics
    assert set(metrics) == {"loss", "train_top1"}


def test_a_batch_is_learnt_by_heart(tiny: dict[str, Any], clips: Any) -> None:
    trainer = FinetuneTrainer(_recipe(tiny, **PLAIN, head_norm="batch"), 3, World())
    trainer.start()
    (video_BCTHW, _, _), *_ = clips(batch=6).epoch(0)
    label_B = torch.tensor([0, 1, 2, 0, 1, 2])
    for step in range(40):
        metrics = trainer.step(video_BCTHW, label_B, step, lr=3e-3)
    assert metrics["train_top1"] == 100
    assert metrics["loss"] < 0.2


def test_a_fresh_classifier_has_the_loss_of_a_guess_and_smoothing_does_not_change_it(
    tiny: dict[str, Any], clips: Any
) -> None:
    (video_BCTHW, label_B, _), *_ = clips().epoch(0)
    for smoothing in (0.0, 0.1):
        recipe = _recipe(tiny, **{**PLAIN, "label_smoothing": smoothing})
        trainer = FinetuneTrainer(recipe, 3, World())
        trainer.start()
        # log 3 nats, since all classes are (nearly) alike.
        assert trainer.step(video_BCTHW, label_B, 0, lr=0.0)["loss"] == pytest.approx(1.0986, abs=0.01)


def test_mixing_keeps_a_clips_frames_together(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = FinetuneTrainer(_recipe(tiny, mixup=0.0, cutmix=1.0), 3, World())
    trainer.start()
    seen: list[torch.Tensor] = []
    forward = trainer.model.forward
    monkeypatch.setattr(
        trainer.model, "forward", lambda video: (seen.append(video.clone()), forward(video))[1]
    )
    # Clip b is filled with b: after cutmix each pixel names the clip it came from.
    video_BCTHW = torch.arange(4.0).view(4, 1, 1, 1, 1).expand(4, 3, 4, 16, 16).clone()
    for step in range(5):
        trainer.step(video_BCTHW.clone(), torch.tensor([0, 1, 2, 0]), step, lr=0.0)
    assert any(not torch.equal(mixed, video_BCTHW) for mixed in seen)
    for mixed_BCTHW in seen:
        first_BHW = mixed_BCTHW[:, 0, 0]
        assert torch.equal(mixed_BCTHW, first_BHW[:, None, None].expand_as(mixed_BCTHW))
        # Its partner is the clip at the mirrored place.
        assert set(first_BHW[0].unique().tolist()) <= {0.0, 3.0}


@pytest.fixture
def in_double() -> Iterator[None]:
    """Adam makes a step of full size out of a gradient that is nothing but rounding: have less of it."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize(
    "changes",
    [PLAIN, {"drop_path": 0.0, "label_smoothing": 0.2}, {"drop_path": 0.0, "mixup": 0.0}],
    ids=["plain", "mixup and cutmix", "cutmix"],
)
@pytest.mark.parametrize("parts", [2, 3, 6])
def test_a_batch_in_parts_makes_the_step_of_the_whole_batch(
    tiny: dict[str, Any], clips: Any, changes: dict[str, Any], parts: int
) -> None:
    results = []
    for accumulate in (1, parts):
        recipe = _recipe(tiny, **changes, head_scale=1.0, batch_size=6, accumulate=accumulate)
        trainer = FinetuneTrainer(recipe, 3, World())
        trainer.start()
        metrics = [
            on_host(trainer.step(video_BCTHW.double(), label_B, step, lr=1e-3))
            for step, (video_BCTHW, label_B, _) in enumerate(clips(steps=5, batch=6).epoch(0))
        ]
        results.append((metrics, trainer.model.state_dict()))
    (metrics, whole), (part_metrics, in_parts) = results
    for name, tensor in whole.items():
        assert (in_parts[name] - tensor).abs().max().item() <= 1e-6, name
    for metrics_of_whole, metrics_of_parts in zip(metrics, part_metrics, strict=True):
        assert metrics_of_parts == pytest.approx(metrics_of_whole, rel=1e-5)


def test_parts_that_would_not_be_equal_or_would_change_the_step_are_refused(tiny: dict[str, Any]) -> None:
    with pytest.raises(
        SpecError, match=r"share of batch_size \(4 of 8\) must be a multiple of accumulate \(3\)"
    ):
        _recipe(tiny, batch_size=8, accumulate=3).per_worker(2)
    with pytest.raises(
        SpecError, match=r"pair the clips .* \(4\) is odd \(1\); make it even, or set mixup: 0"
    ):
        _recipe(tiny, batch_size=4).per_worker(4)
    assert _recipe(tiny, batch_size=4, samples_per_clip=2).per_worker(4) == 1
    assert _recipe(tiny, **PLAIN, batch_size=4).per_worker(4) == 1
    with pytest.raises(SpecError, match="head_norm: batch takes its statistics over the whole batch"):
        validate(FinetuneConfig, {"head_norm": "batch", "accumulate": 2}, "demo.yaml")


def test_the_target_of_a_cut_clip_is_the_exact_share_of_its_pixels(tiny: dict[str, Any]) -> None:
    trainer = FinetuneTrainer(_recipe(tiny, mixup=0.0, cutmix=1.0, label_smoothing=0.0), 4, World())
    trainer.start()
    label_B = torch.tensor([0, 1, 2, 3])
    clean_BCTHW = label_B.float().view(4, 1, 1, 1, 1).expand(4, 3, 4, 16, 16)
    shares = set()
    for step in range(20):
        mixed_BCTHW, target_BC = trainer.mixed(clean_BCTHW.clone(), label_B, step)
        for clip in range(4):
            share = (mixed_BCTHW[clip] == clip).float().mean().item()
            assert target_BC[clip, clip].item() == pytest.approx(share, abs=1e-6)
            assert target_BC[clip, 3 - clip].item() == pytest.approx(1 - share, abs=1e-6)
        shares.add(round(share, 3))
    assert len(shares) > 5


def test_mixup_adds_a_clip_and_its_partner_in_the_shares_of_the_target(tiny: dict[str, Any]) -> None:
    trainer = FinetuneTrainer(_recipe(tiny, mixup=0.8, cutmix=0.0, label_smoothing=0.1), 2, World())
    trainer.start()
    video_BCTHW = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1, 1).expand(2, 3, 4, 16, 16)
    for step in range(5):
        mixed_BCTHW, target_BC = trainer.mixed(video_BCTHW.clone(), torch.tensor([0, 1]), step)
        partner = mixed_BCTHW[0, 0, 0, 0, 0].item()
        assert torch.allclose(mixed_BCTHW[0], torch.full((3, 4, 16, 16), partner))
        # Smoothing spreads a tenth over both classes: 0.95 and 0.05 where nothing is mixed.
        assert target_BC[0].tolist() == pytest.approx([0.95 - 0.9 * partner, 0.05 + 0.9 * partner], abs=1e-6)


def test_a_mixed_clip_counts_as_known_by_its_larger_share(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = FinetuneTrainer(_recipe(tiny, head_scale=1.0), 3, World())
    trainer.start()
    # The model says class 2 whatever it sees.
    with torch.no_grad():
        trainer.model.head.weight.zero_()
        trainer.model.head.bias.copy_(torch.tensor([0.0, 0.0, 1.0]))
    target_BC = torch.tensor([[0.0, 0.4, 0.6], [0.7, 0.0, 0.3], [0.45, 0.0, 0.55], [0.0, 1.0, 0.0]])
    monkeypatch.setattr(trainer, "mixed", lambda video, label, step: (video, target_BC))
    metrics = trainer.step(torch.randn(4, 3, 4, 16, 16), torch.tensor([1, 0, 0, 1]), 0, lr=0.0)
    assert metrics["train_top1"] == 50


def test_the_average_of_the_weights_is_what_is_finished(tiny: dict[str, Any], clips: Any) -> None:
    plain = FinetuneTrainer(_recipe(tiny, **PLAIN), 3, World())
    averaged = FinetuneTrainer(_recipe(tiny, **PLAIN, ema={"decay": 0.5, "warmup": False}), 3, World())
    for trainer in (plain, averaged):
        trainer.start()
    assert plain.finished() is plain.model
    expected = averaged.model.head.weight.detach().clone()
    for step, (video_BCTHW, label_B, _) in enumerate(clips().epoch(0)):
        for trainer in (plain, averaged):
            trainer.step(video_BCTHW, label_B, step, lr=1e-3)
        expected = (expected + averaged.model.head.weight.detach()) / 2
    assert_equal(plain.model, averaged.model)
    assert torch.allclose(averaged.finished().head.weight, expected, atol=1e-7)
    assert not torch.allclose(averaged.finished().head.weight, averaged.model.head.weight, atol=1e-5)
    assert not averaged.finished().training


def test_a_skipped_step_is_not_averaged(tiny: dict[str, Any], clips: Any) -> None:
    trainer = FinetuneTrainer(_recipe(tiny, **PLAIN, ema={}), 3, World())
    trainer.start()
    (video_BCTHW, label_B, _), *_ = clips().epoch(0)
    trainer.step(video_BCTHW * torch.nan, label_B, 0, lr=1e-3)
    assert trainer.average is not None
    assert trainer.average.n_averaged == 1, "nothing but the copy at the start"
    assert trainer.guarded.skipped == 1


def test_a_skipped_step_does_not_reach_the_metrics_of_its_epoch(
    tiny: dict[str, Any], clips: Any, tmp_path: Path
) -> None:
    class OnceBroken(clips):  # type: ignore[misc]
        def epoch(self, epoch: int, first_step: int = 0) -> Any:
            for step, batch in enumerate(super().epoch(epoch, first_step)):
                yield batch._replace(video_BCTHW=batch.video_BCTHW * (torch.nan if step == 1 else 1))

    events = EventLog(tmp_path / "events.jsonl")
    trainer, metrics = _run(_recipe(tiny, epochs=1), OnceBroken(), tmp_path / "states", events)
    assert trainer.guarded.skipped == 1
    logged = [
        event["values"] for _, event in read_events(tmp_path / "events.jsonl") if event["kind"] == "metrics"
    ]
    losses = [values["loss"] for values in logged if "loss" in values]
    assert len(losses) == 2
    assert metrics["loss"] == pytest.approx(sum(losses) / 2)


def test_in_bfloat16_the_loss_is_nearly_the_same_and_weights_and_gradients_stay_float32(
    tiny: dict[str, Any], clips: Any
) -> None:
    (video_BCTHW, label_B, _), *_ = clips().epoch(0)
    results = []
    for precision in ("fp32", "bf16"):
        recipe = _recipe(tiny, **PLAIN, head_scale=1.0, precision=precision)
        trainer = FinetuneTrainer(recipe, 3, World())
        trainer.start()
        seen: list[torch.dtype] = []
        trainer.model.encoder.blocks[0].attn.qkv.register_forward_hook(
            lambda module, given, made, seen=seen: seen.append(made.dtype)
        )
        results.append(trainer.step(video_BCTHW, label_B, 0, lr=1e-3))
        assert seen == [torch.bfloat16 if precision == "bf16" else torch.float32]
        for parameter in trainer.model.parameters():
            assert parameter.dtype == torch.float32
            assert parameter.grad is not None
            assert parameter.grad.dtype == torch.float32
    exact, rough = (metrics["loss"] for metrics in results)
    # bfloat16 keeps 8 bits: a few thousandths.
    assert 0 < abs(exact - rough) < 0.02


def test_the_log_has_every_step_and_the_end(tiny: dict[str, Any], clips: Any, tmp_path: Path) -> None:
    _, metrics = _run(_recipe(tiny, epochs=2), clips(), tmp_path, EventLog(tmp_path / "events.jsonl"))
    events = [event for _, event in read_events(tmp_path / "events.jsonl")]
    losses = {e["step"]: e["values"]["loss"] for e in events if "loss" in e.get("values", {})}
    assert list(losses) == list(range(1, 7))
    assert metrics["loss"] == pytest.approx((losses[4] + losses[5] + losses[6]) / 3)
    last = [e for e in events if e["kind"] == "progress"][-1]
    assert (last["step"], last["steps"], last["epoch"], last["epochs"]) == (6, 6, 2, 2)
    assert {name: last["shown"][name] for name in metrics} == pytest.approx(metrics)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_step_is_the_plain_one_up_to_rounding_and_their_states_are_exchanged(
    tiny: dict[str, Any], clips: Any
) -> None:
    (video_BCTHW, label_B, _), *_ = clips(batch=4).epoch(0)
    trainers = []
    for compiled in (False, True):
        trainer = FinetuneTrainer(_recipe(tiny, **PLAIN, ema={}, compile=compiled), 3, World())
        trainer.start()
        trainer.step(video_BCTHW, label_B, 0, lr=1e-3)
        trainers.append(trainer)
    plain, compiled = (trainer.state_dict() for trainer in trainers)
    assert plain["model"].keys() == compiled["model"].keys()
    for name, tensor in plain["model"].items():
        # Adam makes a step of full size out of a gradient that is nothing but rounding.
        torch.testing.assert_close(compiled["model"][name], tensor, rtol=0, atol=2.1e-3)
    trainers[0].load_state_dict(compiled)
    trainers[1].load_state_dict(plain)


@pytest.mark.parametrize("changes", [{"head_dropout": 0.2, "accumulate": 2}, PLAIN])
def test_a_step_waits_for_the_device_once(
    changes: dict[str, Any], tiny: dict[str, Any], clips: Any, waits: Any
) -> None:
    trainer = FinetuneTrainer(_recipe(tiny, **changes), 3, World())
    trainer.start()
    batch = next(clips().epoch(0))
    for step in range(2):  # the first one makes the optimiser's moments
        with waits() as waiting:
            trainer.step(batch.video_BCTHW, batch.label_B, step, lr=1e-3)
    assert waiting.found == ["tolist"]

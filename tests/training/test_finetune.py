from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tats_core.training.checkpoint import FolderStore
from tats_core.training.events import EventLog, read_events
from tats_core.training.finetune import FinetuneConfig, FinetuneTrainer, finetune
from tats_core.training.world import World

PLAIN: dict[str, Any] = {"mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.0, "drop_path": 0.0}
RECIPES: dict[str, dict[str, Any]] = {
    "VideoMAE's, everything drawn": {"drop_path": 0.3, "head_dropout": 0.2},
    "batch norm, no mixing": {**PLAIN, "head_norm": "batch"},
}


def _recipe(tiny: dict[str, Any], **changes: Any) -> FinetuneConfig:
    return FinetuneConfig.model_validate(
        {
            **tiny,
            "optimizer": {"base_lr": 0.05, "warmup_epochs": 1},
            "epochs": 4,
            "batch_size": 4,
            "log_every": 1,
            "checkpoint_every": 1,
        }
        | changes
    )


def _run(
    recipe: FinetuneConfig, loader: Any, folder: Path, events: EventLog | None = None
) -> tuple[FinetuneTrainer, dict[str, float]]:
    trainer = FinetuneTrainer(recipe, loader.classes, World())
    trainer.start()
    events = events or EventLog(None)
    return trainer, finetune(trainer, loader, events=events, store=FolderStore(folder))


@pytest.mark.parametrize("changes", RECIPES.values(), ids=RECIPES.keys())
def test_a_resumed_run_ends_in_the_same_bits(
    changes: dict[str, Any], tiny: dict[str, Any], clips: Any, tmp_path: Path
) -> None:
    recipe = _recipe(tiny, **changes)
    straight, figures = _run(recipe, clips(), tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        _run(recipe, clips(fail_at=2), tmp_path / "killed")
    torch.manual_seed(999)
    loader = clips()
    resumed, resumed_figures = _run(recipe, loader, tmp_path / "killed")
    assert loader.epochs_read == [2, 3]
    assert figures == resumed_figures
    for (name, one), other in zip(
        straight.model.state_dict().items(), resumed.model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name
    moments, resumed_moments = (x.guarded.optimizer.state_dict()["state"] for x in (straight, resumed))
    assert all(
        torch.equal(value, resumed_moments[place][name])
        for place, state in moments.items()
        for name, value in state.items()
    )


def test_a_finished_run_that_is_started_again_returns_its_figures(
    tiny: dict[str, Any], clips: Any, tmp_path: Path
) -> None:
    recipe = _recipe(tiny, epochs=1)
    _, figures = _run(recipe, clips(), tmp_path)
    _, again = _run(recipe, clips(), tmp_path)
    assert again == figures
    assert set(figures) == {"loss", "train_top1"}


def test_a_batch_is_learnt_by_heart(tiny: dict[str, Any], clips: Any) -> None:
    trainer = FinetuneTrainer(_recipe(tiny, **PLAIN, head_norm="batch"), 3, World())
    trainer.start()
    (video_BCTHW, _, _), *_ = clips(batch=6).epoch(0)
    label_B = torch.tensor([0, 1, 2, 0, 1, 2])
    for step in range(40):
        figures = trainer.step(video_BCTHW, label_B, step, lr=3e-3)
    assert figures["train_top1"] == 100
    assert figures["loss"] < 0.2


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
    # Clip b is filled with b: after cutmix each pixel tells which clip it came from.
    video_BCTHW = torch.arange(4.0).view(4, 1, 1, 1, 1).expand(4, 3, 4, 16, 16).clone()
    for step in range(5):
        trainer.step(video_BCTHW.clone(), torch.tensor([0, 1, 2, 0]), step, lr=0.0)
    assert any(not torch.equal(mixed, video_BCTHW) for mixed in seen)
    for mixed_BCTHW in seen:
        first_BHW = mixed_BCTHW[:, 0, 0]
        assert torch.equal(mixed_BCTHW, first_BHW[:, None, None].expand_as(mixed_BCTHW))
        # Its partner is the clip at the mirrored place.
        assert set(first_BHW[0].unique().tolist()) <= {0.0, 3.0}


def test_the_log_tells_every_step_and_the_end(tiny: dict[str, Any], clips: Any, tmp_path: Path) -> None:
    _, figures = _run(_recipe(tiny, epochs=2), clips(), tmp_path, EventLog(tmp_path / "events.jsonl"))
    events = [event for _, event in read_events(tmp_path / "events.jsonl")]
    losses = {e["step"]: e["values"]["loss"] for e in events if "loss" in e.get("values", {})}
    assert list(losses) == list(range(1, 7))
    assert figures["loss"] == pytest.approx((losses[4] + losses[5] + losses[6]) / 3)
    last = [e for e in events if e["kind"] == "progress"][-1]
    assert (last["step"], last["steps"], last["epoch"], last["epochs"]) == (6, 6, 2, 2)
    assert last["shown"] == pytest.approx(figures)

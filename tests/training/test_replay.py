"""A training that went non-finite is dumped, and its replay names what went non-finite first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tats_core.data.clips import Batch, Erased
from tats_core.errors import StoreError, TrainingError
from tats_core.training import replay
from tats_core.training.checkpoint import CheckpointStore
from tats_core.training.events import EventLog
from tats_core.training.finetune import FinetuneConfig, FinetuneTrainer, finetune
from tats_core.training.loop import LastStep, Position
from tats_core.training.pretrain import JointTrainer, PretrainConfig, pretrain
from tats_core.training.world import World

CPU = torch.device("cpu")
VIDEOS = ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]


class Videos:
    """Batches of grey noise; `noise` fills a box of the third clip."""

    steps = 30

    def __init__(self, noise: float | None = None) -> None:
        self.noise = noise

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        for step in range(first_step, self.steps):
            generator = torch.Generator().manual_seed(step)
            video_BCTHW = torch.randint(256, (4, 3, 4, 16, 16), generator=generator, dtype=torch.uint8)
            erased = []
            if self.noise is not None:
                erased = [Erased(2, slice(0, 4), slice(0, 4), torch.full((3, 4, 4, 4), self.noise))]
            yield Batch(video_BCTHW, torch.tensor([0, 1, 2, 0]), torch.arange(4), erased)


def joint(tiny: dict[str, Any], **sampler: Any) -> JointTrainer:
    recipe = {
        **tiny,
        "mae": {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2},
        "sampler": {"mask_ratio": 0.8, "network": {"width": 12, "heads": 2}, **sampler},
        "epochs": 1,
        "batch_size": 4,
        "health_every": None,
    }
    return JointTrainer(PretrainConfig.model_validate(recipe), World())


def classifier(tiny: dict[str, Any], world: World | None = None, **changes: Any) -> FinetuneTrainer:
    recipe = {**tiny, "epochs": 1, "batch_size": 4, **changes}
    trainer = FinetuneTrainer(FinetuneConfig.model_validate(recipe), 3, world or World())
    trainer.start()
    return trainer


def dumped(trainer: replay.Trainer, folder: Path, loader: Videos | None = None) -> replay.Dump:
    """Train until too many steps were not finite, and dump the last."""
    loader, events, store = loader or Videos(), EventLog(None), CheckpointStore(folder / "checkpoints")

    def train() -> object:
        if isinstance(trainer, FinetuneTrainer):
            return finetune(trainer, loader, events=events, store=store)
        return pretrain(trainer, loader, events=events, store=store, health=lambda mae, sampler, step: {})

    with pytest.raises(TrainingError, match="20 steps in a row"):
        train()
    size = replay.dump(trainer, VIDEOS, folder, World())
    assert size == sum((folder / name).stat().st_size for name in ("state.pt", "worker-0.pt"))
    return replay.read(folder)


def again(folder: Path, about: replay.Dump) -> replay.Culprit:
    culprit = replay.replay(folder, about, CPU)
    assert culprit is not None
    return culprit


def test_an_overflow_in_the_autoencoder_is_named_with_its_module_and_line(tiny, tmp_path):
    trainer = joint(tiny)
    with torch.no_grad():
        trainer.mae.encoder.blocks[1].mlp.fc1.weight.fill_(3e38)
    about = dumped(trainer, tmp_path)
    assert (about.kind, about.workers) == ("pretrain", 1)
    culprit = again(tmp_path, about)
    assert culprit.worker == 0
    assert "from addmm in VideoMAE.encoder.blocks.1.mlp" in culprit.text
    assert "(forward, tats_core/models/vit.py:" in culprit.text


def test_a_replay_has_what_the_schedule_and_the_loop_had_set(tiny, tmp_path):
    later = {"epoch": 1, "sampler": {"ppo": {"clip": 0.05}}, "sampler_lr": 7e-3}
    recipe = joint(tiny).config.model_dump(exclude_unset=True)
    trainer = JointTrainer(
        PretrainConfig.model_validate({**recipe, "epochs": 2, "schedule": [later]}), World()
    )
    trainer.mae_step.limit = 1  # ends at the first step that is not finite, in the second epoch
    loader = Videos()
    loader.steps = 3
    step, taken = trainer.step, []

    def failing(*arguments, **options):
        taken.append(trainer.learner.guarded.optimizer.param_groups[0]["lr"])
        if len(taken) == 5:
            with torch.no_grad():
                trainer.mae.encoder.blocks[1].mlp.fc1.weight.fill_(3e38)
        return step(*arguments, **options)

    trainer.step = failing
    events, store = EventLog(None), CheckpointStore(tmp_path / "checkpoints")
    with pytest.raises(TrainingError, match="1 steps in a row"):
        pretrain(trainer, loader, events=events, store=store, health=lambda mae, sampler, step: {})
    replay.dump(trainer, VIDEOS, tmp_path, World())
    about = replay.read(tmp_path)
    assert (about.epoch, about.step) == (1, 4)
    repeated, _ = replay._built(about, World())
    assert repeated.objective.config.ppo.clip == 0.05
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    repeated.load_state_dict({**state, "rank": {"memory": []}})
    rate = repeated.learner.guarded.optimizer.param_groups[0]["lr"]
    assert rate == taken[4] == 7e-3 * 48 / 12 != taken[0]
    assert "from addmm in VideoMAE.encoder.blocks.1.mlp" in again(tmp_path, about).text


def test_a_gradient_that_is_not_finite_is_found_in_the_backward_pass():
    class Root(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sqrt()

    root, zero = Root(), torch.zeros(1, requires_grad=True)
    with replay._FirstNonFinite([]) as watch:
        root(zero).sum().backward()
    assert str(watch.sentence).startswith("infinity (1 of 1 values) from div in Root (backward")


def test_a_return_that_overflows_in_ppo_is_named_by_its_line(tiny, tmp_path):
    trainer = joint(tiny, kind="tats", ppo={"epochs": 5, "minibatches": 4})
    with torch.no_grad():
        trainer.sampler.critic.bias.fill_(1e30)
    text = again(tmp_path, dumped(trainer, tmp_path)).text
    assert text.startswith(
        "infinity (1 of 1 values) from pow in no module (forward, tats_core/sampling/ppo.py:"
    )


def test_weights_that_are_not_finite_are_named_first(tiny, tmp_path):
    trainer = classifier(tiny)
    with torch.no_grad():
        trainer.model.head.bias[1] = torch.nan
    text = again(tmp_path, dumped(trainer, tmp_path)).text
    assert text == "NaN (1 of 3 values) in the weights: model.head.bias"


def test_a_clip_that_is_not_finite_is_named_by_its_video(tiny, tmp_path):
    text = again(tmp_path, dumped(classifier(tiny), tmp_path, Videos(noise=torch.inf))).text
    assert text == "infinity (192 of 12,288 values) in the batch, first in clip 2 (c.mp4)"


def test_what_overflows_in_one_clip_is_named_by_its_video(tiny, tmp_path):
    trainer = classifier(tiny, mixup=0, cutmix=0)
    text = again(tmp_path, dumped(trainer, tmp_path, Videos(noise=1e38))).text
    assert "from native_layer_norm in VideoClassifier.encoder.blocks.0.norm1" in text
    assert text.endswith("first in clip 2 (c.mp4)")


def test_each_worker_is_repeated_with_its_own_batch(tiny, tmp_path):
    batches = [next(Videos().epoch(0)), next(Videos(noise=torch.inf).epoch(0))]
    for rank, batch in enumerate(batches):
        world = replay._Alone(rank, 2)
        trainer = classifier(tiny, world, batch_size=8)
        arguments = {"label_B": batch.label_B, "step": 0, "lr": 0.1}
        trainer.last = LastStep.of(trainer, Position(), batch, arguments)
        replay.dump(trainer, VIDEOS, tmp_path, world)
    culprit = again(tmp_path, replay.read(tmp_path))
    assert (culprit.worker, "c.mp4" in culprit.text) == (1, True)


def test_a_step_that_stays_finite_has_no_culprit_and_what_is_no_dump_is_a_sentence(tiny, tmp_path):
    trainer, batch = classifier(tiny), next(Videos().epoch(0))
    trainer.last = LastStep.of(trainer, Position(), batch, {"label_B": batch.label_B, "step": 0, "lr": 0.1})
    replay.dump(trainer, VIDEOS, tmp_path, World())
    assert replay.replay(tmp_path, replay.read(tmp_path), CPU) is None
    with pytest.raises(StoreError, match=r"dump\.json: cannot be read"):
        replay.read(tmp_path / "nothing")
    (tmp_path / "state.pt").write_bytes(b"torn")
    with pytest.raises(StoreError, match="is not a whole dump"):
        replay.replay(tmp_path, replay.read(tmp_path), CPU)

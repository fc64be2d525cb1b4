"""A training that starts from a checkpoint of another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tats_core.errors import SpecError, StoreError, WeightsError
from tats_core.specs import identity
from tats_core.stages.configs import Fork
from tats_core.stages.finetune import FinetuneStage
from tats_core.stages.jobs import copy_fork
from tats_core.training.checkpoint import CheckpointConfig, CheckpointStore
from tats_core.training.loop import Position, restore
from tats_core.training.optim import GuardedStep

KEY = "ab" * 32
FORK = Fork(run="mine-1", stage="pretrain", key=KEY, step=5)


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    """The checkpoint of step 5 of another run's training."""
    folder = tmp_path / "stages" / f"pretrain-{KEY[:12]}.partial" / "checkpoints" / "fit-1"
    CheckpointStore(folder).save({"weight": torch.ones(2)}, step=5, metrics={})
    return folder / "step-000000005"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The work folder of the fork."""
    return tmp_path / "stages" / "pretrain-0123456789ab.partial"


def test_a_fork_resumes_from_a_copy_that_outlives_the_other_run(parent, out):
    copy_fork("pretrain", FORK, out)
    (parent / "state.pt").unlink()
    state = CheckpointStore(out / "checkpoints" / "fit-1").begin(CheckpointConfig())
    assert state is not None
    assert torch.equal(state["weight"], torch.ones(2))


def test_a_fork_that_has_saved_a_checkpoint_of_its_own_is_left_alone(parent, out):
    store = CheckpointStore(out / "checkpoints" / "fit-1")
    store.save({"weight": torch.zeros(2)}, step=6, metrics={})
    copy_fork("pretrain", FORK, out)
    assert [path.name for path in store.folder.iterdir()] == ["step-000000006"]


def test_a_checkpoint_that_is_gone_or_corrupt_is_a_sentence_and_not_a_start_from_scratch(parent, out):
    (parent / "state.pt").write_bytes(b"torn")
    with pytest.raises(StoreError, match=r"of step 5 of pretrain of mine-1 is corrupt \(state.pt has an"):
        copy_fork("pretrain", FORK, out)
    with pytest.raises(StoreError, match=r"^the checkpoint of step 6 of pretrain of mine-1 is gone"):
        copy_fork("pretrain", FORK.model_copy(update={"step": 6}), out)
    assert not list(out.glob("checkpoints/fit-1/step-*[0-9]"))


def test_step_and_key_of_the_other_training_are_part_of_the_identity_and_its_names_are_not():
    def named(**changes: Any) -> Any:
        fork = FORK.model_dump() | changes
        return identity(FinetuneStage.model_validate({"benchmark": "ucf101", "fork": fork}))

    assert named() == named(run="other", stage="finetune[a]")
    assert named() != named(step=6)
    assert named() != named(key="cd" * 32)
    assert named()["fork"] == {"key": KEY, "step": 5}


def test_settings_of_the_optimiser_are_the_forks_and_its_moments_the_checkpoints():
    def guarded(decay: float) -> GuardedStep:
        weight = torch.nn.Parameter(torch.ones(2))
        return GuardedStep(torch.optim.AdamW([weight], lr=0.1, weight_decay=decay), None, "toy")

    parent, fork = guarded(0.05), guarded(0.3)
    parent(parent.parameters[0].sum())
    fork.load_state_dict(parent.state_dict())
    (group,) = fork.optimizer.param_groups
    assert group["weight_decay"] == 0.3
    assert torch.equal(
        fork.optimizer.state[fork.parameters[0]]["exp_avg"],
        parent.optimizer.state[parent.parameters[0]]["exp_avg"],
    )


def test_another_batch_size_or_model_is_refused():
    Position(epoch=2, batch=1, step=7).check(3)
    with pytest.raises(SpecError, match=r"step 7, in epoch 3, is of a training .* do not have 4 steps"):
        Position(epoch=2, batch=1, step=7).check(4)
    with pytest.raises(WeightsError, match=r"another model or sampler than this \(size mismatch for weight"):
        restore(torch.nn.Linear(2, 2), torch.nn.Linear(3, 2).state_dict())

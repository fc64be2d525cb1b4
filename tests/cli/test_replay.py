"""What `tats replay` says."""

from __future__ import annotations

import torch

from tats_core.training import replay
from tats_core.training.loop import LastStep, Position
from tats_core.training.world import World
from tests.training.conftest import TINY
from tests.training.test_replay import VIDEOS, Videos, classifier


def test_the_first_non_finite_value_is_printed_and_its_absence_is_a_failure(tats, tmp_path):
    trainer, batch = classifier(TINY), next(Videos().epoch(0))
    trainer.last = LastStep.of(
        trainer, Position(step=7), batch, {"label_B": batch.label_B, "step": 7, "lr": 0.1}
    )
    replay.dump(trainer, VIDEOS, tmp_path, World())
    ended = tats("replay", str(tmp_path))
    assert (ended.code, "step 7 of finetune was repeated and stayed finite here" in ended.err) == (1, True)
    with torch.no_grad():
        trainer.model.head.bias[0] = torch.nan
    replay.dump(trainer, VIDEOS, tmp_path, World())
    ended = tats("replay", str(tmp_path))
    assert ended.code == 0
    assert ended.out == (
        "finetune, step 7, worker 0 of 1\n"
        "first non-finite value: NaN (1 of 3 values) in the weights: model.head.bias\n"
    )


def test_a_folder_without_a_dump_is_one_sentence(tats, tmp_path):
    ended = tats("replay", str(tmp_path))
    assert ended.code == 2
    assert f"{tmp_path / 'dump.json'}: cannot be read" in ended.err

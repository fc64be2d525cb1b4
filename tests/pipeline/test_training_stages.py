"""The configuration that pre-training and fine-tuning share, checked before anything starts."""

from __future__ import annotations

from typing import Any

import pytest

from tats_core.errors import SpecError
from tats_core.pipeline.stages.finetune import FinetuneStage
from tats_core.pipeline.stages.pretrain import PretrainStage
from tats_core.pipeline.stages.training import Trained
from tats_core.specs import validate


@pytest.mark.parametrize("stage", [PretrainStage, FinetuneStage])
@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            {"batch_size": 30, "workers": 4},
            "demo.yaml: it: batch_size (30) is over all workers and must be a multiple of workers (4)",
        ),
        (
            {"batch_size": 32, "workers": 4, "accumulate": 3},
            "demo.yaml: it: a worker's share of batch_size (8 of 32) must be a multiple of accumulate (3)",
        ),
    ],
)
def test_a_batch_that_cannot_be_dealt_out_evenly_is_refused_with_its_numbers(
    stage: type[Trained], config: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(SpecError) as caught:
        validate(stage, {"benchmark": "ssv2", **config}, "demo.yaml", prefix="it")
    assert str(caught.value) == sentence


def test_clips_that_would_not_pair_up_are_refused_before_anything_starts() -> None:
    with pytest.raises(SpecError, match=r"mixup and cutmix pair the clips .* is odd \(1\)"):
        validate(FinetuneStage, {"benchmark": "ssv2", "batch_size": 4, "workers": 4}, "demo.yaml")


def test_a_batch_that_is_dealt_out_evenly_is_taken() -> None:
    config = {"benchmark": "ssv2", "batch_size": 32, "workers": 4, "accumulate": 2, "precision": "bf16"}
    for stage in (PretrainStage, FinetuneStage):
        assert validate(stage, config, "demo.yaml").recipe.per_worker(4) == 8

"""Which checkpoint `--fork` names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tats_core.errors import SpecError
from tats_core.specs import parse_override
from tats_core.store import forks


@pytest.fixture
def parent(kept: Any) -> Any:
    """A run whose pre-training is under way, with two checkpoints, one that is written, and a removed one."""
    record = kept.run(1)
    folder = Path(record.stages["pretrain"].folder)
    for name in ("step-000000100", "step-000000120", "step-000000140-00c0ffee.tmp", "step-000000080.tmp"):
        (folder.with_name(folder.name + ".partial") / "checkpoints" / "fit-1" / name).mkdir(parents=True)
    return record


def test_a_fork_is_an_override_with_run_stage_step_and_the_stages_whole_key(kept, parent):
    key, value = parse_override(forks.override(f"{parent.id}:pretrain@120", kept.home))
    assert key == ["pretrain", "fork"]
    assert value == {
        "run": parent.id, "stage": "pretrain", "key": parent.stages["pretrain"].key, "step": 120,
    }  # fmt: skip
    assert json.dumps(value) in forks.override("mine:pretrain@120", kept.home), (
        "its pipeline names the newest"
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("mine:pretrain@7", r"mine-.*: pretrain has no checkpoint of step 7; it has those of step 100, 120$"),
        ("mine:finetune@7", r"finetune has no checkpoint of step 7; it has none: a training has as many as"),
        ("mine:pretrian@7", r"mine-.* has no stage 'pretrian'; did you mean 'pretrain'\?$"),
        ("mine:pretrain", r"^--fork mine:pretrain: must look like RUN:STAGE@STEP"),
        ("mine@7", r"must look like RUN:STAGE@STEP"),
        ("mine:pretrain@last", r"must look like RUN:STAGE@STEP"),
    ],
)
def test_what_has_no_such_checkpoint_is_refused_with_those_that_exist(kept, parent, text, sentence):
    with pytest.raises(SpecError, match=sentence):
        forks.override(text, kept.home)


def test_the_last_checkpoint_of_a_training_that_ended_early_is_found_in_its_output(kept):
    record = kept.run(1)
    stage = record.stages["pretrain"]
    saved = Path(stage.folder) / "state" / "step-000000009"
    saved.mkdir(parents=True)
    assert forks.checkpoints(kept.home, "pretrain", stage.key) == {9: saved}

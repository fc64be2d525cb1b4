"""Forks: a run that starts from another run's checkpoint at a step, with other settings."""

from __future__ import annotations

import json
from pathlib import Path

from tats_core.errors import SpecError, did_you_mean
from tats_core.store import history
from tats_core.store.layout import CHECKPOINTS, STATE
from tats_core.store.outputs import StageStore

FIRST_FIT = "fit-1"
"""The folder of the checkpoints of a stage's only training, below `checkpoints/`."""

_NONE = (
    "it has none: a training has as many as checkpoint.keep says until it ends, then its last if it ended at "
    "`until`"
)


def override(text: str, home: Path) -> str:
    """Return what `--set` takes to start a stage from the checkpoint `RUN:STAGE@STEP`.

    Raises:
        SpecError: no such run, stage or checkpoint; names those that exist.
        StoreError: the run's record cannot be read.
    """
    run, _, rest = text.partition(":")
    name, _, step = rest.rpartition("@")
    if not (run and name and step.isdecimal()):
        raise SpecError(f"--fork {text}: must look like RUN:STAGE@STEP, as in demo:pretrain@120")
    record = history.find(run, home)
    where = f"--fork {text}: {record.id}"
    stages = [stage for stage in record.stages.values() if name in (stage.name, stage.stage)]
    if not stages:
        raise SpecError(f"{where} has no stage '{name}'{did_you_mean(name, record.stages)}")
    if len(stages) > 1:
        names = ", ".join(stage.name for stage in stages)
        raise SpecError(f"{where} has several stages '{name}' ({names}); name one")
    (stage,) = stages
    saved = checkpoints(home, stage.kind, stage.key) if stage.key else {}
    if int(step) not in saved:
        which = f"it has those of step {', '.join(map(str, sorted(saved)))}" if saved else _NONE
        raise SpecError(f"{where}: {stage.name} has no checkpoint of step {step}; {which}")
    fork = {"run": record.id, "stage": stage.name, "key": stage.key, "step": int(step)}
    return f"{stage.stage}.fork={json.dumps(fork)}"


def checkpoints(home: Path, kind: str, key: str) -> dict[int, Path]:
    """Return step → folder of the checkpoints that the stage with this key has, at work or finished."""
    store = StageStore(home)
    output = store.folder(kind, key)
    folders = [
        folder
        for stage in (output, store.partial(output))
        for where in (STATE, f"{CHECKPOINTS}/{FIRST_FIT}")
        for folder in (stage / where).glob("step-*")
        if not folder.suffix
    ]
    return {int(folder.name.removeprefix("step-")): folder for folder in folders}

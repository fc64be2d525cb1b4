"""Which trained model a person means: a pipeline's name, a run's id, or a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from tats_core.errors import SpecError, StoreError, WeightsError, did_you_mean
from tats_core.store import history
from tats_core.store.run import RunRecord, StageRecord
from tats_core.training import weights

ModelKind = Literal["pretrain", "finetune"]

_CALLED: Final[dict[ModelKind, str]] = {"pretrain": "pre-trained", "finetune": "fine-tuned"}

MLFLOW_DATA: Final = Path("data", "model")
"""Where the weights lie in a folder that was exported for MLflow."""


def find_model(run: str, home: Path, kind: ModelKind, stage: str | None = None) -> Path:
    """Return the folder of one trained model of `kind` (`model.safetensors` with `model.json`).

    Args:
        run: a pipeline (its newest finished run), a run's id or its beginning, `latest`, a run's folder, or
            the folder of a model: a stage's output or one that `tats export` made from it. Of a fine-tuned
            model, Hugging Face's form (with `config.json` instead of `model.json`) will do.
        home: the project folder.
        stage: a stage's name, as in the file (`finetune`) or in full (`finetune[ssv2,scratch]`), where the
            run has several.

    Raises:
        SpecError: nothing is called `run` or `stage`, or several models fit; lists them.
        WeightsError: the folder holds no model of this kind.
        StoreError: the run is there, but its model is not (any more).
    """
    return find_one(run, home, (kind,), stage)[0]


def find_one(
    run: str, home: Path, kinds: Sequence[ModelKind], stage: str | None = None
) -> tuple[Path, ModelKind]:
    """Return the folder and kind of one trained model of any of `kinds`; else as `find_model`."""
    folder = Path(run).expanduser()
    if folder.is_dir() and not (folder / "run.json").exists():
        if stage is not None:
            raise SpecError(f"--stage {stage}: {run} is a folder of one model; leave out --stage")
        return _in_folder(folder.absolute(), kinds)
    return _of_run(history.find_finished(run, home.absolute()), kinds, stage)


def _of_run(record: RunRecord, kinds: Sequence[ModelKind], stage: str | None) -> tuple[Path, ModelKind]:
    called = " or ".join(_CALLED[kind] for kind in kinds)
    trained = [one for one in record.stages.values() if one.kind in kinds]
    if not trained:
        raise SpecError(
            f"the run {record.id} has no {called} model: none of its stages is of kind {kinds[0]}"
        )
    chosen = [one for one in trained if stage in (None, one.name, one.stage)]
    if not chosen:
        near = did_you_mean(str(stage), {name for one in trained for name in (one.name, one.stage)})
        raise SpecError(f"--stage {stage}: no stage of the run {record.id} that trains is called so{near}")
    # Two instances with one key share one output.
    found = {_folder(one): one for one in chosen if one.done}
    if not found:
        raise StoreError(f"{chosen[0].name} of the run {record.id} has not finished: there is no model yet")
    if len(found) > 1:
        names = [one.name for one in found.values()]
        raise SpecError(
            f"the run {record.id} has {len(found)} {called} models: {', '.join(names)}; "
            f"choose one with --stage '{names[0]}'"
        )
    ((folder, one),) = found.items()
    if not (folder / "model.safetensors").is_file():
        raise StoreError(
            f"{folder}: the model of {one.name} is gone; run the pipeline {record.pipeline} again"
        )
    return folder, "pretrain" if one.kind == "pretrain" else "finetune"


def _folder(one: StageRecord) -> Path:
    assert one.folder is not None, f"{one.name} is done without a folder"
    return Path(one.folder)


def _in_folder(folder: Path, kinds: Sequence[ModelKind]) -> tuple[Path, ModelKind]:
    place = folder / MLFLOW_DATA if (folder / "MLmodel").is_file() else folder
    if (place / "model.json").is_file():
        kind: ModelKind = "finetune" if "classes" in weights.describe(place) else "pretrain"
    elif (place / "config.json").is_file() and "finetune" in kinds:
        kind = "finetune"  # Hugging Face's; what it holds is known when it is read
    else:
        raise WeightsError(
            f"{folder}: holds no model of ours (model.safetensors with model.json); name a pipeline, "
            "a run, a stage's folder or an exported one"
        )
    if kind not in kinds:
        raise WeightsError(
            f"{folder}: its model is {_CALLED[kind]}, and a {_CALLED[kinds[0]]} one is needed here"
        )
    return place, kind

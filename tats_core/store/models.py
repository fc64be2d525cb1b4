"""The trained model that is meant by a pipeline's name, a run's id, or a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from tats_core.errors import SpecError, StoreError, WeightsError, did_you_mean
from tats_core.store import history
from tats_core.store.layout import RUN
from tats_core.store.run import RunRecord
from tats_core.training import weights

ModelKind = Literal["pretrain", "finetune"]

_ADJECTIVE: Final[dict[ModelKind, str]] = {"pretrain": "pre-trained", "finetune": "fine-tuned"}

MLFLOW_DATA: Final = Path("data", "model")
"""The weights' folder in a model that was exported for MLflow."""


def find_model(run: str, home: Path, kind: ModelKind, stage: str | None = None) -> Path:
    """Return the folder of a trained model of `kind` (`model.safetensors` with `model.json`).

    Args:
        run: a pipeline (its newest finished run), a run's id or its beginning, `latest`, a run's folder, or
            the folder of a model: a stage's output or one that `tats export` made from it. Of a fine-tuned
            model, Hugging Face's form (with `config.json` instead of `model.json`) will do.
        home: the project folder.
        stage: a stage's name, as in the file (`finetune`) or in full (`finetune[ssv2,scratch]`), where the
            run has several.

    Raises:
        SpecError: nothing has the name `run` or `stage`, or several models fit; lists them.
        WeightsError: the folder holds no model of this kind.
        StoreError: the run has no such model yet, or it is gone.
    """
    return find_model_of(run, home, (kind,), stage)[0]


def find_model_of(
    run: str, home: Path, kinds: Sequence[ModelKind], stage: str | None = None
) -> tuple[Path, ModelKind]:
    """Return the folder and kind of a trained model of any of `kinds`; otherwise as `find_model`."""
    folder = Path(run).expanduser()
    if folder.is_dir() and not (folder / RUN).exists():
        if stage is not None:
            raise SpecError(f"--stage {stage}: {run} is the folder of a single model; leave out --stage")
        return _in_folder(folder.absolute(), kinds)
    return _of_run(history.find_finished(run, home.absolute()), kinds, stage)


def _of_run(record: RunRecord, kinds: Sequence[ModelKind], stage: str | None) -> tuple[Path, ModelKind]:
    adjective = " or ".join(_ADJECTIVE[kind] for kind in kinds)
    trained = [candidate for candidate in record.stages.values() if candidate.kind in kinds]
    if not trained:
        kind = " or ".join(kinds)
        raise SpecError(f"the run {record.id} has no {adjective} model: none of its stages is of kind {kind}")
    chosen = [candidate for candidate in trained if stage in (None, candidate.name, candidate.stage)]
    if not chosen:
        known = {name for candidate in trained for name in (candidate.name, candidate.stage)}
        raise SpecError(
            f"--stage {stage}: the run {record.id} trains no stage of this name"
            f"{did_you_mean(str(stage), known)}"
        )
    # Two instances with the same key share an output.
    models = {Path(str(candidate.folder)): candidate for candidate in chosen if candidate.done}
    if not models:
        raise StoreError(f"{chosen[0].name} of the run {record.id} has not finished: there is no model yet")
    if len(models) > 1:
        names = [candidate.name for candidate in models.values()]
        raise SpecError(
            f"the run {record.id} has {len(models)} {adjective} models: {', '.join(names)}; "
            f"choose one with --stage '{names[0]}'"
        )
    ((folder, trained_stage),) = models.items()
    if not (folder / "model.safetensors").is_file():
        raise StoreError(
            f"{folder}: the model of {trained_stage.name} is gone; run the pipeline {record.pipeline} again"
        )
    return folder, "pretrain" if trained_stage.kind == "pretrain" else "finetune"


def _in_folder(folder: Path, kinds: Sequence[ModelKind]) -> tuple[Path, ModelKind]:
    model = folder / MLFLOW_DATA if (folder / "MLmodel").is_file() else folder
    if (model / "model.json").is_file():
        kind: ModelKind = "finetune" if "classes" in weights.describe(model) else "pretrain"
    elif (model / "config.json").is_file() and "finetune" in kinds:
        kind = "finetune"  # Hugging Face's; its content is checked when it is read
    else:
        raise WeightsError(
            f"{folder}: holds no model of TATS (model.safetensors with model.json); name a pipeline, a run, "
            "the folder of a stage, or the folder of an exported model"
        )
    if kind not in kinds:
        raise WeightsError(
            f"{folder}: its model is {_ADJECTIVE[kind]}, but a {_ADJECTIVE[kinds[0]]} model is needed here"
        )
    return model, kind

"""Which trained model a person means: a pipeline's name, a run's id, or a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from tats_core import specs
from tats_core.errors import SpecError, StoreError, WeightsError, did_you_mean
from tats_core.pipeline import runner
from tats_core.pipeline.records import RunRecord, StageRecord
from tats_core.training import weights

ModelKind = Literal["pretrain", "finetune"]

_CALLED: Final = {"pretrain": "pre-trained", "finetune": "fine-tuned"}


def find_model(run: str, home: Path, kind: ModelKind, stage: str | None = None) -> Path:
    """Return the folder of one trained model (`model.safetensors` with `model.json`).

    Args:
        run: a pipeline (its newest finished run), a run's id, a run's folder, or the folder of a model: a
            stage's output or one that `tats export` made from it.
        home: the project folder.
        kind: which kind of model.
        stage: a stage's name, as in the file (`finetune`) or in full (`finetune[ssv2,scratch]`), where the
            run has several.

    Raises:
        SpecError: nothing is called `run` or `stage`, or several models fit; lists them.
        WeightsError: the folder holds no model of this kind.
        StoreError: the run is there, but its model is not (any more).
    """
    folder = Path(run).expanduser()
    if folder.is_dir() and not (folder / "run.json").exists():
        if stage is not None:
            raise SpecError(f"--stage {stage}: {run} is a folder of one model; leave out --stage")
        return _checked(folder.absolute(), kind)
    return _stage_of(_record(run, home.absolute()), kind, stage)


def _record(run: str, home: Path) -> RunRecord:
    for folder in (Path(run).expanduser(), home / "runs" / run):
        if (folder / "run.json").is_file():
            return RunRecord.load(folder)
    name = Path(run).stem if run.endswith((".yaml", ".yml")) else run
    record = runner.newest_finished(home, name)
    if record is not None:
        return record
    if name in specs.names("pipelines"):
        raise StoreError(f"no finished run of '{name}' in {home}; make one with: tats run pipeline {name}")
    known = [*specs.names("pipelines"), *(path.parent.name for path in home.glob("runs/*/run.json"))]
    raise SpecError(f"'{run}' is no pipeline, no run in {home} and no folder{did_you_mean(run, known)}")


def _stage_of(record: RunRecord, kind: ModelKind, stage: str | None) -> Path:
    trained = {one.name: one for one in record.stages.values() if one.kind == kind}
    chosen = [one for one in trained.values() if stage in (None, one.name, one.stage)]
    if not trained:
        raise SpecError(f"the run {record.id} has no {_CALLED[kind]} model: it has no stage of kind '{kind}'")
    if not chosen:
        near = did_you_mean(str(stage), {*trained, *(one.stage for one in trained.values())})
        raise SpecError(f"--stage {stage}: the run {record.id} has no stage of kind '{kind}' named so{near}")
    folders = {_folder(one): one for one in chosen if one.done}
    if not folders:
        raise StoreError(
            f"{chosen[0].name} of the run {record.id} has not finished, so there is no model yet"
        )
    if len(folders) > 1:
        names = ", ".join(one.name for one in folders.values())
        example = next(iter(folders.values())).name
        raise SpecError(
            f"the run {record.id} has {len(folders)} {_CALLED[kind]} models: {names}; "
            f"choose one with --stage '{example}'"
        )
    ((folder, one),) = folders.items()
    if not (folder / "model.safetensors").is_file():
        raise StoreError(
            f"{folder}: the model of {one.name} of the run {record.id} is gone; run the pipeline again"
        )
    return folder


def _folder(one: StageRecord) -> Path:
    assert one.folder is not None, f"{one.name} is done without a folder"
    return Path(one.folder)


def _checked(folder: Path, kind: ModelKind) -> Path:
    inside = folder / "artifacts" / "model"  # of an exported MLflow model
    place = inside if (folder / "MLmodel").is_file() and inside.is_dir() else folder
    if not (place / "model.json").is_file():
        raise WeightsError(
            f"{folder}: holds no model of ours (model.json with model.safetensors); give a pipeline, "
            "a run's id, a stage's folder or an exported one"
        )
    found = "finetune" if "classes" in weights.describe(place) else "pretrain"
    if found != kind:
        raise WeightsError(
            f"{folder}: holds a {_CALLED[found]} model, but a {_CALLED[kind]} one is needed here"
        )
    return place

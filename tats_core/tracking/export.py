"""Trained models as folders for other tools: plain safetensors, Hugging Face's VideoMAE, MLflow."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from pathlib import Path
from typing import Literal

from safetensors.torch import save_file

from tats_core.errors import StoreError, WeightsError
from tats_core.files import write_json
from tats_core.models import checkpoints_io, hugging_face
from tats_core.models.classifier import VideoClassifier
from tats_core.models.mae import VideoMAE
from tats_core.store.models import MLFLOW_DATA, ModelKind
from tats_core.training import weights

Format = Literal["hf", "safetensors", "mlflow"]

_PARTS = ("model.safetensors", "model.json", "sampler.safetensors", "sampler.json")


def export(model: Path, kind: ModelKind, form: Format, out: Path) -> None:
    """Write the trained model in the folder `model` as the folder `out`, complete or not at all.

    Raises:
        StoreError: `out` exists already, or cannot be written.
        WeightsError: the format cannot hold this model.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StoreError(f"{out}: is there already; give --out a new folder")
    temporary = out.with_name(f"{out.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise StoreError(f"{out}: cannot be written ({error.strerror})") from error
    try:
        if form == "safetensors":
            _copy(model, temporary)
        elif form == "hf":
            _hugging_face(model, kind, temporary)
        else:
            _mlflow(model, kind, temporary)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _copy(model: Path, out: Path) -> None:
    if not (model / "model.json").exists():
        raise WeightsError(f"{model}: has Hugging Face's form already; only a model of TATS can be exported")
    checkpoints_io.refuse_other_format(model / _PARTS[0])
    for name in _PARTS:
        if (model / name).exists():
            shutil.copyfile(model / name, out / name)


def _hugging_face(folder: Path, kind: ModelKind, out: Path) -> None:
    model: VideoMAE | VideoClassifier
    classes, views = None, None
    if kind == "finetune":
        model, classes = weights.load_classifier(folder)
        views = weights.describe(folder).get("views")
    else:
        model = weights.load_mae(folder)
    tensors, config = hugging_face.exported(model, classes)
    if views is not None:
        config["tats_views"] = views  # Transformers keeps keys that it does not know
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    write_json(out / "config.json", config)
    write_json(out / "preprocessor_config.json", hugging_face.preprocessor_of(model.encoder.clip))


def _mlflow(folder: Path, kind: ModelKind, out: Path) -> None:
    if kind != "finetune":
        raise WeightsError(
            f"{folder}: a pre-trained model has no classes to predict; export a fine-tuned one for MLflow"
        )
    from tats_core.tracking import model

    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f"{out.name}.") as beside:
        parts = Path(beside, "model")
        parts.mkdir()
        _copy(folder, parts)
        model.save(parts, out)
    assert (out / MLFLOW_DATA / "model.json").is_file(), "MLflow has its data elsewhere"

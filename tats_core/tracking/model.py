"""A fine-tuned model in MLflow's form: it maps paths of videos to classes.

MLflow stores the name of this module and the folder of weights, no pickle: where the model is served,
`tats_core` must be installed.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Array

from tats_core import __version__
from tats_core.errors import SpecError
from tats_core.training.predict import Predictor, existing

_SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.string, "video")]),
    outputs=Schema(
        [
            ColSpec(DataType.string, "video"),
            ColSpec(Array(DataType.string), "classes"),
            ColSpec(Array(DataType.double), "probabilities"),
        ]
    ),
)


def save(model: Path, out: Path) -> None:
    """Write the folder `out` of an MLflow model that holds a copy of the fine-tuned model in `model`."""
    # Telemetry would need a network.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    with warnings.catch_warnings():
        # An example would be a video in every exported folder; the signature describes the input.
        warnings.filterwarnings("ignore", message=".*input example was not provided")
        mlflow.pyfunc.save_model(
            out,
            loader_module=__name__,
            data_path=str(model),
            signature=_SIGNATURE,
            pip_requirements=[f"tats-core=={__version__}"],
        )


def _load_pyfunc(data_path: str) -> Classes:
    """Load what `save` wrote; MLflow requires this name."""
    return Classes(Predictor.load(Path(data_path)))


class Classes:
    """The loaded model, with MLflow's `predict`."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def predict(self, table: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Return the five most probable classes and their probabilities for each path in column `video`.

        Raises:
            SpecError: there is no such column.
            DataError: a video does not exist or cannot be read.
        """
        if "video" not in table:
            raise SpecError(
                f"the table has no column 'video' (it has {', '.join(map(str, table)) or 'none'})"
            )
        videos = [str(video) for video in table["video"]]
        guesses_of = self.predictor.predict(existing(videos))
        return pd.DataFrame(
            {
                "video": videos,
                "classes": [[guess.name for guess in guesses] for guesses in guesses_of],
                "probabilities": [[guess.probability for guess in guesses] for guesses in guesses_of],
            }
        )

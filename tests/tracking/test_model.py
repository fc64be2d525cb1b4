"""An exported model in the hands of MLflow itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import av
import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
import torch

from tats_core.errors import DataError, SpecError
from tats_core.models.classifier import VideoClassifier
from tats_core.models.tokens import ClipConfig
from tats_core.models.vit import ViTConfig
from tats_core.store.models import find_model
from tats_core.tracking.export import export
from tats_core.tracking.model import Classes
from tats_core.training import weights
from tats_core.training.predict import Predictor

VIT = ViTConfig.model_validate({"preset": "vit_micro", "width": 12, "depth": 1, "heads": 2})
CLIP = ClipConfig(frames=2, size=8, tubelet=2, patch=4)
CLASSES = ["falling", "rising", "rolling", "sliding", "spinning", "turning"]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned")
    torch.manual_seed(0)
    model = VideoClassifier(VIT, CLIP, len(CLASSES), head_scale=1)
    views = {"benchmark": "ucf101", "sampling": "dense", "stride": 1}
    described = {"model": VIT, "clip": CLIP, "head_norm": "layer", "classes": CLASSES, "views": views}
    weights.save(folder, model, described)
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    paths = [folder / f"{name}.mp4" for name in ("dark", "light")]
    for path, brightness in zip(paths, (60, 200), strict=True):
        with av.open(path, "w") as container:
            stream = container.add_stream("libx264", rate=10, width=32, height=32, pix_fmt="yuv420p")
            pixels = np.full((32, 32, 3), brightness, np.uint8)
            for _ in range(6):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
            container.mux(stream.encode())
    return paths


def test_a_table_of_paths_becomes_a_table_of_classes(tuned: Path, videos: list[Path]) -> None:
    predictor = Predictor.load(tuned)
    table = Classes(predictor).predict(pd.DataFrame({"video": [str(path) for path in videos]}))
    for row, guesses in zip(table.to_dict("records"), predictor.predict(videos), strict=True):
        assert row["classes"] == [guess.name for guess in guesses]
        assert row["probabilities"] == [guess.probability for guess in guesses]
        assert len(row["classes"]) == 5
    with pytest.raises(SpecError, match=r"has no column 'video' \(it has clip\)"):
        Classes(predictor).predict(pd.DataFrame({"clip": ["a.mp4"]}))
    with pytest.raises(DataError, match=r"a\.mp4: there is no such file"):
        Classes(predictor).predict(pd.DataFrame({"video": ["a.mp4"]}))


def test_the_exported_folder_is_read_by_mlflow_and_by_us(
    tuned: Path, videos: list[Path], tmp_path: Path
) -> None:
    export(tuned, "finetune", "mlflow", tmp_path / "served")
    assert (
        find_model(str(tmp_path / "served"), tmp_path, "finetune") == tmp_path / "served" / "data" / "model"
    )
    asked = pd.DataFrame({"video": [str(path) for path in videos]})
    expected = Classes(Predictor.load(tuned)).predict(asked)
    pd.testing.assert_frame_equal(mlflow.pyfunc.load_model(str(tmp_path / "served")).predict(asked), expected)


@pytest.mark.slow
def test_mlflows_own_command_line_predicts_after_the_folder_has_moved(
    tuned: Path, videos: list[Path], tmp_path: Path
) -> None:
    export(tuned, "finetune", "mlflow", tmp_path / "served")
    moved = (tmp_path / "served").rename(tmp_path / "elsewhere")
    asked = {"dataframe_split": {"columns": ["video"], "data": [[str(path)] for path in videos]}}
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    command = [sys.executable, "-m", "mlflow", "models", "predict", "-m", str(moved)]
    command += [
        "-i",
        str(tmp_path / "asked.json"),
        "-o",
        str(tmp_path / "said.json"),
        "--env-manager",
        "local",
    ]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((tmp_path / "said.json").read_text())["predictions"]
    expected = Predictor.load(tuned).predict(videos)
    assert [row["video"] for row in rows] == [str(path) for path in videos]
    assert [row["classes"] for row in rows] == [[guess.name for guess in guesses] for guesses in expected]
    for row, guesses in zip(rows, expected, strict=True):
        assert row["probabilities"] == pytest.approx([guess.probability for guess in guesses], abs=1e-6)

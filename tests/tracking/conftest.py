"""The toy stages of `tests.toys` in place of the real ones, and a home whose database is ready."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tats_core import tracking
from tests.toys import load, no_tracker, toy_kinds, ui

__all__ = ["load", "no_tracker", "toy_kinds", "ui"]


@pytest.fixture
def home(tmp_path: Path, empty_database: Path) -> Path:
    (tmp_path / "home").mkdir()
    shutil.copy(empty_database, tmp_path / "home" / "mlflow.db")
    return tmp_path / "home"


@pytest.fixture
def client(home: Path) -> MlflowClient:
    return tracking.connect(home, tracking.tracking_uri(home))

"""What every test stands on: no setting of the machine reaches a test."""

from __future__ import annotations

import os

import pytest

_PREFIXES = ("TATS_", "MLFLOW_", "RAY_")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(_PREFIXES):
            monkeypatch.delenv(name)

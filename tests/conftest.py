"""What every test stands on: no setting of the machine reaches a test."""

from __future__ import annotations

import os

import pytest

# The models here are so small that a second thread costs more than it does; on a busy machine, ten times
# more. Before anything imports torch, and for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

_PREFIXES = ("TATS_", "MLFLOW_", "RAY_")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(_PREFIXES):
            monkeypatch.delenv(name)

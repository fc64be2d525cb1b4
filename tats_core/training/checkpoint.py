"""Where a training loop keeps what it needs to go on after a kill."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch


class CheckpointStore(Protocol):
    """Keeps the newest states of one training run. Ray Train's lives in `pipeline.ray_train`."""

    def latest(self) -> dict[str, Any] | None:
        """Return the newest whole state, tensors on the CPU, or None at a fresh start."""
        ...

    def save(self, state: Mapping[str, Any], *, step: int, metrics: Mapping[str, float]) -> None:
        """Keep `state`. Every rank calls it at the same step (it may be a barrier); rank 0's counts,
        save for `state["rank"]`, which holds what differs between ranks and is kept for each.
        """
        ...


class FolderStore:
    """Keeps one state in a folder, without a launcher: for one process, tests and notebooks."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "checkpoint.pt"
        folder.mkdir(parents=True, exist_ok=True)

    def latest(self) -> dict[str, Any] | None:
        """Return the state, or None if none was saved."""
        if not self.path.exists():
            return None
        state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        return state

    def save(self, state: Mapping[str, Any], *, step: int, metrics: Mapping[str, float]) -> None:
        """Write beside, then rename: a kill leaves the old state or the new one, never half of one."""
        beside = self.path.with_suffix(".tmp")
        with beside.open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.path)

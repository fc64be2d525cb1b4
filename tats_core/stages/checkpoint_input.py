"""A checkpoint from outside the pipeline that a stage reads: its path, digest and fit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from tats_core.errors import WeightsError
from tats_core.models import checkpoints_io
from tats_core.models.mae import MAEConfig
from tats_core.models.tokens import ClipConfig
from tats_core.models.vit import ViTConfig

State = tuple[tuple[Path, int, int], ...]
"""Files with size and time of change, which stand for their content: a checkpoint may have gigabytes."""


def path_of(named: str) -> Path:
    """Return the file or folder that a configuration names, absolute: a worker may run elsewhere."""
    return Path(named).expanduser().absolute()


def digest(key: str, named: str | None) -> Mapping[str, str]:
    """Return key → digest of what is read there, for `StageKind.external` ("" where it cannot be read)."""
    if named is None:
        return {}
    try:
        return {key: _digest(_state(path_of(named)))}
    except WeightsError:
        return {key: ""}  # preflight says why


def faults(
    key: str, named: str | None, vit: ViTConfig, clip: ClipConfig, mae: MAEConfig | None = None
) -> list[str]:
    """Return one sentence, for `StageKind.preflight`, if the checkpoint is missing or does not fit.

    Args:
        mae: the decoder that a decoder in the checkpoint must fit too, if there is one.
    """
    if named is None:
        return []
    try:
        misfit = _misfit(path_of(named), _state(path_of(named)), vit, clip, mae)
    except WeightsError as error:
        return [f"{key}: {error}"]
    return [f"{key}: {misfit}"] if misfit else []


def _state(path: Path) -> State:
    files = [(file, file.stat()) for file in checkpoints_io.files(path)]
    return tuple((file, status.st_size, status.st_mtime_ns) for file, status in files)


@lru_cache(maxsize=32)
def _digest(state: State) -> str:
    combined = hashlib.sha256()
    for file, _, _ in state:
        with file.open("rb") as opened:
            combined.update(hashlib.file_digest(opened, "sha256").digest())
    return combined.hexdigest()


@lru_cache(maxsize=32)
def _misfit(path: Path, state: State, vit: ViTConfig, clip: ClipConfig, mae: MAEConfig | None) -> str | None:
    return checkpoints_io.read(path).misfit(vit, clip, mae)

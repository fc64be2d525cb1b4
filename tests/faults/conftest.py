from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .harness import Lab, copy


@pytest.fixture(scope="session")
def ray_folder() -> Iterator[Path]:
    """Where Ray keeps its sessions: the path of a socket has at most 107 letters."""
    folder = Path(tempfile.mkdtemp(prefix="tats-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory, ray_folder: Path) -> Iterator[Lab]:
    """A run that was never disturbed."""
    lab = Lab(tmp_path_factory.mktemp("reference"), ray_folder)
    try:
        code, said = lab.run()
        assert code == 0, said
        yield lab
    finally:
        lab.end()


@pytest.fixture
def lab(reference: Lab, tmp_path: Path, ray_folder: Path) -> Iterator[Lab]:
    """A project folder with the data of the reference and nothing else."""
    lab = copy(reference, tmp_path, ray_folder, "data")
    try:
        yield lab
    finally:
        lab.end()

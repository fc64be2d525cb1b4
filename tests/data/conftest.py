"""One tiny set of the four benchmarks, made once for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tats_core.data.benchmarks import BENCHMARKS, PAPERS
from tats_core.data.generate import GenerateConfig, generate
from tats_core.data.manifest import Manifest
from tats_core.data.synthetic import SceneConfig

TINY = GenerateConfig(
    clips_per_class=2,
    test_clips_per_class=1,
    frames=20,
    scene=SceneConfig(size=32, sprite_radius=(5.0, 6.0)),
    seed=3,
)


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds `ssv2/`, `kinetics400/`, `ucf101/` and `hmdb51/`."""
    root = tmp_path_factory.mktemp("tiny")
    generate(root, TINY, workers=1)
    return root


@pytest.fixture(scope="session")
def tiny(tiny_root: Path) -> dict[str, Manifest]:
    """The training manifest of each benchmark."""
    return {name: BENCHMARKS[name].read(tiny_root / name, "train") for name in PAPERS}

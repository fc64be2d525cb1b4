"""The shipped pipelines: each validates, says what it needs and what came out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tats_core import specs
from tats_core.pipeline import graph, spec

MENU = Path(__file__).resolve().parent.parent / "pipelines"
SHIPPED = sorted(MENU.glob("*.yaml"))
FULL = ("full_hmdb51", "full_k400", "full_ssv2", "full_ucf101")


def test_the_menu_is_what_the_readme_promises() -> None:
    assert {path.stem for path in SHIPPED} >= {"demo", *FULL}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_pipeline_validates(path: Path) -> None:
    assert graph.build(spec.load(str(path))).instances


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_pipeline_opens_with_its_command_needs_and_result(path: Path) -> None:
    header = [line for line in path.read_text().split("\nname:")[0].splitlines() if line.startswith("#")]
    text = " ".join(header)
    assert f"tats run pipeline {path.stem}" in header[0]
    assert "needs:" in text
    assert "result:" in text
    assert specs.read(path)["title"]

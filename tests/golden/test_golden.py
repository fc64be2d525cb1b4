"""One small run and one small sweep leave what they left before: the fence around every refactoring."""

from __future__ import annotations

import difflib
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
EXPECTED = HERE / "expected"
REWRITE = "python tests/golden/capture.py --write"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the code of today leaves."""
    out = tmp_path_factory.mktemp("golden") / "captured"
    done = subprocess.run(
        [sys.executable, str(HERE / "capture.py"), "--out", str(out)],
        cwd=HERE.parents[1],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return out


def test_no_golden_file_is_new_or_gone(captured: Path) -> None:
    assert sorted(path.name for path in captured.iterdir()) == sorted(
        path.name for path in EXPECTED.iterdir()
    )


@pytest.mark.parametrize("name", sorted(path.name for path in EXPECTED.glob("*")))
def test_it_is_as_it_was(name: str, captured: Path) -> None:
    before, now = (
        (folder / name).read_text(encoding="utf-8").splitlines() for folder in (EXPECTED, captured)
    )
    if now == before:
        return
    diff = "\n".join(difflib.unified_diff(before, now, f"expected/{name}", "now", lineterm="", n=2))
    pytest.fail(
        f"{diff}\n\nIf this is wanted, write the golden files anew ({REWRITE}), read the diff,"
        " and say why in the commit.",
        pytrace=False,
    )

"""Signals to a driver in which Ray runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_sigterm_stops_a_run_without_rays_stack() -> None:
    script = Path(__file__).parent / "processes" / "takes_sigterm.py"
    ended = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=False
    )
    assert (ended.returncode, ended.stdout.strip()) == (0, "stopped"), ended.stderr
    assert ended.stderr == ""

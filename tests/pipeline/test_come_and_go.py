"""Machines that leave a cluster in mid-training, and others that come."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "processes" / "come_and_go.py"


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("fewest", "starts"), [(1, [2, 1, 2]), (2, [2, 2])])
def test_a_training_outlives_its_machines(tmp_path, fewest, starts):
    path = os.pathsep.join([str(SCRIPT.parents[3]), str(SCRIPT.parent)])
    settings = {
        "PYTHONPATH": path,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "a-token-of-the-test-" + "0" * 44,
    }
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), str(fewest)],
        env={**os.environ, **settings}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["starts"] == starts, "with one worker where one may do, else only when there are two again"
    assert said["total"] == pytest.approx(said["steps"]), "no step was lost or counted twice"

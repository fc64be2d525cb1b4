"""What a killed process had started ends with it: processes that generate clips, or decode them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tats_core.data.generate import GenerateConfig, generate

pytestmark = pytest.mark.slow

_GENERATES = """
import sys
from pathlib import Path
from tats_core.data.generate import GenerateConfig, generate
if __name__ == "__main__":
    generate(Path(sys.argv[1]), GenerateConfig(benchmarks=("ucf101",), clips_per_class=2000), workers=2)
"""
_DECODES = """
import sys
from pathlib import Path
from tats_core.data import benchmarks
from tats_core.data.loaders import ClipOptions, TrainLoader
if __name__ == "__main__":
    manifest = benchmarks.BENCHMARKS["ucf101"].read(Path(sys.argv[1]) / "ucf101", "train", 1)
    options = ClipOptions(frames=4, size=16, decode_workers=3)
    loader = TrainLoader(manifest, options, batch_size=4, seed=0, purpose="pretrain")
    for epoch in range(10**6):
        for batch in loader.epoch(epoch):
            pass
"""


@contextmanager
def running(script: str, tmp_path: Path) -> Iterator[psutil.Popen]:
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "data")]
    with psutil.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        helpers: list[psutil.Process] = []
        try:
            yield process
        finally:
            helpers += process.children(recursive=True) if process.is_running() else []
            process.kill()
            for helper in helpers:
                helper.kill()


def until(holds: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE  # in a container, nobody may wait for an orphan
    except psutil.NoSuchProcess:
        return False


def assert_end(helpers: list[psutil.Process]) -> None:
    try:
        until(lambda: not any(map(lives, helpers)), "orphans")
    finally:
        for process in filter(lives, helpers):
            process.kill()


def test_the_processes_that_generate_end_with_a_killed_driver(tmp_path: Path) -> None:
    with running(_GENERATES, tmp_path) as process:
        until(lambda: any(tmp_path.glob("data/ucf101/**/*.avi")), "no clip was made")
        helpers = process.children(recursive=True)
        assert len(helpers) >= 3, "two that generate, and their server"
        os.kill(process.pid, signal.SIGKILL)
        assert_end(helpers)


@pytest.mark.parametrize("moment", ["they start", "they decode"])
def test_decoders_end_with_a_killed_parent_and_their_server(tmp_path: Path, moment: str) -> None:
    config = GenerateConfig(benchmarks=("ucf101",), clips_per_class=1, test_clips_per_class=1, frames=4)
    generate(tmp_path / "data", config, workers=1)
    with running(_DECODES, tmp_path) as process:
        server: list[psutil.Process] = []

        def decoders() -> list[psutil.Process]:
            server[:] = [child for child in process.children() if "forkserver" in " ".join(child.cmdline())]
            return server[0].children() if server else []

        until(lambda: len(decoders()) == 3, "no decoder was started")
        if moment == "they decode":
            until(lambda: all(sum(each.cpu_times()[:2]) > 0.5 for each in decoders()), "they do not work")
        helpers = decoders()
        for each in (process, *server):
            os.kill(each.pid, signal.SIGKILL)
        assert_end(helpers)

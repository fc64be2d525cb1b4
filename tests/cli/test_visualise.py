"""`tats visualise`, with the drawing itself replaced."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tats_core.errors import VideoError
from tats_core.store import models
from tats_core.training.visualise import Visualiser


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the command calls; a video named `broken` cannot be read."""
    recorded: list[Any] = []

    def find(*words: Any) -> Path:
        recorded.append(words)
        return Path("model")

    class Fake:
        def draw(self, videos: list[Path], out: Path, **more: Any) -> Iterator[Any]:
            recorded.append((videos, out, more))
            for video in videos:
                broken = video.stem == "broken"
                yield VideoError(f"{video}: cannot be read") if broken else (out / f"{video.stem}.png",)

    monkeypatch.setattr(models, "find_model", find)
    monkeypatch.setattr(
        Visualiser, "load", lambda folder, benchmark: recorded.append((folder, benchmark)) or Fake()
    )
    return recorded


def test_each_file_is_printed_on_a_line(tats, calls):
    ended = tats("visualise", "demo", "a.mp4", "b.mp4", "--out", "drawn", "--seed", "3", "--clips", "2")
    assert (ended.code, ended.out, ended.err) == (0, "drawn/a.png\ndrawn/b.png\n", "")
    assert calls == [
        ("demo", Path(".tats").absolute(), "pretrain", None),
        (Path("model"), None),
        ([Path("a.mp4"), Path("b.mp4")], Path("drawn"), {"n_clips": 2, "seed": 3}),
    ]


def test_an_unreadable_video_is_one_sentence_and_exit_code_2(tats, calls):
    ended = tats("visualise", "demo", "broken.mp4", "b.mp4", "--stage", "pretrain", "--benchmark", "ssv2")
    assert ended.code == 2
    assert ended.out == "pictures/b.png\n"
    assert ended.err == "tats: broken.mp4: cannot be read\n"
    assert calls[0] == ("demo", Path(".tats").absolute(), "pretrain", "pretrain")
    assert calls[1] == (Path("model"), "ssv2")


def test_an_unknown_run_is_refused(tats):
    ended = tats("visualise", "demoo", "a.mp4")
    assert ended.code == 2
    assert "did you mean 'demo'" in ended.err

"""docs/extending.md: each example works as it stands there, once its name is registered."""

from __future__ import annotations

import importlib
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from tats_core.cli.app import COMMANDS, main
from tats_core.data import readers
from tats_core.data.benchmarks import BENCHMARKS
from tats_core.data.clips import Segment
from tats_core.data.generate import ENCODINGS, encode
from tats_core.data.loaders import ClipOptions
from tats_core.errors import DataError, VideoError
from tats_core.files import read_json
from tats_core.sampling import SamplerSite
from tats_core.specs import validate
from tats_core.stages.base import Input, StageContext
from tats_core.training import metrics
from tats_core.training.events import EventLog
from tats_core.training.finetune import FinetuneConfig
from tats_core.training.optimizers import OPTIMIZERS
from tats_core.training.schedules import SCHEDULES

MP4 = ENCODINGS["kinetics400"]
PAGE = Path(__file__).parents[1] / "docs" / "extending.md"

Example = Callable[[str], ModuleType]


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Example:
    """Return a function that imports the example below a heading of the page."""
    monkeypatch.syspath_prepend(tmp_path)

    def imported(heading: str) -> ModuleType:
        section = PAGE.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
        (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
        name = f"example_{heading.split()[-1]}"
        (tmp_path / f"{name}.py").write_text(code)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return imported


def test_the_fixed_sampler_shows_one_colour_of_a_board_that_is_not_square(example: Example) -> None:
    site = SamplerSite(slices=2, rows=3, columns=4, width=8, heads=2)
    sampler = example("A fixed sampler").CheckerConfig(mask_ratio=0.5).build(site)
    rollout = sampler.act(torch.zeros(64, 24, 8), torch.Generator().manual_seed(0))
    # Rows 0101, 1010, 0101 in each slice: 12 of 24 are dark, so what is visible has one colour.
    dark_N = torch.tensor([0, 1, 0, 1, 1, 0, 1, 0, 0, 1, 0, 1] * 2)
    assert set(dark_N[rollout.visible_BK].sum(1).tolist()) == {0, 12}


def test_the_optimiser_learns(example: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPTIMIZERS._members, "rprop", example("An optimiser").RpropConfig)
    recipe = validate(FinetuneConfig, {"optimizer": {"kind": "rprop", "largest": 0.5}}, "p.yaml")
    model = nn.Linear(3, 1)
    guarded = recipe.optimizer.build(model, "toy")
    losses = []
    for _ in range(20):
        guarded.set_lr(1e-2)
        loss = (model(torch.eye(3)) - 1).square().sum()
        guarded(loss)
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_the_schedule_is_a_straight_line_or_another_power(
    example: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SCHEDULES._members, "power", example("A schedule").PowerConfig)
    keys = {"schedule": {"kind": "power", "power": 2}, "base_lr": 8.0, "min_lr": 0, "warmup_epochs": 0}
    recipe = validate(FinetuneConfig, {"optimizer": keys}, "p.yaml")
    assert [recipe.optimizer.lr(step, 1, 4, 256) for step in range(5)] == [8, 4.5, 2, 0.5, 0]


def test_the_probe_tells_classes_apart_that_differ_in_their_spread_alone(example: Example) -> None:
    module = example("A probe")
    generator = torch.Generator().manual_seed(0)
    label_B = torch.arange(400) % 2
    features_BD = torch.randn(400, 3, generator=generator) * (1 + 9 * label_B)[:, None]
    scores_BC = module.GaussianConfig().classify(features_BD[:200], label_B[:200], features_BD[200:], 2)
    assert metrics.top_k_percent(scores_BC, label_B[200:], 1) > 90
    assert module.GaussianConfig.metric.key == "gaussian_top1"


def test_the_stage_kind_measures_and_its_number_is_tabled(example: Example, tmp_path: Path) -> None:
    kind = example("A stage kind").KIND
    model, out = tmp_path / "model", tmp_path / "out"
    model.mkdir()
    (model / "model.safetensors").write_bytes(bytes(2_500_000))
    (model / "model.json").write_text("{}")
    read = (Input("finetune", "finetune", {}, model),)
    ctx = StageContext(
        name="size",
        pipeline="mine",
        key="0",
        out=out,
        read=read,
        events=EventLog(None),
        fit=lambda work: None,
        stop=threading.Event(),
    )
    out.mkdir()
    kind.run(kind.Config(), ctx)
    assert read_json(out / "result.json", dict[str, float], "a result") == {"disk_mb": 2.5}
    assert [metric.key for metric in kind.tabled(kind.Config())] == ["disk_mb"]


def test_the_benchmark_reads_segments_of_files(
    example: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BENCHMARKS._members, "kitchen", example("A benchmark").KITCHEN)
    with pytest.raises(DataError, match=r"kitchen: no folder of videos in .*expected layout: "):
        BENCHMARKS["kitchen"].read(tmp_path, "train")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "monday.mp4").touch()
    (tmp_path / "test.csv").write_text("monday,1.5,4,stirring\nmonday,4,9,cutting\n")
    manifest = BENCHMARKS["kitchen"].read(tmp_path, "test")
    assert [(video.id, video.label, video.segment) for video in manifest.videos] == [
        ("monday@1.5", 2, Segment(1.5, 4, "second")),
        ("monday@4", 0, Segment(4, 9, "second")),
    ]
    (tmp_path / "train.csv").write_text("monday,1.5,stirring\n")
    with pytest.raises(DataError, match=r"train\.csv, line 1: 'monday,1\.5,stirring' is not file,first,last"):
        BENCHMARKS["kitchen"].read(tmp_path, "train")


def test_the_reader_gives_the_frames_of_pyav(
    example: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(readers.READERS._members, "whole", example("A reader of videos").read)
    assert ClipOptions(reader="whole").reader == "whole"
    encode(tmp_path / "film.mp4", np.arange(6 * 32 * 32 * 3, dtype=np.uint8).reshape(6, 32, 32, 3), 25, MP4)
    frames_THWC = readers.read_all(tmp_path / "film.mp4", "whole")
    assert np.array_equal(frames_THWC, readers.read_all(tmp_path / "film.mp4"))
    chosen_THWC = readers.read_clip(
        tmp_path / "film.mp4", lambda n_frames: np.array([n_frames - 1, 1]), "whole"
    )
    assert np.array_equal(chosen_THWC, frames_THWC[[5, 1]])
    with pytest.raises(VideoError, match=r"none\.mp4: cannot be read \(No such file"):
        readers.read_all(tmp_path / "none.mp4", "whole")


def test_the_command_is_one_of_tats(
    example: Example,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(COMMANDS._members, "newest", example("A command").newest)

    def tats(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["tats", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        return capsys.readouterr().out

    assert tats("newest", "demo", "--home", str(tmp_path)) == "demo has not run yet\n"
    assert "newest  " in tats("--help")
    assert "Print the folder of the newest run of a pipeline." in tats("newest", "--help")

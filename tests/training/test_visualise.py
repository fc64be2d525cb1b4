"""Mask pictures of single files, by a model that was saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tats_core.errors import VideoError, WeightsError
from tats_core.models.mae import MAEConfig, VideoMAE
from tats_core.models.tokens import ClipConfig
from tats_core.models.vit import ViTConfig
from tats_core.sampling import SamplerSite
from tats_core.sampling.tats import TATSConfig
from tats_core.training import weights
from tats_core.training.predict import Views
from tats_core.training.visualise import Visualiser

CLIP = ClipConfig(frames=4, size=16, tubelet=2, patch=4)
VIT = ViTConfig.model_validate({"preset": "vit_micro", "width": 24, "depth": 1, "heads": 3})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a pre-training leaves behind."""
    folder = tmp_path / "pretrain"
    folder.mkdir()
    torch.manual_seed(0)
    config = MAEConfig(decoder_width=16, decoder_depth=1, decoder_heads=2)
    sampler = TATSConfig.model_validate({"mask_ratio": 0.875, "network": {"width": 12, "heads": 2}})
    views = Views(benchmark="ucf101", sampling="dense", stride=2)
    described = {"model": VIT, "clip": CLIP, "mae": config, "views": views}
    weights.save(folder, VideoMAE(VIT, config, CLIP), described)
    site = SamplerSite(slices=2, rows=4, columns=4, width=24, heads=3)
    weights.save(folder, sampler.build(site), {"sampler": sampler}, name="sampler")
    return folder


def write_video(path: Path, frames: int = 20, width: int = 24, height: int = 16) -> Path:
    """A file without loss whose frame t is all of grey 10 t, save for a black left edge."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, "bgr0"
        for time in range(frames):
            picture = np.full((height, width, 3), 10 * time, np.uint8)
            picture[:, :2] = 0
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode(None))
    return path


def test_the_clip_is_the_middle_of_the_video_and_its_central_square(folder: Path, tmp_path: Path) -> None:
    visualiser = Visualiser.load(folder)
    video_BCTHW = visualiser.read(write_video(tmp_path / "a.mkv"))
    assert video_BCTHW.shape == (1, 3, 4, 16, 16)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    grey_TC = (video_BCTHW[0, :, :, 8, 8].T * deviation + mean) * 255
    # 4 frames at a stride of 2 span 7 of 20: the middle start is 6.5, rounded to even.
    assert grey_TC.round().tolist() == [[grey] * 3 for grey in (60, 80, 100, 120)]
    # The black edge is cropped: 16 of 24 columns from the fifth on.
    assert torch.equal(video_BCTHW[..., 0], video_BCTHW[..., 8])


def test_several_clips_cover_the_video_and_have_pictures_of_their_own(folder: Path, tmp_path: Path) -> None:
    visualiser = Visualiser.load(folder)
    path = write_video(tmp_path / "a.mkv")
    grey_BT = (visualiser.read(path, 3)[:, 0, :, 8, 8] * 0.229 + 0.485) * 255
    # Starts at 0, 6.5 (rounded to even) and 13 of 20.
    assert grey_BT.round().tolist() == [
        [10 * (start + 2 * time) for time in range(4)] for start in (0, 6, 13)
    ]
    (drawn,) = visualiser.draw([path], tmp_path / "out", n_clips=3)
    assert isinstance(drawn, tuple)
    names = [f"a-clip{number}.{suffix}" for number in (1, 2, 3) for suffix in ("png", "gif")]
    assert [file.name for file in drawn] == names
    assert sorted(names) == sorted(file.name for file in (tmp_path / "out").iterdir())


def test_an_unreadable_video_is_reported_and_the_others_are_drawn(folder: Path, tmp_path: Path) -> None:
    readable = write_video(tmp_path / "a.mkv")
    (tmp_path / "broken.mkv").write_bytes(b"not a video")
    videos = [tmp_path / "broken.mkv", tmp_path / "nowhere.mkv", readable]
    broken, missing, drawn = Visualiser.load(folder).draw(videos, tmp_path / "out")
    assert isinstance(broken, VideoError)
    assert isinstance(missing, VideoError)
    assert "broken.mkv: cannot be read" in str(broken)
    assert "nowhere.mkv: cannot be read (No such file" in str(missing)
    assert drawn == (tmp_path / "out" / "a.png", tmp_path / "out" / "a.gif")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.gif", "a.png"]


def test_videos_of_one_name_do_not_overwrite_each_other(folder: Path, tmp_path: Path) -> None:
    videos = [
        write_video(tmp_path / folder_name / "a.mkv", frames) for folder_name, frames in (("x", 20), ("y", 9))
    ]
    results = list(Visualiser.load(folder).draw(videos, tmp_path))
    assert [drawn[0].name for drawn in results if isinstance(drawn, tuple)] == ["a.png", "a-2.png"]


def test_the_seed_decides_what_is_visible_and_the_other_videos_do_not(folder: Path, tmp_path: Path) -> None:
    visualiser = Visualiser.load(folder)
    videos = [write_video(tmp_path / "a.mkv"), write_video(tmp_path / "b.mkv", frames=12)]
    pictures = {}
    for name, chosen, seed in (("both", videos, 0), ("alone", videos[1:], 0), ("other", videos[1:], 1)):
        list(visualiser.draw(chosen, tmp_path / name, seed=seed))
        pictures[name] = (tmp_path / name / "b.png").read_bytes()
    assert pictures["both"] == pictures["alone"]
    assert pictures["other"] != pictures["alone"]


def test_an_autoencoder_without_its_sampler_is_refused(folder: Path) -> None:
    (folder / "sampler.json").unlink()
    with pytest.raises(WeightsError, match="holds an autoencoder without its sampler"):
        Visualiser.load(folder)


def test_a_sampler_that_is_not_described_is_refused_by_its_file(folder: Path) -> None:
    (folder / "sampler.json").write_text('{"sampler": {"kind": "tatz"}}')
    with pytest.raises(WeightsError, match=r"sampler\.json: does not describe a sampler"):
        Visualiser.load(folder)


@pytest.mark.parametrize("name", ["model", "sampler"])
def test_a_model_saved_in_another_format_is_refused_by_its_file(folder: Path, name: str) -> None:
    file = folder / f"{name}.safetensors"
    save_file(load_file(file), file)
    with pytest.raises(WeightsError, match=rf"{name}.safetensors: is a model of TATS saved without a format"):
        Visualiser.load(folder)


def test_a_model_that_does_not_say_how_clips_are_taken_needs_a_benchmark(folder: Path) -> None:
    described = weights.describe(folder)
    del described["views"]
    weights.save(folder, weights.load_mae(folder), described)
    with pytest.raises(WeightsError, match="does not say how clips are taken"):
        Visualiser.load(folder)
    assert Visualiser.load(folder, "ssv2").views.sampling == "uniform"

"""`benchmarks/data.py` measures what it says: the same clips, from videos of the stated length."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tats_core.data import clips, readers, transforms
from tats_core.data.benchmarks.own import OWN
from tats_core.data.clips import normalise
from tats_core.data.generate import Encoding
from tats_core.data.loaders import ClipOptions, eval_views
from tats_core.data.video import opened

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("decord")
    monkeypatch.syspath_prepend(str(FOLDER))
    import data

    yield data
    for name in ("data", "measure"):
        sys.modules.pop(name)


def test_the_other_design_gives_our_views_and_crops_save_for_rounding(data, tmp_path: Path) -> None:
    kind = data.Kind("small", (96, 64), Encoding("mp4", "libx264", data.X264), frames=70)
    folder = data.made(kind, tmp_path / "plain")
    path = folder / kind.name
    options = ClipOptions(frames=data.FRAMES, size=data.SIZE, stride=kind.stride)
    batch = next(eval_views(OWN.read(folder, "train"), options, clips=data.CLIPS, crops=data.CROPS))
    ours_VCTHW = batch.normalised(torch.device("cpu"))[0]
    for view, (clip, crop) in ((0, (0, 0)), (7, (2, 1)), (14, (4, 2))):
        published_CTHW = data.published_view(path, kind.stride, clip, crop)
        assert published_CTHW.shape == ours_VCTHW[view].shape
        assert (published_CTHW - ours_VCTHW[view]).abs().mean() < 0.02
    rngs = [np.random.default_rng(3) for _ in range(2)]
    published_CTHW = data.published_clip(path, kind.stride, rngs[0])
    frames_THWC = readers.read_clip(path, lambda n: clips.dense_indices(n, data.FRAMES, kind.stride, rngs[1]))
    box = transforms.multi_scale_box(64, 96, data.SIZE, transforms.MULTI_SCALES, rngs[1])
    cut_THWC = transforms.crop_resize(torch.from_numpy(frames_THWC), box, data.SIZE)
    assert (published_CTHW - normalise(cut_THWC.permute(3, 0, 1, 2))).abs().mean() < 0.02


@pytest.mark.parametrize(
    ("container", "codec"), [("mp4", "libx264"), ("webm", "libvpx-vp9"), ("avi", "mpeg4")]
)
def test_a_lengthened_video_has_all_frames_and_a_start_in_each_turn(
    data, tmp_path: Path, container: str, codec: str
) -> None:
    kind = data.Kind("small", (96, 64), Encoding(container, codec, {"threads": "1"}), frames=30)
    source = data.made(kind, tmp_path / "plain") / kind.name
    target = tmp_path / f"long.{container}"
    data.lengthened(source, target, 0.05)
    frames_THWC = readers.read_all(target)
    assert len(frames_THWC) == 90
    assert np.array_equal(frames_THWC[60:], frames_THWC[:30])
    with opened(target, 60) as video:
        assert video.numbering is not None
        assert len(video.numbering.starts) >= 3

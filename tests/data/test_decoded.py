"""Frames decoded once: the same clips as from the files, wherever the folder went."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tats_core.data import decoded, readers, transforms
from tats_core.data.loaders import ClipOptions, TrainLoader, eval_views
from tats_core.data.manifest import Manifest
from tats_core.errors import DataError
from tests.data.test_loaders import same

OPTIONS = ClipOptions(frames=4, size=16, decode_workers=0)


@pytest.fixture
def manifest(tiny: dict[str, Manifest]) -> Manifest:
    return tiny["ssv2"]


def test_clips_are_the_same_as_from_the_files_and_no_file_is_opened(
    manifest: Manifest, tmp_path, monkeypatch
):
    written = decoded.write(manifest, tmp_path / "a.train.frames.bin", lambda: None)
    written.save(tmp_path / "a.train.json")
    before = [*TrainLoader(manifest, OPTIONS, batch_size=2, seed=1).epoch(0), *eval_views(manifest, OPTIONS)]
    moved = tmp_path.with_name("moved")
    tmp_path.rename(moved)
    monkeypatch.setattr(readers, "READERS", {})
    again = Manifest.load(moved / "a.train.json")
    after = [*TrainLoader(again, OPTIONS, batch_size=2, seed=1).epoch(0), *eval_views(again, OPTIONS)]
    assert len(before) > 0
    assert same(before, after)
    assert again.digest() == manifest.digest()


def test_a_part_of_the_videos_finds_its_own_frames(manifest: Manifest, tmp_path):
    written = decoded.write(manifest, tmp_path / "a.bin", lambda: None)
    (from_table,) = eval_views(replace(written, videos=written.videos[-1:]), OPTIONS, clips=1, crops=1)
    (other,) = eval_views(replace(manifest, videos=manifest.videos[-1:]), OPTIONS, clips=1, crops=1)
    assert torch.equal(from_table[0], other[0])


def test_a_video_that_cannot_be_read_is_left_to_its_reader(manifest: Manifest, tmp_path: Path):
    path = tmp_path / "broken.avi"
    path.write_bytes(b"no video")
    videos = (replace(manifest.videos[0], path=str(path)), *manifest.videos[1:])
    written = decoded.write(replace(manifest, videos=videos), tmp_path / "a.bin", lambda: None)
    opened = decoded.opened(tmp_path / "a.bin")
    assert opened.frames(written.videos[0].id) is None
    assert opened.frames(written.videos[1].id) is not None


def test_frames_are_stored_at_the_size_that_is_needed_a_few_at_a_time(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(readers, "_PIECE_BYTES", 3 * 32 * 32 * 3)  # three frames
    written = decoded.write(manifest, tmp_path / "small.bin", lambda: None, 16)
    frames_THWC = decoded.opened(tmp_path / "small.bin").frames(written.videos[0].id)
    assert frames_THWC is not None
    assert frames_THWC.shape == (20, 16, 16, 3)
    whole_THWC = torch.from_numpy(readers.read_all(manifest.videos[0].path))
    assert torch.equal(torch.from_numpy(np.array(frames_THWC)), transforms.shrink(whole_THWC, 16))
    assert (tmp_path / "small.bin").stat().st_size == len(manifest) * 20 * 16 * 16 * 3


def test_without_any_readable_video_nothing_is_stored(manifest: Manifest, tmp_path: Path):
    (tmp_path / "broken.avi").write_bytes(b"no video")
    videos = (replace(manifest.videos[0], path=str(tmp_path / "broken.avi")),)
    with pytest.raises(DataError, match=r"none of the videos can be read: .*broken\.avi: cannot be read"):
        decoded.write(replace(manifest, videos=videos), tmp_path / "a.bin", lambda: None)
    assert not (tmp_path / "a.bin").exists()

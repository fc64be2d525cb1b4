"""A smaller copy of a data set: the same frames, smaller, in the same layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tats_core.data import readers, transforms
from tats_core.data.benchmarks import BENCHMARKS
from tats_core.data.shrink import Smaller, shrink
from tats_core.data.video import opened
from tats_core.errors import DataError

SMALL = Smaller(short_side=24, key_frames=5)


def made(root: Path, out: Path, smaller: Smaller = SMALL) -> tuple[dict[str, str], list[int]]:
    done: list[int] = []
    faults = shrink(root, out, smaller, lambda count, total: done.append(count), workers=1)
    return faults, done


@pytest.mark.parametrize("name", ["ssv2", "kinetics400", "ucf101"])
def test_a_copy_has_the_frames_of_its_source_smaller_and_key_frames_close_together(
    tiny_root: Path, tmp_path: Path, name: str
) -> None:
    faults, done = made(tiny_root / name, tmp_path / name)
    assert faults == {}
    source, copy = (BENCHMARKS[name].read(root / name, "train") for root in (tiny_root, tmp_path))
    assert (copy.classes, copy.labels()) == (source.classes, source.labels())
    assert done[-1] >= len(copy)
    for before, after in zip(source.videos[:2], copy.videos[:2], strict=True):
        frames_THWC = readers.read_all(before.path)
        small_THWC = readers.read_all(after.path).astype(float)
        assert small_THWC.shape == (20, 24, 24, 3)
        wanted_THWC = transforms.shrink(torch.from_numpy(frames_THWC), 24).numpy()
        assert np.abs(small_THWC - wanted_THWC).mean() < 8
        with opened(after.path, 60) as video:
            key_frames = sorted(video.key_frames)
        assert max(np.diff([*key_frames, 20])) <= 5


def test_a_copy_resumes_and_takes_what_is_small_or_damaged_as_it_is(tiny_root: Path, tmp_path: Path) -> None:
    root, out = tmp_path / "own", tmp_path / "copy"
    root.mkdir()
    content = next((tiny_root / "ucf101").rglob("*.avi")).read_bytes()
    (root / "a.avi").write_bytes(content)
    (root / "b.avi").write_bytes(content[:-900])
    faults, _ = made(root, out)
    assert list(faults) == [str(root / "b.avi")]
    assert faults[str(root / "b.avi")].endswith("so it is copied as it is")
    assert (out / "b.avi").read_bytes() == content[:-900]
    assert len((out / "a.avi").read_bytes()) < len(content)
    (root / "c.avi").write_bytes(content)
    assert made(root, out) == ({}, [3])
    assert made(root, tmp_path / "larger", Smaller(32))[0].keys() == {str(root / "b.avi")}
    assert (tmp_path / "larger" / "a.avi").read_bytes() == content
    with pytest.raises(DataError, match="is a copy of other settings"):
        made(root, out, Smaller(32))
    with pytest.raises(DataError, match="is in the data set itself"):
        made(root, root / "small")

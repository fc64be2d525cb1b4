from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tats_core.data import verify
from tats_core.data.manifest import Manifest
from tats_core.errors import Stopped


@pytest.mark.parametrize("workers", [1, 2])
def test_damaged_videos_are_named_in_the_manifests_order(
    tiny: dict[str, Manifest], tmp_path: Path, workers: int
) -> None:
    videos = list(tiny["ssv2"].videos)  # 20: two pieces of work
    for index, content in ((17, b"no video"), (2, Path(videos[2].path).read_bytes()[:-900])):
        path = tmp_path / f"damaged{index}.webm"
        path.write_bytes(content)
        videos[index] = replace(videos[index], path=str(path))
    manifest = replace(tiny["ssv2"], videos=tuple(videos))
    calls: list[tuple[int, int]] = []
    faults = verify.damaged(manifest, lambda done, total: calls.append((done, total)), workers)
    assert list(faults) == [videos[2].id, videos[17].id]
    assert "damaged2.webm: is damaged (20 frames declared, " in faults[videos[2].id]
    assert "damaged17.webm: cannot be read" in faults[videos[17].id]
    assert calls[-1] == (20, 20)


def test_verifying_can_be_stopped(tiny: dict[str, Manifest]) -> None:
    def stop(done: int, total: int) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        verify.damaged(tiny["ssv2"], stop, workers=1)

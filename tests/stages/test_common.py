from __future__ import annotations

import json
from pathlib import Path

import pytest

from tats_core.data.loaders import ClipOptions
from tats_core.data.manifest import Manifest, VideoRecord
from tats_core.errors import DataError, SpecError
from tats_core.models.tokens import ClipConfig
from tats_core.stages.common import clip_options, labelled, write_result

CLIP = ClipConfig(frames=8, size=48, patch=8)


def test_the_loader_reads_the_clip_that_the_model_sees() -> None:
    options = clip_options(CLIP, ClipOptions.model_validate({"stride": 3}))
    assert (options.frames, options.size, options.stride) == (8, 48, 3)


def test_a_loader_told_of_another_clip_is_refused() -> None:
    assert clip_options(CLIP, ClipOptions.model_validate({"frames": 8})).frames == 8
    with pytest.raises(SpecError, match=r"data.size contradicts clip.size"):
        clip_options(CLIP, ClipOptions.model_validate({"size": 224}))


def test_a_result_appears_whole(tmp_path: Path) -> None:
    write_result(tmp_path, {"top1": 12.5, "benchmark": "ssv2"})
    assert json.loads((tmp_path / "result.json").read_text()) == {"top1": 12.5, "benchmark": "ssv2"}
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_a_video_without_a_label_is_named_where_labels_are_needed() -> None:
    videos = tuple(VideoRecord(name, f"/{name}", label) for name, label in (("a", 0), ("b", -1), ("c", -1)))
    whole = Manifest("file_list", "test", ("x",), Path("/"), videos[:1])
    assert labelled(whole) is whole
    with pytest.raises(DataError, match=r"file_list \(test\): 2 of 3 have no label .*'b'"):
        labelled(Manifest("file_list", "test", ("x",), Path("/"), videos))

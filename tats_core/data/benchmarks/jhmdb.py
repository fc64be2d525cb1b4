"""J-HMDB as distributed (Jhuang et al., ICCV 2013): clips of HMDB51, trimmed to one action."""

from __future__ import annotations

from functools import partial
from typing import Final

from tats_core.data.benchmarks.base import Benchmark
from tats_core.data.benchmarks.hmdb51 import class_lists

VIDEOS: Final = ("ReCompress_Videos", "JHMDB_video/ReCompress_Videos", "videos")
LISTS: Final = ("splits",)
_LAYOUT: Final = (
    "'ReCompress_Videos/{class}/*.avi' (JHMDB_video.zip; or 'videos/') and "
    "'splits/{class}_test_split{1,2,3}.txt' (splits.zip)"
)

JHMDB: Final = Benchmark(
    name="jhmdb",
    title="J-HMDB",
    classes=21,
    expected={"train": (660, 0, 0), "test": (268, 0, 0)},
    flip=True,
    sampling="dense",
    stride=2,  # 15 to 40 frames a clip
    pretrain_stride=2,
    test_clips=2,
    test_crops=3,
    layout=_LAYOUT,
    lists=partial(class_lists, "jhmdb", VIDEOS, LISTS, _LAYOUT),
)

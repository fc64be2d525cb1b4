"""The data sets, a file each. To add one, write its file and register its `Benchmark` here."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tats_core.data.benchmarks import base
from tats_core.data.benchmarks.base import Benchmark, Split
from tats_core.registry import Registry

BENCHMARKS: Final[Registry[Benchmark]] = Registry(
    "data set",
    "tats.benchmarks",
    Benchmark,
    {
        "ssv2": "tats_core.data.benchmarks.ssv2:SSV2",
        "kinetics400": "tats_core.data.benchmarks.kinetics400:KINETICS400",
        "ucf101": "tats_core.data.benchmarks.ucf101:UCF101",
        "hmdb51": "tats_core.data.benchmarks.hmdb51:HMDB51",
        "jhmdb": "tats_core.data.benchmarks.jhmdb:JHMDB",
        "diving48": "tats_core.data.benchmarks.diving48:DIVING48",
        "own": "tats_core.data.benchmarks.own:OWN",
        "file_list": "tats_core.data.benchmarks.own:FILE_LIST",
    },
)
"""All data sets that can be read."""

PAPERS: Final = ("ssv2", "kinetics400", "ucf101", "hmdb51")
"""The four benchmarks of the papers, in the order of their tables."""


def locate(name: str, root: str | Path | None = None) -> Path:
    """Return the folder of the data set called `name`; see `base.locate`."""
    return base.locate(BENCHMARKS[name], root)


__all__ = ["BENCHMARKS", "PAPERS", "Benchmark", "Split", "locate"]

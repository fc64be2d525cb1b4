"""The data sets, a file each. To add a data set, write its file and register its `Benchmark` here."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tats_core.data.benchmarks import base
from tats_core.data.benchmarks.base import Benchmark, Sampling, Split
from tats_core.data.benchmarks.file_list import FILE_LIST
from tats_core.data.benchmarks.hmdb51 import HMDB51
from tats_core.data.benchmarks.kinetics400 import KINETICS400
from tats_core.data.benchmarks.ssv2 import SSV2
from tats_core.data.benchmarks.ucf101 import UCF101
from tats_core.errors import DataError, did_you_mean

BENCHMARKS: Final[dict[str, Benchmark]] = {
    benchmark.name: benchmark for benchmark in (SSV2, KINETICS400, UCF101, HMDB51)
}
"""The four benchmarks of the papers, in the order of their tables."""

READABLE: Final[dict[str, Benchmark]] = {**BENCHMARKS, FILE_LIST.name: FILE_LIST}
"""Everything that can be read: the benchmarks and a user's own videos."""


def find(name: str) -> Benchmark:
    """Return the data set called `name`.

    Raises:
        DataError: no such benchmark; names the nearest.
    """
    if name not in READABLE:
        raise DataError(f"no data set named '{name}'{did_you_mean(name, READABLE)}")
    return READABLE[name]


def locate(name: str, root: str | Path | None = None) -> Path:
    """Return the folder of the data set called `name`; see `base.locate`."""
    return base.locate(find(name), root)


__all__ = ["BENCHMARKS", "READABLE", "Benchmark", "Sampling", "Split", "find", "locate"]

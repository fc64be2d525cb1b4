"""What the readers of all data sets share: the facts of a benchmark, and the search for its files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from tats_core.data.manifest import Manifest
from tats_core.errors import DataError

Split = Literal["train", "test"]
Sampling = Literal["uniform", "dense"]


class Read(Protocol):
    """Reads one split of a data set as distributed."""

    def __call__(self, root: Path, split: Split, fold: int = 1) -> Manifest:
        """Return the videos of `split`; raise DataError if the layout is not the expected one."""
        ...


@dataclass(frozen=True)
class Benchmark:
    """A data set with everything that belongs to it and not to a recipe.

    Forgetting one of these flags costs accuracy silently (a flip turns "left to right" into another
    class), so the benchmark owns them and a recipe overrides them on purpose only.
    """

    name: str
    title: str
    classes: int
    """Official number of classes; not enforced, a subset is fine."""
    expected: Mapping[Split, tuple[int, ...]]
    """Official number of videos of each fold; a copy may have fewer."""
    flip: bool
    """Whether a horizontal flip preserves the class."""
    sampling: Sampling
    """How fine-tuning and testing choose frames: one of each segment, or every `stride`-th."""
    stride: int
    pretrain_stride: int
    """Frames between two of a clip; pre-training always samples densely."""
    test_clips: int
    test_crops: int
    layout: str
    """What the folder holds, for the person who has to prepare it."""
    read: Read

    @property
    def folds(self) -> int:
        """Number of official train/test splits; papers report the mean over them."""
        return len(self.expected["train"])


def locate(benchmark: Benchmark, root: str | Path | None = None) -> Path:
    """Return the folder of a data set.

    Looked up in order: `<root>/<name>` (the `root` key of a data stage), the environment variable
    `TATS_DATA_<NAME>`, and `<name>` in the folder that `TATS_DATA` names.

    Raises:
        DataError: no such folder; names the places searched, what sets the folder, and the expected layout.
    """
    variable = f"TATS_DATA_{benchmark.name.upper()}"
    searched = []
    for label, value, below in (
        ("the key 'root'", root, benchmark.name),
        (variable, os.environ.get(variable), ""),
        ("TATS_DATA", os.environ.get("TATS_DATA"), benchmark.name),
    ):
        if not value:
            searched.append(f"{label} is not set")
            continue
        folder = Path(value).expanduser().absolute() / below
        if folder.is_dir():
            return folder
        searched.append(f"by {label} it would be {folder}, which is not a folder")
    raise DataError(
        f"the data set '{benchmark.name}' ({benchmark.title}) was not found: {', '.join(searched)}; "
        f"set {variable} to its folder, or TATS_DATA (or the key 'root' of the data stage) to the folder "
        f"that holds '{benchmark.name}'; expected in it: {benchmark.layout}"
    )


def first_existing(root: Path, choices: Sequence[str], what: str, benchmark: str, layout: str) -> Path:
    """Return the first of `choices` that exists below `root`.

    Raises:
        DataError: none does; names `what` it is and all choices.
    """
    for choice in choices:
        if (root / choice).exists():
            return root / choice
    raise DataError(
        f"{benchmark}: no {what} in {root} (looked for {', '.join(choices)}); expected layout: {layout}"
    )


def rows(path: Path) -> Iterator[tuple[int, str]]:
    """Yield `(line number, text)` of each line that is not empty; a carriage return at its end is dropped.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line.rstrip("\r")


def walk(folder: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """Yield every file below `folder` whose name ends in one of `suffixes`, in sorted order.

    One pass over the folders: to ask for each listed file by itself takes minutes on a network disk.
    """
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        for name in sorted(files):
            if name.lower().endswith(suffixes):
                yield Path(parent, name)


def absent_error(benchmark: str, split: str, absent: list[str], listed: int, folder: Path) -> DataError:
    """Return the error for a copy that lacks videos of its own lists."""
    return DataError(
        f"{benchmark} ({split}): {len(absent)} of the {listed} listed videos are not in {folder} "
        f"(the first is '{absent[0]}'); complete the copy, or point TATS_DATA_{benchmark.upper()} at another"
    )

"""What the readers of all data sets share: the facts of a benchmark, and the search for its files."""

from __future__ import annotations

import difflib
import errno
import io
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from tats_core.data import shards
from tats_core.data.clips import Sampling
from tats_core.data.manifest import Manifest, VideoRecord
from tats_core.errors import DataError

Split = Literal["train", "test"]
Missing = Literal["refuse", "allow"]
Content = TypeVar("Content")

_NESTED_LINKS: Final = 3


class NoListError(DataError):
    """A copy has no list of a split or fold; it may have those of others."""


@dataclass(frozen=True)
class Listing:
    """What the lists of a split name, and what of it is on disk."""

    classes: tuple[str, ...]
    videos: tuple[VideoRecord, ...]
    folder: Path
    """Where the videos were searched."""
    absent: tuple[str, ...] = ()
    """Videos that are listed and not on disk."""
    notes: tuple[str, ...] = ()
    """What the person should know of the lists, a sentence each."""


ReadLists = Callable[[Path, Split, int], Listing]
"""Reads the lists of a split and fold below a folder; raises DataError where the layout is another."""


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
    """Official number of videos of each fold, 0 where none is published; a copy may have fewer."""
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
    lists: ReadLists
    missing: Missing = "refuse"
    """Whether a copy may lack listed videos, where nobody says so."""
    group: str = ""
    """Expression whose first group, in an id, names the recording of a video; "" if unknown."""

    @property
    def folds(self) -> int:
        """Number of official train/test splits; papers report the mean over them."""
        return len(self.expected["train"])

    def read(self, root: Path, split: Split, fold: int = 1, missing: Missing | None = None) -> Manifest:
        """Return the videos of `split` in the folder `root`.

        Args:
            missing: what to do about listed videos that are not on disk; None: as usual for the data set.

        Raises:
            NoListError: the copy has no list of this split.
            DataError: the layout is not the expected one, a folder cannot be read, or videos are missing and
                may not be.
        """
        name = f"{self.name} ({split}, fold {fold})" if self.folds > 1 else f"{self.name} ({split})"
        try:
            listing = self.lists(root, split, fold)
        except OSError as error:
            raise DataError(
                f"{name}: {error.filename or root} cannot be read ({error.strerror}); expected layout: "
                f"{self.layout}"
            ) from error
        notes = list(listing.notes)
        if listing.absent:
            absence = f"{name}: {_absence(listing)}"
            if not listing.videos:
                raise DataError(f"{absence}; expected layout: {self.layout}")
            if (missing or self.missing) == "refuse":
                raise DataError(
                    f"{absence}; complete the copy, point TATS_DATA_{self.name.upper()} at another, or set "
                    "'missing: allow' in the data stage, which marks every table"
                )
            notes.append(absence)
        return Manifest(
            self.name,
            split,
            listing.classes,
            root,
            listing.videos,
            len(listing.absent),
            notes=tuple(notes),
            missing=listing.absent,
        )


def _absence(listing: Listing) -> str:
    """Return what a copy lacks of its own lists, and where the first of it seems to be."""
    first, listed = Path(listing.absent[0]), len(listing.videos) + len(listing.absent)
    share = f"{len(listing.absent)} of the {listed} listed videos are not"
    if not listing.videos:
        share = f"none of the {listed} listed videos is"
    elsewhere = ""
    for path in walk(listing.folder):
        if path.name.casefold() == first.name.casefold() or path.stem.casefold() == first.stem.casefold():
            elsewhere = f", but there is '{path.relative_to(listing.folder)}'"
            break
    return f"{share} in {listing.folder} (the first is '{listing.absent[0]}'{elsewhere})"


# ------------------------------------------------------------------------------------------- folders


def locate(benchmark: Benchmark, root: str | Path | None = None) -> Path:
    """Return the folder of a data set.

    The first of these that is set decides: `root` (the key of a data stage, or an option), whose folder
    `<name>` it is; the environment variable `TATS_DATA_<NAME>`; `TATS_DATA`, with the folder `<name>` in it.

    Raises:
        DataError: none is set, or it is no folder; says what sets it, and the expected layout.
    """
    variable = f"TATS_DATA_{benchmark.name.upper()}"
    places = (
        ("the key 'root'", root, benchmark.name),
        (variable, os.environ.get(variable), ""),
        ("TATS_DATA", os.environ.get("TATS_DATA"), benchmark.name),
    )
    reason, advice = ", ".join(f"{label} is not set" for label, _, _ in places), "set"
    label, value, below = next((place for place in places if place[1]), places[0])
    if value:
        folder = Path(value).expanduser().absolute() / below
        if folder.is_dir():
            return folder
        reason = f"by {label} it would be {folder}, which is not a folder{_similar(folder)}"
        advice = f"mend {label}, or leave it out and set"
    raise DataError(
        f"the data set '{benchmark.name}' ({benchmark.title}) was not found: {reason}; "
        f"{advice} {variable} to its folder, or TATS_DATA (or the key 'root' of the data stage) to the "
        f"folder that holds '{benchmark.name}'; expected in it: {benchmark.layout}"
    )


def _similar(folder: Path) -> str:
    """Return a hint at the folder that may be meant by one that is not there."""
    parent = folder.parent
    if parent.name == folder.name:  # the data set's own folder where the one that holds it is wanted
        return f" (did you mean {parent.parent}?)"
    near = _nearest(folder.name, parent) if parent.is_dir() else None
    return f" (did you mean {parent / near}?)" if near else ""


def first_existing(
    root: Path,
    choices: Sequence[str],
    what: str,
    benchmark: str,
    layout: str,
    error: type[DataError] = DataError,
) -> Path:
    """Return the first of `choices` that exists below `root`.

    Raises:
        DataError (or `error`): none does; names `what` it is, all choices, and a folder that may be meant.
    """
    for choice in choices:
        if (root / choice).exists():
            return root / choice
    raise error(
        f"{benchmark}: no {what} in {root} (looked for {', '.join(choices)})"
        f"{_meant(root, choices)}; expected layout: {layout}"
    )


def _meant(root: Path, choices: Sequence[str]) -> str:
    """Return a hint at what may be meant where none of `choices` is below `root`: nested, above, renamed."""
    for choice in choices:
        nested = (path for depth in ("*", "*/*") for path in sorted(root.glob(f"{depth}/{choice}")))
        above = [root.parent / choice]
        for path in (*nested, *above):
            if path.exists():
                folder = Path(str(path).removesuffix(os.sep + choice))
                return f"; {folder} holds '{choice}': did you mean that folder?"
    for choice in choices:
        parent, name = (root / choice).parent, Path(choice).name
        near = _nearest(name, parent) if parent.is_dir() else None
        if near:
            return f"; there is '{near}': did you mean to call it '{name}'?"
    return ""


def _nearest(name: str, folder: Path) -> str | None:
    """Return the entry of `folder` whose name differs from `name` in little more than case and signs."""
    names = {plain(entry.name): entry.name for entry in sorted(folder.iterdir())}
    near = difflib.get_close_matches(plain(name), names, n=1, cutoff=0.75)
    return names[near[0]] if near else None


def plain(name: str) -> str:
    """Return the letters and digits of a name, in small letters: in the rest people's spellings differ."""
    return re.sub(r"[\W_]", "", name.casefold())


VIDEO_SUFFIXES: Final = (
    *(".mp4", ".avi", ".webm", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ts"),
    ".ogv",
)


LIST_SUFFIXES: Final = (".json", ".csv", ".txt", ".tsv")


def walk(folder: Path, suffixes: tuple[str, ...] = VIDEO_SUFFIXES) -> Iterator[Path]:
    """Yield every file below `folder` whose name ends in one of `suffixes`, in sorted order.

    One pass over the folders: to ask for each listed file by itself takes minutes on a network disk. Symbolic
    links are followed, save to a folder that the path is in already, and three within each other: folders
    that link to each other end.
    """
    return (Path(entry.path) for entry in entries_below(folder, suffixes))


def refuse_inside(root: Path, out: Path) -> None:
    """Raise DataError where a copy of the data set in `root` would be in it."""
    if out.resolve().is_relative_to(root.resolve()):
        raise DataError(f"{out} is in the data set itself; choose a folder elsewhere")


def copy_lists(root: Path, out: Path) -> None:
    """Copy the lists below `root` to the same places below `out`."""
    for path in walk(root, LIST_SUFFIXES):
        copy = out / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def entries_below(folder: Path, suffixes: tuple[str, ...]) -> Iterator[os.DirEntry[str] | shards.PackedVideo]:
    """Yield the entries of the files that `walk` yields, and packed videos.

    Raises:
        DataError: a packed copy is not complete.
    """
    if (packed := shards.above(os.path.abspath(folder))) is not None:  # noqa: PTH100
        yield from packed.walk(folder, suffixes)
    if folder.is_dir():
        yield from _entries(os.fspath(folder), suffixes, frozenset(), 0)


def _entries(
    folder: str, suffixes: tuple[str, ...], above: frozenset[str], links: int
) -> Iterator[os.DirEntry[str]]:
    real = os.path.realpath(folder)
    if real in above or links > _NESTED_LINKS:
        return
    try:
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except PermissionError:
        return  # such as lost+found; a listed video in it is reported as missing
    folders = []
    for entry in entries:
        if entry.name.startswith(("._", ".AppleDouble")):
            continue  # what macOS writes beside each file, under its name
        if is_folder(entry):
            folders.append(entry)
        elif entry.name.lower().endswith(suffixes):
            yield entry
    for entry in folders:
        yield from _entries(entry.path, suffixes, above | {real}, links + entry.is_symlink())


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder or leads to one; a link to itself leads nowhere."""
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise


# --------------------------------------------------------------------------------------------- lists


def text_of(path: Path, *, file_names: bool = False) -> str:
    """Return the content of a list: UTF-8 or UTF-16, with or without a byte-order mark.

    Args:
        file_names: the list names files, whose names may be any bytes; they are taken as they are.

    Raises:
        NoListError: there is no such file.
        DataError: it cannot be read, or it has another encoding; names the line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        kind = NoListError if isinstance(error, FileNotFoundError) else DataError
        raise kind(f"{path} cannot be read ({error.strerror})") from error
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        return content.decode(encoding, "surrogateescape" if file_names else "strict")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: is not UTF-8 (byte {content[error.start]:#04x}); save the file as UTF-8"
        ) from error


def json_of(path: Path, kind: type[Content]) -> Content:
    """Return the content of a JSON file, of the type `kind`.

    Raises:
        NoListError, DataError: as `text_of`; or the content is not as it must be: names the entry.
    """
    try:
        return TypeAdapter(kind).validate_json(text_of(path))
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            raise DataError(f"{path} is not JSON ({first['msg']}); download it again") from error
        steps = [f"entry {step + 1}" if isinstance(step, int) else f"'{step}'" for step in first["loc"]]
        entry = ", ".join(steps) or "its content"
        raise DataError(f"{path}: {entry} is not as the data set has it: {first['msg'].lower()}") from error


def rows(path: Path, *, file_names: bool = False) -> Iterator[tuple[int, str]]:
    """Yield `(line number, text)` of each line that is not blank, without blanks around it.

    Raises:
        NoListError, DataError: as `text_of`.
    """
    text = io.StringIO(text_of(path, file_names=file_names), newline=None)  # any line ends
    for number, line in enumerate(text, start=1):
        if line.strip():
            yield number, line.strip()


def whole_number(text: str) -> int | None:
    """Return the whole number that `text` is, from 0 and of at most nine digits, or None.

    `str.isdigit` also takes "²", and `int` has a limit of its own on digits.
    """
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else None


def overlap(train: Manifest, test: Manifest) -> str | None:
    """Return a sentence on the videos that are in both lists, or None if there are none."""
    both = in_both(train, test)
    if not both:
        return None
    return (
        f"{test.benchmark}: the training list has {len(both)} of the {len(test)} test videos too (the first "
        f"is '{both[0].id}'), so a test flatters the model"
    )


def in_both(train: Manifest, test: Manifest) -> list[VideoRecord]:
    """Return the test videos that are trained on, by their name, or by their file and segment."""
    ids = {video.id for video in train.videos}  # of a clip that lies in the folders of both splits, too
    files = {(os.path.normpath(video.path), video.segment) for video in train.videos}
    return [
        video
        for video in test.videos
        if video.id in ids or (os.path.normpath(video.path), video.segment) in files
    ]

"""The index of a data set: what its lists say and what its files are, one row a video, as a Parquet file.

It is made by decoding each file once, on all CPUs, and brought up to date by reading what changed: a file
whose size and time of change are those of the index is not opened again. It is read by the data stage
(damage; the digest that notices a replaced file) and by `tats data check`.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, get_args

import pyarrow as pa
from pyarrow import parquet

from tats_core.data import readers, shards
from tats_core.data.benchmarks import BENCHMARKS, Benchmark, Split
from tats_core.data.clips import Segment
from tats_core.data.manifest import Manifest
from tats_core.data.parallel import in_pieces
from tats_core.data.video import opened
from tats_core.errors import DataError, VideoError
from tats_core.files import replacing
from tats_core.machine import end_after

_NAME: Final = pa.dictionary(pa.int32(), pa.string())
_FILE: Final = pa.schema(
    [
        ("path", pa.string()),  # below the root; bytes that are no text are spelt "\xff"
        ("bytes", pa.int64()),
        ("changed", pa.int64()),  # nanoseconds
        ("head", pa.binary(16)),  # digest of the first bytes
        # What follows is null until the file is decoded, and where that fails.
        ("fault", pa.string()),  # "" if the file is sound
        ("declared", pa.int32()),  # frames
        ("frames", pa.int32()),
        ("decodable", pa.int32()),
        ("corrupt", pa.list_(pa.int32())),
        ("fps", pa.float32()),
        ("height", pa.int32()),  # as displayed
        ("width", pa.int32()),
        ("codec", _NAME),
        ("pixel_format", _NAME),
        ("rotation", pa.int16()),  # degrees
        ("key_frames", pa.list_(pa.int32())),  # packets at which a decoder may start
    ]
)
_ROW: Final = pa.schema(
    [
        ("id", pa.string()),
        ("label", pa.int32()),
        ("class", _NAME),
        ("splits", _NAME),  # "train", "train 1,test 2"
        ("start", pa.float64()),  # of a segment
        ("end", pa.float64()),
        ("unit", _NAME),
    ]
)
SCHEMA: Final = pa.schema([*_ROW, *_FILE])
_NAMES: Final = [field.name for field in SCHEMA if field.type == _NAME]

HEAD_BYTES: Final = 1 << 16
_SAVED_EVERY: Final = 60.0  # seconds

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Index:
    """An index in memory: `table` has the columns of `SCHEMA`."""

    table: pa.Table

    @classmethod
    def load(cls, path: Path) -> Index:
        """Read an index.

        Raises:
            DataError: the file is missing, or is no index.
        """
        try:
            table = parquet.read_table(path, memory_map=True, read_dictionary=_NAMES)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(
                f"the index {path} cannot be read ({error}); make it again: tats data index"
            ) from error
        if table.schema.names != SCHEMA.names:
            raise DataError(f"{path} is not an index of this version; make it again: tats data index")
        return cls(table)

    def __len__(self) -> int:
        return len(self.table)

    def digest(self) -> str:
        """Return the sha256 of what is listed and of the files' sizes and first bytes."""
        combined = hashlib.sha256()
        columns = ("id", "path", "label", "splits", "start", "end", "bytes", "head")
        for row in zip(*(self.table[name].to_pylist() for name in columns), strict=True):
            combined.update(repr(row).encode())
        return combined.hexdigest()

    def content(self, manifest: Manifest) -> str:
        """Return the sha256 of the sizes and first bytes of a manifest's files, in its order."""
        combined = hashlib.sha256()
        for size, head in zip(*self._columns(manifest, "bytes", "head"), strict=True):
            combined.update(f"{size} ".encode() + (head or b""))  # none of a file that cannot be opened
        return combined.hexdigest()

    def faults(self, manifest: Manifest) -> dict[str, str]:
        """Return a sentence by id for each video of a manifest whose file is damaged, in its order.

        A file that was not decoded yet has none.
        """
        (texts,) = self._columns(manifest, "fault")
        listed = zip(manifest.videos, texts, strict=True)
        return {video.id: f"{video.path}: {text}" for video, text in listed if text}

    def _columns(self, manifest: Manifest, *names: str) -> Iterator[list[Any]]:
        """Yield what columns say of the files of a manifest, in its order."""
        rows = pa.array([self._rows[_spelt(manifest.below(video))] for video in manifest.videos], pa.int64())
        yield from (self.table[name].take(rows).to_pylist() for name in names)

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {path: row for row, path in enumerate(self.table["path"].to_pylist())}


def path_of(home: Path, name: str, root: Path) -> Path:
    """Return where a project folder has the index of the copy of data set `name` in `root`."""
    copy = hashlib.sha256(os.fsencode(root.absolute())).hexdigest()[:8]
    return home / "indexes" / f"{name}-{copy}.parquet"


def listed(
    name: str, root: Path, known: Sequence[Manifest] = (), fold: int = 1
) -> list[tuple[str, Manifest]]:
    """Return each split of each fold of a data set by its name; those of `fold` may be `known`.

    Lists that are missing or wrong are passed over; `tats data check` is what names them.
    """
    benchmark = BENCHMARKS[name]
    named = [(split_name(benchmark, manifest.split, fold), manifest) for manifest in known]
    for other in range(1, benchmark.folds + 1):
        for split in () if known and (fold == other or fold > benchmark.folds) else get_args(Split):
            with suppress(DataError):
                manifest = benchmark.read(root, split, other, "allow")
                named.append((split_name(benchmark, split, other), manifest))
    return named


def split_name(benchmark: Benchmark, split: str, fold: int) -> str:
    """Return "train", or "train 2" where a data set has several folds."""
    return f"{split} {fold}" if benchmark.folds > 1 else split


def update(
    store: Path | None,
    splits: Sequence[tuple[str, Manifest]],
    *,
    decode: Collection[str] = (),
    progress: Progress = lambda done, total: None,
    workers: int | None = None,
) -> Index:
    """Return the index of what is listed, examining only files that are new, changed or not decoded yet.

    Args:
        store: the index's file, read if it exists and written every minute; None: in memory alone.
        splits: the name of each split ("train", "test 2") with its videos.
        decode: paths of the files to decode; the others are known by size and first bytes.
        progress: called now and then with the files done and their number; if it raises, the work stops, and
            what is done is in the file.
        workers: processes, see `parallel.in_pieces`.
    """
    before = Index.load(store).table if store is not None and store.exists() else SCHEMA.empty_table()
    known = _files(before)
    rows, paths = _listed(splits)
    row_of = {path: row for row, path in enumerate(known["path"].to_pylist())}
    todo = list(_stale(paths, known, row_of, set(decode)))
    fresh: list[dict[str, Any]] = []
    saved = time.monotonic()

    def joined() -> pa.Table:
        files = pa.concat_tables([known, pa.Table.from_pylist(fresh, schema=_FILE)])
        newest = row_of | {file["path"]: len(known) + number for number, file in enumerate(fresh)}
        of_rows = files.take(pa.array([newest.get(path) for path in rows["path"].to_pylist()], pa.int64()))
        return pa.table([*rows.drop(["path"]), *of_rows], schema=SCHEMA)

    try:
        lost = _lost if any(decode for _, _, decode in todo) else None
        for _, facts in in_pieces(_facts, todo, workers, lost):
            fresh += facts
            progress(len(paths) - len(todo) + len(fresh), len(paths))
            if store is not None and time.monotonic() > saved + _SAVED_EVERY:
                _save(joined(), store)
                saved = time.monotonic()
    finally:
        table = joined()
        if store is not None and not table.equals(before):
            _save(table, store)
    return Index(table)


def _listed(named: Sequence[tuple[str, Manifest]]) -> tuple[pa.Table, dict[str, str]]:
    """Return the columns that lists decide, and the path of each file by how it is spelt below the root."""
    splits: dict[tuple[str, str, Segment | None, int], list[str]] = {}
    paths: dict[str, str] = {}
    classes: tuple[str, ...] = ()
    for split, manifest in named:
        classes = max(classes, manifest.classes, key=len)
        for video in manifest.videos:
            below = _spelt(manifest.below(video))
            paths[below] = video.path
            splits.setdefault((_spelt(video.id), below, video.segment, video.label), []).append(split)
    ids, belows, segments, labels = zip(*splits, strict=True) if splits else ((), (), (), ())
    columns = {
        "id": ids,
        "label": labels,
        "class": [classes[label] if label >= 0 else None for label in labels],
        "splits": [",".join(names) for names in splits.values()],
        "start": [segment and segment.start for segment in segments],
        "end": [segment and segment.end for segment in segments],
        "unit": [segment and segment.unit for segment in segments],
        "path": belows,
    }
    return pa.table(columns, schema=pa.schema([*_ROW, _FILE.field("path")])), paths


def _stale(
    paths: Mapping[str, str], known: pa.Table, row_of: Mapping[str, int], decode: Collection[str]
) -> Iterator[tuple[str, str, bool]]:
    """Yield each file that is new or changed, or is to be decoded and was not yet."""
    sizes, changed = known["bytes"].to_numpy(), known["changed"].to_numpy()
    decoded = known["fault"].is_valid().to_numpy()
    for below, path in paths.items():
        row, wanted = row_of.get(below), path in decode
        known_as = None if row is None else (sizes[row], changed[row])
        if known_as is None or (wanted and not decoded[row]) or shards.stamp(path) != known_as:
            yield below, path, wanted


def _facts(file: tuple[str, str, bool]) -> dict[str, Any]:
    """Return the columns of a file, given as its name below the root, its path and whether to decode it."""
    below, path, decode = file
    size, changed = shards.stamp(path)
    facts: dict[str, Any] = {"path": below, "bytes": size, "changed": changed}
    try:
        facts["head"] = hashlib.blake2b(shards.head(path, HEAD_BYTES), digest_size=16).digest()
        if decode:
            end_after(2 * readers.whole_limit(path))  # within FFmpeg, no limit of ours is checked
            facts |= _decoded(path)
    except (OSError, VideoError) as error:
        facts["fault"] = str(error).removeprefix(f"{path}: ")
    return facts


def _lost(file: tuple[str, str, bool]) -> dict[str, Any]:
    """Return the columns of a file that ended the process that decoded it."""
    below, path, _ = file
    fault = "ends the process that decodes it: FFmpeg crashes on it, or does not come to its end"
    return _facts((below, path, False)) | {"fault": fault}


def _decoded(path: str) -> dict[str, Any]:
    with opened(path, readers.whole_limit(path)) as video:
        condition = video.condition()
        return {
            "fault": "" if condition.is_sound else f"is damaged ({condition})",
            "declared": condition.declared,
            "frames": condition.frames,
            "decodable": condition.decodable,
            "corrupt": condition.corrupt,
            **video.properties()._asdict(),
        }


def _files(table: pa.Table) -> pa.Table:
    """Return the columns of the files that an index knows, a row a file."""
    examined = table.filter(table["bytes"].is_valid())
    rows = {path: row for row, path in enumerate(examined["path"].to_pylist())}
    return examined.select(_FILE.names).take(pa.array([*rows.values()], pa.int64()))


def _save(table: pa.Table, store: Path) -> None:
    store.parent.mkdir(parents=True, exist_ok=True)
    with replacing(store) as temporary:
        parquet.write_table(table, temporary, compression="zstd", row_group_size=1 << 16)


def _spelt(name: str) -> str:
    """Return a name with the bytes that are no text spelt out, as Parquet has text alone."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")

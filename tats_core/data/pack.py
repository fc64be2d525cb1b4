"""A packed copy of a data set: its videos, byte for byte, in a few large files (`shards`).

A shard is written by one process, in order, and read back. The journal has a line for each that is
complete, so a copy that was ended early resumes; `packed.arrow` comes last.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from tats_core.data import index, shards
from tats_core.data.benchmarks.base import VIDEO_SUFFIXES, copy_lists, entries_below, refuse_inside
from tats_core.data.generate import MOTION
from tats_core.data.parallel import in_pieces
from tats_core.errors import DataError
from tats_core.files import append_line, replacing, write_text

SHARD_MIB: Final = 1024
_JOURNAL: Final = "packing.jsonl"
_BLOCK: Final = 1 << 22
_UNIT: Final = 512  # bytes; all parts of a tar file are multiples of it
_SCHEMA: Final = pa.schema(
    [
        ("path", pa.binary()),  # below the root; the rows are in the order of `walk`
        ("shard", pa.int32()),
        ("offset", pa.int64()),
        ("bytes", pa.int64()),
        ("changed", pa.int64()),  # nanoseconds
        ("crc", pa.uint32()),
    ]
)


@dataclass(frozen=True)
class _File:
    """A video to pack."""

    source: str
    below: str
    size: int
    changed: int
    offset: int = 0
    """Of its content in the shard."""

    @property
    def header(self) -> bytes:
        """What precedes the content in the shard."""
        info = tarfile.TarInfo(self.below.replace(os.sep, "/"))
        info.size, info.mtime = self.size, self.changed // 10**9
        return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


@dataclass(frozen=True)
class _Shard:
    number: int
    address: str
    files: tuple[_File, ...]
    bytes: int


def pack(
    name: str,
    root: Path,
    out: Path,
    progress: Callable[[int, int], None],
    *,
    address: str = "shards",
    shard_bytes: int = SHARD_MIB << 20,
    workers: int | None = None,
) -> int:
    """Write a packed copy of the data set `name` in `root` to `out`, and return the number of its shards.

    Args:
        progress: called now and then with the videos done and their number.
        address: of the folder of the shards, relative to `out` or one of fsspec's.
        shard_bytes: a shard has no more, unless a single video is larger.

    Raises:
        DataError: `root` is packed already or holds no video; `out` is in it, or is a copy of something else;
            a video cannot be read, or a shard not written; a list names a video that is not packed.
    """
    if shards.above(os.path.abspath(root)):  # noqa: PTH100
        raise DataError(f"{root} is a packed copy already; copy it with any tool")
    refuse_inside(root, out)
    planned = list(_planned(root, out, address, shard_bytes))
    if not planned:
        raise DataError(f"{name}: no video in {root} ({', '.join(VIDEO_SUFFIXES)})")
    complete = _begin(planned, out, address)
    copy_lists(root, out)
    if (root / MOTION).is_dir():  # of a generated set: where the motion is
        shutil.copytree(root / MOTION, out / MOTION, dirs_exist_ok=True)
    for folder in {os.path.dirname(file.below) for shard in planned for file in shard.files}:  # noqa: PTH120
        (out / folder).mkdir(parents=True, exist_ok=True)
    done, total = sum(map(len, complete.values())), sum(len(shard.files) for shard in planned)
    progress(done, total)
    todo = [shard for shard in planned if shard.number not in complete]
    for (shard,), (sums,) in in_pieces(_write, todo, workers, chunk=1):
        append_line(out / _JOURNAL, {"shard": shard.number, "crc": sums})
        complete[shard.number] = sums
        done += len(sums)
        progress(done, total)
    _save(planned, complete, out / shards.TABLE)
    shards.above.cache_clear()
    _verify(name, root, out)
    return len(planned)


def _planned(root: Path, out: Path, address: str, shard_bytes: int) -> Iterator[_Shard]:
    """Yield the shards in which the videos below `root` will be, in the order of `walk`."""
    files: list[_File] = []
    number = end = 0

    def shard() -> _Shard:
        return _Shard(number, shards.shard_address(out, address, number), tuple(files), end + 2 * _UNIT)

    for entry in entries_below(root, VIDEO_SUFFIXES):
        size, changed = shards.stamp(entry)
        if size < 0:
            raise DataError(f"{entry.path} cannot be packed: it leads to no file; remove it")
        below = os.path.relpath(entry.path, root)
        start = len(_File(entry.path, below, size, changed).header)
        length = start + size + -size % _UNIT
        if files and end + length + 2 * _UNIT > shard_bytes:
            yield shard()
            files, number, end = [], number + 1, 0
        files.append(_File(entry.path, below, size, changed, end + start))
        end += length
    if files:
        yield shard()


def _begin(planned: Sequence[_Shard], out: Path, address: str) -> dict[int, list[int]]:
    """Write what the copy will be; return the checksums of the shards that are complete already."""
    rows = [
        (file.below, file.size, file.changed, shard.number, file.offset)
        for shard in planned
        for file in shard.files
    ]
    plan = hashlib.sha256(repr((address, rows)).encode(errors="surrogateescape")).hexdigest()
    sizes = [shard.bytes for shard in planned]
    marker = out / shards.MARKER
    written = shards.sizes_of([shard.address for shard in planned])
    if not marker.exists():
        if taken := [shard.address for shard in planned if written[shard.number] is not None]:
            raise DataError(f"{taken[0]} exists, and is no shard of this copy; choose another address")
        settings = shards.Settings(shards=address, plan=plan, sizes=sizes)
        (out / _JOURNAL).unlink(missing_ok=True)
        write_text(marker, settings.model_dump_json() + "\n")
        return {}
    if json.loads(marker.read_text("utf-8")).get("plan") != plan:
        raise DataError(
            f"{out} is a packed copy of other videos, or of other settings; choose another folder, or "
            "delete it"
        )
    return {number: sums for number, sums in _journal(out) if written[number] == sizes[number]}


def _journal(out: Path) -> Iterator[tuple[int, list[int]]]:
    """Yield the shards that were completed, with the checksums of their videos."""
    if (out / _JOURNAL).exists():
        for line in (out / _JOURNAL).read_text("utf-8").splitlines():
            with suppress(ValueError):  # the last line of a process that was ended
                entry = json.loads(line)
                yield entry["shard"], entry["crc"]


def _write(shard: _Shard) -> list[int]:
    """Write a shard, read it back, and return the checksums of its videos."""
    fs, path = shards.file_system(shard.address)
    sums: list[int] = []
    try:
        fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        with fs.open(path, "wb") as target:
            for file in shard.files:
                target.write(file.header)
                sums.append(_copy(file, target))
                target.write(bytes(-file.size % _UNIT))
            target.write(bytes(2 * _UNIT))
        with fs.open(path, "rb") as written:
            for file, expected in zip(shard.files, sums, strict=True):
                written.seek(file.offset)
                if _checksum(written, file.size) != expected:
                    raise DataError(f"{shard.address} cannot be read as it was written; is the disk sound?")
    except DataError:
        raise
    except Exception as error:  # each file system has its own
        raise DataError(f"{shard.address} cannot be written ({error})") from error
    return sums


def _copy(file: _File, target: Any) -> int:
    """Copy a video, and return its checksum."""
    checksum = count = 0
    try:
        with Path(file.source).open("rb") as source:
            while block := source.read(_BLOCK):
                target.write(block)
                checksum, count = zlib.crc32(block, checksum), count + len(block)
    except OSError as error:
        raise DataError(f"{file.source} cannot be packed ({error.strerror or error})") from error
    if count != file.size:
        raise DataError(f"{file.source} has changed while it was packed; run again")
    return checksum


def _checksum(source: Any, size: int) -> int | None:
    """Return the checksum of the next `size` bytes; None if there are fewer."""
    checksum = 0
    while size and (block := source.read(min(size, _BLOCK))):
        checksum, size = zlib.crc32(block, checksum), size - len(block)
    return None if size else checksum


def _save(planned: Sequence[_Shard], sums: dict[int, list[int]], path: Path) -> None:
    rows = [
        (os.fsencode(file.below), shard.number, file.offset, file.size, file.changed, crc)
        for shard in planned
        for file, crc in zip(shard.files, sums[shard.number], strict=True)
    ]
    columns = dict(zip(_SCHEMA.names, zip(*rows, strict=True), strict=True))
    with (
        replacing(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, _SCHEMA) as writer,
    ):
        writer.write_table(pa.table(columns, schema=_SCHEMA))


def _verify(name: str, root: Path, out: Path) -> None:
    """Raise DataError where the lists of the copy do not give the same videos."""
    copies = dict(index.listed(name, out.absolute()))
    for split, before in index.listed(name, root):
        after = copies.get(split)
        if after is not None and before.digest() == after.digest():
            continue
        copied = {after.below(video) for video in after.videos} if after else set()
        lacking = [video.path for video in before.videos if before.below(video) not in copied]
        raise DataError(
            f"{out} lacks {lacking[0] if lacking else 'a video'} of the {split} list; a list must name its "
            f"videos relative to itself, and only files are packed that end in {', '.join(VIDEO_SUFFIXES)}"
        )

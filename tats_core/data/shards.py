"""Videos in shards: a packed copy of a data set has its lists and folders, and shards in place of the videos.

::

    packed.json       where the shards are: a folder beside it, or any address that fsspec knows
    packed.arrow      a row a video: its path, shard, offset, size, time of change and CRC-32
    shards/00000.tar  the videos, one after the other; `tar xf` gives them back
    splits/…          the lists, and a folder wherever one holds videos

A packed video keeps its path, though there is no file: `base.walk` yields it, and `stamp` and `opened` here
know it. So lists, manifests, indexes, the keys of stages and the samples are those of the plain copy, and
nothing else has to know of shards. The table is mapped into memory, shared by the processes of a machine.
"""

from __future__ import annotations

import functools
import io
import os
import zlib
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

from pydantic import BaseModel, ValidationError

from tats_core.errors import DataError, VideoError

MARKER: Final = "packed.json"
TABLE: Final = "packed.arrow"
_ROWS: Final = 1 << 14
"""Of the table that are made Python's at a time."""


class Settings(BaseModel):
    """The content of `packed.json`."""

    shards: str
    """Folder of the shards, relative to this file, or an address such as s3://bucket/ssv2."""
    plan: str
    """Digest of what is packed and where; see `pack`."""
    sizes: list[int]
    """Bytes of each shard."""


class PackedVideo(NamedTuple):
    """A video in a shard."""

    path: str
    """Where its file would be."""
    packed: Packed
    shard: int
    offset: int
    size: int
    changed: int
    crc: int

    def read(self, limit: int | None = None) -> bytes:
        """Return the content, or its first `limit` bytes.

        Raises:
            DataError: the shard is missing, cut off or cannot be reached.
            VideoError: the content is not what was packed.
        """
        size = self.size if limit is None else min(limit, self.size)
        content = self.packed.range(self.shard, self.offset, size)
        if size == self.size and zlib.crc32(content) != self.crc:
            raise VideoError(
                f"{self.path}: its bytes in {self.packed.address(self.shard)} are not those that were "
                "packed; copy the shard again"
            )
        return content

    def opened(self) -> BinaryIO:
        """Return the content as a file; raises as `read`."""
        return _Content(self.read(), self.path)


class _Content(io.BytesIO):
    """A file in memory; FFmpeg takes its name into account when it guesses the format."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name


class Packed:
    """The packed copy in a folder.

    Raises:
        DataError: it is not complete, or its files cannot be read.
    """

    def __init__(self, root: str) -> None:
        import pyarrow as pa  # here: few processes read shards, and all that decode import this module

        self.root = root
        try:
            self.settings = Settings.model_validate_json(Path(root, MARKER).read_bytes())
            self.table = pa.ipc.open_file(pa.memory_map(str(Path(root, TABLE)))).read_all()
        except FileNotFoundError as error:
            raise DataError(
                f"{root} is a packed copy that is not complete ({Path(error.filename or TABLE).name} is "
                "missing); run the same `tats data pack` again"
            ) from error
        except (OSError, pa.ArrowInvalid, ValidationError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(
                f"{root} is a packed copy that cannot be read ({reason}); copy it again"
            ) from error
        self._paths = self.table["path"]
        self._is_checked = False

    def find(self, path: str) -> PackedVideo | None:
        """Return the video of an absolute path; None if it is not packed here."""
        below = path[len(self.root.rstrip(os.sep)) + 1 :]
        row = self._from(_rank(below))
        if row == len(self._paths) or self._path(row) != below:
            return None
        _, *where = (column[row].as_py() for column in self.table.columns)
        return PackedVideo(path, self, *where)

    def walk(self, folder: Path, suffixes: tuple[str, ...]) -> Iterator[PackedVideo]:
        """Yield the videos below a folder of the copy, in the order of `base.walk`.

        Raises:
            DataError: a shard is missing or cut off.
        """
        self._check()
        prefix = os.path.relpath(folder, self.root) + os.sep
        prefix = "" if prefix == f".{os.sep}" else prefix
        for batch in self.table.slice(self._from(_rank(prefix)[:-1])).to_batches(_ROWS):
            for name, *where in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                below = os.fsdecode(name)
                if not below.startswith(prefix):
                    return
                if below.lower().endswith(suffixes):
                    yield PackedVideo(str(folder / below[len(prefix) :]), self, *where)

    def address(self, shard: int) -> str:
        """Return the address of a shard."""
        return shard_address(self.root, self.settings.shards, shard)

    def range(self, shard: int, offset: int, size: int) -> bytes:
        """Return `size` bytes of a shard.

        Raises:
            DataError: they are not there, or cannot be reached: never a reason to train on another video.
        """
        address = self.address(shard)
        fs, path = file_system(address)
        try:
            content: bytes = fs.cat_file(path, start=offset, end=offset + size) if size else b""
        except Exception as error:  # each file system has its own
            raise DataError(f"{address} cannot be read ({error})") from error
        if len(content) < size:
            raise DataError(f"{address} is cut off: {self._cut(offset + len(content), shard)}")
        return content

    def _check(self) -> None:
        """Compare the sizes of all shards, once."""
        if self._is_checked:
            return
        addresses = [self.address(shard) for shard in range(len(self.settings.sizes))]
        sizes = sizes_of(addresses)
        for shard, (address, size) in enumerate(zip(addresses, sizes, strict=True)):
            if size is None:
                raise DataError(f"{address}, a shard of {self.root}, is not there; copy it again")
            if size < self.settings.sizes[shard]:
                raise DataError(f"{address} is cut off: {self._cut(size, shard)}")
        self._is_checked = True

    def _cut(self, size: int, shard: int) -> str:
        return f"it has {size:,} of {self.settings.sizes[shard]:,} bytes; copy it again"

    def _from(self, rank: tuple[tuple[bool, str], ...]) -> int:
        """Return the first row whose path is not before one of this rank."""
        return bisect_left(range(len(self._paths)), rank, key=lambda row: _rank(self._path(row)))

    def _path(self, row: int) -> str:
        return os.fsdecode(self._paths[row].as_py())


def _rank(path: str) -> tuple[tuple[bool, str], ...]:
    """Return the key by which `base.walk` sorts: of each folder its files, then the folders in it."""
    *folders, name = path.split(os.sep)  # noqa: PTH206 (quick)
    return (*((True, folder) for folder in folders), (False, name))


# -------------------------------------------------------------------------------- files, packed or not


def find(path: str | Path) -> PackedVideo | None:
    """Return the packed video of a path; None where a file, or nothing, is at `path`.

    Raises:
        DataError: the packed copy is not complete, or cannot be read.
    """
    absolute = os.path.abspath(path)  # noqa: PTH100 (`..` too)
    packed = above(os.path.dirname(absolute))  # noqa: PTH120
    return packed.find(absolute) if packed is not None else None


@functools.lru_cache(maxsize=1 << 14)
def above(folder: str) -> Packed | None:
    """Return the packed copy that an absolute folder is in; asked once for a folder."""
    if os.path.exists(os.path.join(folder, MARKER)):  # noqa: PTH110, PTH118
        return Packed(folder)
    parent = os.path.dirname(folder)  # noqa: PTH120
    return above(parent) if parent != folder else None


def opened(path: str | Path) -> BinaryIO:
    """Open a video's file, or its content where it is packed; see `PackedVideo.read`."""
    packed = find(path)
    return Path(path).open("rb") if packed is None else packed.opened()


def head(path: str | Path, limit: int) -> bytes:
    """Return the first `limit` bytes of a video; raises as `PackedVideo.read`, or OSError."""
    if (packed := find(path)) is not None:
        return packed.read(limit)
    with Path(path).open("rb") as file:
        return file.read(limit)


def stamp(file: str | Path | os.DirEntry[str] | PackedVideo) -> tuple[int, int]:
    """Return a video's size and time of change in nanoseconds; -1 and -1 if there is none."""
    if isinstance(file, str | Path):
        file = find(file) or file
    if isinstance(file, PackedVideo):
        return file.size, file.changed
    try:
        status = os.stat(os.fspath(file))  # noqa: PTH116
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


# ------------------------------------------------------------------------------------------- addresses


def shard_address(root: str | Path, shards: str, number: int) -> str:
    """Return the address of a shard of the packed copy in `root`."""
    base = shards if "://" in shards else os.path.join(root, shards)  # noqa: PTH118
    return f"{base.rstrip('/')}/{number:05d}.tar"


def file_system(address: str) -> tuple[Any, str]:
    """Return the file system of an address, and the path in it.

    Raises:
        DataError: there is none of this kind, or its package is not installed.
    """
    import fsspec  # here, as pyarrow above

    if "://" not in address:
        return fsspec.filesystem("file"), address
    try:
        fs, path = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise DataError(
            f"{address} cannot be read ({error}); mend the address, or install the package of its kind"
        ) from error
    return fs, path


def sizes_of(addresses: list[str]) -> list[int | None]:
    """Return the bytes of each file of one folder; None where there is no such file."""
    if not addresses:
        return []
    fs, _ = file_system(addresses[0])
    names = [file_system(address)[1] for address in addresses]
    folder = names[0].rpartition("/")[0]
    try:
        sizes = {entry["name"].rpartition("/")[2]: entry["size"] for entry in fs.ls(folder, detail=True)}
    except FileNotFoundError:
        sizes = {}
    except Exception as error:  # each file system has its own
        raise DataError(f"{addresses[0].rpartition('/')[0]} cannot be read ({error})") from error
    return [sizes.get(name.rpartition("/")[2]) for name in names]

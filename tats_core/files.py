"""Files that appear complete or not at all, whose content is checked when it is read, and their digests."""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tats_core.errors import StoreError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Form = TypeVar("Form")

_ADAPTERS: dict[object, TypeAdapter[Any]] = {}


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path` (`*.tmp`); write it, and it is renamed to `path`.

    A reader sees the old content or the new. If the block raises, `path` stays as it is and the temporary
    file is removed.

    Args:
        durable: flush to the disk before the rename, so that a power cut leaves no empty file.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        if durable:
            sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a file and the folders above it; see `replacing`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, durable=durable) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Write UTF-8, line ends as given; bytes of a file name that are not UTF-8 become escapes of JSON."""
    write_bytes(path, text.encode(errors="backslashreplace"), durable=durable)


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, form: type[Form], what: str) -> Form:
    """Return the content of `path`, checked against `form`; keys that `form` does not have are ignored.

    Args:
        form: a dataclass, or a type such as `dict[str, float]`.
        what: what the file should be, for the message: "the record of a run".

    Raises:
        StoreError: the file cannot be read, or is not `what`.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return _adapter(form).validate_python(content)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror})") from error
    except RecursionError as error:
        raise StoreError(f"{path}: is not {what} (it is nested too deeply)") from error
    except ValueError as error:
        raise StoreError(f"{path}: is not {what} ({_problem(error)})") from error


def read_json_if_there(path: Path, form: type[Form], what: str) -> Form | None:
    """Return the content of `path` as `read_json` does, or None where there is no such file."""
    try:
        return read_json(path, form, what)
    except StoreError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            return None
        raise


def _adapter(form: type[Form]) -> TypeAdapter[Form]:
    from pydantic import TypeAdapter  # here: `tats --help` does without it

    if form not in _ADAPTERS:
        _ADAPTERS[form] = TypeAdapter(form)
    return _ADAPTERS[form]


def _problem(error: ValueError) -> str:
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    return f"{key}: {first['msg']}" if key else first["msg"]


def append_line(path: Path, value: object) -> None:
    """Append `value` as one line of JSON, complete or not at all.

    An incomplete last line, which a power cut or a full disk left, is ended first: its reader passes it over.

    Raises:
        OSError: it cannot be written; the file is as it was.
    """
    line = json.dumps(value).encode() + b"\n"
    with path.open("a+b", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        try:
            while line:
                line = line[file.write(line) :]
        except OSError:
            file.truncate(end)
            raise


@dataclass(frozen=True)
class FileEntry:
    """A file of a manifest."""

    size: int
    sha256: str


def digest(path: Path) -> str:
    """Return the sha256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Digests:
    """The digests of files; an unchanged file is read once."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], str] = {}

    def fault(self, folder: Path, files: Mapping[str, FileEntry], up_to: float = math.inf) -> str | None:
        """Return what is wrong with the first file that is not as its entry says, or None if all are.

        Args:
            up_to: of files with more bytes only the size is compared.
        """
        for name, entry in files.items():
            path = os.path.join(folder, name)  # noqa: PTH118 (thousands of files)
            try:
                status = os.stat(path)  # noqa: PTH116
            except (FileNotFoundError, NotADirectoryError):
                return f"{name} is gone"
            if not stat.S_ISREG(status.st_mode):
                return f"{name} is gone"
            if status.st_size != entry.size:
                return f"{name} has another size"
            if entry.size <= up_to and self.of(path, status) != entry.sha256:
                return f"{name} has another content"
        return None

    def of(self, path: str | Path, status: os.stat_result) -> str:
        """Return the sha256 of the file `path`, which has this status."""
        version = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if version not in self._known:
            self._known[version] = digest(Path(path))
        return self._known[version]


def sync(path: Path) -> None:
    """Flush a file to the disk, or the names in a folder: a rename before it outlives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Files that appear complete or not at all, and their digests."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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


def copy(source: Path, path: Path) -> None:
    """Copy the content of `source` to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        shutil.copyfile(source, temporary)


def digest(path: Path) -> str:
    """Return the sha256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flush a file to the disk, or the names in a folder: a rename before it outlives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

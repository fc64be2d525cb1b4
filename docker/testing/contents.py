"""The contents of an image, file by file, apart from times."""

from __future__ import annotations

import hashlib
import subprocess
import tarfile

from testing.host import docker


def differing(image: str, other: str) -> list[str]:
    """Return the paths at which two images differ, in kind, mode, owner or bytes."""
    mine, theirs = listed(image), listed(other)
    return sorted(path for path in mine.keys() | theirs.keys() if mine.get(path) != theirs.get(path))


def listed(image: str) -> dict[str, tuple[object, ...]]:
    """Return path → kind, mode, owner and digest, for the image's files and its settings."""
    container = docker("create", image).stdout.strip()
    try:
        with subprocess.Popen(["docker", "export", container], stdout=subprocess.PIPE) as process:
            assert process.stdout
            with tarfile.open(fileobj=process.stdout, mode="r|") as files:
                contents = {file.name: _describe(files, file) for file in files}
    finally:
        docker("rm", container)
    settings = docker("image", "inspect", "--format", "{{json .Config}}", image).stdout
    return {**contents, "(settings)": (settings,)}


def _describe(files: tarfile.TarFile, file: tarfile.TarInfo) -> tuple[object, ...]:
    content = files.extractfile(file) if file.isreg() else None
    digest = hashlib.file_digest(content, "sha256").hexdigest() if content else file.linkname  # type: ignore[arg-type]
    return (file.type, file.mode, file.uid, file.gid, digest)

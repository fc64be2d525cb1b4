"""Stage keys and the store of committed outputs.

A stage key is the sha256 of five components: the kind and its version, the resolved configuration, the code,
the digests of the inputs, and what is read from outside the project folder. `key.json` holds them, so that a
plan can name the one that changed.

An output appears complete or not at all: the stage works in `stages/<kind>-<key12>.partial/`, and a commit
writes the manifest (files, sizes, digests), then renames the folder. An output is usable only while its
files match its manifest.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from tats_core.errors import StoreError
from tats_core.files import digest, read_json, read_json_if_there, sync, write_json
from tats_core.store.layout import ATTEMPT, EVENTS, KEY, MANIFEST, SCRATCH

# At a cache hit, the digests of files up to this size are verified; of larger ones only the size is compared,
# since reading them would take minutes.
VERIFIED_BYTES = 1 << 20

# Events and logs hold times, and no stage reads them as an input: the output's digest leaves them out.
_NOT_OUTPUT = (EVENTS, "log/")

_SCRATCH = tuple(f"{name}/" for name in SCRATCH)


@dataclass(frozen=True)
class StageKey:
    """The components of a stage's identity, and their digest."""

    components: Mapping[str, Any]

    @cached_property
    def digest(self) -> str:
        """64 hex digits."""
        return hashlib.sha256(canonical(self.components)).hexdigest()

    @property
    def short(self) -> str:
        """The first 12 of them, as in folder names."""
        return self.digest[:12]


@dataclass(frozen=True)
class FileEntry:
    """A file of an output as its manifest lists it."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The `manifest.json` of a committed output: its digest, and its files by name."""

    digest: str
    files: dict[str, FileEntry]


@dataclass(frozen=True)
class Origin:
    """The `key.json` of a committed output: which stage of which run made it, when, and its key."""

    pipeline: str
    stage: str
    run: str
    time: float
    components: dict[str, Any]

    @property
    def code(self) -> dict[str, str]:
        """Module → digest of the code that made it."""
        return dict(self.components.get("code", {}))

    @property
    def inputs(self) -> set[str]:
        """The digests of the outputs that it was made from."""
        return {entry["digest"] for entry in self.components.get("inputs", ())}


@dataclass(frozen=True)
class _Attempt:
    forced: bool


def canonical(value: object) -> bytes:
    """Return the JSON text of `value` that digests are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


class StageStore:
    """The folder `stages/` of a project folder."""

    def __init__(self, home: Path) -> None:
        self.root = home / "stages"
        self._digests: dict[tuple[int, ...], str] = {}

    def folder(self, kind: str, key: StageKey | str) -> Path:
        """Return the folder of the output of `key` (or of the key with this digest), once committed."""
        return self.root / f"{kind}-{key[:12] if isinstance(key, str) else key.short}"

    def fault(self, folder: Path, key: StageKey | None = None) -> str | None:
        """Return why the output in `folder` cannot be used, or None if it can ("" where there is none)."""
        if not folder.is_dir():
            return ""
        try:
            files = self.manifest(folder).files
            stored = StageKey(self.origin(folder).components)
        except StoreError as error:
            return f"its manifest cannot be read ({error})"
        if key is not None and stored.digest != key.digest:
            return "it was made under another key"
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
            if entry.size <= VERIFIED_BYTES and self._digest(path, status) != entry.sha256:
                return f"{name} has another content"
        return None

    def _digest(self, path: str, status: os.stat_result) -> str:
        """Return a file's digest; an unchanged file is read once by this process."""
        version = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if version not in self._digests:
            self._digests[version] = digest(Path(path))
        return self._digests[version]

    def manifest(self, folder: Path) -> Manifest:
        """Return the manifest of a committed output.

        Raises:
            StoreError: it cannot be read.
        """
        return read_json(folder / MANIFEST, Manifest, "the manifest of an output")

    def output_digest(self, folder: Path) -> str:
        """Return the digest of a committed output, as the keys of the stages that read it contain it."""
        return self.manifest(folder).digest

    def origin(self, folder: Path) -> Origin:
        """Return where a committed output comes from.

        Raises:
            StoreError: its `key.json` cannot be read.
        """
        return read_json(folder / KEY, Origin, "the key of an output")

    def history(self, kind: str) -> dict[tuple[str, str], Mapping[str, Any]]:
        """Return (pipeline, stage) → components of its newest output, for all stages of `kind`."""
        newest: dict[tuple[str, str], Origin] = {}
        for path in self.root.glob(f"{kind}-*/{KEY}"):
            if path.parent.suffix:  # .partial, .old: not committed
                continue
            try:
                origin = self.origin(path.parent)
            except StoreError:
                continue  # removed meanwhile, or corrupt, which `fault` reports where it matters
            known = newest.get((origin.pipeline, origin.stage))
            if known is None or origin.time > known.time:
                newest[origin.pipeline, origin.stage] = origin
        return {name: origin.components for name, origin in newest.items()}

    @contextmanager
    def lock(self, folder: Path, wait: Callable[[str], None]) -> Iterator[None]:
        """Hold the right to make the output `folder`; the kernel releases it when this process ends.

        Args:
            wait: called about five times a second while another process holds the lock, with that process's
                id; it may raise to give up.
        """
        locks = self.root / ".locks"
        make_folder(locks)
        with (locks / folder.name).open("a+", encoding="utf-8") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    file.seek(0)
                    wait(file.read().strip() or "unknown")
                    time.sleep(0.2)
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def deciding(self) -> AbstractContextManager[None]:
        """Hold off garbage collection while a run chooses outputs to reuse and records them."""
        return self._collection(fcntl.LOCK_SH)

    def collecting(self) -> AbstractContextManager[None]:
        """Hold off the choice of outputs to reuse while garbage collection moves outputs away."""
        return self._collection(fcntl.LOCK_EX)

    @contextmanager
    def _collection(self, mode: int) -> Iterator[None]:
        locks = self.root / ".locks"
        make_folder(locks)
        # Over NFS a shared lock needs a readable file, and an exclusive lock a writable one.
        with (locks / ".collection").open("a+") as file:
            fcntl.flock(file, mode)
            yield

    def begin(self, folder: Path, *, fresh: bool) -> Path:
        """Return the work folder for the output `folder`: that of an earlier attempt, unless `fresh`.

        It holds everything that an attempt leaves, including checkpoints.
        """
        partial = self.partial(folder)
        if fresh and partial.exists():
            shutil.rmtree(partial)
        attempt = partial / ATTEMPT
        if not attempt.exists():
            make_folder(partial)
            write_json(attempt, {"forced": fresh})
        return partial

    def partial(self, folder: Path) -> Path:
        """Return the work folder of the output `folder`."""
        return folder.with_name(folder.name + ".partial")

    def current(self, folder: Path) -> Path:
        """Return the folder with the newest files of the output `folder`: its work folder if it has one."""
        partial = self.partial(folder)
        return partial if partial.exists() else folder

    def unfinished(self, folder: Path) -> Literal["forced", "begun"] | None:
        """Return whether an attempt at `folder` was interrupted, and whether it had been forced."""
        attempt = read_json_if_there(self.partial(folder) / ATTEMPT, _Attempt, "the mark of an attempt")
        return None if attempt is None else "forced" if attempt.forced else "begun"

    def commit(
        self,
        partial: Path,
        folder: Path,
        key: StageKey,
        origin: Mapping[str, str],
        identities: Mapping[str, str],
    ) -> None:
        """Turn a finished work folder into the output `folder`; an earlier output there is replaced.

        Args:
            origin: the pipeline, stage and run that made it.
            identities: see `StageKind.identities`.
        """
        write_json(partial / KEY, {**origin, "time": time.time(), "components": key.components})
        write_json(partial / MANIFEST, asdict(_manifest(partial, identities)))
        if folder.exists():
            replaced = folder.with_name(f"{folder.name}.old-{uuid.uuid4().hex[:8]}")
            folder.rename(replaced)
            partial.rename(folder)
            shutil.rmtree(replaced)
        else:
            partial.rename(folder)
        sync(self.root)
        # Only now: after a kill before the rename, the next attempt needs the checkpoints to resume.
        (folder / ATTEMPT).unlink(missing_ok=True)
        for name in SCRATCH:
            shutil.rmtree(folder / name, ignore_errors=True)


def _manifest(folder: Path, identities: Mapping[str, str]) -> Manifest:
    files: dict[str, FileEntry] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or name in (MANIFEST, KEY, ATTEMPT) or name.endswith(".tmp"):
            continue
        if name.startswith(_SCRATCH):
            continue
        size = path.stat().st_size
        if size > VERIFIED_BYTES:
            sync(path)  # a power cut must not change its content: a cache hit compares only its size
        files[name] = FileEntry(size, digest(path))
    output = {
        name: identities.get(name, entry.sha256)
        for name, entry in files.items()
        if not name.startswith(_NOT_OUTPUT)
    }
    return Manifest(hashlib.sha256(canonical(output)).hexdigest(), files)


def make_folder(folder: Path) -> None:
    """Create `folder` and those above it.

    Raises:
        StoreError: it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"{folder}: cannot be created ({error.strerror}); set TATS_HOME to a folder you can write to"
        ) from error

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
import math
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from tats_core.errors import StoreError
from tats_core.files import Digests, FileEntry, read_json, read_json_if_there, sync, write_json
from tats_core.store.layout import ATTEMPT, EVENTS, KEY, MANIFEST, SCRATCH

# At a cache hit, larger files are compared by their size only: reading them would take minutes.
VERIFIED_BYTES = 1 << 20

# Events and logs hold times, and no stage reads them as an input: the output's digest leaves them out.
_NOT_OUTPUT = (EVENTS, "log/")

_SCRATCH = tuple(f"{name}/" for name in SCRATCH)


class KeyInput(TypedDict):
    """An output that a stage reads; a stage that gathers also names the stage that made it, and its axes."""

    kind: str
    digest: str
    axes: NotRequired[dict[str, str]]
    stage: NotRequired[str]


class OwnComponents(TypedDict):
    """The components of a stage's key that do not wait for its inputs."""

    kind: str
    config: dict[str, Any]
    code: dict[str, str]
    external: dict[str, str]


class Components(OwnComponents):
    """All components of a stage's key."""

    inputs: list[KeyInput]


@dataclass(frozen=True)
class StageKey:
    """The components of a stage's identity, and their digest."""

    components: Components

    @cached_property
    def digest(self) -> str:
        """64 hex digits; folders are named after the first 12."""
        return hashlib.sha256(canonical(self.components)).hexdigest()


@dataclass(frozen=True)
class Manifest:
    """The `manifest.json` of a committed output: its digest, and its files by name."""

    digest: str
    files: dict[str, FileEntry]
    identities: dict[str, str] | None = None
    """See `StageKind.identities`; None in a manifest of before they were written."""

    @classmethod
    def of(cls, files: dict[str, FileEntry], identities: Mapping[str, str]) -> Manifest:
        """Return the manifest of `files`, with its digest."""
        output = {
            name: identities.get(name, entry.sha256)
            for name, entry in files.items()
            if not name.startswith(_NOT_OUTPUT)
        }
        return cls(hashlib.sha256(canonical(output)).hexdigest(), files, dict(identities))


@dataclass(frozen=True)
class Origin:
    """The `key.json` of a committed output: which stage of which run made it, when, and its key."""

    pipeline: str
    stage: str
    run: str
    time: float
    components: Components


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
        self._digests = Digests()

    def folder(self, kind: str, key: StageKey | str) -> Path:
        """Return the folder of the output of `key` (or of the key with this digest), once committed."""
        return self.root / f"{kind}-{(key if isinstance(key, str) else key.digest)[:12]}"

    def fault(self, folder: Path, key: StageKey | None = None, *, whole: bool = False) -> str | None:
        """Return why the output in `folder` cannot be used, or None if it can ("" where there is none).

        Args:
            key: that it must have been made under; None: any.
            whole: read large files too, instead of comparing their sizes.
        """
        if not folder.is_dir():
            return ""
        try:
            manifest = self.manifest(folder)
            stored = StageKey(self.origin(folder).components)
        except StoreError as error:
            return f"its manifest cannot be read ({error})"
        if key is not None and stored.digest != key.digest:
            return "it was made under another key"
        identities = manifest.identities
        if identities is not None and manifest != Manifest.of(manifest.files, identities):
            return "its manifest was changed"
        return self._digests.fault(folder, manifest.files, math.inf if whole else VERIFIED_BYTES)

    def verify(self, folder: Path) -> None:
        """Read a committed output in full; where it is corrupt, the next run makes it anew.

        Raises:
            StoreError: a file is not as the manifest says.
        """
        fault = self.fault(folder, whole=True)
        if fault is not None:
            # At a cache hit only small files are read: it must not be taken for a complete output again.
            with suppress(FileNotFoundError):
                (folder / MANIFEST).rename(folder / f"{MANIFEST}.corrupt")
            raise StoreError(
                f"{folder}: {fault or 'it is gone'}; run again: the stage that made it runs anew"
            )

    def manifest(self, folder: Path) -> Manifest:
        """Return the manifest of a committed output.

        Raises:
            StoreError: it cannot be read.
        """
        return read_json(folder / MANIFEST, Manifest, "the manifest of an output")

    def origin(self, folder: Path) -> Origin:
        """Return where a committed output comes from.

        Raises:
            StoreError: its `key.json` cannot be read.
        """
        return read_json(folder / KEY, Origin, "the key of an output")

    def history(self, kind: str) -> dict[tuple[str, str], Components]:
        """Return (pipeline, stage) → components of its newest output, for all stages of `kind`."""
        newest: dict[tuple[str, str], Origin] = {}
        for path in self.root.glob(f"{kind}-*/{KEY}"):
            if path.parent.suffix:  # .partial, .old: not committed
                continue
            # It may be removed meanwhile, or corrupt, which `fault` reports where it matters.
            with suppress(StoreError):
                origin = self.origin(path.parent)
                name = origin.pipeline, origin.stage
                if name not in newest or origin.time > newest[name].time:
                    newest[name] = origin
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

    def unfinished(self, folder: Path) -> Literal["forced", "begun", "corrupt"] | None:
        """Return whether an attempt at `folder` was interrupted, and whether it had been forced."""
        try:
            attempt = read_json_if_there(self.partial(folder) / ATTEMPT, _Attempt, "the mark of an attempt")
        except StoreError:
            return "corrupt"
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
        write_json(partial / MANIFEST, asdict(self._manifest(partial, identities)))
        replaced = aside(folder) if folder.exists() else None
        partial.rename(folder)
        if replaced:
            shutil.rmtree(replaced)
        sync(self.root)
        # Only now: after a kill before the rename, the next attempt needs the checkpoints to resume.
        (folder / ATTEMPT).unlink(missing_ok=True)
        for name in SCRATCH:
            shutil.rmtree(folder / name, ignore_errors=True)

    def _manifest(self, folder: Path, identities: Mapping[str, str]) -> Manifest:
        files: dict[str, FileEntry] = {}
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            ours = name in (MANIFEST, KEY, ATTEMPT) or name.startswith(_SCRATCH)
            if ours or name.endswith(".tmp") or not path.is_file():
                continue
            status = path.stat()
            if status.st_size > VERIFIED_BYTES:
                sync(path)  # a power cut must not change its content: a cache hit compares only its size
            files[name] = FileEntry(status.st_size, self._digests.of(path, status))
        return Manifest.of(files, identities)


def aside(folder: Path) -> Path:
    """Rename a folder, which is to be removed, to a name that the store ignores; return its new path."""
    return folder.rename(folder.with_name(f"{folder.name}.old-{secrets.token_hex(4)}"))


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

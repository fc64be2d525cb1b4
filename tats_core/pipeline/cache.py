"""Stage keys and the store of committed outputs.

A stage key is the sha256 of five components, each of which is kept in `key.json` so that a plan can say
which one changed: the kind and its version, the resolved configuration, the code, the digests of the
inputs, and what is read from outside.

An output appears whole or not at all: the stage works in `stages/<kind>-<key12>.partial/`, and a commit
writes the manifest (files, sizes, digests), then renames the folder. A commit counts only while its
manifest still fits the files.
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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tats_core.errors import StoreError
from tats_core.files import digest, sync_folder, write_json
from tats_core.pipeline import code
from tats_core.pipeline.stages.base import SCRATCH

if TYPE_CHECKING:
    from tats_core.pipeline.graph import Instance  # which imports the stage kinds, and they torch

MANIFEST = "manifest.json"
KEY = "key.json"
ATTEMPT = "attempt.json"

# Files up to this size are read again at every hit; of larger ones only the size is compared, so that a
# look at the store does not cost minutes. Their digest was taken once, at the commit.
VERIFIED_BYTES = 1 << 20

# What a stage says about its work is not its output: it holds times, and nothing reads it as an input.
_NOT_OUTPUT = ("events.jsonl", "log/")

_SCRATCH = tuple(f"{name}/" for name in SCRATCH)


@dataclass(frozen=True)
class StageKey:
    """The components of a stage's identity, and their digest."""

    components: Mapping[str, Any]

    @cached_property
    def digest(self) -> str:
        """64 hex digits."""
        return hashlib.sha256(_canonical(self.components)).hexdigest()

    @property
    def short(self) -> str:
        """The first 12 of them, as in folder names."""
        return self.digest[:12]


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def stage_key(instance: Instance, inputs: Iterable[tuple[Instance, str]], pipeline: str) -> StageKey:
    """Return the key of `instance`, given each instance it reads with its output's digest.

    The names of stages and pipelines are not in it: two pipelines that do the same work share it. Only a
    stage that gathers is about its pipeline: it tells its inputs apart by their axes and names them as the
    sources of its numbers.
    """
    read = [
        {"kind": one.kind.name, "digest": digest}
        | ({"axes": dict(one.axes), "stage": one.name} if instance.kind.gathers else {})
        for one, digest in inputs
    ]
    return StageKey({**own_components(instance, pipeline), "inputs": sorted(read, key=_canonical)})


def own_components(instance: Instance, pipeline: str) -> dict[str, Any]:
    """Return the components of the key of `instance` that do not wait for its inputs."""
    kind = instance.kind
    return {
        "kind": f"{kind.name}/{kind.version}" + (f" of {pipeline}" if kind.gathers else ""),
        "config": without(instance.config.model_dump(mode="json"), kind.key_excludes),
        "code": code.digests((kind.__module__, *kind.code)),
        "external": dict(kind.external(instance.config)),
    }


def without(config: Any, excluded: frozenset[str]) -> Any:
    """Return `config` without the fields named `excluded`, at any depth."""
    if isinstance(config, Mapping):
        return {key: without(value, excluded) for key, value in config.items() if key not in excluded}
    if isinstance(config, list):
        return [without(value, excluded) for value in config]
    return config


class StageStore:
    """The folder `stages/` of a project folder."""

    def __init__(self, home: Path) -> None:
        self.root = home / "stages"
        self._digests: dict[tuple[int, ...], str] = {}

    def folder(self, kind: str, key: StageKey | str) -> Path:
        """Return where the output of `key` (or of the key with this digest) is, once committed."""
        return self.root / f"{kind}-{key[:12] if isinstance(key, str) else key.short}"

    def fault(self, folder: Path, key: StageKey | None = None) -> str | None:
        """Return why the output in `folder` cannot be used, or None if it can ("" where there is none)."""
        if not folder.is_dir():
            return ""
        try:
            files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
            stored = StageKey(json.loads((folder / KEY).read_text(encoding="utf-8"))["components"])
        except (OSError, ValueError, KeyError) as error:
            return f"its manifest cannot be read ({error})"
        if key is not None and stored.digest != key.digest:
            return "it was made under another key"
        for name, entry in files.items():
            path = os.path.join(folder, name)  # noqa: PTH118 (thousands of files)
            try:
                found = os.stat(path)  # noqa: PTH116
            except (FileNotFoundError, NotADirectoryError):
                return f"{name} is gone"
            if not stat.S_ISREG(found.st_mode):
                return f"{name} is gone"
            if found.st_size != entry["size"]:
                return f"{name} has another size"
            if entry["size"] <= VERIFIED_BYTES and self._digest(path, found) != entry["sha256"]:
                return f"{name} has another content"
        return None

    def _digest(self, path: str, found: os.stat_result) -> str:
        """Return a file's digest; what has not changed since this process read it is not read again."""
        version = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        if version not in self._digests:
            self._digests[version] = digest(Path(path))
        return self._digests[version]

    def output_digest(self, folder: Path) -> str:
        """Return the digest of a committed output, as the keys of its readers contain it."""
        digest: str = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["digest"]
        return digest

    def origin(self, folder: Path) -> dict[str, Any]:
        """Return the `key.json` of a committed output: components, stage, pipeline, run, time."""
        stored: dict[str, Any] = json.loads((folder / KEY).read_text(encoding="utf-8"))
        return stored

    def history(self, kind: str) -> dict[tuple[str, str], Mapping[str, Any]]:
        """Return (pipeline, stage) → components of its newest output, for all stages of `kind`."""
        newest: dict[tuple[str, str], dict[str, Any]] = {}
        for path in self.root.glob(f"{kind}-*/{KEY}"):
            if path.parent.suffix:  # .partial, .old: not committed
                continue
            try:
                stored = self.origin(path.parent)
            except (OSError, ValueError):
                continue  # removed meanwhile, or damaged, which `fault` tells where it matters
            known = newest.get((stored["pipeline"], stored["stage"]))
            if known is None or stored["time"] > known["time"]:
                newest[stored["pipeline"], stored["stage"]] = stored
        return {name: stored["components"] for name, stored in newest.items()}

    @contextmanager
    def lock(self, folder: Path, wait: Callable[[str], None]) -> Iterator[None]:
        """Hold the right to make the output `folder`; ends with this process, however it ends.

        Args:
            wait: called about five times a second while another process holds it, with that process's
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

    @contextmanager
    def deciding(self) -> Iterator[None]:
        """Reuse outputs in here, and leave in the run's record which: nothing is collected meanwhile."""
        with self._collection(fcntl.LOCK_SH):
            yield

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Take outputs away in here: no run decides meanwhile what to reuse."""
        with self._collection(fcntl.LOCK_EX):
            yield

    @contextmanager
    def _collection(self, mode: int) -> Iterator[None]:
        locks = self.root / ".locks"
        make_folder(locks)
        # Over NFS only what may be read can be locked as shared, and only what may be written as exclusive.
        with (locks / ".collection").open("a+") as file:
            fcntl.flock(file, mode)
            yield

    def begin(self, folder: Path, *, fresh: bool) -> Path:
        """Return the work folder for the output `folder`: an earlier attempt's, unless `fresh`.

        All that an attempt leaves is in there, states to go on from too.
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
        """Return where the files of the output `folder` are now: in its work folder while there is one."""
        partial = self.partial(folder)
        return partial if partial.exists() else folder

    def unfinished(self, folder: Path) -> Literal["forced", "begun"] | None:
        """Say whether an attempt at `folder` was cut off, and whether it had been forced."""
        try:
            attempt = json.loads((self.partial(folder) / ATTEMPT).read_text(encoding="utf-8"))
        except OSError:
            return None
        return "forced" if attempt["forced"] else "begun"

    def commit(
        self,
        partial: Path,
        folder: Path,
        key: StageKey,
        origin: Mapping[str, Any],
        identities: Mapping[str, str],
    ) -> None:
        """Turn a finished work folder into the output `folder`; an earlier one there is replaced.

        Args:
            origin: the pipeline, stage and run that made it.
            identities: see `StageKind.identities`.
        """
        write_json(partial / KEY, {**origin, "time": time.time(), "components": key.components})
        write_json(partial / MANIFEST, _manifest(partial, identities))
        if folder.exists():
            replaced = folder.with_name(f"{folder.name}.old-{uuid.uuid4().hex[:8]}")
            folder.rename(replaced)
            partial.rename(folder)
            shutil.rmtree(replaced)
        else:
            partial.rename(folder)
        sync_folder(self.root)
        # Only now: a kill before the rename goes on from the states that are in there, forced or not.
        (folder / ATTEMPT).unlink(missing_ok=True)
        for name in SCRATCH:
            shutil.rmtree(folder / name, ignore_errors=True)


def _manifest(folder: Path, identities: Mapping[str, str]) -> dict[str, Any]:
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or name in (MANIFEST, KEY, ATTEMPT) or name.endswith(".tmp"):
            continue
        if name.startswith(_SCRATCH):
            continue
        size = path.stat().st_size
        if size > VERIFIED_BYTES:
            # A power cut could leave it short or empty, and a hit would look at its size alone.
            with path.open("rb") as file:
                os.fsync(file.fileno())
        files[name] = {"size": size, "sha256": digest(path)}
    output = {
        name: identities.get(name, entry["sha256"])
        for name, entry in files.items()
        if not name.startswith(_NOT_OUTPUT)
    }
    return {"digest": hashlib.sha256(_canonical(output)).hexdigest(), "files": files}


def make_folder(folder: Path) -> None:
    """Create `folder` and those above it.

    Raises:
        StoreError: the place cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"{folder}: cannot be created ({error.strerror}); set TATS_HOME to a folder you can write to"
        ) from error

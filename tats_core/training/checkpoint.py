"""Checkpoints, from which a training resumes after a kill.

One folder a training run, on storage that all workers share::

    step-000000120/state.pt       what is the same on all ranks, from rank 0
                   rank-1.pt      what rank 1 alone has
                   manifest.json  sizes, digests, step and metrics

A checkpoint is written to a temporary folder (`*.tmp`), then renamed: it is complete or absent. Before it is
used it is compared with its manifest; in place of a corrupt checkpoint the previous one is used.

The launcher has no part in this, so that its guarantees (the same bits after any fault, every byte verified
before it is used, a checkpoint at once when a person asks to stop) hold with every launcher and without.
"""

from __future__ import annotations

import copy
import hashlib
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from tats_core.errors import Stopped, StoreError
from tats_core.files import Digests, FileEntry, read_json, sync, write_json
from tats_core.specs import StrictModel
from tats_core.training.world import World

T = TypeVar("T")

MANIFEST = "manifest.json"
_STOP_SECONDS = 0.5  # between two checks for a request to stop: the storage may be on a network


class CheckpointConfig(StrictModel):
    """When a checkpoint is saved, and how many are kept. A request to stop also saves a checkpoint."""

    epochs: int | None = Field(5, ge=1, description="after every n-th epoch; null: not for that")
    steps: int | None = Field(None, ge=1, description="after every n-th optimiser step")
    minutes: float | None = Field(15, gt=0, description="when the last checkpoint is as old")
    keep: int = Field(2, ge=1, description="the newest n stay; the one before the newest is the reserve")
    best: str | None = Field(
        None, description="a metric, such as linear_top1; the checkpoint where it is highest stays too"
    )


class CheckpointStore:
    """The newest checkpoints of one training run. Every rank makes every call, at the same step.

    Args:
        folder: for this run alone.
        world: the ranks that share it.
        stop: whether a person asked to stop; called about twice a second.
        say: gets a sentence about each corrupt checkpoint.
        background: write during the next steps, from a copy of the state. It pays where the state has to
            leave a GPU anyway; a kill meanwhile loses the steps since the previous checkpoint.
    """

    def __init__(
        self,
        folder: Path,
        world: World | None = None,
        *,
        stop: Callable[[], bool] = lambda: False,
        say: Callable[[str], None] = lambda text: None,
        background: bool | None = None,
    ) -> None:
        self.folder = folder
        self.world = world or World()
        self.config = CheckpointConfig()
        self._stop, self._say = stop, say
        self._background = self.world.device.type == "cuda" if background is None else background
        self._writing: threading.Thread | None = None
        self._failure: StoreError | None = None
        self._saved = time.monotonic()
        self._checked = float("-inf")
        self._asked = False

    def below(self, name: str) -> CheckpointStore:
        """Return the store of a part of the work that has checkpoints of its own."""
        part = copy.copy(self)
        part.folder = self.folder / name
        return part

    def begin(self, config: CheckpointConfig) -> dict[str, Any] | None:
        """Return the newest complete state, tensors on the CPU, or None; remove corrupt and partial ones.

        `state["rank"]` belongs to this rank. Where another number of ranks saved the state, `state["ranks"]`
        holds the parts of all of them instead.
        """
        self.config = config
        self._saved = time.monotonic()
        newest = -1
        if self.world.is_first:
            self.folder.mkdir(parents=True, exist_ok=True)
            for partial_state in self.folder.glob("*.tmp"):
                shutil.rmtree(partial_state)
            newest = self._newest_complete()
        step = self.world.from_first(newest)
        if step < 0:
            return None
        saved = self._step_folder(step)
        state: dict[str, Any] = torch.load(saved / "state.pt", map_location="cpu", weights_only=True)
        workers = _manifest(saved).workers
        same = workers == self.world.size
        files = [saved / f"rank-{rank}.pt" for rank in ([self.world.rank] if same else range(workers))]
        if all(file.exists() for file in files):
            ranks = [torch.load(file, map_location="cpu", weights_only=True) for file in files]
            state |= {"rank": ranks[0]} if same else {"ranks": ranks}
        return state

    def due(self, step: int, *, epochs: int | None = None) -> bool:
        """Whether to save after `step`, the end of `epochs` epochs if they are given; the same on all ranks.

        By count, by the last checkpoint's age, or because a person asked to stop.
        """
        config = self.config
        if config.steps is not None and step % config.steps == 0:
            return True
        if epochs is not None and config.epochs is not None and epochs % config.epochs == 0:
            return True
        old = config.minutes is not None and time.monotonic() - self._saved > 60 * config.minutes
        # Clocks and views of a shared folder differ, and all ranks must save at the same step.
        return self.world.any(old or self._wants_to_stop())

    def save(self, state: Mapping[str, object], *, step: int, metrics: Mapping[str, float]) -> None:
        """Save `state` as it is on rank 0 and `state["rank"]` of every rank; remove the oldest beyond `keep`.

        Raises:
            Stopped: the state is saved, and a person asked to stop.
            StoreError: it cannot be written; earlier checkpoints stay.
        """
        self.wait()
        target = self._step_folder(step)
        # Rank 0 draws a new name each time: partial files of an earlier attempt never mix with these.
        draft = target.with_name(f"{target.name}-{self.world.from_first(secrets.randbits(32)):08x}.tmp")
        self._guarded(draft, lambda: self._write_rank(draft, state))
        self._raise_failure()
        if self.world.is_first:
            shared = {key: value for key, value in state.items() if key != "rank"}
            if self._background:
                shared = on_cpu(shared)
            commit = partial(self._commit, draft, target, shared, step, metrics)
            self._writing = threading.Thread(target=self._guarded, args=(draft, commit), name="checkpoint")
            self._writing.start()
        stopping = self.world.any(self._wants_to_stop())
        if stopping or not self._background:
            self.wait()
        self._saved = time.monotonic()
        if stopping:
            raise Stopped

    def until_stopped(self, items: Iterable[T]) -> Iterator[T]:
        """Yield `items`, whose number may differ between ranks, for work that saves no checkpoints.

        Raises:
            Stopped: on all ranks, each at its next item, after a person asked to stop.
        """
        for item in items:
            if self._wants_to_stop():
                break
            yield item
        # Each rank comes here once, however many items it had.
        if self.world.any(self._wants_to_stop()):
            raise Stopped

    def wait(self) -> None:
        """Wait until the last checkpoint is written. Every rank calls it.

        Raises:
            StoreError: it could not be written.
        """
        if self._writing is not None:
            self._writing.join()
            self._writing = None
        self._raise_failure()

    def best(self) -> Path | None:
        """Return the checkpoint with the highest `config.best`, or None where none has that metric.

        Of equal checkpoints the first: those between two health checks have the metrics of the earlier check.
        """
        metric = self.config.best
        if metric is None:
            return None
        scored: list[tuple[float, int]] = []
        for saved in self._saved_folders():
            with suppress(StoreError):  # a corrupt checkpoint is not the best
                manifest = _manifest(saved)
                if metric in manifest.figures:
                    scored.append((manifest.figures[metric], -manifest.step))
        return self._step_folder(-max(scored)[1]) if scored else None

    def _saved_folders(self) -> list[Path]:
        return sorted(folder for folder in self.folder.glob("step-*") if not folder.suffix)

    def _step_folder(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}"

    def _wants_to_stop(self) -> bool:
        now = time.monotonic()
        if not self._asked and now - self._checked > _STOP_SECONDS:
            self._checked, self._asked = now, self._stop()
        return self._asked

    def _newest_complete(self) -> int:
        for saved in reversed(self._saved_folders()):
            fault = checkpoint_fault(saved)
            if fault is None:
                return int(saved.name.removeprefix("step-"))
            self._say(f"the checkpoint {saved.name} is corrupt ({fault}); going back to the one before")
            shutil.rmtree(saved)
        return -1

    # --- writing -------------------------------------------------------------------------------------

    def _write_rank(self, draft: Path, state: Mapping[str, object]) -> None:
        draft.mkdir(parents=True, exist_ok=True)
        if "rank" in state:
            digest = _save(state["rank"], draft / f"rank-{self.world.rank}.pt")
            (draft / f"rank-{self.world.rank}.digest").write_text(digest, encoding="ascii")

    def _commit(
        self, draft: Path, target: Path, shared: Mapping[str, object], step: int, metrics: Mapping[str, float]
    ) -> None:
        digests = {"state.pt": _save(shared, draft / "state.pt")}
        for path in sorted(draft.glob("*.digest")):
            digests[path.stem + ".pt"] = path.read_text(encoding="ascii")
            path.unlink()
        files = {name: FileEntry((draft / name).stat().st_size, digest) for name, digest in digests.items()}
        manifest = _Manifest(step, self.world.size, dict(metrics), files)
        write_json(draft / MANIFEST, asdict(manifest))
        if target.exists():  # a training that went back to an earlier checkpoint repeats its steps
            shutil.rmtree(target)
        draft.rename(target)
        sync(self.folder)
        self._prune()

    def _prune(self) -> None:
        saved = self._saved_folders()
        for folder in {*saved} - {*saved[-self.config.keep :], self.best()}:
            removed = folder.with_suffix(".tmp")  # a partial checkpoint must not look like a complete one
            folder.rename(removed)
            shutil.rmtree(removed)

    def _guarded(self, draft: Path, write: Callable[[], None]) -> None:
        """Call `write`; its failure is raised where all ranks are together."""
        try:
            write()
        except (OSError, RuntimeError) as error:  # torch's own writer raises RuntimeError
            reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
            self._failure = StoreError(
                f"{self.folder}: a checkpoint cannot be written ({reason}); free space or repair the storage "
                "and run again: it resumes from the checkpoint before"
            )
            # A full disk needs room to record the error. Another rank may be writing here, or have failed.
            shutil.rmtree(draft, ignore_errors=True)

    def _raise_failure(self) -> None:
        if self.world.any(self._failure is not None):
            raise self._failure or StoreError(f"{self.folder}: another worker could not write its checkpoint")


class _Digesting:
    """A file that knows the sha256 of its content."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb")
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def _save(state: object, path: Path) -> str:
    """Write `state` to `path`, down to the disk; return its sha256."""
    digesting = _Digesting(path)
    with digesting.file as file:
        torch.save(state, digesting)  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())
    return digesting.sha256.hexdigest()


@dataclass(frozen=True)
class _Manifest:
    step: int
    workers: int
    figures: dict[str, float]
    files: dict[str, FileEntry]


def _manifest(saved: Path) -> _Manifest:
    return read_json(saved / MANIFEST, _Manifest, "the manifest of a checkpoint")


def checkpoint_fault(saved: Path) -> str | None:
    """Return why the checkpoint `saved` cannot be used, or None if it can."""
    try:
        return Digests().fault(saved, _manifest(saved).files)
    except StoreError as error:
        return f"its manifest cannot be read: {error}"
    except OSError as error:
        return f"it cannot be read: {error}"


def on_cpu(value: Any) -> Any:
    """A copy of a state that further training does not change."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: on_cpu(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(on_cpu(entry) for entry in value)
    return value

"""Where a training loop keeps what it needs to go on after a kill.

One folder a training run, on storage that all workers share::

    step-000000120/state.pt       what all ranks hold alike, from rank 0
                   rank-1.pt      what is rank 1's own
                   manifest.json  sizes, digests, step and figures

A state is written beside (`*.tmp`), then renamed: it is there whole or not at all. Before it is used it is
compared with its manifest; a damaged one gives way to the one before.

The launcher is not asked to do this: what counts here (the same bits after any fault, a look at each byte
before it is trusted, a state at once when a person asks to stop) is the same with every launcher and without.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from tats_core.errors import Stopped, StoreError
from tats_core.files import digest, sync, write_json
from tats_core.specs import StrictModel
from tats_core.training.world import World

T = TypeVar("T")

MANIFEST = "manifest.json"
_STOP_SECONDS = 0.5  # between two looks for the wish to stop: the store may be a network's


class CheckpointConfig(StrictModel):
    """When a state is kept, and how many are. A wish to stop is answered with one at once."""

    epochs: int | None = Field(5, ge=1, description="after every n-th epoch; null: not for that")
    steps: int | None = Field(None, ge=1, description="after every n-th optimiser step")
    minutes: float | None = Field(15, gt=0, description="when the last one is as old")
    keep: int = Field(2, ge=1, description="the newest n stay; the one before the newest is the reserve")
    best: str | None = Field(
        None, description="a figure of the curves whose highest state stays too, such as linear_top1"
    )


class CheckpointStore(Protocol):
    """Keeps the newest states of one training run. Every rank makes every call, at the same step."""

    def begin(self, config: CheckpointConfig) -> dict[str, Any] | None:
        """Return the newest whole state, tensors on the CPU, or None at a fresh start.

        `state["rank"]` is this rank's own. Where another number of ranks kept the state, there is
        `state["ranks"]` instead: what was each one's own, by rank.
        """
        ...

    def due(self, step: int, *, epochs: int | None = None) -> bool:
        """Tell all ranks alike whether a state is wanted after `step` (`epochs`: finished, at their ends)."""
        ...

    def save(self, state: Mapping[str, Any], *, step: int, metrics: Mapping[str, float]) -> None:
        """Keep `state`: rank 0's counts, save for `state["rank"]`, which is kept for each.

        Raises:
            Stopped: the state is kept, and a person asked to stop.
            StoreError: it cannot be written; the ones before stay.
        """
        ...

    def until_stopped(self, items: Iterable[T]) -> Iterator[T]:
        """Yield `items`, of which ranks may have more or fewer, for work that keeps no states.

        Raises:
            Stopped: on all ranks, each at its next item, after a person asked to stop.
        """
        ...


class FolderStore:
    """The states of one training run in a folder.

    Args:
        folder: the run's own.
        world: the ranks that share it.
        stop: whether a person asked to stop; looked at about twice a second.
        say: told when a damaged state is passed over.
        background: write while training goes on, from a copy of the state. It pays where the state has to
            leave a GPU anyway; a kill meanwhile costs what was done since the state before.
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
        self._looked = float("-inf")
        self._asked = False

    def begin(self, config: CheckpointConfig) -> dict[str, Any] | None:
        """Return the newest whole state, or None; states that are damaged or half written are removed."""
        self.config = config
        self._saved = time.monotonic()
        newest = -1
        if self.world.is_first:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob("*.tmp"):
                shutil.rmtree(left)
            newest = self._newest_whole()
        step = self.world.from_first(newest)
        if step < 0:
            return None
        place = self._place(step)
        state: dict[str, Any] = torch.load(place / "state.pt", map_location="cpu", weights_only=True)
        before = json.loads((place / MANIFEST).read_text(encoding="utf-8"))["workers"]
        same = before == self.world.size
        files = [place / f"rank-{rank}.pt" for rank in ([self.world.rank] if same else range(before))]
        if all(file.exists() for file in files):
            own = [torch.load(file, map_location="cpu", weights_only=True) for file in files]
            state |= {"rank": own[0]} if same else {"ranks": own}
        return state

    def due(self, step: int, *, epochs: int | None = None) -> bool:
        """Tell whether a state is wanted: by count, by age of the last one, or because a person stops."""
        config = self.config
        if config.steps is not None and step % config.steps == 0:
            return True
        if epochs is not None and config.epochs is not None and epochs % config.epochs == 0:
            return True
        old = config.minutes is not None and time.monotonic() - self._saved > 60 * config.minutes
        # Clocks and views of a shared folder differ, and all ranks must save at the same step.
        return self.world.any(old or self._wants_to_stop())

    def save(self, state: Mapping[str, Any], *, step: int, metrics: Mapping[str, float]) -> None:
        """Write `state` beside, then rename; the oldest ones beyond `keep` go."""
        self.wait()
        place = self._place(step)
        # Named by rank 0, anew each time: what an attempt left half written never mixes with this one's.
        beside = place.with_name(f"{place.name}-{self.world.from_first(secrets.randbits(32)):08x}.tmp")
        self._guarded(beside, lambda: self._write_own(beside, state))
        self._raise_failure()
        if self.world.is_first:
            shared = {key: value for key, value in state.items() if key != "rank"}
            if self._background:
                shared = _on_cpu(shared)
            commit = partial(self._commit, beside, place, shared, step, metrics)
            self._writing = threading.Thread(target=self._guarded, args=(beside, commit), name="checkpoint")
            self._writing.start()
        stopping = self.world.any(self._wants_to_stop())
        if stopping or not self._background:
            self.wait()
        self._saved = time.monotonic()
        if stopping:
            raise Stopped

    def until_stopped(self, items: Iterable[T]) -> Iterator[T]:
        """Yield `items` until a person asks to stop."""
        for item in items:
            if self._wants_to_stop():
                break
            yield item
        # Each rank comes here once, however many items it had.
        if self.world.any(self._wants_to_stop()):
            raise Stopped

    def wait(self) -> None:
        """Wait until what is being written is there. Every rank calls it.

        Raises:
            StoreError: it could not be written.
        """
        if self._writing is not None:
            self._writing.join()
            self._writing = None
        self._raise_failure()

    def best(self) -> Path | None:
        """Return the kept state with the highest `config.best`, or None where no state has that figure.

        Of equal ones the first: states between two looks carry the figure of the look before.
        """
        named = self.config.best
        scored = [
            (figures[named], -step)
            for step, figures in self._figures().items()
            if named is not None and named in figures
        ]
        return self._place(-max(scored)[1]) if scored else None

    def _place(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}"

    def _wants_to_stop(self) -> bool:
        now = time.monotonic()
        if not self._asked and now - self._looked > _STOP_SECONDS:
            self._looked, self._asked = now, self._stop()
        return self._asked

    def _newest_whole(self) -> int:
        for place in sorted(self.folder.glob("step-*"), reverse=True):
            fault = _fault(place)
            if fault is None:
                return int(place.name.removeprefix("step-"))
            self._say(f"the checkpoint {place.name} is damaged ({fault}); going back to the one before")
            shutil.rmtree(place)
        return -1

    def _figures(self) -> dict[int, dict[str, float]]:
        found = {}
        for path in self.folder.glob(f"step-*/{MANIFEST}"):
            if not path.parent.suffix:
                stored = json.loads(path.read_text(encoding="utf-8"))
                found[int(stored["step"])] = stored["figures"]
        return found

    # --- writing -------------------------------------------------------------------------------------

    def _write_own(self, beside: Path, state: Mapping[str, Any]) -> None:
        beside.mkdir(parents=True, exist_ok=True)
        if "rank" in state:
            digest = _save(state["rank"], beside / f"rank-{self.world.rank}.pt")
            (beside / f"rank-{self.world.rank}.digest").write_text(digest, encoding="ascii")

    def _commit(
        self, beside: Path, place: Path, shared: Mapping[str, Any], step: int, metrics: Mapping[str, float]
    ) -> None:
        digests = {"state.pt": _save(shared, beside / "state.pt")}
        for noted in sorted(beside.glob("*.digest")):
            digests[noted.stem + ".pt"] = noted.read_text(encoding="ascii")
            noted.unlink()
        files = {
            name: {"size": (beside / name).stat().st_size, "sha256": digest}
            for name, digest in digests.items()
        }
        manifest = {"step": step, "workers": self.world.size, "figures": dict(metrics), "files": files}
        write_json(beside / MANIFEST, manifest)
        if place.exists():  # after going back to an older state, a step comes again
            shutil.rmtree(place)
        beside.rename(place)
        sync(self.folder)
        self._prune()

    def _prune(self) -> None:
        places = sorted(place for place in self.folder.glob("step-*") if not place.suffix)
        kept = {*places[-self.config.keep :], self.best()}
        for place in places:
            if place not in kept:
                gone = place.with_suffix(".tmp")  # half a state must not look like one
                place.rename(gone)
                shutil.rmtree(gone)

    def _guarded(self, beside: Path, write: Callable[[], None]) -> None:
        """Call `write`; what goes wrong is raised where all ranks are together."""
        try:
            write()
        except (OSError, RuntimeError) as error:  # torch's own writer raises RuntimeError
            reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
            self._failure = StoreError(
                f"{self.folder}: a checkpoint cannot be written ({reason}); free space or mend the storage "
                "and run again: it goes on from the checkpoint before"
            )
            # A full disk needs the room to write down why. Another rank may be writing there, or have failed.
            shutil.rmtree(beside, ignore_errors=True)

    def _raise_failure(self) -> None:
        if self.world.any(self._failure is not None):
            raise self._failure or StoreError(f"{self.folder}: another worker could not write its checkpoint")


class _Digesting:
    """A file that knows the sha256 of what was written to it."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb")
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def _save(state: Any, path: Path) -> str:
    """Write `state` to `path`, down to the disk; return its sha256."""
    digesting = _Digesting(path)
    with digesting.file as file:
        torch.save(state, digesting)  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())
    return digesting.sha256.hexdigest()


def _fault(place: Path) -> str | None:
    """Return why the state in `place` cannot be used, or None if it can."""
    try:
        stored = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
        for name, entry in stored["files"].items():
            if (place / name).stat().st_size != entry["size"]:
                return f"{name} has another size"
            if digest(place / name) != entry["sha256"]:
                return f"{name} has another content"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is gone"
    except (OSError, ValueError, KeyError) as error:
        return f"its manifest cannot be read: {error}"
    return None


def _on_cpu(value: Any) -> Any:
    """A copy of a state that training cannot change any more."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _on_cpu(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_on_cpu(one) for one in value)
    return value

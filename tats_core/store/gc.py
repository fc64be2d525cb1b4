"""What takes space in a project folder and can go.

A *kept* run is one whose record stays. What a kept run names, in its record or in a configuration, stays too:
its outputs, and the work folder of a stage that it did not finish, from which the next run would go on. So
does what a process holds locked, all of a run that made a model with an alias in MLflow's registry, and all
of one that MLflow was not told of yet (`tats sync`).

Unless told otherwise every run is kept, and only leftovers go: outputs and work folders that no run names,
and folders that a commit or an earlier collection was about to remove.

A run that decides to reuse an output and a collection exclude each other (`StageStore.deciding`), and the
output is in the record of that run before it lets go.
"""

from __future__ import annotations

import os
import re
import shutil
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tats_core.errors import StoreError
from tats_core.store import history
from tats_core.store.journal import pending
from tats_core.store.layout import SCRATCH
from tats_core.store.outputs import StageStore
from tats_core.store.run import RunRecord

What = Literal["output", "work folder", "run record", "leftover"]

DAY = 24 * 3600.0

# The names that the engine gives; what is called otherwise is somebody else's.
_OUTPUT = re.compile(r"\w[\w-]*-[0-9a-f]{12}")
_OLD = re.compile(r".+\.old-[0-9a-f]{8}")


@dataclass(frozen=True)
class Policy:
    """Which runs are kept. A run goes only if it is neither among the newest nor younger than said.

    Of each pipeline the newest run that finished whole always stays.
    """

    newest: int | None = None
    """Of each pipeline so many are kept; None: all, unless `days` is given."""
    days: float | None = None
    """Whatever is younger is kept."""


@dataclass(frozen=True)
class Waste:
    """One folder that can go. `changed` is when something in it was last written."""

    path: Path
    what: What
    why: str
    size: int
    changed: float


@dataclass(frozen=True)
class Findings:
    """What can go, the largest first, and how many runs and bytes of outputs stay."""

    waste: tuple[Waste, ...]
    kept_runs: int
    kept_bytes: int

    @property
    def size(self) -> int:
        """Bytes of all that can go."""
        return sum(one.size for one in self.waste)


def find(home: Path, policy: Policy, aliased: Mapping[Path, str], now: float | None = None) -> Findings:
    """Return what can go; changes nothing.

    Args:
        aliased: places that models with an alias point to (`tracking.aliased`).

    Raises:
        StoreError: a run's record cannot be read: what it refers to is not known.
    """
    now = time.time() if now is None else now
    waste, kept_bytes = [], 0
    folders, kept_runs = _look(home.absolute(), policy, aliased, now)
    for path, what, why in folders:
        size, changed = _measure(path)
        if not why:
            kept_bytes += size
        elif what == "run record" or policy.days is None or now - changed > policy.days * DAY:
            waste.append(Waste(path, what, why, size, changed))
    return Findings(tuple(sorted(waste, key=lambda one: -one.size)), kept_runs, kept_bytes)


def collect(home: Path, policy: Policy, aliased: Mapping[Path, str]) -> Findings:
    """Remove what can go, and return what was removed; what came into use meanwhile stays.

    Each folder is renamed first, all at a moment when no run decides what to reuse; a collection that is
    interrupted leaves whole folders, or such as the next one removes.

    Raises:
        StoreError: something cannot be removed.
    """
    home, now = home.absolute(), time.time()
    store = StageStore(home)
    try:
        # A store is measured for a minute; runs wait only while it is looked at once more.
        found = find(home, policy, aliased, now)
        with store.collecting():
            folders, _ = _look(home, policy, aliased, now)
            useless = {path for path, _, why in folders if why}
            going = [one for one in found.waste if one.path in useless]
            aside = {one: moved for one in going if (moved := _set_aside(store, one)) is not None}
        for path in aside.values():
            shutil.rmtree(path)
    except OSError as error:
        raise StoreError(f"{error.filename or home}: cannot be removed ({error.strerror})") from error
    return Findings(tuple(aside), found.kept_runs, found.kept_bytes)


_Folder = tuple[Path, What, str]
"""Its place, what it is, and why it can go ("" where it cannot)."""


def _look(home: Path, policy: Policy, aliased: Mapping[Path, str], now: float) -> tuple[list[_Folder], int]:
    """Return each folder that the engine made, and how many runs are kept; measures nothing."""
    store = StageStore(home)
    protected = {name for place in aliased for name in place.parts if _OUTPUT.fullmatch(name)}
    runs = list(_runs(store, home))
    unsent = {spool.run for spool in pending(home)}
    kept = _kept(runs, policy, _makers(store, protected) | unsent, now)
    named = protected.union(*(run.names for run in kept.values()))
    return list(_candidates(store, home, runs, kept, named)), len(kept)


@dataclass(frozen=True)
class _Run:
    """What counts of a run: `names` are the outputs that it refers to, whether they exist or not."""

    id: str
    pipeline: str
    started: float
    whole: bool
    alive: bool
    names: frozenset[str]


def _runs(store: StageStore, home: Path) -> Iterator[_Run]:
    """Yield the runs, the newest first."""
    for record in history.records(home):
        names = {store.folder(one.kind, one.key).name for one in record.stages.values() if one.key}
        # A path of this store in a configuration counts too: weights that a run starts from.
        # So do the records of a sweep's trials.
        for file in (*record.folder.glob("*.json"), *record.folder.glob("trials/*/run.json")):
            names |= set(_OUTPUT.findall(file.read_text(encoding="utf-8")))
        whole = record.status == "finished" and all(one.done for one in record.stages.values())
        yield _Run(record.id, record.pipeline, record.started, whole, record.is_alive(), frozenset(names))


def _makers(store: StageStore, names: Collection[str]) -> set[str]:
    """Return the runs that made these outputs."""
    made = set()
    for name in names:
        try:
            made.add(store.origin(store.root / name).run)
        except StoreError:
            continue  # no output of that name, or a corrupt one: by its name it is kept all the same
    return made


def _kept(runs: Sequence[_Run], policy: Policy, wanted: Collection[str], now: float) -> dict[str, _Run]:
    kept: dict[str, _Run] = {}
    seen: dict[str, int] = {}
    whole: set[str] = set()
    for run in runs:
        place = seen[run.pipeline] = seen.get(run.pipeline, 0) + 1
        newest_whole = run.whole and run.pipeline not in whole
        if run.whole:
            whole.add(run.pipeline)
        everything = policy.newest is None and policy.days is None
        newest = policy.newest is not None and place <= policy.newest
        young = policy.days is not None and now - run.started <= policy.days * DAY
        if everything or newest or young or newest_whole or run.alive or run.id in wanted:
            kept[run.id] = run
    return kept


def _candidates(
    store: StageStore, home: Path, runs: Sequence[_Run], kept: Mapping[str, _Run], named: Collection[str]
) -> Iterator[_Folder]:
    """Yield each folder that the engine made."""
    known = frozenset().union(*(run.names for run in runs))
    for path in _folders(store.root):
        name = path.name.removesuffix(".partial")
        if _OLD.fullmatch(name):
            yield path, "leftover", "half removed"
        elif _OUTPUT.fullmatch(name):
            why = "" if name in named else "only runs that go use it" if name in known else "no run uses it"
            partial = path.name != name
            yield path, "work folder" if partial else "output", why
            for scratch in SCRATCH:
                if not partial and not why and (path / scratch).exists():
                    yield path / scratch, "leftover", "half removed"
    for run in runs:
        if run.id not in kept:
            yield home / "runs" / run.id, "run record", "not among those kept"
    for path in _folders(home / "runs"):
        if _OLD.fullmatch(path.name):
            yield path, "leftover", "half removed"


def _folders(place: Path) -> list[Path]:
    try:
        with os.scandir(place) as entries:
            return sorted(Path(one.path) for one in entries if one.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []


def _measure(folder: Path) -> tuple[int, float]:
    """Return the bytes in `folder`, and when something in it last changed."""
    size, changed = 0, 0.0
    for place, _, files in os.walk(folder):
        for path in (place, *(os.path.join(place, file) for file in files)):  # noqa: PTH118 (many files)
            try:
                found = os.lstat(path)
            except FileNotFoundError:
                continue  # a run writes here
            size += found.st_size if path != place else 0
            changed = max(changed, found.st_mtime)
    return size, changed


class _Busy(Exception):  # noqa: N818 (nothing went wrong)
    pass


def _set_aside(store: StageStore, one: Waste) -> Path | None:
    """Rename a folder to what every look at the store passes over; None where a process works on it."""
    if one.what == "leftover":
        return one.path
    aside = one.path.with_name(f"{one.path.name}.old-{uuid.uuid4().hex[:8]}")
    if one.what == "run record":
        if RunRecord.load(one.path).is_alive():
            return None
        one.path.rename(aside)
        return aside
    output = _OUTPUT.match(one.path.name)
    assert output is not None

    def give_up(process: str) -> None:
        raise _Busy

    try:
        with store.lock(store.root / output[0], give_up):
            if not one.path.exists():
                return None  # it was committed since it was found
            one.path.rename(aside)
    except _Busy:
        return None
    return aside

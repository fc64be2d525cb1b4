"""Garbage collection: the folders of a project folder that nothing needs.

The record of a *kept* run stays, and what it names, in the record or in a configuration: its outputs, and the
work folder of a stage that it did not finish, from which the next run would resume. So does what a process
holds locked, everything of a run that made a model with an alias in MLflow's registry, and everything of a
run that is not sent to MLflow yet (`tats sync`). A run with a damaged record stays, with what it made, what
its files still name, and every work folder: any of them may be its own.

By default every run is kept, and only leftovers go: outputs and work folders that no run names, and folders
that a commit or an interrupted collection was about to remove.

A collection waits while a run chooses outputs to reuse and records them (`StageStore.deciding`).
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tats_core.errors import StoreError
from tats_core.store import history
from tats_core.store.journal import pending
from tats_core.store.layout import RUN, SCRATCH
from tats_core.store.outputs import StageStore, aside
from tats_core.store.run import RunRecord

Kind = Literal["output", "work folder", "run record", "leftover"]

DAY = 24 * 3600.0

# The names that the engine gives; other folders are not touched.
_OUTPUT = re.compile(r"\w[\w-]*-[0-9a-f]{12}")
_OLD = re.compile(r".+\.old-[0-9a-f]{8}")


@dataclass(frozen=True)
class Policy:
    """Which runs are kept: of each pipeline the newest, and those that are young.

    Of each pipeline the newest run that finished all its stages always stays.
    """

    newest: int | None = None
    """How many of each pipeline; None: all, unless `days` is given."""
    days: float | None = None
    """Younger runs and folders stay."""


@dataclass(frozen=True)
class Waste:
    """One folder that can go. `changed` is when something in it was last written."""

    path: Path
    kind: Kind
    why: str
    size: int
    changed: float


@dataclass(frozen=True)
class Findings:
    """What can go, the largest first, how many runs and bytes of outputs stay, and each damaged record."""

    waste: tuple[Waste, ...]
    kept_runs: int
    kept_bytes: int
    corrupt: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all that can go."""
        return sum(waste.size for waste in self.waste)


def find(home: Path, policy: Policy, aliased: Collection[Path], now: float | None = None) -> Findings:
    """Return what can go; changes nothing. Models in the folders `aliased` have an alias in the registry."""
    now = time.time() if now is None else now
    waste, kept_bytes = [], 0
    folders, kept_runs, corrupt = _survey(home.absolute(), policy, aliased, now)
    for path, kind, why in folders:
        size, changed = _measure(path)
        if not why:
            kept_bytes += size
        elif kind == "run record" or policy.days is None or now - changed > policy.days * DAY:
            waste.append(Waste(path, kind, why, size, changed))
    waste.sort(key=lambda folder: -folder.size)
    return Findings(tuple(waste), kept_runs, kept_bytes, corrupt)


def collect(home: Path, policy: Policy, aliased: Collection[Path]) -> Findings:
    """Remove what can go, and return what was removed; what has come into use meanwhile stays.

    All folders are renamed first, while no run chooses what to reuse: the next collection removes what an
    interrupted one renamed.

    Raises:
        StoreError: something cannot be removed.
    """
    home, now = home.absolute(), time.time()
    store = StageStore(home)
    try:
        # Measuring may take a minute; runs wait only for the second, quick survey.
        findings = find(home, policy, aliased, now)
        with store.collecting():
            folders, _, _ = _survey(home, policy, aliased, now)
            unused = {path for path, _, why in folders if why}
            removed = {
                waste: renamed
                for waste in findings.waste
                if waste.path in unused and (renamed := _set_aside(store, waste)) is not None
            }
        for path in removed.values():
            shutil.rmtree(path)
    except OSError as error:
        raise StoreError(f"{error.filename or home}: cannot be removed ({error.strerror})") from error
    return replace(findings, waste=tuple(removed))


_Folder = tuple[Path, Kind, str]
"""Its path, what it is, and why it can go ("" where it cannot)."""


def _survey(
    home: Path, policy: Policy, aliased: Collection[Path], now: float
) -> tuple[list[_Folder], int, tuple[str, ...]]:
    """Return each folder that the engine made, how many runs are kept, and each damaged record."""
    store, corrupt = StageStore(home), list[str]()
    records = list(history.records(home, corrupt=corrupt))
    names = {record.id: _names(store, record) for record in records}
    protected = {name for path in aliased for name in path.parts if _OUTPUT.fullmatch(name)}
    wanted = set(_makers(store, protected).values()) | {spool.run for spool in pending(home)}
    kept = _kept_ids(records, policy, wanted, now)
    used = protected.union(*(names[run] for run in kept))
    if corrupt:
        outputs = {path.name for path in _folders(store.root)}
        damaged = {run for run in history.ids(home) if run not in names}
        used |= {name for name, run in _makers(store, outputs).items() if run in damaged}
        used |= {name.removesuffix(".partial") for name in outputs if name.endswith(".partial")}
        used = used.union(*(_named_in(home / "runs" / run) for run in damaged))
    folders = list(_outputs(store, frozenset[str]().union(*names.values()), used))
    going = [home / "runs" / run for run in names if run not in kept]
    folders += [(path, "run record", "not among those kept") for path in going]
    half_removed = [path for path in _folders(home / "runs") if _OLD.fullmatch(path.name)]
    folders += [(path, "leftover", "half removed") for path in half_removed]
    return folders, len(kept), tuple(corrupt)


def _names(store: StageStore, record: RunRecord) -> frozenset[str]:
    """Return the names of the outputs that a run uses, whether they exist or not."""
    keyed = {store.folder(stage.kind, stage.key).name for stage in record.stages.values() if stage.key}
    return _named_in(record.folder) | keyed


def _named_in(folder: Path) -> frozenset[str]:
    # A configuration may name an output (weights that a run is initialised from), and a sweep has the records
    # of its trials.
    files = (*folder.glob("*.json"), *folder.glob(f"trials/*/{RUN}"))
    texts = (file.read_text(encoding="utf-8", errors="replace") for file in files)
    return frozenset(name for text in texts for name in _OUTPUT.findall(text))


def _makers(store: StageStore, names: Collection[str]) -> dict[str, str]:
    """Return output → the run that made it, of those outputs that are neither gone nor corrupt."""
    makers = {}
    for name in names:
        with suppress(StoreError):
            makers[name] = store.origin(store.root / name).run
    return makers


def _kept_ids(records: Sequence[RunRecord], policy: Policy, wanted: Collection[str], now: float) -> set[str]:
    """Return the ids of the kept runs; `records` come the newest first."""
    newest_complete = {record.pipeline: record.id for record in reversed(records) if record.complete}
    ids = {*wanted, *newest_complete.values()}
    count: Counter[str] = Counter()
    for record in records:
        count[record.pipeline] += 1
        if (
            (policy.newest is None and policy.days is None)
            or (policy.newest is not None and count[record.pipeline] <= policy.newest)
            or (policy.days is not None and now - record.started <= policy.days * DAY)
            or record.is_alive()
        ):
            ids.add(record.id)
    return ids & {record.id for record in records}


def _outputs(store: StageStore, known: Collection[str], used: Collection[str]) -> Iterator[_Folder]:
    """Yield the folders of stages: `known` names are in a run, `used` names in a run that is kept."""
    for path in _folders(store.root):
        name = path.name.removesuffix(".partial")
        if _OLD.fullmatch(name):
            yield path, "leftover", "half removed"
        elif _OUTPUT.fullmatch(name):
            why = "" if name in used else "only runs that go use it" if name in known else "no run uses it"
            partial = path.name != name
            yield path, "work folder" if partial else "output", why
            for scratch in SCRATCH:
                if not partial and not why and (path / scratch).exists():
                    yield path / scratch, "leftover", "half removed"


def _folders(parent: Path) -> list[Path]:
    try:
        with os.scandir(parent) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []


def _measure(folder: Path) -> tuple[int, float]:
    """Return the bytes in `folder`, and when something in it last changed."""
    size, changed = 0, 0.0
    for parent, _, files in os.walk(folder):
        for path in (parent, *(os.path.join(parent, file) for file in files)):  # noqa: PTH118 (many files)
            try:
                status = os.lstat(path)
            except FileNotFoundError:
                continue  # a run works in the folder
            size += status.st_size if path != parent else 0
            changed = max(changed, status.st_mtime)
    return size, changed


def _set_aside(store: StageStore, waste: Waste) -> Path | None:
    """Rename a folder to a name that the store ignores; None where a process works on it."""
    if waste.kind == "leftover":
        return waste.path
    if waste.kind == "run record":
        return None if RunRecord.load(waste.path).is_alive() else aside(waste.path)

    def give_up(process: str) -> None:
        raise BlockingIOError

    try:
        with store.lock(store.root / waste.path.name.removesuffix(".partial"), give_up):
            return aside(waste.path) if waste.path.exists() else None  # it may be committed meanwhile
    except BlockingIOError:
        return None

"""Where a number comes from: report ← evaluation ← fine-tuning ← pre-training ← data.

All of it is read from the project folder: the run's record, and the keys and manifests of the stages'
outputs. What no longer fits what is written there is said, at the link where it breaks.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tats_core.data.manifest import Manifest
from tats_core.errors import DataError, SpecError, StoreError, did_you_mean
from tats_core.files import digest
from tats_core.store.outputs import StageKey, StageStore
from tats_core.store.run import RunRecord, StageConfig, StageRecord

# What a reader of a chain wants to see of an output: weights and results, not pictures.
_SHOWN = ("model.safetensors", "sampler.safetensors", "result.json", "results.json")

# As the report joins them: of two stages that name a number alike, the first one's counts.
_MEASURED = ("finetune", "evaluate", "probe")


@dataclass(frozen=True)
class KeptFile:
    """One file of an output, with the size and sha256 that were written down when it was committed."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class DataSet:
    """One manifest of the data stage; `digest` is that of its list of videos."""

    benchmark: str
    split: str
    videos: int
    classes: int
    root: str
    digest: str
    path: str


@dataclass
class Link:
    """One stage of a chain, and who made its output. `made` is in seconds since the epoch.

    `run`, `pipeline` and `origin` (a stage's name there) are those that did the work, which may be others
    than the ones that are shown; `commit` and `code` are the code it was made with.
    """

    stage: str
    base: str
    kind: str
    needs: list[str]
    status: str
    key: str | None = None
    folder: str | None = None
    digest: str | None = None
    run: str | None = None
    pipeline: str | None = None
    origin: str | None = None
    made: float | None = None
    commit: str | None = None
    code: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    files: list[KeptFile] = field(default_factory=list)
    data: list[DataSet] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Number:
    """One number of the final table: `name` is benchmark/start[/other axes]/metric, or policy/metric.

    It stands at `place` of `file`, and `source` measured it: there it is the key `metric` of
    `source_file`. `low` and `high` are the ends of its 95% interval, where it has one.
    """

    name: str
    value: float
    metric: str
    report: str
    file: str
    place: str
    source: str
    source_file: str
    low: float | None = None
    high: float | None = None
    clips: int | None = None
    faults: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self) | {"faults": list(self.faults)}


def numbers(record: RunRecord) -> dict[str, Number]:
    """Return every number of the run's final table by its name, in the table's order.

    Raises:
        StoreError: the run has no table (yet), or it cannot be read.
    """
    reports = [one for one in record.stages.values() if one.kind == "report"]
    done = [one for one in reports if one.done]
    if not done:
        why = f"its report stage is {reports[-1].status}" if reports else "it has no report stage"
        raise StoreError(f"the run {record.id} has no table of results: {why}")
    report = done[-1]
    path = Path(str(report.folder)) / "results.json"
    table = _read(path)
    inputs = [record.stages[name] for name in report.needs if record.stages[name].folder]
    found = [*_of_rows(report, path, table, inputs), *_of_policies(report, path, table, inputs)]
    return {one.name: one for one in found}


def find_number(record: RunRecord, name: str) -> Number | None:
    """Return the number called `name`, or None where `name` is a stage of the run instead.

    Raises:
        SpecError: neither a number nor a stage is called so; names the nearest.
    """
    if name in record.stages:
        return None
    known = numbers(record)
    if name in known:
        return known[name]
    near = did_you_mean(name, [*known, *record.stages])
    if near.startswith("; valid") and known:  # hundreds of them
        like = next((one for one in known if one.endswith("/top1")), next(iter(known)))
        near = f"; a number is named like '{like}'"
    raise SpecError(f"the run {record.id} has no number and no stage named '{name}'{near}")


def chain(record: RunRecord, ends: list[str], *, whole: bool) -> list[Link]:
    """Return the stages `ends` and all that they were made from, each before what it was made from.

    Args:
        whole: read the weights too and compare their digests; otherwise files of up to 1 MB are read and
            of larger ones the size is compared.
    """
    wanted = set(ends)
    for one in reversed(list(record.stages.values())):  # in plan order, so a stage comes after its needs
        if one.name in wanted:
            wanted.update(one.needs)
    store = StageStore(Path(record.home))
    configs = _configs(record)
    links = {
        one.name: _link(record, one, store, configs.get(one.name), whole)
        for one in reversed(list(record.stages.values()))
        if one.name in wanted
    }
    for link in links.values():
        _check_inputs(link, links, store)
    return list(links.values())


def settings(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a configuration with dotted keys: `{"sampler": {"mask_ratio": 0.9}}` → `sampler.mask_ratio`."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= settings(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


# --- numbers ---------------------------------------------------------------------------------------------


@dataclass
class _Row:
    """What the report joined into one row: its place in the table, and what was measured for it."""

    place: dict[str, str]
    measured: list[tuple[StageRecord, Path, dict[str, Any]]]

    @property
    def name(self) -> str:
        rest = [value for axis, value in self.place.items() if axis not in ("benchmark", "init")]
        return "/".join([self.place["benchmark"], self.place["init"], *rest])


def _joined(inputs: list[StageRecord]) -> list[_Row]:
    rows: dict[tuple[tuple[str, str], ...], _Row] = {}
    for kind in _MEASURED:
        for one in inputs:
            if one.kind != kind:
                continue
            path = Path(str(one.folder)) / "result.json"
            result = _read(path)
            named: dict[str, str] = {key: str(result[key]) for key in ("benchmark", "init") if key in result}
            place = {**one.axes, **named}
            row = rows.setdefault(tuple(sorted(place.items())), _Row(place, []))
            row.measured.append((one, path, result))
    return list(rows.values())


def _of_rows(
    report: StageRecord, path: Path, table: Mapping[str, Any], inputs: list[StageRecord]
) -> Iterator[Number]:
    for index, (row, shown) in enumerate(zip(_joined(inputs), table["rows"], strict=False)):
        for metric, value in shown.items():
            if metric in row.place or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            source = next((one for one in row.measured if metric in one[2]), None)
            if source is None:
                continue
            ends = (shown.get("low"), shown.get("high"), shown.get("clips")) if metric == "top1" else ()
            yield _number(
                f"{row.name}/{metric}", report, path, f"rows[{index}]", metric, value, source, *ends
            )


def _of_policies(
    report: StageRecord, path: Path, table: Mapping[str, Any], inputs: list[StageRecord]
) -> Iterator[Number]:
    trained = [one for one in inputs if one.kind == "pretrain"]
    several = table.get("policies") or [table.get("policy") or {}]
    for index, (one, shown) in enumerate(zip(trained, several, strict=False)):
        place = f"policies[{index}]" if len(several) > 1 else "policy"
        label = "/".join(["policy", *(one.axes.values() if len(several) > 1 else ())])
        kept = Path(str(one.folder)) / "result.json"
        source = (one, kept, _read(kept))
        for metric, value in shown.items():
            if metric not in one.axes and not isinstance(value, bool) and isinstance(value, int | float):
                yield _number(f"{label}/{metric}", report, path, place, metric, value, source)


def _number(
    name: str,
    report: StageRecord,
    path: Path,
    place: str,
    metric: str,
    value: float,
    source: tuple[StageRecord, Path, dict[str, Any]],
    low: float | None = None,
    high: float | None = None,
    clips: int | None = None,
) -> Number:
    stage, kept, result = source
    now = result.get(metric)
    faults = (f"{kept} says {now} now, and the table {value}",) if now != value else ()
    return Number(
        name, value, metric, report.name, str(path), f"{place}.{metric}", stage.name, str(kept),
        low, high, clips, faults,
    )  # fmt: skip


# --- the chain -------------------------------------------------------------------------------------------


def _link(
    record: RunRecord, one: StageRecord, store: StageStore, config: StageConfig | None, whole: bool
) -> Link:
    link = Link(one.name, one.stage, one.kind, list(one.needs), one.status, one.key, one.folder)
    link.settings = settings(config["set"]) if config else {}
    if not one.done or one.folder is None:
        link.faults.append(f"it is {one.status}, there is no output yet")
        return link
    folder = Path(one.folder)
    fault = store.fault(folder)
    if fault is not None:
        link.faults.append(fault or f"its output is gone from {folder}")
    try:
        origin, manifest = store.origin(folder), store.manifest(folder)
    except StoreError:
        return link  # the fault says it
    files, link.digest = manifest.files, manifest.digest
    link.run, link.pipeline, link.origin = origin.run, origin.pipeline, origin.stage
    link.made = origin.time
    link.code = _digest(origin.code)
    link.commit = _commit(record, origin.run, link)
    link.files = [
        KeptFile(str(folder / name), entry.size, entry.sha256)
        for name, entry in files.items()
        if name in _SHOWN
    ]
    _check_identity(link, one, StageKey(origin.components).digest)
    if whole and not link.faults:
        link.faults += [
            f"{kept.path} has another content"
            for kept in link.files
            if digest(Path(kept.path)) != kept.sha256
        ]
    if one.kind == "data":
        link.data = _data_sets(folder, files, link)
    return link


def _check_identity(link: Link, one: StageRecord, key: str) -> None:
    if key != one.key:
        link.faults.append("its output was made under another key than this run's")
    elif one.digest is not None and one.digest != link.digest:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(link.made))
        link.faults.append(
            f"its output was made anew by {link.run} at {when} and differs from the one of this run"
        )


def _check_inputs(link: Link, links: Mapping[str, Link], store: StageStore) -> None:
    if link.digest is None or link.folder is None:
        return
    read = store.origin(Path(link.folder)).inputs
    for need in link.needs:
        below = links[need].digest
        if below is not None and below not in read:
            link.faults.append(f"it was made from another output of {need} than the one that is there now")


def _commit(record: RunRecord, run: str, link: Link) -> str | None:
    try:
        return RunRecord.load(Path(record.home) / "runs" / run).git_commit
    except StoreError:
        link.faults.append(f"the record of {run}, which made it, is gone; its commit is not known")
        return None


def _data_sets(folder: Path, files: Mapping[str, Any], link: Link) -> list[DataSet]:
    found = []
    for name in files:
        if not name.endswith((".train.json", ".test.json")) or "/" in name:
            continue
        try:
            one = Manifest.load(folder / name)
        except DataError as error:
            link.faults.append(str(error))
            continue
        found.append(
            DataSet(
                one.benchmark,
                one.split,
                len(one),
                len(one.classes),
                str(one.root),
                one.digest(),
                str(folder / name),
            )
        )
    return found


def _configs(record: RunRecord) -> Mapping[str, StageConfig]:
    return record.configs() if record.has_configs else {}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read ({error}); run the pipeline again") from error
    return found

"""The origin of a number: report ← evaluation ← fine-tuning ← pre-training ← data.

It is read from the project folder: the run's record, the sources that the report stage wrote beside its
numbers, and the keys and manifests of the outputs. What no longer matches them is a fault of the link.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tats_core.data.manifest import Manifest
from tats_core.errors import DataError, SpecError, StoreError, did_you_mean
from tats_core.files import FileEntry
from tats_core.report.units import is_number
from tats_core.specs import flatten
from tats_core.store.layout import RESULTS
from tats_core.store.outputs import StageKey
from tats_core.store.run import Row, Run, RunRecord, Source, Stage

# The files of an output that a chain lists.
_NAMED = ("model.safetensors", "sampler.safetensors", "result.json", "results.json")


@dataclass(frozen=True)
class OutputFile:
    """One file of an output, with the size and sha256 that its manifest has."""

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

    `run`, `pipeline` and `origin` (a stage's name there) did the work, and may not be those asked about;
    `commit` and `code` are the code that it was made with.
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
    files: list[OutputFile] = field(default_factory=list)
    data: list[DataSet] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Number:
    """One number of the final table: `name` is benchmark/start[/other axes]/metric, or policy/metric.

    It stands at `place` of `file`; the stage `source` measured it, as `metric` of `source_file`. `low` and
    `high` are the ends of its 95% interval, where it has one.
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
    clips: float | None = None
    faults: tuple[str, ...] = ()


def numbers(run: Run) -> dict[str, Number]:
    """Return every number of the run's final table by its name, in the table's order.

    Raises:
        StoreError: the run has no table (yet), it cannot be read, or it does not record its sources.
    """
    table = run.results
    if table is None:
        reports = [stage.record for stage in run.stages.values() if stage.record.kind == "report"]
        why = f"its report stage is {reports[-1].status}" if reports else "it has no report stage"
        raise StoreError(f"the run {run.record.id} has no table of results: {why}")
    rows, sources = table["rows"], table.get("sources", [])
    policies = table.get("policies") or ([table["policy"]] if table.get("policy") else [])
    policy_sources = table.get("policy_sources", [])
    known = {source["stage"] for by_metric in (*sources, *policy_sources) for source in by_metric.values()}
    if (len(rows), len(policies)) != (len(sources), len(policy_sources)) or not known <= run.stages.keys():
        raise StoreError(
            f"the run {run.record.id} did not record where the numbers of its table come from; "
            f"run the pipeline {run.record.pipeline} again"
        )
    entries = [(f"rows[{index}]", "", *pair) for index, pair in enumerate(zip(rows, sources, strict=True))]
    several = len(policies) > 1
    for index, pair in enumerate(zip(policies, policy_sources, strict=True)):
        entries.append((f"policies[{index}]" if several else "policy", "policy", *pair))
    return {number.name: number for entry in entries for number in _entry(run, *entry, several)}


def find_number(run: Run, name: str) -> Number | None:
    """Return the number called `name`, or None where `name` is a stage of the run instead.

    Raises:
        SpecError: neither a number nor a stage has this name; names the nearest.
    """
    if name in run.stages:
        return None
    known = numbers(run)
    if name in known:
        return known[name]
    near = did_you_mean(name, [*known, *run.stages])
    if near.startswith("; valid") and known:  # hundreds of them
        example = next((number for number in known if number.endswith("/top1")), next(iter(known)))
        near = f"; a number is named like '{example}'"
    raise SpecError(f"the run {run.record.id} has no number and no stage named '{name}'{near}")


def chain(run: Run, ends: Collection[str], *, whole: bool) -> list[Link]:
    """Return the stages `ends` and all that they were made from, each before what it was made from.

    Args:
        whole: see `StageStore.fault`.
    """
    wanted = set(ends)
    links: dict[str, Link] = {}
    for stage in reversed(run.stages.values()):  # the reverse of plan order: a stage before its needs
        if stage.record.name in wanted:
            wanted.update(stage.record.needs)
            links[stage.record.name] = _link(run, stage, whole)
    for name, link in links.items():
        origin = run.stages[name].origin if link.digest is not None else None
        if origin is not None:
            read = [entry["digest"] for entry in origin.components["inputs"]]
            link.faults += [
                f"it was made from another output of {need} than the present one"
                for need in link.needs
                if links[need].digest not in (None, *read)
            ]
    return list(links.values())


def _entry(
    run: Run, place: str, prefix: str, row: Row, sources: Mapping[str, Source], several: bool
) -> Iterator[Number]:
    """Yield the numbers of one row of the table, or of one pre-training."""
    report = run.done("report")[-1].record
    for metric, source in sources.items():
        value, stage = row.get(metric), run.stages[source["stage"]]
        if not is_number(value):
            continue
        axes = stage.record.axes
        if prefix:
            labels = [prefix, *(axes.values() if several else ())]
        else:
            rest = [text for axis, text in axes.items() if axis not in ("benchmark", "init")]
            labels = [str(row["benchmark"]), str(row["init"]), *rest]
        path = Path(str(stage.record.folder)) / source["file"]
        measured = (stage.result or {}).get(metric)
        faults = () if measured == value else (f"{path} has {measured}, and the table {value}",)
        interval = {key: row.get(key) for key in ("low", "high", "clips") if metric == "top1"}
        yield Number(
            "/".join([*labels, metric]), value, metric, report.name,
            str(Path(str(report.folder)) / RESULTS), f"{place}.{metric}", source["stage"], str(path),
            faults=faults, **{key: end for key, end in interval.items() if is_number(end)},
        )  # fmt: skip


def _link(run: Run, stage: Stage, whole: bool) -> Link:
    record, config = stage.record, run.configs.get(stage.record.name)
    link = Link(
        record.name, record.stage, record.kind, list(record.needs), record.status, record.key, record.folder
    )
    link.settings = flatten(config["set"]) if config else {}
    if not record.done or record.folder is None:
        link.faults.append(f"it is {record.status}, there is no output yet")
        return link
    folder = Path(record.folder)
    fault = stage.store.fault(folder, whole=whole)
    if fault is not None:
        link.faults.append(fault or f"its output is gone from {folder}")
    try:
        origin, manifest = stage.origin, stage.manifest
    except StoreError:
        return link  # already among the faults
    if origin is None or manifest is None:
        return link
    link.run, link.pipeline, link.origin, link.made = origin.run, origin.pipeline, origin.stage, origin.time
    link.digest = manifest.digest
    link.code = hashlib.sha256(json.dumps(origin.components["code"], sort_keys=True).encode()).hexdigest()
    link.commit = _commit(run, origin.run, link)
    link.files = [
        OutputFile(str(folder / name), entry.size, entry.sha256)
        for name, entry in manifest.files.items()
        if name in _NAMED
    ]
    if StageKey(origin.components).digest != record.key:
        link.faults.append("its output was made under another key than this run's")
    elif record.digest is not None and record.digest != link.digest:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(link.made))
        link.faults.append(
            f"its output was made anew by {link.run} at {when} and differs from the one of this run"
        )
    if record.kind == "data":
        link.data = _data_sets(folder, manifest.files, link)
    return link


def _commit(run: Run, maker: str, link: Link) -> str | None:
    try:
        return RunRecord.load(Path(run.record.home) / "runs" / maker).git_commit
    except StoreError:
        link.faults.append(f"the record of {maker}, which made it, is gone; its commit is not known")
        return None


def _data_sets(folder: Path, files: Mapping[str, FileEntry], link: Link) -> list[DataSet]:
    sets = []
    for name in files:
        if not name.endswith((".train.json", ".test.json")) or "/" in name:
            continue
        try:
            manifest = Manifest.load(folder / name)
        except DataError as error:
            link.faults.append(str(error))
            continue
        counts = len(manifest), len(manifest.classes)
        where = str(manifest.root), manifest.digest(), str(folder / name)
        sets.append(DataSet(manifest.benchmark, manifest.split, *counts, *where))
    return sets

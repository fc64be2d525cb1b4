"""What is odd about a copy of a data set: its lists against its files, its splits against each other.

All is told from the lists and the index; a *finding* is one sentence, with a row for each of its videos.
"""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, get_args

from tats_core.data import index
from tats_core.data.benchmarks.base import Benchmark, NoListError, Split, in_both, overlap, plain, walk
from tats_core.data.ground_truth import has_motion
from tats_core.data.index import Index
from tats_core.data.manifest import Manifest
from tats_core.errors import DataError

SHORT: Final = 16
"""Frames of the usual clip; a shorter video repeats its last frame."""
_NEAREST: Final = 20
"""Missing videos for which a similar name is searched, a tenth of a second each among 20,000 files."""


class Row(NamedTuple):
    """A video that a finding is about."""

    split: str
    id: str
    path: str
    detail: str


@dataclass(frozen=True)
class Finding:
    """Something about a copy that a person should know."""

    kind: str
    text: str
    rows: tuple[Row, ...] = ()
    is_problem: bool = False
    """Whether the copy should not be used like this."""


@dataclass(frozen=True)
class Copy:
    """A copy of a data set that was checked."""

    counts: tuple[str, ...]
    """Videos and classes of each split, beside the published ones."""
    index: Index
    findings: tuple[Finding, ...]


def check(
    benchmark: Benchmark,
    root: Path,
    store: Path | None,
    decode: int,
    progress: index.Progress,
    workers: int | None = None,
) -> Copy:
    """Read all lists of a copy, bring its index up to date, and return what is found.

    Args:
        store: see `index.update`.
        decode: videos of each split of the first fold, evenly spread, to decode if the index has not done it.
    """
    manifests, findings = _read(benchmark, root)
    named = [
        (index.split_name(benchmark, split, fold), manifest) for (fold, split), manifest in manifests.items()
    ]
    first = min((fold for fold, _ in manifests), default=1)
    spread = [
        manifest.spread(decode) for (fold, _), manifest in manifests.items() if fold == first and decode
    ]
    paths = {video.path for part in spread for video in part.videos}
    files = index.update(store, named, decode=paths, progress=progress, workers=workers)
    for name, manifest in named:
        findings += _missing(benchmark, manifest, name)
    for (fold, split), train in manifests.items():
        if split == "train" and (test := manifests.get((fold, "test"))):
            findings += _shared(benchmark, train, test, fold)
    findings += [*_damaged(files), *_short(files), *_duplicates(files)]
    counts = tuple(_counts(benchmark, split, fold, manifests[fold, split]) for fold, split in manifests)
    return Copy(counts, files, tuple(findings))


def ledger(copies: Mapping[str, Copy]) -> str:
    """Return all findings of copies, given by the name of their data set, as CSV: a row a video."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["data_set", "finding", "split", "id", "path", "detail"])
    for name, copy in copies.items():
        for finding in copy.findings:
            rows = finding.rows or (Row("", "", "", finding.text),)
            writer.writerows([name, finding.kind, *row] for row in rows)
    return text.getvalue()


# --------------------------------------------------------------------------------------------- lists


def _read(benchmark: Benchmark, root: Path) -> tuple[dict[tuple[int, Split], Manifest], list[Finding]]:
    """Return the splits that can be read, by fold and name.

    A copy may have the lists of one split or fold alone: to lack others is a problem only if it has none.
    """
    manifests: dict[tuple[int, Split], Manifest] = {}
    findings: list[Finding] = []
    unlisted: list[str] = []
    for fold in range(1, benchmark.folds + 1):
        for split in get_args(Split):
            try:
                manifest = benchmark.read(root, split, fold, "allow")
            except NoListError as error:
                unlisted.append(str(error))
                continue
            except DataError as error:
                findings.append(Finding("list", str(error), is_problem=True))
                continue
            manifests[fold, split] = manifest
            # That videos are missing is a finding of its own.
            notes = manifest.notes[:-1] if manifest.absent else manifest.notes
            findings += [Finding("list", note) for note in notes]
    complete = benchmark.folds * len(get_args(Split))
    if len(unlisted) == complete:
        findings.append(Finding("list", unlisted[0], is_problem=True))
    elif unlisted:
        text = f"{len(unlisted)} of the {complete} lists of {benchmark.name} are missing: {unlisted[0]}"
        findings.append(Finding("list", text))
    return manifests, findings


def _counts(benchmark: Benchmark, split: Split, fold: int, manifest: Manifest) -> str:
    published = benchmark.expected[split][fold - 1]
    videos, classes = f"{len(manifest)} videos", f"{len(manifest.classes)} classes"
    if published:
        videos = f"{videos} (official {published})"
    if benchmark.classes:
        classes = f"{classes} (official {benchmark.classes})"
    absent = f", {manifest.absent} listed but absent" if manifest.absent else ""
    return f"{index.split_name(benchmark, split, fold)}: {videos}, {classes}{absent}"


def _missing(benchmark: Benchmark, split: Manifest, name: str) -> Iterator[Finding]:
    """Yield what a copy lacks of a list, with the files that may be meant."""
    if not split.missing:
        return
    listed = {video.path for video in split.videos}
    others = {path.stem: str(path) for path in walk(split.root) if str(path) not in listed}
    plain_names = {plain(stem): stem for stem in others}
    rows = []
    for number, missing in enumerate(split.missing):
        stem = plain(Path(missing).stem)
        near = [stem] if stem in plain_names else []
        if not near and number < _NEAREST:
            near = difflib.get_close_matches(stem, plain_names, n=1, cutoff=0.85)
        hint = f"; near: {others[plain_names[near[0]]]}" if near else ""
        rows.append(Row(name, missing, "", f"not on disk{hint}"))
    refused = benchmark.missing == "refuse"
    advice = "; complete the copy, or set 'missing: allow' in the data stage, which marks every table"
    yield Finding("missing", split.notes[-1] + advice * refused, tuple(rows), is_problem=refused)


def _shared(benchmark: Benchmark, train: Manifest, test: Manifest, fold: int) -> Iterator[Finding]:
    """Yield what both splits of a fold have: videos, or recordings that videos were cut from."""
    where = f"fold {fold}: " if benchmark.folds > 1 else ""
    name = index.split_name(benchmark, "test", fold)
    if text := overlap(train, test):
        rows = (Row(name, video.id, video.path, "in the training list too") for video in in_both(train, test))
        yield Finding("overlap", f"{where}{text}", tuple(rows))
    if not benchmark.group or has_motion(test):  # the groups of generated clips are no recordings
        return
    trained, tested = _recordings(benchmark, train), _recordings(benchmark, test)
    common = sorted(trained.keys() & tested.keys())
    if common:
        rows = (
            Row(
                name,
                video,
                "",
                f"of the recording '{recording}', of which the training has '{trained[recording][0]}'",
            )
            for recording in common
            for video in tested[recording]
        )
        yield Finding(
            "recording",
            f"{where}{benchmark.name}: {len(common)} recordings have clips in both lists (the first is "
            f"'{common[0]}'), so a test flatters the model",
            tuple(rows),
        )


def _recordings(benchmark: Benchmark, split: Manifest) -> dict[str, list[str]]:
    recordings: dict[str, list[str]] = defaultdict(list)
    for video in split.videos:
        if match := re.match(benchmark.group, video.id):
            recordings[match[1]].append(video.id)
    return recordings


# --------------------------------------------------------------------------------------------- files


def _rows_of(files: Index, *columns: str) -> Iterator[tuple[Any, ...]]:
    """Yield the row of each video, then its values in `columns`."""
    names = ("splits", "id", "path", *columns)
    for split, video, path, *values in zip(*(files.table[name].to_pylist() for name in names), strict=True):
        yield Row(split, video, path, ""), *values


def _damaged(files: Index) -> Iterator[Finding]:
    rows = tuple(row._replace(detail=fault) for row, fault in _rows_of(files, "fault") if fault)
    if rows:
        first = f"{rows[0].path}: {rows[0].detail}"
        more = f" (and {len(rows) - 1} more)" if rows[1:] else ""
        yield Finding("damaged", f"{first}{more}", rows, is_problem=True)


def _short(files: Index) -> Iterator[Finding]:
    rows = tuple(
        row._replace(detail=f"{frames} frames")
        for row, frames in _rows_of(files, "frames")
        if frames is not None and frames < SHORT
    )
    if rows:
        text = f"{len(rows)} videos have fewer than {SHORT} frames (the first is {rows[0].path})"
        yield Finding("short", text, rows)


def _duplicates(files: Index) -> Iterator[Finding]:
    """Yield the files that have the same content: copies, links, or one recording under two names."""
    same: dict[tuple[int, bytes], dict[str, Row]] = defaultdict(dict)
    for row, size, head in _rows_of(files, "bytes", "head"):
        if head is not None:
            same[size, head][row.path] = row
    rows: list[Row] = []
    crossing = 0
    for by_path in same.values():
        first, *others = by_path.values()
        for row in others:
            rows.append(row._replace(detail=f"the same as {first.path} ({first.split})"))
            crossing += _cross(first.split, row.split)
    if rows:
        leak = f"; {crossing} lie in the training and in the test of a split" if crossing else ""
        text = (
            f"{len(rows)} files are the same as another (the first is {rows[0].path}, {rows[0].detail}){leak}"
        )
        yield Finding("duplicate", text, tuple(rows))


def _cross(first: str, second: str) -> bool:
    """Return whether one of two videos, given by their splits, is trained on to test on the other."""
    return any(
        name.replace("train", "test") in tested.split(",")
        for trained, tested in ((first, second), (second, first))
        for name in trained.split(",")
        if name.startswith("train")
    )

"""`tats data generate`, `index`, `check`, `shrink` and `pack`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from tats_core.cli.options import DEFAULT_HOME, Home, many, writing
from tats_core.errors import DataError


def generate(
    out: Annotated[Path, typer.Option(help="Folder for the data sets; created if missing.")],
    preset: Annotated[str | None, typer.Option(help="Scene to start from: demo, crowded, …, hard.")] = None,
    clips_per_class: Annotated[int | None, typer.Option(help="Training clips of each class.")] = None,
    test_clips_per_class: Annotated[int | None, typer.Option(help="Test clips of each class.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other setting (scene.noise=0.05); repeatable."),
    ] = None,
) -> None:
    """Write four small video data sets in the layouts of the real ones; only motion decides the class."""
    from tats_core import specs
    from tats_core.data import generate as engine

    given = {
        "preset": preset,
        "clips_per_class": clips_per_class,
        "test_clips_per_class": test_clips_per_class,
        "seed": seed,
    }
    raw: specs.Raw = {key: value for key, value in given.items() if value is not None}
    for text in sets or []:
        raw = specs.override(raw, *specs.parse_override(text))
    config = specs.validate(engine.GenerateConfig, raw, "data generate")
    with _counting("clips") as show, writing(out, "--out"):
        roots = engine.generate(out, config, show)
    for name, root in roots.items():
        typer.echo(f"{name:<12} {root}")
    typer.echo(f"read them with: TATS_DATA={shlex.quote(str(out.absolute()))}")


@contextmanager
def _counting(what: str, name: str = "") -> Iterator[Callable[..., None]]:
    """Yield a function that shows progress: as a bar in a terminal, elsewhere as a line for each tenth."""
    if sys.stdout.isatty():
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        text = TextColumn("{task.description}", markup=False)
        with Progress(text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as bar:
            task = bar.add_task(what, total=None)

            def draw(done: int, total: int, text: str = name) -> None:
                bar.update(task, completed=done, total=total, description=f"{what} ({text})")

            yield draw
        return
    printed = -1

    def print_tenth(done: int, total: int, text: str = name) -> None:
        nonlocal printed
        tenth = 10 * done // max(1, total)
        if tenth > printed:
            printed = tenth
            typer.echo(f"{what}: {done} of {total} ({text})")

    yield print_tenth


DataSets = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME]...", help="Data sets; default: all that are configured."),
]
Root = Annotated[
    Path | None, typer.Option(help="Folder that holds them; default: TATS_DATA, TATS_DATA_<NAME>.")
]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes; default: as many as CPUs.")]


def index(
    names: DataSets = None, root: Root = None, workers: Workers = None, home: Home = DEFAULT_HOME
) -> None:
    """Decode every video of data sets once and write what it is into a Parquet file, one row a video.

    Called again, it resumes, and reads only what is new or changed. `tats data check` and the data stages of
    pipelines use it.
    """
    from tats_core.data import index as indexes

    for name, folder in _located(names, root):
        store = indexes.path_of(home, name, folder)
        listed = indexes.listed(name, folder)
        if not listed:
            raise DataError(f"{name}: no list of {folder} can be read: tats data check {name}")
        paths = {video.path for _, manifest in listed for video in manifest.videos}
        with _counting("videos", name) as show:
            files = indexes.update(store, listed, decode=paths, progress=show, workers=workers)
        faults = sum(map(bool, files.table["fault"].to_pylist()))
        typer.echo(f"{name}: {len(files)} videos in {len(paths)} files, {faults} damaged: {store}")
        typer.echo(f"{name}: digest {files.digest()}")


def check(
    names: DataSets = None,
    root: Root = None,
    decode: Annotated[
        int,
        typer.Option(min=0, help="Videos of each split to decode, evenly spread, beside those indexed."),
    ] = 8,
    ledger: Annotated[Path | None, typer.Option(help="CSV file for the findings, a row a video.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 where there are warnings.")] = False,
    workers: Workers = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Report what is odd about data sets: counts, missing and damaged videos, duplicates, overlaps of splits.

    Uses what `tats data index` knows of the files. Exits with 2 where something is wrong with a data set.
    """
    from tats_core.data import checks
    from tats_core.data import index as indexes
    from tats_core.data.benchmarks import BENCHMARKS
    from tats_core.files import write_text

    copies: dict[str, checks.Copy] = {}
    for name, folder in _located(names, root):
        store = indexes.path_of(home, name, folder)
        typer.echo(f"{name} ({BENCHMARKS[name].title}) in {folder}")
        with _counting("videos", name) as show:
            copy = checks.check(BENCHMARKS[name], folder, store, decode, show, workers)
        copies[name] = copy
        for line in copy.counts:
            typer.echo(f"  {line}")
        faults = copy.index.table["fault"].drop_null().to_pylist()
        typer.echo(f"  {faults.count('')} of {len(faults)} decoded completely")
    if ledger is not None:
        with writing(ledger, "--ledger"):
            write_text(ledger, checks.ledger(copies))
    # Both lists may have the same fault, such as one of the class list.
    findings = [finding for copy in copies.values() for finding in copy.findings]
    warnings = dict.fromkeys(finding.text for finding in findings if not finding.is_problem)
    problems = dict.fromkeys(finding.text for finding in findings if finding.is_problem)
    for text in warnings:
        typer.echo(f"tats: warning: {text}", err=True)
    for text in problems:
        typer.echo(f"tats: {text}", err=True)
    if problems or (warnings and strict):
        raise typer.Exit(DataError.exit_code if problems else 1)


def shrink(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Data sets.")],
    out: Annotated[Path, typer.Option(help="Folder for the copies, each under its name.")],
    root: Root = None,
    short_side: Annotated[int, typer.Option(min=16, help="Pixels of the shorter side.")] = 256,
    key_frames: Annotated[int, typer.Option(min=1, help="Frames from a key frame to the next.")] = 16,
    workers: Workers = None,
) -> None:
    """Write smaller copies of data sets, in their layouts, that decode several times as fast.

    Called again, it resumes. A video that is small already, or damaged, is copied as it is.
    """
    from tats_core.data import shrink as engine

    smaller = engine.Smaller(short_side, key_frames)
    for name, folder in _located(names, root):
        with writing(out, "--out"), _counting("videos", name) as show:
            faults = engine.shrink(folder, out / name, smaller, show, workers)
        for text in faults.values():
            typer.echo(f"tats: warning: {text}", err=True)
        typer.echo(f"{name:<12} {out / name}")
    typer.echo(f"read them with: TATS_DATA={shlex.quote(str(out.absolute()))}")


def pack(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Data sets.")],
    out: Annotated[Path, typer.Option(help="Folder for the copies, each under its name.")],
    root: Root = None,
    shards: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Where the videos go, in a folder under each name: any address of fsspec (s3://bucket/data).",
        ),
    ] = None,
    shard_mb: Annotated[int, typer.Option(min=1, help="Largest size of a shard, MiB.")] = 1024,
    workers: Workers = None,
) -> None:
    """Write copies of data sets whose videos, byte for byte, are in a few large files.

    Called again, it resumes. A copy is read like the plain one, and gives the same samples; its shards can be
    moved to another disk or object store (the key 'shards' in its packed.json).
    """
    from tats_core.data import pack as engine

    for name, folder in _located(names, root):
        address = f"{shards.rstrip('/')}/{name}" if shards else "shards"
        shard_bytes = shard_mb << 20
        with writing(out, "--out"), _counting("videos", name) as show:
            count = engine.pack(
                name, folder, out / name, show, address=address, shard_bytes=shard_bytes, workers=workers
            )
        typer.echo(f"{name:<12} {out / name} ({many(count, 'shard')})")
    typer.echo(f"read them with: TATS_DATA={shlex.quote(str(out.absolute()))}")


def _located(names: Sequence[str] | None, root: Path | None) -> list[tuple[str, Path]]:
    """Return the folder of each data set that is named, which must exist, or of each that is configured."""
    from tats_core.data import benchmarks

    known = list(benchmarks.BENCHMARKS)
    located: list[tuple[str, Path]] = []
    for name in names or known:
        try:
            located.append((name, benchmarks.locate(name, root)))
        except DataError:
            if names:  # else it is absent, and few people have all
                raise
    if located:
        return located
    if root is not None:
        hint = f"; did you mean {root.absolute().parent}?" if root.absolute().name in known else ""
        raise DataError(f"--root: {root} holds none of the folders {', '.join(known)}{hint}")
    raise DataError(
        "no data set is configured; give --root, or set TATS_DATA to the folder that holds "
        f"{', '.join(known)}, or TATS_DATA_<NAME> for a single data set"
    )

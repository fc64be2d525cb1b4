"""`tats data generate` and `tats data check`."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self, get_args

import typer

from tats_core.cli.options import writing
from tats_core.errors import DataError

if TYPE_CHECKING:
    from rich.progress import Progress

    from tats_core.data.benchmarks import Benchmark
    from tats_core.data.manifest import Manifest, VideoRecord


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

    options = {
        "preset": preset,
        "clips_per_class": clips_per_class,
        "test_clips_per_class": test_clips_per_class,
        "seed": seed,
    }
    raw: specs.Raw = {key: value for key, value in options.items() if value is not None}
    for text in sets or []:
        raw = specs.override(raw, *specs.parse_override(text))
    config = specs.validate(engine.GenerateConfig, raw, "data generate")
    with _Counter() as counter, writing(out, "--out"):
        roots = engine.generate(out, config, counter.show)
    for name, root in roots.items():
        typer.echo(f"{name:<12} {root}")
    typer.echo(f"read them with: TATS_DATA={shlex.quote(str(out.absolute()))}")


class _Counter:
    """Shows how many clips are done: a bar in a terminal, elsewhere a line for each tenth of them."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._tenth = -1

    def __enter__(self) -> Self:
        if sys.stdout.isatty():
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            text = TextColumn("{task.description}")
            self._bar = Progress(text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar.add_task("clips", total=None)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, done: int, total: int, text: str) -> None:
        if self._bar is not None:
            task = self._bar.task_ids[0]
            self._bar.update(task, completed=done, total=total, description=f"clips ({text})")
        elif 10 * done // max(1, total) > self._tenth:
            self._tenth = 10 * done // max(1, total)
            typer.echo(f"clips: {done} of {total} ({text})")


def check(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Data sets; default: all that are configured."),
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="Folder that holds them; default: TATS_DATA, TATS_DATA_<NAME>.")
    ] = None,
    decode: Annotated[
        int, typer.Option(min=0, help="Videos of each split to decode from start to end, evenly spread.")
    ] = 8,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 where there are warnings.")] = False,
) -> None:
    """Compare the video lists of data sets with the official counts, and decode some videos.

    Exits with 2 where something is wrong with a data set.
    """
    from tats_core.data import benchmarks

    problems: list[str] = []
    warnings: list[str] = []
    checked = 0
    for benchmark in [benchmarks.BENCHMARKS[name] for name in names or benchmarks.BENCHMARKS]:
        try:
            folder = benchmarks.locate(benchmark.name, root)
        except DataError as error:
            # Without names, an absent data set is no problem: few people have all.
            if names:
                problems.append(str(error))
            continue
        checked += 1
        typer.echo(f"{benchmark.name} ({benchmark.title}) in {folder}")
        wrong, noted = _check_benchmark(benchmark, folder, decode)
        problems += wrong
        warnings += noted
    if not checked and not problems:
        known = ", ".join(benchmarks.BENCHMARKS)
        if root is not None:
            inner = root.absolute().name in benchmarks.BENCHMARKS
            hint = f"; did you mean {root.absolute().parent}?" if inner else ""
            raise DataError(f"--root: {root} holds none of the folders {known}{hint}")
        raise DataError(
            f"no data set is configured; give --root, or set TATS_DATA to the folder that holds {known}, or "
            "TATS_DATA_<NAME> for a single data set"
        )
    # Both lists may have the same fault, such as one of the class list.
    for warning in dict.fromkeys(warnings):
        typer.echo(f"tats: warning: {warning}", err=True)
    for problem in dict.fromkeys(problems):
        typer.echo(f"tats: {problem}", err=True)
    if problems or (warnings and strict):
        raise typer.Exit(DataError.exit_code if problems else 1)


def _check_benchmark(benchmark: Benchmark, folder: Path, decode: int) -> tuple[list[str], list[str]]:
    """Print the counts of both splits of every fold; return a sentence for each problem and each warning.

    A copy may have the lists of one split or fold alone: to lack others is a problem only if it has none.
    """
    from tats_core.data.benchmarks.base import NoListError, Split, overlap

    problems: list[str] = []
    warnings: list[str] = []
    unlisted: list[str] = []
    decoded = False
    for fold in range(1, benchmark.folds + 1):
        read: list[Manifest] = []
        for split in get_args(Split):
            try:
                manifest = benchmark.read(folder, split, fold)
            except NoListError as error:
                unlisted.append(str(error))
                continue
            except DataError as error:
                problems.append(str(error))
                continue
            official = benchmark.expected[split][fold - 1]
            typer.echo(f"  {_counts(manifest, fold if benchmark.folds > 1 else None, official, benchmark)}")
            warnings += manifest.notes
            read.append(manifest)
            if decode and not decoded:
                problems += _unreadable(manifest.spread(decode).videos)
        decoded = decoded or bool(read)
        if len(read) == len(get_args(Split)) and (shared := overlap(*read)):
            warnings.append(shared if benchmark.folds == 1 else f"fold {fold}: {shared}")
    complete = 2 * benchmark.folds
    if len(unlisted) == complete:
        problems.append(unlisted[0])
    elif unlisted:
        warnings.append(
            f"{len(unlisted)} of the {complete} lists of {benchmark.name} are missing: {unlisted[0]}"
        )
    return problems, warnings


def _counts(manifest: Manifest, fold: int | None, official: int, benchmark: Benchmark) -> str:
    split = manifest.split if fold is None else f"{manifest.split} {fold}"
    videos, classes = f"{len(manifest)} videos", f"{len(manifest.classes)} classes"
    if official:  # not of a list of files
        videos, classes = f"{videos} (official {official})", f"{classes} (official {benchmark.classes})"
    absent = f", {manifest.absent} listed but absent" if manifest.absent else ""
    return f"{split}: {videos}, {classes}{absent}"


def _unreadable(videos: Sequence[VideoRecord]) -> list[str]:
    """Decode each of `videos` to its end, as training does; return a sentence for each that is damaged."""
    from tats_core.data import verify

    start = time.perf_counter()
    faults = [text for video in videos if (text := verify.fault(video.path)) is not None]
    if videos:
        seconds = time.perf_counter() - start
        typer.echo(
            f"    {len(videos) - len(faults)} of {len(videos)} decoded completely, "
            f"{len(videos) / max(1e-9, seconds):.1f} videos a second"
        )
    return faults

"""What a rehearsal has shown to work, from what its run left on disk, and what it could not show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from tats_core.data.benchmarks import Split
from tats_core.data.manifest import Manifest
from tats_core.pipeline.graph import Graph
from tats_core.report.table import Table
from tats_core.report.units import duration, size
from tats_core.stages.data import DataConfig
from tats_core.store.run import Run, RunRecord

Row = tuple[str, str, str]


def table(run: Run, recipe: Graph, tracked: RunRecord) -> Table:
    """Return a row for each part of the platform: whether it was exercised, what it is, how.

    Args:
        run: the rehearsal; of a sweep, the trial that was killed.
        recipe: the graph of the pipeline that was rehearsed, in its full size.
        tracked: the rehearsal, or the sweep.
    """
    rows = [*_stages(run), *_data(run), *_workers(run, recipe), *_resume(run), *_surroundings(tracked)]
    rows += [("no", what, why) for what, why in _not_exercised(run, recipe)]
    return Table.of(("exercised", "what", "how"), rows, labels=3)


def _stages(run: Run) -> Iterator[Row]:
    done = [stage.record for stage in run.stages.values() if stage.record.done]
    counts = Counter(record.kind for record in done)
    kinds = ", ".join(f"{count} {kind}" if count > 1 else kind for kind, count in counts.items())
    yield _yes(len(done) == len(run.stages)), "stages", f"{len(done)} of {len(run.stages)}: {kinds}"


def _data(run: Run) -> Iterator[Row]:
    for stage in run.done("data"):
        assert stage.folder is not None
        config = DataConfig.model_validate(run.configs[stage.record.name]["all"])
        fold = f", fold {config.fold}" if len(run.done("data")) > 1 else ""
        for name in config.names:
            paths = [stage.folder / f"{name}.{split}.json" for split in get_args(Split)]
            lists = [Manifest.load(path) for path in paths if path.exists()]
            if not lists:
                continue
            kinds = ", ".join(sorted({Path(video.path).suffix for part in lists for video in part.videos}))
            made = "generated" if name in config.generated else f"real, in {lists[0].root}"
            used = (each["all"] for each in run.configs.values())
            clips = (each.get("data") or {} for each in used if each.get("benchmark") == name)
            readers = {options["reader"] for options in clips if "reader" in options}
            how = f"{' + '.join(str(len(part)) for part in lists)} {kinds}, {made}"
            yield "yes", f"data: {name}{fold}", f"{how}; reader: {', '.join(sorted(readers))}"


def _workers(run: Run, recipe: Graph) -> Iterator[Row]:
    for name, stage in run.stages.items():
        used = stage.params
        if "workers" not in used:
            continue
        config, full = run.configs[name]["all"], recipe.instances[name].config.model_dump()
        words = [f"{used['workers']} of {full['workers']} workers on {used['device']}"]
        words += [f"steps {used['steps']}", config["precision"], f"accumulation {config['accumulate']}"]
        if decoding := config["data"]["decode_workers"]:
            words.append(f"{decoding} decoding process a worker")
        yield _yes(stage.record.done), name, ", ".join(words)


def _resume(run: Run) -> Iterator[Row]:
    notes = [(name, note) for name, stage in run.stages.items() for note in stage.notes]
    resumed = [(name, note) for name, note in notes if note.startswith("resumed after step")]
    for name, note in resumed:
        yield "yes", "resume", f"{name}: a worker was killed after its first checkpoint; {note}"
    if not resumed:
        yield "no", "resume", "no training was killed"


def _surroundings(record: RunRecord) -> Iterator[Row]:
    fault = record.tracking_error
    yield _yes(not fault and record.tracking_run is not None), "tracking", fault or str(record.tracking_uri)
    home = Path(record.home)
    files = [path.stat().st_size for path in home.rglob("*") if path.is_file() and not path.is_symlink()]
    took = duration((record.finished or record.started) - record.started)
    yield "yes", "storage", f"{len(files):,} files, {size(sum(files))}, in {home}, after {took}"


def _not_exercised(run: Run, recipe: Graph) -> Iterator[tuple[str, str]]:
    full = {name: instance.config.model_dump() for name, instance in recipe.instances.items()}
    used = {name: config["all"] for name, config in run.configs.items()}
    if any(config.get("gpu") and not used[name]["gpu"] for name, config in full.items()):
        yield "GPUs, NCCL", "there is none here; bfloat16 ran on the CPU where the recipe has it"
    missing: set[str] = set()
    for stage in run.done("data"):
        name = stage.record.name
        missing.update({*_generated(used[name])} - {*_generated(full[name])})
    if missing:
        names = ", ".join(sorted(missing))
        yield "real videos", f"not found: {names}; 'tats data check' says where they are expected"
    for key in ("start", "encoder"):
        if weights := {str(config[key]) for config in full.values() if config.get(key)}:
            yield "weights from outside", f"{', '.join(weights)}: they do not fit the tiny model"
    yield "the size", "memory, speed and price of the real thing: --estimate"


def _generated(config: dict[str, object]) -> tuple[str, ...]:
    return DataConfig.model_validate(config).generated


def _yes(value: bool) -> str:
    return "yes" if value else "no"

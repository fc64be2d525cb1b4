"""Runs a sweep: one code path for a first run and a resume.

A trial that has ended is recorded in its folder (`trial.json`), so a resume gives Tune only the trials that
are left. One that was interrupted resumes from its stages' outputs and checkpoints, before all others.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tats_core.errors import ResourceError, RunError, SpecError, StoreError
from tats_core.files import read_json, write_json
from tats_core.launch import ray_train
from tats_core.pipeline import graph as graphs
from tats_core.pipeline import resources, runner
from tats_core.pipeline.observers import Observer
from tats_core.store import key_diff
from tats_core.store.outputs import make_folder
from tats_core.sweep import page, spec, summary, trial
from tats_core.sweep.progress import Progress, SweepUI
from tats_core.sweep.search import Points
from tats_core.sweep.spec import Sweep
from tats_core.sweep.summary import Summary, results


@dataclass(frozen=True)
class Outcome:
    """How a sweep ended."""

    folder: Path
    summary: Summary
    stopped: bool
    before: int = 0
    """Trials that had ended before a resume."""


def slots(sweep: Sweep) -> tuple[int, bool]:
    """Return how many trials run side by side, and whether each trains in its own process.

    Raises:
        ResourceError: a trial needs more than there is.
    """
    instances = [
        instance
        for point in sweep.examples()
        for instance in graphs.build(sweep.load(sweep.trials_of(point)[0].overrides)).instances.values()
        if instance.stage not in sweep.common
    ]
    cpus = max(instance.kind.cpus(instance.config) for instance in instances)
    gpus = max(instance.kind.gpus(instance.config) for instance in instances)
    total = resources.capacity(gpus > 0)
    for name, needed, has in (("CPU", cpus, total.cpus), ("GPU", gpus, total.gpus)):
        if needed > has:
            raise ResourceError(
                f"a trial of {sweep.name} needs {needed} {name}s, but there are {has}; "
                "ask for fewer workers (--set STAGE.workers=…) or use a larger machine"
            )
    fit = min(total.cpus // max(cpus, 1), total.gpus // gpus if gpus else total.cpus)
    return max(1, min(fit, sweep.max_concurrent or fit)), cpus <= 1 and not gpus


def rehearsed(sweep: Sweep) -> Sweep:
    """Return the rehearsal of a sweep on what this machine, or the cluster, has."""
    graph = graphs.build(sweep.load({}))
    return spec.rehearsed(sweep, resources.for_rehearsal(graph.instances.values()))


def check_same(sweep: Sweep, folder: Path) -> None:
    """Refuse to resume a sweep that was started as another.

    Raises:
        SpecError: something changed; names it.
        StoreError: `sweep.json` cannot be read.
    """
    before = read_json(folder / "sweep.json", dict[str, Any], "the identity of a sweep")
    changes = key_diff.between({"config": before}, {"config": sweep.identity()})
    changed = [f"{change.name}: {change.old} → {change.new}" for change in changes]
    if changed:
        raise SpecError(
            f"{sweep.source}: this is not the sweep that was begun ({'; '.join(changed)}); "
            "leave out --resume to start it anew (finished stages are reused), or undo the change"
        )


def run(sweep: Sweep, home: Path, *, resume: bool, ui: SweepUI, stage_ui: Observer | None = None) -> Outcome:
    """Run a sweep to its end, or resume its newest run.

    Raises:
        TatsError: known before the first trial: nothing to resume, a changed space, too few CPUs, a failed
            common stage.
    """
    home = home.absolute()
    make_folder(home)
    folder = trial.newest(home, sweep.name) if resume else None
    if folder is not None:
        check_same(sweep, folder)
        ended = results(folder)
        by_id = {result.id: result for result in ended}
        points = Points(sweep, folder)
        if all(trial.id in by_id for trial in points.trials()) and not points.next_trials(by_id):
            done = Summary.of(sweep, ended, summary.busy_of(folder))
            done.write(folder)  # the driver may have been killed after the last trial
            page.write(done, folder)
            return Outcome(folder, done, False, before=len(ended))
    elif resume:
        raise StoreError(f"no sweep '{sweep.name}' in {home} to resume; leave out --resume")
    width, in_process = slots(sweep)
    if folder is None:
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        number = f"{int(time.time() * 1000) % 1000:03d}-{secrets.token_hex(2)}"
        folder = home / "runs" / f"{sweep.name}-{stamp}{number}"
        write_json(folder / "sweep.json", sweep.identity())
        spec.save(sweep, folder)
    ray_train.connect()
    if sweep.common and not _run_common_stages(sweep, home, stage_ui):
        return Outcome(folder, Summary.of(sweep, results(folder), None), True)
    progress = Progress(sweep.count, width, time.time())
    progress.ended = {result.id: result for result in results(folder)}
    progress.before = len(progress.ended)
    from tats_core.sweep.tuning import Recorder  # Tune is slow to import

    recorder = Recorder(sweep, home, folder, progress, in_process, ui)
    stopped = recorder.execute()
    return Outcome(folder, recorder.summary, stopped, progress.before)


def _run_common_stages(sweep: Sweep, home: Path, ui: Observer | None) -> bool:
    """Run the stages that all trials share; return False if the user stopped them."""
    pipeline = sweep.load(sweep.trials_of(sweep.examples()[0])[0].overrides)
    plan = runner.plan(pipeline, home, only=sorted(sweep.common))
    if all(item.action == "reuse" for item in plan.items if item.stage in sweep.common):
        return True
    record = runner.run(pipeline, home, only=sorted(sweep.common), ui=ui)
    if record.status == "failed":
        raise RunError(f"{record.error}; no trial can start without it")
    return record.status == "finished"

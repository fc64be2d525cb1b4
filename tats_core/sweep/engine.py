"""Runs the trials of a sweep side by side on Ray Tune; one code path for a first run and a resume.

What has ended is kept by trial (`trial.json`), so a resume gives Tune only the trials that are left; one that
was cut off goes on from its stages' outputs and checkpoints. Tune's own records are scratch.

A trial of one-worker CPU stages takes one CPU and trains in a process forked by `alone`; any other takes next
to nothing itself, and the Ray Train workers that it starts take what they need.
"""

from __future__ import annotations

import json
import os
import queue
import secrets
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tats_core.errors import ResourceError, RunError, SpecError, StoreError
from tats_core.files import write_json
from tats_core.machine import available_cpus
from tats_core.pipeline import graph as graphs
from tats_core.pipeline import ray_train, runner
from tats_core.pipeline.cache import make_folder
from tats_core.pipeline.records import RunRecord, RunUI, StageRecord
from tats_core.pipeline.tracking import Tracker
from tats_core.sweep import alone, trial
from tats_core.sweep.spec import Sweep, Trial, differences
from tats_core.sweep.trial import Ended, Row

_TRIES = 2  # a trial whose process was killed is started so often again
_DRIVER_CPUS = 0.01  # Tune refuses 0


class SweepUI(Protocol):
    """Who is told how a sweep goes; every call comes from the thread that called `run`."""

    def started(self, sweep: Sweep, progress: Progress) -> None:
        """The common stages are there; the first trial begins."""

    def changed(self, progress: Progress) -> None:
        """A trial began, told of an epoch, or ended."""

    def close(self) -> None:
        """Give the terminal back; may be called twice."""


@dataclass
class Progress:
    """How far a sweep is."""

    total: int
    slots: int
    began: float
    """Seconds since the epoch: Ray is up and the common stages are there."""
    running: dict[str, Trial] = field(default_factory=dict)
    rows: dict[str, Row] = field(default_factory=dict)
    """The newest row of each running trial."""
    ended: dict[str, Ended] = field(default_factory=dict)
    before: int = 0
    """Trials that had ended before a resume."""

    def remaining(self) -> float | None:
        """Estimate the seconds that are left, from the trials that ended in this run."""
        done = len(self.ended) - self.before
        if not done:
            return None
        return (time.time() - self.began) / done * (self.total - len(self.ended))


@dataclass(frozen=True)
class Outcome:
    """How a sweep ended. `busy` is the share of the slots' time that was spent inside training steps."""

    folder: Path
    trials: list[Ended]
    stopped: bool
    busy: float | None


def slots(sweep: Sweep) -> tuple[int, bool]:
    """Return how many trials run side by side, and whether each trains in its own process.

    Raises:
        ResourceError: a trial needs more than there is.
    """
    points = sweep.points() or list(sweep.space.corners())
    built = [graphs.build(sweep.load(sweep.trials_of(point)[0].overrides)) for point in points]
    own = [one for graph in built for one in graph.instances.values() if one.stage not in sweep.common]
    cpus = max(one.kind.cpus(one.config) for one in own)
    gpus = max(one.kind.gpus(one.config) for one in own)
    in_process = cpus <= 1 and not gpus
    there, gpus_there = (available_cpus(), 0) if not gpus and not _cluster() else ray_train.capacity()
    for name, needed, has in (("CPU", cpus, there), ("GPU", gpus, gpus_there)):
        if needed > has:
            raise ResourceError(
                f"a trial of {sweep.name} needs {needed} {name}s, but there are {has}; "
                "ask for fewer workers (--set STAGE.workers=…) or use a larger machine"
            )
    fit = min(there // max(cpus, 1), gpus_there // gpus if gpus else there)
    return max(1, min(fit, sweep.max_concurrent or fit)), in_process


def _cluster() -> bool:
    return bool(os.environ.get("RAY_ADDRESS"))


def newest(home: Path, name: str) -> Path | None:
    """Return the folder of the newest run of this sweep, or None."""
    found = sorted((home / "runs").glob(f"{name}-*/sweep.json"), key=lambda one: one.stat().st_ctime)
    return found[-1].parent if found else None


def results(folder: Path) -> list[Ended]:
    """Return what has ended in a sweep's folder."""
    ended = [Ended.load(one) for one in sorted((folder / "trials").glob("*"))]
    return [one for one in ended if one is not None]


def check_same(sweep: Sweep, folder: Path) -> None:
    """Refuse to go on with a sweep that was started as another one.

    Raises:
        SpecError: something changed; says what.
        StoreError: what it was cannot be read.
    """
    path = folder / "sweep.json"
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read ({error})") from error
    changed = [f"{key}: {was} → {now}" for key, was, now in differences(before, sweep.identity())]
    if changed:
        raise SpecError(
            f"{sweep.where}: this is not the sweep that was begun ({'; '.join(changed)}); "
            "leave out --resume to start it anew (finished stages are reused), or undo the change"
        )


def run(sweep: Sweep, home: Path, *, resume: bool, ui: SweepUI, stage_ui: RunUI | None = None) -> Outcome:
    """Run a sweep to its end, or go on with its newest run.

    Raises:
        TatsError: found before the first trial: nothing to resume, a changed space, too few CPUs, a failed
            common stage.
    """
    home = home.absolute()
    make_folder(home)
    width, in_process = slots(sweep)
    if sweep.searcher.kind == "optuna":
        raise SpecError(f"{sweep.where}: searcher.kind: optuna is not built yet; use grid or random")
    folder = newest(home, sweep.name) if resume else None
    if resume and folder is None:
        raise RunError(f"no sweep '{sweep.name}' in {home} to resume; leave out --resume")
    if folder is None:
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        folder = (
            home / "runs" / f"{sweep.name}-{stamp}{int(time.time() * 1000) % 1000:03d}-{secrets.token_hex(2)}"
        )
        write_json(folder / "sweep.json", sweep.identity())
    else:
        check_same(sweep, folder)
    ray_train.connect()
    if sweep.common and not _common(sweep, home, stage_ui):
        return Outcome(folder, results(folder), True, None)
    progress = Progress(sweep.count, width, time.time())
    progress.ended = {one.id: one for one in results(folder)}
    progress.before = len(progress.ended)
    return _Tuned(sweep, home, folder, progress, in_process, ui).execute()


def _common(sweep: Sweep, home: Path, ui: RunUI | None) -> bool:
    """Run the stages that all trials share; False where the person stopped them."""
    first = sweep.trials_of((sweep.points() or list(sweep.space.corners()))[0])[0]
    pipeline = sweep.load(first.overrides)
    plan = runner.plan(pipeline, home, only=sorted(sweep.common))
    if all(item.action == "reuse" for item in plan.items if item.stage in sweep.common):
        return True
    record = runner.run(pipeline, home, only=sorted(sweep.common), ui=ui)
    if record.status == "failed":
        raise RunError(f"{record.error}; no trial can start without it")
    return record.status == "finished"


class _Tuned:
    """One run of a sweep's trials."""

    def __init__(
        self, sweep: Sweep, home: Path, folder: Path, progress: Progress, in_process: bool, ui: SweepUI
    ) -> None:
        self.sweep, self.home, self.folder, self.progress, self.ui = sweep, home, folder, progress, ui
        self.in_process = in_process
        everything = [one for point in sweep.points() for one in sweep.trials_of(point)]
        self.trials = {one.id: one for one in everything}
        self.progress.total = len(self.trials)
        self.waiting = [one for one in self.trials.values() if one.id not in progress.ended]
        self.record = self._record()
        self.tracker = Tracker(home, self.record)
        self.interrupted = False

    def _record(self) -> RunRecord:
        """A sweep is tracked as a run whose stages are its trials."""
        stages = {
            one.id: StageRecord(
                one.id, one.id, "trial", {key: str(value) for key, value in one.overrides.items()}, []
            )
            for one in self.trials.values()
        }
        return RunRecord(
            id=self.folder.name,
            pipeline=self.sweep.name,
            title=self.sweep.title,
            source=self.sweep.where,
            home=str(self.home),
            status="running",
            started=time.time(),
            stages=stages,
            overrides=list(self.sweep.overrides),
            pid=os.getpid(),
        )

    def execute(self) -> Outcome:
        with self.record.alive():
            return self._execute()

    def _execute(self) -> Outcome:
        self.record.save()
        self.tracker.run_started(self.sweep.identity())
        self.ui.started(self.sweep, self.progress)
        try:
            if self.waiting:
                self._tune()
        finally:
            self.ui.close()
        took = time.time() - self.progress.began
        ended = list(self.progress.ended.values())
        trained = sum(one.seconds for one in ended[self.progress.before :])
        busy = trained / (took * self.progress.slots) if self.waiting_ended() else None
        failed = [one for one in ended if one.status == "failed"]
        self.record.status = (
            "stopped" if self.interrupted else "failed" if len(failed) == len(ended) else "finished"
        )
        self.record.error = failed[0].error if failed and self.record.status == "failed" else None
        self.record.finished = time.time()
        self.record.save()
        self.tracker.close()
        self.record.save()
        return Outcome(self.folder, ended, self.interrupted, busy)

    def waiting_ended(self) -> bool:
        """Tell whether any trial ended in this run."""
        return len(self.progress.ended) > self.progress.before

    def _tune(self) -> None:
        from ray import tune

        os.environ |= {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_CHDIR_TO_TRIAL_DIR": "0"}
        os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # the row that ends a trial holds no curve
        os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the terminal is ours
        before = signal.getsignal(signal.SIGINT)
        scratch = self.folder / "tune"
        try:
            tune.Tuner(
                tune.with_resources(
                    _trainable(self.sweep, self.home, self.folder.name, self.in_process),
                    {"cpu": 1 if self.in_process else _DRIVER_CPUS},
                ),
                tune_config=tune.TuneConfig(
                    search_alg=_searcher(self), num_samples=-1, scheduler=_scheduler(self.sweep),
                    max_concurrent_trials=self.progress.slots, reuse_actors=True,
                ),
                run_config=tune.RunConfig(
                    name="trials", storage_path=str(scratch), verbose=0, callbacks=[_callback(self)],
                    failure_config=tune.FailureConfig(max_failures=_TRIES),
                ),
            ).fit()  # fmt: skip
        finally:
            # Tune leaves its handler where it was interrupted in the middle.
            signal.signal(signal.SIGINT, before)
        self.interrupted = len(self.progress.ended) < self.progress.total
        shutil.rmtree(scratch)

    # --- what Tune tells -------------------------------------------------------------------------------

    def begun(self, one: Trial) -> None:
        self.progress.running[one.id] = one
        stage = self.record.stages[one.id]
        if stage.status == "waiting":
            stage.status, stage.started, stage.key, stage.attempts = "running", time.time(), one.id, 1
            self.tracker.stage_started(stage, dict(one.overrides), dict(one.overrides), (), (), {})
        self.ui.changed(self.progress)

    def told(self, one: Trial, row: Mapping[str, Any]) -> None:
        kept = {key: float(value) for key, value in row.items() if "." in key or key in ("epoch", "step")}
        if "epoch" not in kept:
            return
        self.progress.rows[one.id] = kept
        event = {"kind": "metrics", "step": int(kept["step"]), "time": time.time(), "values": kept}
        self.tracker.event(one.id, event)
        self.ui.changed(self.progress)

    def ended(self, one: Trial, error: str | None = None) -> None:
        place = self.folder / "trials" / one.id
        found = Ended.load(place)
        last = self.progress.rows.pop(one.id, {})
        self.progress.running.pop(one.id, None)
        if found is None:
            found = Ended(
                one.id, "failed" if error else "stopped early", dict(one.point), one.seed,
                {m.name: last[m.name] for m in self.sweep.metrics if m.name in last},
                epochs=int(last.get("epoch", 0)), error=error,
            )  # fmt: skip
            found.save(place)
        self.progress.ended[one.id] = found
        stage = self.record.stages[one.id]
        stage.status = "failed" if found.status == "failed" else "finished"
        stage.finished, stage.error = time.time(), found.error
        stage.seconds = stage.finished - (stage.started or stage.finished)
        step = int(last.get("step", 0))
        values = {f"result/{key}": value for key, value in found.metrics.items()}
        if values:
            self.tracker.event(
                one.id, {"kind": "metrics", "step": step, "time": time.time(), "values": values}
            )
        self.tracker.stage_ended(stage)
        self.record.save()
        self.ui.changed(self.progress)


def _scheduler(sweep: Sweep) -> Any:
    wanted = sweep.scheduler
    if wanted.kind == "none":
        return None
    from ray.tune.schedulers import ASHAScheduler

    return ASHAScheduler(
        time_attr="epoch",
        metric=wanted.metric,
        mode=wanted.mode,
        max_t=10**6,
        grace_period=wanted.grace,
        reduction_factor=wanted.reduction,
    )


def _searcher(tuned: _Tuned) -> Any:
    from ray.tune.search import Searcher

    class Given(Searcher):
        """Hands out the trials that are left; one that would make the same output as a running one waits."""

        def __init__(self) -> None:
            super().__init__()
            self.left = list(tuned.waiting)
            self.busy: dict[str, frozenset[str]] = {}

        def __reduce__(self) -> Any:
            return str, ()  # Tune keeps a copy for its own way to resume, which is not ours

        def suggest(self, trial_id: str) -> Any:
            if not self.left:
                return Searcher.FINISHED
            taken = frozenset().union(*self.busy.values())
            for one in self.left:
                work = tuned.sweep.work(graphs.build(tuned.sweep.load(one.overrides)))
                if not work & taken:
                    self.left.remove(one)
                    self.busy[trial_id] = work
                    return {"trial": one.id}
            return None

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            self.busy.pop(trial_id, None)

        def save(self, checkpoint_path: str) -> None:
            """A resume reads our own records."""

        def restore(self, checkpoint_path: str) -> None:
            """A resume reads our own records."""

    return Given()


def _callback(tuned: _Tuned) -> Any:
    from ray.tune import Callback

    def named(one: Any) -> Trial:
        return tuned.trials[one.config["trial"]]

    class Told(Callback):
        def __reduce__(self) -> Any:
            return str, ()  # Tune keeps a copy for its own way to resume, which is not ours

        def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            tuned.begun(named(trial))

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
            tuned.told(named(trial), result)

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            tuned.ended(named(trial))

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            tuned.ended(named(trial), f"its process died more than {_TRIES} times")

    return Told()


def _trainable(sweep: Sweep, home: Path, run_id: str, in_process: bool) -> Any:
    """A class instead of a function: its end waits until the trial's stages have ended, so that what an early
    stop frees is free, and its process is used again by the next trial.
    """
    from ray import tune

    trials = {one.id: one for point in sweep.points() for one in sweep.trials_of(point)}

    class PipelineTrial(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            self.rows: queue.SimpleQueue[Row | None] = queue.SimpleQueue()
            self.asked = threading.Event()
            self.working = threading.Thread(target=self.work, args=(config["trial"],), daemon=True)
            self.working.start()

        def work(self, name: str) -> None:
            launch = alone.fit if in_process else None
            try:
                trial.run(sweep, trials[name], home, run_id, self.rows, self.asked, launch)
            finally:
                self.rows.put(None)

        def step(self) -> dict[str, Any]:
            row = self.rows.get()
            return {"done": True} if row is None else dict(row)

        def cleanup(self) -> None:
            self.asked.set()
            self.working.join()

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.cleanup()
            self.setup(new_config)
            return True

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """The stages keep their own."""

        def load_checkpoint(self, checkpoint: Any) -> None:
            """The stages go on from their own."""

    return PipelineTrial


def causes(trials: list[Ended]) -> list[tuple[str, int]]:
    """Return why trials failed, the most frequent cause first."""
    return Counter(one.error or "unknown" for one in trials if one.status == "failed").most_common()


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome as plain values."""
    return {
        "folder": str(outcome.folder), "stopped": outcome.stopped, "busy": outcome.busy,
        "trials": [asdict(one) for one in outcome.trials],
    }  # fmt: skip

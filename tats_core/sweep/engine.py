"""Runs the trials of a sweep side by side on Ray Tune; one code path for a first run and a resume.

What has ended is kept by trial (`trial.json`), so a resume gives Tune only the trials that are left; one that
was cut off goes on from its stages' outputs and checkpoints, before all others. What the scheduler decided is
kept too (`decisions.jsonl`). Tune's own records are scratch.

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
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tats_core.errors import ResourceError, RunError, SpecError, StoreError
from tats_core.files import write_json
from tats_core.launch import local, ray_train
from tats_core.machine import available_cpus
from tats_core.pipeline import graph as graphs
from tats_core.pipeline import runner
from tats_core.pipeline.observers import RunUI
from tats_core.store import environment
from tats_core.store.outputs import make_folder
from tats_core.store.run import RunRecord, StageRecord
from tats_core.sweep import page, search, spec, summary, trial
from tats_core.sweep.halving import Decision, Decisions
from tats_core.sweep.spec import Sweep, Trial, differences
from tats_core.sweep.summary import Summary
from tats_core.sweep.trial import Ended, Row
from tats_core.tracking import Tracker

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
    """Seconds since the epoch: the common stages are there, and Ray is up with the first trial's process."""
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
    """How a sweep ended."""

    folder: Path
    summary: Summary
    stopped: bool
    before: int = 0
    """Trials that had ended before a resume."""

    @property
    def trials(self) -> list[Ended]:
        """The trials that have ended."""
        return self.summary.trials


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
    folder = trial.newest(home, sweep.name) if resume else None
    if resume and folder is None:
        raise StoreError(f"no sweep '{sweep.name}' in {home} to resume; leave out --resume")
    if folder is not None:
        check_same(sweep, folder)
        trials = trial.results(folder)
        if _whole(search.Points(sweep, folder), {one.id: one for one in trials}):
            whole = Summary.of(sweep, trials, summary.busy_of(folder))
            whole.write(folder)  # a kill may have come between the last trial and this
            page.write(whole, folder)
            return Outcome(folder, whole, False, before=len(trials))
    width, in_process = slots(sweep)
    if folder is None:
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        folder = (
            home / "runs" / f"{sweep.name}-{stamp}{int(time.time() * 1000) % 1000:03d}-{secrets.token_hex(2)}"
        )
        write_json(folder / "sweep.json", sweep.identity())
        spec.save(sweep, folder)
    ray_train.connect()
    if sweep.common and not _common(sweep, home, stage_ui):
        return Outcome(folder, Summary.of(sweep, trial.results(folder), None), True)
    progress = Progress(sweep.count, width, time.time())
    progress.ended = {one.id: one for one in trial.results(folder)}
    progress.before = len(progress.ended)
    return _Tuned(sweep, home, folder, progress, in_process, ui).execute()


def _whole(points: search.Points, ended: Mapping[str, Ended]) -> bool:
    """Tell whether nothing is left to try."""
    return all(one.id in ended for one in points.trials()) and not points.ask(ended)


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
        self.points = search.Points(sweep, folder)
        self.trials = {one.id: one for one in self.points.trials()}
        begun = {one.name for one in (folder / "trials").glob("*")}
        left = [one for one in self.trials.values() if one.id not in progress.ended]
        self.waiting = sorted(left, key=lambda one: one.id not in begun)
        self.record = self._record()
        self.tracker = Tracker(home, self.record)
        self.interrupted = False

    def _record(self) -> RunRecord:
        """A sweep is tracked as a run whose stages are its trials."""
        stages = {one.id: self._stage(one) for one in self.trials.values()}
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
            git_commit=environment.git_commit(),
            pid=os.getpid(),
        )

    def _stage(self, one: Trial) -> StageRecord:
        values = {key: str(value) for key, value in one.overrides.items()}
        stage = StageRecord(one.id, self.sweep.label(one), "trial", values, [])
        before = self.progress.ended.get(one.id)
        if before is not None:
            stage.status = "failed" if before.status == "failed" else "finished"
            stage.error = before.error
        return stage

    def more(self) -> bool:
        """Tell whether trials wait or are still to be found; where none waits, ask for the next ones."""
        if not self.waiting:
            found = self.points.ask(self.progress.ended)
            if found is None:
                return True
            self.waiting = found
            self.trials |= {one.id: one for one in self.waiting}
            self.record.stages |= {one.id: self._stage(one) for one in self.waiting}
            if not self.waiting:
                self.progress.total = len(self.trials)
        return bool(self.waiting)

    def execute(self) -> Outcome:
        with self.record.alive():
            return self._execute()

    def _execute(self) -> Outcome:
        self.record.save()
        environment.save(self.record)
        self.tracker.run_started(self.sweep.identity())
        self.ui.started(self.sweep, self.progress)
        try:
            if self.more():
                self._tune()
        finally:
            self.ui.close()
        took = time.time() - self.progress.began
        ended, before = list(self.progress.ended.values()), self.progress.before
        trained = sum(one.seconds for one in ended[before:])
        busy = trained / (took * self.progress.slots) if len(ended) > before else None
        failed = [one for one in ended if one.status == "failed"]
        self.record.status = (
            "stopped" if self.interrupted else "failed" if len(failed) == len(ended) else "finished"
        )
        self.record.error = failed[0].error if failed and self.record.status == "failed" else None
        self.record.finished = time.time()
        self.record.save()
        found = Summary.of(self.sweep, trial.results(self.folder), busy)
        try:
            self._tell(found)
        finally:
            self.tracker.close()
            self.record.save()
        return Outcome(self.folder, found, self.interrupted, before)

    def _tell(self, found: Summary) -> None:
        found.write(self.folder)
        if found.best is not None:
            means = {f"best/{key}": one.mean for key, one in found.best.values.items()}
            # "": the sweep's own run
            self.tracker.event("", {"kind": "metrics", "step": 0, "time": time.time(), "values": means})
        if not self.interrupted:
            page.write(found, self.folder)

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
                    search_alg=_searcher(self), num_samples=-1, scheduler=_scheduler(self.sweep, self.folder),
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
        if not self.progress.running and len(self.progress.ended) == self.progress.before:
            self.progress.began = time.time()
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
        before = self.progress.rows.get(one.id, {})
        self.progress.rows[one.id] = kept
        # By epochs: they rise through all stages of a trial, where the steps of each begin anew.
        new = {key: value for key, value in kept.items() if "." in key and value != before.get(key)}
        event = {"kind": "metrics", "step": int(kept["epoch"]), "time": time.time(), "values": new}
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
                epochs=int(last.get("epoch", 0)), error=error, settings=dict(one.overrides),
            )  # fmt: skip
            found.save(place)
        self.progress.ended[one.id] = found
        stage = self.record.stages[one.id]
        stage.status = "failed" if found.status == "failed" else "finished"
        stage.finished, stage.error = time.time(), found.error
        stage.seconds = stage.finished - (stage.started or stage.finished)
        values = {f"result/{key}": value for key, value in found.metrics.items()}
        if values:
            self.tracker.event(
                one.id, {"kind": "metrics", "step": found.epochs, "time": time.time(), "values": values}
            )
        self.tracker.stage_ended(stage)
        self.record.save()
        self.ui.changed(self.progress)


def _scheduler(sweep: Sweep, folder: Path) -> Any:
    wanted = sweep.scheduler
    if wanted.kind == "none":
        return None
    from ray.tune.schedulers import ASHAScheduler

    base: Any = ASHAScheduler  # of a trial it needs the name alone, and of the controller nothing

    class Halving(base):  # type: ignore[misc]
        """ASHA with a memory: what was decided stays so, and the rungs hold what they held before a resume.

        It knows trials by our names, for Tune gives them others in each run.
        """

        def __init__(self) -> None:
            super().__init__(
                time_attr="epoch", metric=wanted.metric, mode=wanted.mode, max_t=10**6,
                grace_period=wanted.grace, reduction_factor=wanted.reduction,
            )  # fmt: skip
            self.decisions = Decisions(folder / "decisions.jsonl")
            for name in {one.trial: None for one in self.decisions.before}:
                super().on_trial_add(None, _Named(name))
            for one in self.decisions.before:
                row = {"epoch": one.epoch, wanted.metric: one.value}
                super().on_trial_result(None, _Named(one.trial), row)

        def __reduce__(self) -> Any:
            return str, ()  # Tune keeps a copy for its own way to resume, which is not ours

        def on_trial_add(self, controller: Any, trial: Any) -> None:
            super().on_trial_add(controller, _Named(trial.config["trial"]))

        def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
            if "epoch" not in result or wanted.metric not in result:
                return str(self.CONTINUE)
            name, epoch = trial.config["trial"], int(result["epoch"])
            action = self.decisions.action(name, epoch)
            if action is None:
                action = str(super().on_trial_result(controller, _Named(name), result))
                self.decisions.keep(Decision(name, epoch, float(result[wanted.metric]), action))
            return action

        def on_trial_complete(self, controller: Any, trial: Any, result: Any) -> None:
            """Its rungs hold all its epochs already."""

        def on_trial_remove(self, controller: Any, trial: Any) -> None:
            """Its rungs stay."""

    return Halving()


@dataclass(frozen=True)
class _Named:
    """All that ASHA wants to know of a trial."""

    trial_id: str


def _searcher(tuned: _Tuned) -> Any:
    from ray.tune.search import Searcher

    class Given(Searcher):
        """Hands out the trials that are left; one that would make the same output as a running one waits."""

        def __init__(self) -> None:
            super().__init__()
            self.busy: dict[str, frozenset[str]] = {}

        def __reduce__(self) -> Any:
            return str, ()  # Tune keeps a copy for its own way to resume, which is not ours

        def suggest(self, trial_id: str) -> Any:
            if not tuned.more():
                return Searcher.FINISHED
            taken = frozenset().union(*self.busy.values())
            for one in tuned.waiting:
                work = tuned.sweep.work(graphs.build(tuned.sweep.load(one.overrides)))
                if not work & taken:
                    tuned.waiting.remove(one)
                    self.busy[trial_id] = work
                    # As text: Tune would take dotted keys apart.
                    return {"trial": one.id, "given": json.dumps(asdict(one))}
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

    class PipelineTrial(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            self.rows: queue.SimpleQueue[Row | None] = queue.SimpleQueue()
            self.asked = threading.Event()
            self.end: Ended | None = None
            given = Trial(**json.loads(config["given"]))
            self.working = threading.Thread(target=self.work, args=(given,), daemon=True)

        def work(self, given: Trial) -> None:
            launch = local.fit if in_process else None
            try:
                self.end = trial.run(sweep, given, home, run_id, self.rows, self.asked, launch)
            finally:
                self.rows.put(None)

        def step(self) -> dict[str, Any]:
            # Not in `setup`: Tune may set one up and then give its trial to an actor that became free.
            if self.working.ident is None:
                self.working.start()
            row = self.rows.get()
            if row is not None:
                return dict(row)
            # Not before: the scheduler has seen every epoch now, and would have stopped it.
            if self.end is not None:
                self.end.save(home / "runs" / run_id / "trials" / self.end.id)
            return {"done": True}

        def cleanup(self) -> None:
            self.asked.set()
            if self.working.ident is not None:
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

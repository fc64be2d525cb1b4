"""Runs a sweep's trials side by side on Ray Tune, which stops those that lag behind (ASHA).

Tune saves nothing: the folder of the sweep holds all that a resume needs. So `tune.run` is called instead of
`Tuner`, which pickles its arguments.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher

from tats_core.pipeline import graph as graphs
from tats_core.store import environment
from tats_core.store.run import RunRecord, StageRecord
from tats_core.sweep import page
from tats_core.sweep.progress import Progress, SweepUI
from tats_core.sweep.search import Points
from tats_core.sweep.spec import Asha, Sweep, Trial
from tats_core.sweep.summary import Summary, results
from tats_core.sweep.trainable import PipelineTrial
from tats_core.sweep.trial import Status, TrialResult
from tats_core.tracking import Tracker
from tats_core.training.events import EventLog, read_events

_TRIES = 2  # how often a trial whose process was killed is started again
_DRIVER = {"cpu": 0.0, "memory": 1.0}  # Tune refuses nothing at all; the workers may need every CPU
_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # the row that ends a trial holds no curve
    "RAY_AIR_NEW_OUTPUT": "0",  # the terminal is ours
}

Result = dict[str, Any]
Trials = list[TuneTrial]


class Recorder(tune.Callback):
    """Runs a sweep's trials, and records what Tune reports: in their folders, the run's record and MLflow."""

    summary: Summary

    def __init__(
        self, sweep: Sweep, home: Path, folder: Path, progress: Progress, in_process: bool, ui: SweepUI
    ) -> None:
        self.sweep, self.home, self.folder, self.progress, self.ui = sweep, home, folder, progress, ui
        self.in_process = in_process
        self.points = Points(sweep, folder)
        self.trials = {trial.id: trial for trial in self.points.trials()}
        started = {path.name for path in (folder / "trials").glob("*")}
        left = [trial for trial in self.trials.values() if trial.id not in progress.ended]
        self.waiting = sorted(left, key=lambda trial: trial.id not in started)
        # A sweep is tracked as a run whose stages are its trials.
        self.record = RunRecord(
            id=folder.name,
            pipeline=sweep.name,
            title=sweep.title,
            source=sweep.source,
            home=str(home),
            status="running",
            started=time.time(),
            stages={trial.id: self._stage(trial) for trial in self.trials.values()},
            overrides=list(sweep.overrides),
            git_commit=environment.git_commit(),
            pid=os.getpid(),
        )
        self.tracker = Tracker(home, self.record)
        self._best: float | None = None
        self._compare(list(progress.ended.values()))

    def _compare(self, trials: list[TrialResult]) -> None:
        """Take the best point of these trials, if it is better than the best so far."""
        objective, sign = self.sweep.objective, -1 if self.sweep.objective.mode == "min" else 1
        summary = Summary(self.sweep, trials, None)
        for top in summary.best[:1]:
            mean = top.values[objective.name].mean
            if self._best is None or sign * mean > sign * self._best:
                self._best, self.progress.best = mean, summary.best_value

    def _stage(self, trial: Trial) -> StageRecord:
        values = {key: str(value) for key, value in trial.overrides.items()}
        stage = StageRecord(trial.id, self.sweep.label(trial.point, trial.seed), "trial", values, [])
        before = self.progress.ended.get(trial.id)
        if before is not None:
            stage.status = "failed" if before.status == "failed" else "finished"
            stage.error = before.error
        return stage

    def more(self) -> bool:
        """Return whether trials wait or more may come; if none waits, choose the next."""
        if not self.waiting:
            trials = self.points.next_trials(self.progress.ended)
            if trials is None:
                return True
            self.waiting = trials
            self.trials |= {trial.id: trial for trial in trials}
            self.record.stages |= {trial.id: self._stage(trial) for trial in trials}
            if not trials:
                self.progress.total = len(self.trials)
        return bool(self.waiting)

    def execute(self) -> bool:
        """Run the remaining trials and write the sweep's table and page; return whether it was stopped."""
        record, progress = self.record, self.progress
        with record.alive():
            record.save()
            environment.save(record)
            self.tracker.begin(self.sweep.identity())
            self.ui.started(self.sweep, progress)
            try:
                if self.more():
                    self._tune()
            finally:
                self.ui.close()
            stopped = len(progress.ended) < progress.total
            busy = progress.busy()
            self.points.record(progress.ended)
            failed = [result for result in progress.ended.values() if result.status == "failed"]
            all_failed = len(failed) == len(progress.ended)
            record.status = "stopped" if stopped else "failed" if all_failed else "finished"
            record.error = failed[0].error if failed and record.status == "failed" else None
            record.finished = time.time()
            record.save()
            self.summary = Summary.of(self.sweep, results(self.folder), busy)
            try:
                self.summary.write(self.folder)
                for top in self.summary.best[:1]:
                    means = {f"best/{key}": value.mean for key, value in top.values.items()}
                    self._send("", 0, means)  # "": the sweep's own run
                if not stopped:
                    page.write(self.summary, self.folder)
            finally:
                self.tracker.run_ended(record)
                self.tracker.deliver()
                record.save()
        return stopped

    def _tune(self) -> None:
        os.environ |= _SETTINGS
        before = signal.getsignal(signal.SIGINT)
        scratch = self.folder / "tune"
        trainable = tune.with_parameters(
            PipelineTrial,
            sweep=self.sweep,
            home=self.home,
            run_id=self.folder.name,
            in_process=self.in_process,
        )
        scheduler = self.sweep.scheduler
        try:
            tune.run(
                tune.with_resources(trainable, {"cpu": 1.0} if self.in_process else _DRIVER),
                name="trials",
                storage_path=str(scratch),
                search_alg=_WaitingTrials(self),
                num_samples=-1,
                scheduler=Halving(scheduler, self.folder) if isinstance(scheduler, Asha) else None,
                max_concurrent_trials=self.progress.slots,
                reuse_actors=True,
                callbacks=[self],
                max_failures=_TRIES,
                raise_on_failed_trial=False,
                verbose=0,
            )
        finally:
            # Tune leaves its handler if it is interrupted.
            signal.signal(signal.SIGINT, before)
        shutil.rmtree(scratch)

    def _send(self, name: str, step: int, values: Mapping[str, float]) -> None:
        self.tracker.event(name, {"kind": "metrics", "step": step, "time": time.time(), "values": values})

    # --- what Tune reports -----------------------------------------------------------------------------

    def on_trial_start(self, iteration: int, trials: Trials, trial: TuneTrial, **info: Any) -> None:
        """Mark the trial as running."""
        started = self.trials[trial.config["trial"]]
        if not self.progress.running and len(self.progress.ended) == self.progress.before:
            self.progress.began = time.time()
        self.progress.running[started.id] = started
        stage = self.record.stages[started.id]
        if stage.status == "waiting":
            stage.status, stage.started, stage.key, stage.attempts = "running", time.time(), started.id, 1
            settings = dict(started.overrides)
            self.tracker.configs[stage.name] = {"all": settings, "set": settings}
            self.tracker.stage_started(stage, ())
        self.ui.changed(self.progress)

    def on_trial_result(
        self, iteration: int, trials: Trials, trial: TuneTrial, result: Result, **info: Any
    ) -> None:
        """Log what is new in an epoch's row."""
        name = trial.config["trial"]
        row = {key: float(value) for key, value in result.items() if "." in key or key in ("epoch", "step")}
        if "epoch" not in row:
            return
        before = self.progress.rows.get(name, {})
        self.progress.rows[name] = row
        # By epochs, which are counted over all stages of a trial; steps restart with each stage.
        new = {key: value for key, value in row.items() if "." in key and value != before.get(key)}
        self._send(name, int(row["epoch"]), new)
        self.ui.changed(self.progress)

    def on_trial_complete(self, iteration: int, trials: Trials, trial: TuneTrial, **info: Any) -> None:
        """Record a trial that finished or was stopped early."""
        self._ended(self.trials[trial.config["trial"]])

    def on_trial_error(self, iteration: int, trials: Trials, trial: TuneTrial, **info: Any) -> None:
        """Record a trial whose process died."""
        self._ended(self.trials[trial.config["trial"]], f"its process died more than {_TRIES} times")

    def _ended(self, trial: Trial, error: str | None = None) -> None:
        folder = self.folder / "trials" / trial.id
        result = TrialResult.load(folder)
        row = self.progress.rows.pop(trial.id, {})
        self.progress.running.pop(trial.id, None)
        if result is None:
            metrics = {metric.name: row[metric.name] for metric in self.sweep.metrics if metric.name in row}
            status: Status = "failed" if error else "stopped early"
            epochs = int(row.get("epoch", 0))
            result = TrialResult.of(trial, status, metrics=metrics, epochs=epochs, error=error)
            result.save(folder)
        self.progress.ended[trial.id] = result
        stage = self.record.stages[trial.id]
        stage.status = "failed" if result.status == "failed" else "finished"
        stage.finished, stage.error = time.time(), result.error
        stage.seconds = stage.finished - (stage.started or stage.finished)
        if result.metrics:
            self._send(
                trial.id, result.epochs, {f"result/{key}": value for key, value in result.metrics.items()}
            )
        self.tracker.stage_ended(stage)
        self.record.save()
        ended = list(self.progress.ended.values())
        if self.sweep.searcher.kind == "pbt":  # another generation counts once it has a finished trial
            self._best = None
            self._compare(ended)
        else:
            self._compare([other for other in ended if other.point == result.point])
        self.ui.changed(self.progress)


class _WaitingTrials(Searcher):
    """Hands out the waiting trials, but none that would make the same output as a running trial."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder
        self.busy: dict[str, frozenset[str]] = {}

    def suggest(self, trial_id: str) -> dict[str, str] | str | None:  # type: ignore[override]
        """Return a trial, None to be asked later, or FINISHED."""
        sweep, recorder = self.recorder.sweep, self.recorder
        if not recorder.more():
            return str(Searcher.FINISHED)
        busy = frozenset().union(*self.busy.values())
        for waiting in recorder.waiting:
            work = sweep.work(graphs.build(sweep.load(waiting.overrides)))
            if not work & busy:
                recorder.waiting.remove(waiting)
                self.busy[trial_id] = work
                return {"trial": waiting.id, "values": json.dumps(asdict(waiting))}
        return None

    def on_trial_complete(self, trial_id: str, result: Result | None = None, error: bool = False) -> None:
        """Release what the trial worked on."""
        self.busy.pop(trial_id, None)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: a resume reads the sweep's folder."""


class Halving(ASHAScheduler):
    """ASHA over a sweep and its resumes: a resume replays the rows of earlier runs, in their order.

    So its rungs are restored, and a trial that reports its first epochs again gets the same decisions.
    """

    def __init__(self, asha: Asha, folder: Path) -> None:
        super().__init__(
            time_attr="epoch", metric=asha.metric, mode=asha.mode, max_t=10**6,
            grace_period=asha.grace, reduction_factor=asha.reduction,
        )  # fmt: skip
        self._name = asha.metric
        self._actions: dict[tuple[str, int], str] = {}
        path = folder / "asha.jsonl"
        for _, event in read_events(path):
            if event["kind"] == "metrics":  # a torn line is passed over
                ((name, value),) = event["values"].items()
                self._decide(name, event["step"], value)
        self._log = EventLog(path)

    def _decide(self, name: str, epoch: int, value: float) -> None:
        # ASHA needs only a trial's name: the sweep's, because Tune's name differs in each run.
        controller: Any = None
        named: Any = SimpleNamespace(trial_id=name)
        super().on_trial_add(controller, named)
        action = super().on_trial_result(controller, named, {"epoch": epoch, self._name: value})
        self._actions[name, epoch] = str(action)

    def on_trial_result(self, tune_controller: object, trial: TuneTrial, result: Result) -> str:
        """Decide by the row, or repeat the earlier decision."""
        if "epoch" not in result or self._name not in result:
            return str(self.CONTINUE)
        name, epoch = trial.config["trial"], int(result["epoch"])
        if (name, epoch) not in self._actions:
            value = float(result[self._name])
            self._log.metrics(epoch, {name: value})
            self._decide(name, epoch, value)
        return self._actions[name, epoch]

    def on_trial_add(self, tune_controller: object, trial: TuneTrial) -> None:
        """Do nothing: a trial enters the rungs with its first row."""

    def on_trial_complete(self, tune_controller: object, trial: TuneTrial, result: Result) -> None:
        """Do nothing: the rungs have all epochs of the trial."""

    def on_trial_remove(self, tune_controller: object, trial: TuneTrial) -> None:
        """Do nothing: the trial stays in its rungs."""

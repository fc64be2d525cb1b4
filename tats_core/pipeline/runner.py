"""Runs a pipeline: one code path for a first run, a retry and a resume.

The calling thread holds the record and calls the observers; each running stage has a thread of its own,
which answers through a queue. A stage starts when what it reads exists and enough CPUs and GPUs are free.
"""

from __future__ import annotations

import math
import os
import queue
import secrets
import signal
import threading
import time
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Unpack

from tats_core.addresses import masked
from tats_core.errors import DataError, StoreError, TatsError
from tats_core.launch import local
from tats_core.pipeline import plan as plans
from tats_core.pipeline import resources
from tats_core.pipeline.graph import Graph, Instance
from tats_core.pipeline.hooks import Notifier
from tats_core.pipeline.observers import Observer, Tracking
from tats_core.pipeline.plan import Decider, Decision, Options, Plan
from tats_core.pipeline.resources import Pool
from tats_core.pipeline.spec import Pipeline
from tats_core.pipeline.stage_thread import Answer, Launch, StageWork
from tats_core.stages.base import Input, ParallelWork, Preflight
from tats_core.store import environment
from tats_core.store.outputs import make_folder
from tats_core.store.run import RunRecord, StageRecord
from tats_core.training.events import Events, read_events

OnError = Literal["stop", "continue"]

_PARTING = 1.0  # seconds that stages get to end when a second Ctrl-C ends the run at once
_TICK = 0.25  # seconds between two readings of the running stages' events


@dataclass(frozen=True)
class Host:
    """What a sweep provides for the run of a trial."""

    run_id: str
    """The run's folder below `runs/`."""
    observer: Observer
    """Stands for tracking."""
    stop: threading.Event
    launch: Launch
    dies: bool = False
    """Of a rehearsal: it is the trial that loses a worker and resumes."""


def plan(pipeline: Pipeline, home: Path, **options: Unpack[Options]) -> Plan:
    """Return what `run` with the same arguments would do, and why; starts and changes nothing.

    Raises:
        SpecError: an unknown stage name or a wrong configuration.
    """
    return plans.make(Decider(pipeline, home.absolute(), options))


def run(
    pipeline: Pipeline,
    home: Path,
    *,
    on_error: OnError = "stop",
    grace: float | None = None,
    ui: Observer | None = None,
    host: Host | None = None,
    **options: Unpack[Options],
) -> RunRecord:
    """Run what has no output yet, reuse what has one, and return the record.

    A stage that fails does not raise: `record.status` is "failed" and `record.error` one sentence. The
    first Ctrl-C stops at the newest checkpoints and returns with status "stopped"; the second raises.

    Args:
        on_error: after a failure let running stages end and start no other ("stop"), or run all stages
            that do not need the failed one ("continue").
        grace: seconds after SIGTERM until the run ends at once, as by the second Ctrl-C; None: it is not
            known when this process will be killed, and the run takes as long as the next checkpoints take.
        host: the sweep that this run is a trial of.

    Raises:
        TatsError: known before anything starts: wrong configuration, missing data, too few CPUs.
        StoreError: the project folder cannot be written, from the start or any more.
    """
    home = home.absolute()
    decider = Decider(pipeline, home, options)
    todo = plans.make(decider)
    pool = Pool(_preflight(decider.graph, todo, home))
    make_folder(home)
    record = _new_record(pipeline, home, todo, options.get("only", ()))
    if host is not None:
        record.id = host.run_id
    try:
        return _Run(decider, record, pool, on_error, ui, host).execute(todo, grace)
    except BrokenPipeError:
        raise  # the reader of the output has closed it; the storage works
    except OSError as error:
        raise StoreError(
            f"{error.filename or home}: cannot be used ({error.strerror or error}); mend the storage or set "
            "TATS_HOME to a folder you can write to, and run again: what is done is kept"
        ) from error


def _preflight(graph: Graph, todo: Plan, home: Path) -> resources.Resources:
    instances = [graph.instances[item.name] for item in todo.items if item.action == "run"]
    # Missing inputs first: they are known without Ray.
    missing: dict[str, None] = {}  # an ordered set: stages may miss the same data set
    error = TatsError
    for instance in instances:
        context = Preflight(instance.name, instance.axes, home)
        faults = instance.kind.preflight(instance.config, context)
        missing.update(dict.fromkeys(faults))
        if faults and instance.kind.name == "data":
            error = DataError
    if missing:
        raise error("\n".join(missing))
    return resources.available(instances)


def _new_record(pipeline: Pipeline, home: Path, todo: Plan, only: Sequence[str]) -> RunRecord:
    now = time.time()
    # In UTC, so that ids sort by time on machines in several time zones.
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now)) + f"{int(now * 1000) % 1000:03d}"
    return RunRecord(
        id=f"{pipeline.name}-{stamp}-{secrets.token_hex(2)}",
        pipeline=pipeline.name,
        title=pipeline.title,
        source=pipeline.where,
        home=str(home),
        status="running",
        started=now,
        stages={
            item.name: StageRecord(
                item.name, item.stage, item.kind, dict(item.axes), list(item.needs), key=item.key
            )
            for item in todo.items
        },
        overrides=list(pipeline.overrides),
        only=list(only),
        git_commit=environment.git_commit(),
        pid=os.getpid(),
    )


class _Run:
    """One run of a pipeline, from its first stage to its last."""

    def __init__(
        self,
        decider: Decider,
        record: RunRecord,
        pool: Pool,
        on_error: OnError,
        ui: Observer | None,
        host: Host | None,
    ) -> None:
        self.decider, self.store, self.graph = decider, decider.store, decider.graph
        self.record, self.pool, self.on_error = record, pool, on_error
        self.stop = host.stop if host else threading.Event()
        self.launch = host.launch if host else launch
        trained = [name for name, instance in self.graph.instances.items() if instance.kind.curves]
        dies = decider.pipeline.rehearsal and (host is None or host.dies)
        self.victims = trained[:1] if dies else []
        """Stages of which a worker is killed, to see them resume."""
        self.answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self.running: dict[str, StageWork] = {}
        self.digests: dict[str, str] = {}
        self.decisions: dict[str, Decision] = {}
        self.stop_noted = False
        self.refused: set[str] = set()
        self.began = time.monotonic()
        hooks = Notifier(
            decider.pipeline.notify, record, lambda text: self.answers.put(Answer("", "note", text))
        )
        tracking = host.observer if host else Tracking(Path(record.home), record)
        self.observers: list[Observer] = [tracking, *([ui] if ui else []), hooks]
        self.has_page = host is None

    def execute(self, todo: Plan, grace: float | None) -> RunRecord:
        """Run until nothing runs and nothing can start."""
        with self.record.alive():
            self.record.save()
            self.record.save_configs(
                {
                    name: {
                        "all": instance.config.model_dump(mode="json"),
                        "set": instance.config.model_dump(mode="json", exclude_unset=True),
                    }
                    for name, instance in self.graph.instances.items()
                }
            )
            environment.save(self.record)
            for observer in self.observers:
                observer.started(todo, self.record)
            for item in todo.items:
                if item.action == "skip":
                    self._leave_out(item.name, item.reason)
            try:
                with _signals(self.stop, grace) as renew:
                    self._loop(renew)
            except BaseException as error:
                self._abort(error)
                raise
            self._end()
            return self.record

    def note(self, stage: str, text: str) -> None:
        for observer in self.observers:
            observer.note(stage, text)

    def _loop(self, renew: Callable[[], None]) -> None:
        self._start_ready()
        while self.running:
            renew()
            try:
                answer: Answer | None = self.answers.get(timeout=_TICK)
            except queue.Empty:
                answer = None
            self._check_stop()
            for work in self.running.values():
                self._read_events(work)
            if answer is not None:
                self._take(answer)
                self._start_ready()

    # --- starting ------------------------------------------------------------------------------------

    def _start_ready(self) -> None:
        with self.store.deciding():
            for instance in self.graph.instances.values():
                stage = self.record.stages[instance.name]
                needs = [self.record.stages[need].status for need in instance.needs]
                if stage.status != "waiting" or instance.name in self.running or self.stop.is_set():
                    continue
                if any(status in ("failed", "skipped", "stopped") for status in needs):
                    self._leave_out(instance.name, "its inputs are missing")
                elif all(need in self.digests for need in instance.needs):
                    self._start(instance, stage)

    def _start(self, instance: Instance, stage: StageRecord) -> None:
        decision = self.decisions.get(instance.name) or self.decider.decide(instance, self.digests)
        stage.key, stage.reason = decision.key.digest, decision.reason
        if decision.action == "reuse":
            stage.status = "cached"
            self._finish(stage, decision.folder)
            return
        failed = any(other.status == "failed" for other in self.record.stages.values())
        if self.stop.is_set() or (failed and self.on_error == "stop"):
            return
        if any(work.decision.folder == decision.folder for work in self.running.values()):
            return  # the other stage's output will be this one's too
        self.decisions[instance.name] = decision
        if not self.pool.fits(instance):
            return
        stage.status, stage.started, stage.attempts = "running", self._now(), 1
        work = StageWork(
            instance,
            decision,
            self.store,
            self._inputs(instance),
            origin={"pipeline": self.record.pipeline, "stage": instance.name, "run": self.record.id},
            home=Path(self.record.home),
            stop=self.stop,
            answers=self.answers,
            launch=self.launch,
            dies=instance.name in self.victims,
        )
        stage.said_from = work.bytes_before
        self.running[instance.name] = work
        self._started(work)
        self.pool.take(instance)
        work.start()

    def _started(self, work: StageWork) -> None:
        folders = (self.store.partial(work.decision.folder), work.decision.folder)
        self.record.save()
        for observer in self.observers:
            observer.stage_started(self.record.stages[work.name], folders)

    def _inputs(self, instance: Instance) -> tuple[Input, ...]:
        needs = [self.record.stages[name] for name in instance.needs]
        return tuple(Input(need.name, need.kind, need.axes, Path(need.folder or "")) for need in needs)

    def _leave_out(self, name: str, reason: str) -> None:
        stage = self.record.stages[name]
        stage.status, stage.reason = "skipped", reason

    def _now(self) -> float:
        """The time by a monotonic clock: durations stay right when the machine's clock jumps."""
        return self.record.started + time.monotonic() - self.began

    # --- following -----------------------------------------------------------------------------------

    def _read_events(self, work: StageWork) -> None:
        file = work.events
        if file is None:
            return
        start = work.offset
        try:
            lines = list(read_events(file, start))
        except FileNotFoundError:
            return  # the commit is renaming the folder; the next reading finds it
        if not lines:
            return
        work.offset = lines[-1][0]
        events = Events(
            file,
            start,
            work.offset,
            all=tuple(event for _, event in lines),
            # Events of an earlier run are for the curves only; they were displayed then.
            new=tuple(event for end, event in lines if end > work.bytes_before),
        )
        for observer in self.observers:
            observer.events(work.name, events)

    def _take(self, answer: Answer) -> None:
        if answer.what == "note":
            self.note(answer.name, answer.text)
        elif answer.what == "waits":
            self.note(answer.name, answer.text)
            self.pool.release(answer.name)
            self.record.stages[answer.name].status = "waiting"
            self.record.save()
        elif answer.what == "works":
            self.pool.take(self.running[answer.name].instance)
            self.record.stages[answer.name].status = "running"
            self.record.save()
        elif answer.what == "again":
            stage = self.record.stages[answer.name]
            stage.attempts += 1
            self.note(answer.name, f"attempt {stage.attempts}, because {answer.text}")
            self._started(self.running[answer.name])
        else:
            self._take_end(answer, answer.what)

    def _take_end(self, answer: Answer, status: Literal["finished", "cached", "failed", "stopped"]) -> None:
        work, stage = self.running[answer.name], self.record.stages[answer.name]
        self._read_events(work)
        stage.said_to = work.offset
        del self.running[answer.name]
        self.pool.release(answer.name)
        stage.finished = self._now()
        stage.seconds = stage.finished - (stage.started or stage.finished)
        stage.status, stage.error = status, answer.text or None
        if answer.refused:
            self.refused.add(stage.name)
        self._finish(stage, work.decision.folder)

    def _finish(self, stage: StageRecord, folder: Path) -> None:
        source = None
        if stage.done:
            stage.folder = str(folder)
            stage.digest = self.digests[stage.name] = self.store.manifest(folder).digest
        if stage.status == "cached":
            origin = self.store.origin(folder)
            source = origin.run, origin.stage
        self.record.save()
        for observer in self.observers:
            observer.stage_ended(stage, source)

    # --- stopping and ending -------------------------------------------------------------------------

    def _check_stop(self) -> None:
        request = self.record.asked_to_stop()
        if request:
            self.stop.set()
        if request == "now":
            raise KeyboardInterrupt
        if self.stop.is_set() and not self.stop_noted:
            self.stop_noted = True
            self.note("", "stopping at the next checkpoints; Ctrl-C again stops at once")

    def _abort(self, error: BaseException) -> None:
        self.stop.set()
        until = time.monotonic() + _PARTING
        for work in self.running.values():
            work.join(max(0.0, until - time.monotonic()))
        record = self.record
        record.status = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
        record.error = masked(f"{type(error).__name__}: {error}".removesuffix(": "))
        record.finished = self._now()
        for name, work in self.running.items():
            stage = record.stages[name]
            stage.status, stage.finished, stage.said_to = record.status, record.finished, work.offset
            stage.seconds = record.finished - (stage.started or record.finished)
        with suppress(OSError):  # a full disk: the first error is the one to report
            record.save()
        for observer in self.observers:
            observer.aborted(record)

    def _end(self) -> None:
        record = self.record
        for stage in record.stages.values():
            if stage.status == "waiting":
                stage.status, stage.reason = "skipped", "the run ended before"
        failed = [stage for stage in record.stages.values() if stage.status == "failed"]
        record.error = f"{failed[0].name}: {failed[0].error}" if failed else None
        record.status = "failed" if failed else "stopped" if self.stop.is_set() else "finished"
        record.refused = bool(failed) and self.refused.issuperset(stage.name for stage in failed)
        record.finished = self._now()
        record.save()
        if self.has_page:
            self._write_page()  # before tracking sends it
        for observer in self.observers:
            observer.run_ended(record)
        for observer in self.observers:
            observer.deliver()
        if record.tracking_error:
            self.note("", f"MLflow: {record.tracking_error}")
        while not self.answers.empty():
            self._take(self.answers.get())  # notes of hooks that failed
        record.save()
        for observer in self.observers:
            observer.finished(record)

    def _write_page(self) -> None:
        from tats_core.store import run_page  # here: a plan does without pandas, which takes 1 s to import

        try:
            run_page.write(self.record)
        except Exception as error:  # noqa: BLE001 (no error of the page fails the run)
            self.note("", masked(f"the run's page was not written: {type(error).__name__}: {error}"))


def launch(work: ParallelWork, name: str, out: Path, stop: threading.Event) -> None:
    """Start workers on Ray Train, but a single CPU worker of this machine as a process, and wait for them.

    Such a process starts in a moment, Ray and its worker in seconds, and Ray would have nothing to add.
    """
    if work.workers == 1 and not work.gpu and "RAY_ADDRESS" not in os.environ:
        local.fit(work, name, out, stop)
        return
    from tats_core.launch import ray_train

    ray_train.fit(work, name, out, stop)


@contextmanager
def _signals(stop: threading.Event, grace: float | None = None) -> Iterator[Callable[[], None]]:
    """Ctrl-C and SIGTERM set `stop`; the second one raises, and so does what it yields, `grace` seconds after
    SIGTERM. Call that now and then.

    When Ray starts, in the thread of a stage, it replaces the handler of SIGTERM by one of its own, which
    prints a stack and aborts the process three seconds later.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    until = math.inf

    def handle(number: int, frame: types.FrameType | None) -> None:
        nonlocal until
        signal.alarm(0)  # Ray's abort
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()  # the loop does all else: a handler may interrupt anything
        if number == signal.SIGTERM and grace is not None:
            until = time.monotonic() + grace

    def renew() -> None:
        signal.signal(signal.SIGTERM, handle)
        if time.monotonic() > until:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield renew
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""Runs a pipeline: one code path for a first run, a retry and a resume.

The calling thread holds the record and talks to the user interface and the tracker; each running stage
has a thread of its own, which answers through a queue. A stage starts when what it reads is there and
enough CPUs and GPUs are free.
"""

from __future__ import annotations

import os
import queue
import secrets
import signal
import threading
import time
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from tats_core.errors import ResourceError, StoreError, TatsError
from tats_core.machine import available_cpus
from tats_core.pipeline import graph as graphs
from tats_core.pipeline import plan as plans
from tats_core.pipeline.graph import Graph, Instance
from tats_core.pipeline.hooks import Notifier
from tats_core.pipeline.observers import RunUI, SilentUI
from tats_core.pipeline.plan import Choice, Decider, Decision, Plan, PlanItem
from tats_core.pipeline.spec import Pipeline
from tats_core.pipeline.stage_thread import Answer, Launch, StageWork
from tats_core.stages.base import Input, Preflight
from tats_core.store import environment, run_page
from tats_core.store.outputs import StageStore, make_folder
from tats_core.store.run import RunRecord, StageConfig, StageRecord
from tats_core.tracking import Tracker
from tats_core.training.events import read_events

__all__ = [
    "Follower",
    "Host",
    "Plan",
    "PlanItem",
    "RunRecord",
    "RunUI",
    "SilentUI",
    "StageRecord",
    "plan",
    "run",
]

OnError = Literal["stop", "continue"]
Ended = Literal["finished", "failed", "stopped"]

# How long the end of a run waits for its notifications; after a second Ctrl-C, someone sits there.
_NOTIFY_SECONDS, _NOTIFY_IN_HASTE = 60.0, 5.0

_PARTING = 1.0  # seconds that stages have to end what they started, when all is to end at once
_TICK = 0.25  # seconds between two looks at the events of the running stages


class Follower(Protocol):
    """Who is told all that a run's stages say; `tracking.Tracker` is one."""

    def run_started(self, resolved: Mapping[str, Any]) -> None:
        """The run begins."""

    def stage_started(
        self,
        stage: StageRecord,
        config: Mapping[str, Any],
        settings: Mapping[str, Any],
        folders: tuple[Path, ...],
        data: Iterable[Path],
        inputs: Mapping[str, str],
    ) -> None:
        """A stage begins, or begins again."""

    def event(self, name: str, event: Mapping[str, Any]) -> None:
        """A stage said something; what earlier attempts said comes first."""

    def stage_ended(self, stage: StageRecord, source: tuple[str, str] | None = None) -> None:
        """A stage ended, or its output was there already."""

    def close(self) -> None:
        """The run ended."""


@dataclass(frozen=True)
class Host:
    """What the larger work that a run is a part of provides (a sweep, for a trial).

    `run_id` is the run's place below `runs/`, `launch` stands for Ray Train, and `stop` ends the run.
    """

    run_id: str
    follower: Callable[[Path, RunRecord], Follower]
    stop: threading.Event
    launch: Launch | None = None


def plan(
    pipeline: Pipeline,
    home: Path,
    *,
    force: Sequence[str] = (),
    only: Sequence[str] = (),
    from_stage: str | None = None,
) -> Plan:
    """Say what `run` with the same arguments would do, and why; starts and changes nothing.

    A stage is named as in the file (`finetune`: all of its matrix) or in full (`finetune[ssv2,scratch]`).

    Raises:
        SpecError: an unknown stage name or a wrong configuration.
    """
    return plans.make(_decider(pipeline, home.absolute(), force, only, from_stage))


def run(
    pipeline: Pipeline,
    home: Path,
    *,
    force: Sequence[str] = (),
    only: Sequence[str] = (),
    from_stage: str | None = None,
    on_error: OnError = "stop",
    ui: RunUI | None = None,
    host: Host | None = None,
) -> RunRecord:
    """Run what is not there yet, reuse what is, and return the record.

    A stage that fails does not raise: `record.status` is "failed" and `record.error` one sentence. The
    first Ctrl-C stops at the newest checkpoints and returns with status "stopped"; the second raises.

    Args:
        force: stages that run even though their output is there.
        only: run these stages alone; what they need must be there already.
        from_stage: run this stage and all that follow it, even though their outputs are there.
        on_error: after a failure let running stages end and start no other ("stop"), or go on with all
            stages that do not need the failed one ("continue").
        host: the sweep that this run is a trial of.

    Raises:
        TatsError: found before anything started: wrong configuration, missing data, too few CPUs.
        StoreError: the project folder cannot be written, from the start or any more.
    """
    home = home.absolute()
    decider = _decider(pipeline, home, force, only, from_stage)
    todo = plans.make(decider)
    free = _check_before_start(decider.graph, todo, home)
    make_folder(home)
    record = _new_record(pipeline, home, todo, only)
    if host is not None:
        record.id = host.run_id
    try:
        return _Run(decider, record, todo, free, on_error, ui or SilentUI(), host).execute()
    except BrokenPipeError:
        raise  # who read what is printed has left; the storage is whole
    except OSError as error:
        raise StoreError(
            f"{error.filename or home}: cannot be used ({error.strerror or error}); mend the storage or set "
            "TATS_HOME to a folder you can write to, and run again: what is done is kept"
        ) from error


def _decider(
    pipeline: Pipeline, home: Path, force: Sequence[str], only: Sequence[str], from_stage: str | None
) -> Decider:
    graph = graphs.build(pipeline)
    return Decider(pipeline, graph, StageStore(home), Choice.of(graph, force, only, from_stage))


@dataclass
class _Resources:
    """CPUs and GPUs: what there is, or what is free."""

    cpus: int
    gpus: int


def _check_before_start(graph: Graph, todo: Plan, home: Path) -> _Resources:
    running = [graph.instances[item.name] for item in todo.items if item.action == "run"]
    # What is missing first: no data set is worse than too small a machine, and is known without Ray.
    wrong: dict[str, None] = {}  # an ordered set: many stages may miss the same data set
    for one in running:
        found = one.kind.preflight(one.config, Preflight(one.name, one.axes, home))
        wrong.update(dict.fromkeys(found))
    if wrong:
        raise TatsError("\n".join(wrong))
    wants_gpu = any(one.kind.gpus(one.config) for one in running)
    there = _capacity(wants_gpu)
    for one in running:
        for name, needed, has in (
            ("CPU", one.kind.cpus(one.config), there.cpus),
            ("GPU", one.kind.gpus(one.config), there.gpus),
        ):
            if needed > has:
                keys = ("workers", "test_workers", f"{name.lower()}s")
                key = next((key for key in keys if key in type(one.config).model_fields), None)
                fewer = f"ask for fewer (--set {one.stage}.{key}={has}) or " if has and key else ""
                raise ResourceError(
                    f"{one.name} needs {needed} {name}s, but there are {has}; {fewer}use a larger machine"
                )
    return there


def _capacity(wants_gpu: bool) -> _Resources:
    if not wants_gpu and not os.environ.get("RAY_ADDRESS"):
        return _Resources(available_cpus(), 0)  # without starting a Ray for it
    from tats_core.launch import ray_train

    return _Resources(*ray_train.capacity())


def _new_record(pipeline: Pipeline, home: Path, todo: Plan, only: Sequence[str]) -> RunRecord:
    now = time.time()
    # In UTC: ids sort by time, whatever the zones of the machines that share a project folder.
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now)) + f"{int(now * 1000) % 1000:03d}"
    stages = {
        item.name: StageRecord(
            item.name, item.stage, item.kind, dict(item.axes), list(item.needs), key=item.key
        )
        for item in todo.items
    }
    return RunRecord(
        id=f"{pipeline.name}-{stamp}-{secrets.token_hex(2)}",
        pipeline=pipeline.name,
        title=pipeline.title,
        source=pipeline.where,
        home=str(home),
        status="running",
        started=now,
        stages=stages,
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
        todo: Plan,
        free: _Resources,
        on_error: OnError,
        ui: RunUI,
        host: Host | None,
    ) -> None:
        self.decider = decider
        self.store = decider.store
        self.graph = decider.graph
        self.record = record
        self.todo = todo
        self.there = replace(free)
        self.free = free
        self.on_error = on_error
        self.ui = ui
        self.stop = host.stop if host else threading.Event()
        self.launch = host.launch if host else None
        self.answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self.running: dict[str, StageWork] = {}
        self.held: dict[str, _Resources] = {}
        self.digests: dict[str, str] = {}
        self.decisions: dict[str, Decision] = {}
        self.told_stop = False
        self.began = time.monotonic()
        follower: Callable[[Path, RunRecord], Follower] = host.follower if host else Tracker
        self.tracker = follower(Path(record.home), record)
        self.is_part = host is not None
        self.notifier = Notifier(decider.pipeline.notify, record, self._later)

    def execute(self) -> RunRecord:
        """Run until nothing runs and nothing can start."""
        with self.record.alive():
            return self._execute()

    def _execute(self) -> RunRecord:
        self.record.save()
        self.record.save_configs(self._configs())
        environment.save(self.record)
        self.tracker.run_started(self._resolved())
        self.ui.started(self.todo, self.record)
        for item in self.todo.items:
            if item.action == "skip":
                self._leave_out(item.name, item.reason)
        try:
            with self._signals():
                self._loop()
        except BaseException as error:
            self._cut_off(error)
            raise
        self._conclude()
        return self.record

    def _loop(self) -> None:
        self._start_ready()
        while self.running:
            try:
                answer: Answer | None = self.answers.get(timeout=_TICK)
            except queue.Empty:
                answer = None
            self._look_for_stop()
            for work in self.running.values():
                self._read_events(work)
            if answer is not None:
                self._take(answer)
                self._start_ready()

    # --- starting ------------------------------------------------------------------------------------

    def _start_ready(self) -> None:
        with self.store.deciding():
            self._start_all_ready()

    def _start_all_ready(self) -> None:
        for one in self.graph.instances.values():
            stage = self.record.stages[one.name]
            if stage.status != "waiting" or self.stop.is_set():
                continue
            if any(self.record.stages[need].status in ("failed", "skipped", "stopped") for need in one.needs):
                self._leave_out(one.name, "what it needs is not there")
            elif all(need in self.digests for need in one.needs):
                self._start(one, stage)

    def _start(self, one: Instance, stage: StageRecord) -> None:
        decision = self.decisions.get(one.name) or self.decider.decide(one, self.digests)
        stage.key, stage.reason = decision.key.digest, decision.reason
        if decision.action == "reuse":
            stage.status = "cached"
            self._track(one, decision)
            self._finished(stage, decision.folder)
            return
        if self._halted():
            return
        needed = self._wanted(one)
        same = any(work.decision.folder == decision.folder for work in self.running.values())
        if same:
            return  # its output will be this one's too
        self.decisions[one.name] = decision
        if needed.cpus > self.free.cpus or needed.gpus > self.free.gpus:
            return
        stage.status, stage.started, stage.attempts = "running", self._now(), 1
        work = StageWork(
            one,
            decision,
            self.store,
            self._inputs(one),
            origin={"pipeline": self.record.pipeline, "stage": one.name, "run": self.record.id},
            home=Path(self.record.home),
            stop=self.stop,
            answers=self.answers,
            launch=self.launch,
        )
        stage.said_from = work.said_before
        self.record.save()
        self.ui.stage_started(one.name)
        self._track(one, decision)
        self.running[one.name] = work
        self._occupy(work)
        work.start()

    def _occupy(self, work: StageWork) -> None:
        self.held[work.name] = self._wanted(work.instance)
        self.free.cpus -= self.held[work.name].cpus
        self.free.gpus -= self.held[work.name].gpus

    def _wanted(self, one: Instance) -> _Resources:
        """What a stage keeps busy: all that it can use, or all there is."""
        spare = one.kind.spare(one.config)

        def taken(least: int, there: int) -> int:
            return max(least, min(least + spare, there)) if least else 0

        cpus, gpus = one.kind.cpus(one.config), one.kind.gpus(one.config)
        return _Resources(taken(cpus, self.there.cpus), taken(gpus, self.there.gpus))

    def _release(self, work: StageWork) -> None:
        """Give back what the stage holds; while it waits for another process, it holds nothing."""
        held = self.held.pop(work.name, _Resources(0, 0))
        self.free.cpus += held.cpus
        self.free.gpus += held.gpus

    def _inputs(self, one: Instance) -> tuple[Input, ...]:
        inputs = []
        for need in one.needs:
            stage = self.record.stages[need]
            assert stage.folder is not None
            inputs.append(Input(need, stage.kind, stage.axes, Path(stage.folder)))
        return tuple(inputs)

    def _now(self) -> float:
        """The time, by a clock that nobody sets: a duration stays right when the machine's clock jumps."""
        return self.record.started + time.monotonic() - self.began

    def _halted(self) -> bool:
        failed = any(stage.status == "failed" for stage in self.record.stages.values())
        return self.stop.is_set() or (failed and self.on_error == "stop")

    # --- following -----------------------------------------------------------------------------------

    def _read_events(self, work: StageWork) -> None:
        events = work.events
        if events is None:
            return
        try:
            for offset, event in read_events(events, work.offset):
                work.offset = offset
                self.tracker.event(work.name, event)
                # What an earlier run said is for the curves; the person has seen it.
                if offset > work.said_before:
                    self._show(work.name, event)
        except FileNotFoundError:
            return  # the commit renamed the folder just now; the next look finds it

    def _show(self, name: str, event: Mapping[str, Any]) -> None:
        if event["kind"] == "progress":
            self.ui.progress(name, event)
        elif event["kind"] == "note":
            self.ui.note(name, event["text"])
        elif event["kind"] == "params":
            self.ui.params(name, event["values"])

    def _later(self, text: str) -> None:
        self.answers.put(Answer("", "note", text))

    def _take(self, answer: Answer) -> None:
        if answer.what == "note":
            self.ui.note(answer.name, answer.text)
        elif answer.what == "waits":
            self.ui.note(answer.name, answer.text)
            self._release(self.running[answer.name])
        elif answer.what == "works":
            # Whatever took its CPUs meanwhile is not stopped: for a while there are more at work than CPUs.
            self._occupy(self.running[answer.name])
        elif answer.what == "again":
            self._again(answer)
        else:
            self._ended(answer, answer.what)

    def _again(self, answer: Answer) -> None:
        work, stage = self.running[answer.name], self.record.stages[answer.name]
        stage.attempts += 1
        self.record.save()
        self.ui.note(answer.name, f"attempt {stage.attempts}, because {answer.text}")
        self.ui.stage_started(answer.name)
        self._track(work.instance, work.decision)

    def _ended(self, answer: Answer, status: Literal["finished", "cached", "failed", "stopped"]) -> None:
        work, stage = self.running[answer.name], self.record.stages[answer.name]
        self._read_events(work)
        stage.said_to = work.offset
        del self.running[answer.name]
        self._release(work)
        stage.finished = self._now()
        stage.seconds = stage.finished - (stage.started or stage.finished)
        stage.status, stage.error = status, answer.text or None
        if stage.done:
            self._finished(stage, work.decision.folder)
            return
        self.tracker.stage_ended(stage)
        self.record.save()
        if status == "failed":
            self.ui.stage_failed(answer.name, answer.text)
            self.notifier.tell("stage_failed", stage=answer.name, error=answer.text)

    def _finished(self, stage: StageRecord, folder: Path) -> None:
        stage.folder = str(folder)
        stage.digest = self.digests[stage.name] = self.store.output_digest(folder)
        cached = stage.status == "cached"
        self.tracker.stage_ended(stage, self._source(folder) if cached else None)
        self.record.save()
        self.ui.stage_finished(stage.name, stage.seconds, cached)

    def _source(self, folder: Path) -> tuple[str, str]:
        """Return the run and the stage that made a committed output."""
        origin = self.store.origin(folder)
        return origin.run, origin.stage

    def _leave_out(self, name: str, reason: str) -> None:
        stage = self.record.stages[name]
        stage.status, stage.reason = "skipped", reason

    # --- telling -------------------------------------------------------------------------------------

    def _track(self, one: Instance, decision: Decision) -> None:
        folders = [decision.folder]
        if decision.action == "run":
            folders.insert(0, self.store.partial(decision.folder))
        data = [
            path
            for need in self._inputs(one)
            if need.kind == "data"
            for path in sorted(need.path.glob("*.json"))
            if path.name.endswith((".train.json", ".test.json"))
        ]
        config = one.config.model_dump(mode="json")
        settings = one.config.model_dump(mode="json", exclude_unset=True)
        named = config.get("benchmark")
        used = [path for path in data if named is None or path.name.startswith(f"{named}.")]
        inputs = {need: self.digests[need] for need in one.needs}
        self.tracker.stage_started(
            self.record.stages[one.name], config, settings, tuple(folders), used, inputs
        )

    def _look_for_stop(self) -> None:
        asked = self.record.asked_to_stop()
        if asked:
            self.stop.set()
        if asked == "now":
            raise KeyboardInterrupt
        if self.stop.is_set() and not self.told_stop:
            self.told_stop = True
            self.ui.note("", "stopping at the next checkpoints; Ctrl-C again stops at once")

    def _resolved(self) -> dict[str, Any]:
        stages = {
            one.name: {"kind": one.kind.name, "needs": list(one.needs), **one.config.model_dump(mode="json")}
            for one in self.graph.instances.values()
        }
        return {"name": self.record.pipeline, "overrides": self.record.overrides, "stages": stages}

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM stop at the next checkpoints; the second Ctrl-C raises."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number: int, frame: types.FrameType | None) -> None:
            # Ray's handler of SIGTERM comes before this one, and has set an alarm that would abort the
            # process three seconds later, in the middle of what we stop for.
            signal.alarm(0)
            if self.stop.is_set():
                raise KeyboardInterrupt
            self.stop.set()  # all else is done by the loop: a handler may interrupt anything

        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _configs(self) -> dict[str, StageConfig]:
        return {
            one.name: {
                "all": one.config.model_dump(mode="json"),
                "set": one.config.model_dump(mode="json", exclude_unset=True),
            }
            for one in self.graph.instances.values()
        }

    def _cut_off(self, error: BaseException) -> None:
        self.stop.set()
        until = time.monotonic() + _PARTING
        for work in self.running.values():
            work.join(max(0.0, until - time.monotonic()))
        record = self.record
        ended: Ended = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
        record.status = ended
        record.error = f"{type(error).__name__}: {error}".removesuffix(": ")
        record.finished = self._now()
        for name, work in self.running.items():
            stage = record.stages[name]
            stage.status, stage.finished, stage.said_to = record.status, record.finished, work.offset
            stage.seconds = record.finished - (stage.started or record.finished)
        with suppress(OSError):  # a full disk: this error, and no later one, is what to tell
            record.save()
        self.notifier.tell(ended, error=record.error)
        self.notifier.close(_NOTIFY_IN_HASTE)

    def _write_page(self) -> None:
        if self.is_part:
            return  # the larger work has one
        try:
            run_page.write(self.record)
        except Exception as error:  # noqa: BLE001 (a page about it must not fail a run)
            self.ui.note("", f"the run's page was not written: {type(error).__name__}: {error}")

    def _conclude(self) -> None:
        record = self.record
        for stage in record.stages.values():
            if stage.status == "waiting":
                stage.status, stage.reason = "skipped", "the run ended before"
        failed = [stage for stage in record.stages.values() if stage.status == "failed"]
        record.error = f"{failed[0].name}: {failed[0].error}" if failed else None
        ended: Ended = "failed" if failed else "stopped" if self.stop.is_set() else "finished"
        record.status = ended
        record.finished = self._now()
        record.save()
        self.notifier.tell(ended, error=record.error)
        self._write_page()
        self.tracker.close()
        if record.tracking_error:
            self.ui.note("", f"MLflow: {record.tracking_error}")
        self.notifier.close(_NOTIFY_SECONDS)
        while not self.answers.empty():
            self._take(self.answers.get())  # notes of hooks that failed
        record.save()
        self.ui.finished(record)

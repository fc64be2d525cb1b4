"""One running stage: its thread, its folder, its retries, its commit."""

from __future__ import annotations

import itertools
import queue
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from tats_core import errors, files
from tats_core.addresses import masked
from tats_core.errors import Stopped, TatsError
from tats_core.pipeline.graph import Instance
from tats_core.pipeline.plan import Decision
from tats_core.specs import StrictModel, identity
from tats_core.stages.base import Input, ParallelWork, StageContext, read_result
from tats_core.store import code
from tats_core.store.layout import EVENTS, METRICS, RESULT
from tats_core.store.outputs import StageKey, StageStore
from tats_core.training.events import EventLog

Launch = Callable[[ParallelWork, str, Path, threading.Event], None]
"""Starts workers and waits for them, as `ray_train.fit` does."""


@dataclass(frozen=True)
class Answer:
    """What a stage's thread reports: how it ended, that it tries "again" and why, or a "note".

    "waits" is a note too: another process makes its output. "works" follows if that process did not finish.
    """

    name: str
    what: Literal["finished", "cached", "failed", "stopped", "again", "note", "waits", "works"]
    text: str = ""
    refused: bool = False
    """The stage failed over what it was given: videos, weights, its configuration."""

    def __post_init__(self) -> None:
        # Errors of libraries may repeat an address with its password; the text is stored, shown and sent.
        object.__setattr__(self, "text", masked(self.text))


@dataclass(eq=False)
class StageWork(threading.Thread):
    """Does the work of one stage; its last answer is how the stage ended."""

    instance: Instance
    decision: Decision
    store: StageStore
    inputs: tuple[Input, ...]
    origin: Mapping[str, str]
    home: Path
    stop: threading.Event
    answers: queue.SimpleQueue[Answer]
    launch: Launch
    dies: bool = False
    """A rehearsal: a worker of this stage is killed once."""
    offset: int = 0
    """Bytes of the event file that the main thread has read."""
    bytes_before: int = 0
    """Bytes of the event file that earlier runs wrote."""

    def __post_init__(self) -> None:
        super().__init__(name=self.instance.name, daemon=True)
        events = self.store.partial(self.decision.folder) / EVENTS
        if events.exists() and not self.decision.fresh:  # a forced stage starts a new file
            self.bytes_before = events.stat().st_size
        self._fresh = self.decision.fresh
        self._waited = False
        self._readable = False
        """The event file is of this attempt, of one that it resumes, or of the process that it waits for."""

    @property
    def events(self) -> Path | None:
        """The stage's event file, wherever its folder is; None while the folder is still to be replaced."""
        if not self._readable:
            return None
        return self.store.current(self.decision.folder) / EVENTS

    def run(self) -> None:
        """Work until the stage is finished, stopped or has failed for good."""
        for left in range(self.instance.retries, -1, -1):
            answer, may_help = self._attempt()
            if not (may_help and left) or self.stop.is_set():
                self.answers.put(answer)
                return
            self.answers.put(Answer(self.name, "again", answer.text))

    def _attempt(self) -> tuple[Answer, bool]:
        """Return how one attempt ended, and whether another could end better."""
        try:
            with self.store.lock(self.decision.folder, self._while_locked):
                return self._work(), False
        except Stopped:
            return Answer(self.name, "stopped"), False
        except TatsError as error:
            # What a machine or a cluster lacks now, it may have later: Ray that did not start, a node.
            refused = isinstance(error, errors.DataError | errors.SpecError | errors.WeightsError)
            may_help = isinstance(error, errors.RunError | errors.ResourceError)
            return Answer(self.name, "failed", str(error), refused), may_help
        except OSError as error:
            text = f"{error.filename or self.home}: {error.strerror or error}"
            return Answer(self.name, "failed", str(errors.StoreError(text))), False
        except BaseException as error:  # noqa: BLE001 (a bug, or an exit: the main thread must get an answer)
            text = self._save_traceback(error)
            # SIGTERM to the whole process group ends the stage's helpers too, perhaps before it is seen here.
            if self.stop.wait(1.0):
                return Answer(self.name, "stopped"), False
            return Answer(self.name, "failed", text), False

    def _work(self) -> Answer:
        folder, key, kind = self.decision.folder, self.decision.key, self.instance.kind
        forced = self._fresh or self.store.unfinished(folder) == "forced"
        if (self._waited or not forced) and self.store.fault(folder, key) is None:
            self._readable = True
            return Answer(self.name, "cached")  # another process made it since the decision
        if self._waited:
            self._waited = False
            self.answers.put(Answer(self.name, "works"))
        edited = code.changed(key.components["code"])
        if edited:  # its output would have the key of the old code
            raise TatsError(
                f"the code of {', '.join(edited)} was changed since this run began; start it again: "
                "what is done is kept"
            )
        for read in self.inputs:
            self.store.verify(read.path)
        partial = self.store.begin(folder, fresh=self._fresh)
        self._fresh = False  # a retry resumes
        self._readable = True
        context = StageContext(
            name=self.instance.name,
            pipeline=self.origin["pipeline"],
            key=key.digest,
            out=partial,
            read=self.inputs,
            events=EventLog(partial / EVENTS),
            fit=self._fit(partial),
            stop=self.stop,
            home=self.home,
            output_of=(lambda config: None) if forced else self._output_of,
        )
        kind.run(self.instance.config, context)
        if (partial / RESULT).exists():
            read_result(partial)  # what is no result must not be reused
        # A part of the output: a report knows no stage kind.
        if tabled := kind.tabled(self.instance.config):
            files.write_json(partial / METRICS, [asdict(metric) for metric in tabled])
        self.store.commit(partial, folder, key, self.origin, kind.identities(partial))
        return Answer(self.name, "finished")

    def _output_of(self, config: StrictModel) -> Path | None:
        kind = self.instance.kind
        key = StageKey({**self.decision.key.components, "config": identity(config)})
        folder = self.store.folder(kind.name, key)
        return folder if self.store.fault(folder, key) is None else None

    def _fit(self, out: Path) -> Callable[[ParallelWork], None]:
        numbers = itertools.count(1)  # a stage that fits twice resumes each of the two

        def fit(work: ParallelWork) -> None:
            self.launch(replace(work, dies=self.dies), f"fit-{next(numbers)}", out, self.stop)

        return fit

    def _while_locked(self, process: str) -> None:
        if self.stop.is_set():
            raise Stopped
        if not self._waited:
            self._waited = True
            self._readable = not self._fresh
            text = f"waits for process {process}, which is making the same output"
            self.answers.put(Answer(self.name, "waits", text))

    def _save_traceback(self, error: BaseException) -> str:
        path = self.store.partial(self.decision.folder) / "log" / "traceback.txt"
        sentence = f"{type(error).__name__}: {error} (a bug; "
        try:
            files.write_text(path, masked("".join(traceback.format_exception(error))), durable=False)
        except OSError as trouble:
            return f"{sentence}its traceback cannot be written to {path}: {trouble.strerror})"
        return f"{sentence}the traceback is in {path})"

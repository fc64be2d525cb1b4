"""One running stage: its thread, its folder, its retries, its commit."""

from __future__ import annotations

import queue
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tats_core import files
from tats_core.errors import RunError, Stopped, StoreError, TatsError
from tats_core.launch.workers import Training
from tats_core.pipeline.graph import Instance
from tats_core.pipeline.plan import Decision
from tats_core.specs import StrictModel, identity
from tats_core.stages.base import Fit, Input, StageContext
from tats_core.store import code
from tats_core.store.layout import EVENTS
from tats_core.store.outputs import StageKey, StageStore
from tats_core.training.events import EventLog

Launch = Callable[[Training], None]
"""Starts workers and waits for them: `ray_train.fit`, or `local.fit`."""


@dataclass(frozen=True)
class Answer:
    """What a stage's thread reports: how it ended, that it tries "again" and why, or a "note".

    "waits" is a note too: another process makes its output. "works" follows if that process did not finish.
    """

    name: str
    what: Literal["finished", "cached", "failed", "stopped", "again", "note", "waits", "works"]
    text: str = ""


class StageWork(threading.Thread):
    """Does the work of one stage; its last answer is how the stage ended."""

    def __init__(
        self,
        instance: Instance,
        decision: Decision,
        store: StageStore,
        inputs: tuple[Input, ...],
        *,
        origin: Mapping[str, str],
        home: Path,
        stop: threading.Event,
        answers: queue.SimpleQueue[Answer],
        launch: Launch | None = None,
    ) -> None:
        super().__init__(name=instance.name, daemon=True)
        self.instance = instance
        self.decision = decision
        self.offset = 0
        """Bytes of the event file that the main thread has read."""
        # A forced stage starts a new file.
        self.bytes_before = 0 if decision.fresh else _size(store.partial(decision.folder) / EVENTS)
        """Bytes of the event file that earlier runs wrote."""
        self._store = store
        self._inputs = inputs
        self._origin = origin
        self._home = home
        self._asked_to_stop = stop
        self._answers = answers
        self._launch = launch
        self._fresh = decision.fresh
        self._waited = False
        self._readable = False
        """The event file is of this attempt, of one that it resumes, or of the process that it waits for."""

    @property
    def events(self) -> Path | None:
        """The stage's event file, wherever its folder is; None while the folder is still to be replaced."""
        if not self._readable:
            return None
        return self._store.current(self.decision.folder) / EVENTS

    def run(self) -> None:
        """Work until the stage is finished, stopped or has failed for good."""
        for left in range(self.instance.retries, -1, -1):
            answer, may_help = self._attempt()
            if not (may_help and left) or self._asked_to_stop.is_set():
                self._answers.put(answer)
                return
            self._answers.put(Answer(self.name, "again", answer.text))

    def _attempt(self) -> tuple[Answer, bool]:
        """Return how one attempt ended, and whether another could end better."""
        try:
            with self._store.lock(self.decision.folder, self._while_locked):
                return self._work(), False
        except Stopped:
            return Answer(self.name, "stopped"), False
        except TatsError as error:
            return Answer(self.name, "failed", str(error)), isinstance(error, RunError)
        except OSError as error:
            text = f"{error.filename or self._home}: {error.strerror or error}"
            return Answer(self.name, "failed", str(StoreError(text))), False
        except BaseException as error:  # noqa: BLE001 (a bug, or an exit: the main thread must get an answer)
            return Answer(self.name, "failed", self._save_traceback(error)), False

    def _work(self) -> Answer:
        folder, key = self.decision.folder, self.decision.key
        forced = self._fresh or self._store.unfinished(folder) == "forced"
        if (self._waited or not forced) and self._store.fault(folder, key) is None:
            self._readable = True
            return Answer(self.name, "cached")  # another process made it since the decision
        if self._waited:
            self._waited = False
            self._answers.put(Answer(self.name, "works"))
        edited = code.changed(key.components["code"])
        if edited:  # its output would have the key of the old code
            raise TatsError(
                f"the code of {', '.join(edited)} was changed since this run began; start it again: "
                "what is done is kept"
            )
        partial = self._store.begin(folder, fresh=self._fresh)
        self._fresh = False  # a retry resumes
        self._readable = True
        context = StageContext(
            name=self.instance.name,
            axes=self.instance.axes,
            pipeline=self._origin["pipeline"],
            key=key.digest,
            out=partial,
            home=self._home,
            read=self._inputs,
            events=EventLog(partial / EVENTS),
            fit=self._fit(partial),
            stop=self._asked_to_stop,
            output_of=(lambda config: None) if forced else self._output_of,
        )
        self.instance.kind.run(self.instance.config, context)
        self._store.commit(partial, folder, key, self._origin, self.instance.kind.identities(partial))
        return Answer(self.name, "finished")

    def _output_of(self, config: StrictModel) -> Path | None:
        kind = self.instance.kind
        key = StageKey({**self.decision.key.components, "config": identity(config)})
        folder = self._store.folder(kind.name, key)
        return folder if self._store.fault(folder, key) is None else None

    def _fit(self, out: Path) -> Fit:
        calls = 0

        def fit(
            entry: str,
            job: Mapping[str, Any],
            *,
            workers: int,
            fewer: Sequence[int] = (),
            gpu: bool = False,
            max_failures: int = 2,
        ) -> None:
            nonlocal calls
            calls += 1
            launch = self._launch
            if launch is None:
                from tats_core.launch import ray_train

                launch = ray_train.fit
            # By number, so that a stage that fits twice resumes each of the two.
            name, stop = f"fit-{calls}", self._asked_to_stop
            launch(Training(entry, job, workers, name, out.absolute(), stop, gpu, max_failures, fewer))

        return fit

    def _while_locked(self, process: str) -> None:
        if self._asked_to_stop.is_set():
            raise Stopped
        if not self._waited:
            self._waited = True
            self._readable = not self._fresh
            text = f"waits for process {process}, which is making the same output"
            self._answers.put(Answer(self.name, "waits", text))

    def _save_traceback(self, error: BaseException) -> str:
        path = self._store.partial(self.decision.folder) / "log" / "traceback.txt"
        sentence = f"{type(error).__name__}: {error} (a bug; "
        try:
            files.write_text(path, "".join(traceback.format_exception(error)), durable=False)
        except OSError as trouble:
            return f"{sentence}its traceback cannot be written to {path}: {trouble.strerror})"
        return f"{sentence}the traceback is in {path})"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0

"""The commands that a pipeline's `notify` calls when a run ends or a stage fails.

Hooks run one after another in a thread of their own: a slow one delays the next, never the run. One that
fails becomes a note.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from tats_core.errors import RunError
from tats_core.specs import StrictModel
from tats_core.store.run import RunRecord

Event = Literal["finished", "failed", "stopped", "stage_failed"]

SCHEMA = 1
COMMAND_SECONDS = 60.0

_VARIABLE = 10_000  # letters of a value in a command's environment


class Hook(StrictModel):
    """A command and the events that call it."""

    on: Annotated[
        tuple[Event, ...],
        BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
        Field(min_length=1, description="how a run ended, or `stage_failed`, which calls at once"),
    ] = ("finished", "failed", "stopped")
    command: str = Field(min_length=1, description="one line for the shell")


class Notifier:
    """Delivers to the hooks of a run from a thread; only `close` waits.

    Args:
        note: takes a sentence about a hook that failed; called from that thread.
    """

    def __init__(self, hooks: Sequence[Hook], record: RunRecord, note: Callable[[str], None]) -> None:
        self._hooks = hooks
        self._record = record
        self._note = note
        self._waiting: queue.SimpleQueue[tuple[Hook, dict[str, Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="notify", daemon=True)
        if hooks:
            self._thread.start()

    def tell(self, event: Event, *, stage: str = "", error: str | None = None) -> None:
        """Tell those who want to know of `event`."""
        for hook in self._hooks:
            if event in hook.on:
                self._waiting.put((hook, message(self._record, event, stage, error)))

    def close(self, seconds: float) -> None:
        """Wait until all is delivered, but no longer than this."""
        if not self._hooks:
            return
        self._waiting.put(None)
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._note(f"a notification was not delivered within {seconds:.0f} s and is given up")

    def _work(self) -> None:
        while (one := self._waiting.get()) is not None:
            hook, text = one
            try:
                call(hook.command, text)
            except RunError as error:
                self._note(f"a notification of '{text['event']}' was not delivered: {error}")


def message(record: RunRecord, event: Event, stage: str, error: str | None) -> dict[str, Any]:
    """Return what is told: plain JSON values, and `text` as one sentence (which chat services show)."""
    about = f"{record.pipeline}: {stage} failed" if stage else f"{record.pipeline} {event}"
    return {
        "schema": SCHEMA,
        "event": event,
        "run": record.id,
        "pipeline": record.pipeline,
        "status": record.status,
        "stage": stage,
        "error": error or "",
        "seconds": (record.finished or time.time()) - record.started,
        "folder": str(record.folder),
        "text": f"{about}: {error}" if error else about,
    }


def call(command: str, message: Mapping[str, Any]) -> None:
    """Run a command to its end, with a message in its environment and, as JSON, on its standard input.

    Raises:
        RunError: it cannot be started, takes too long, or fails.
    """
    names = ("event", "run", "pipeline", "status", "stage", "error")
    # A variable takes neither everything nor any length; the JSON has all of it.
    said = {f"TATS_{name.upper()}": message[name].replace("\0", " ")[:_VARIABLE] for name in names}
    environment = os.environ | said
    # Into a file, not a pipe: what the command leaves running would keep a pipe open.
    with tempfile.TemporaryFile() as printed:
        try:
            process = subprocess.Popen(
                ["/bin/sh", "-c", command],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=printed,
                start_new_session=True,  # Ctrl-C is for the run
            )
        except OSError as error:
            raise RunError(f"'{command}' cannot be started ({error.strerror})") from error
        try:
            process.communicate(json.dumps(message, ensure_ascii=False).encode(), timeout=COMMAND_SECONDS)
        except subprocess.TimeoutExpired as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise RunError(f"'{command}' took longer than {COMMAND_SECONDS:.0f} s") from error
        if process.returncode != 0:
            printed.seek(0)
            last = printed.read().decode(errors="replace").strip().splitlines()[-1:]
            why = f": {last[0]}" if last else ""
            raise RunError(f"'{command}' ended with code {process.returncode}{why}")

"""Tells the world outside how a run goes: a command or a webhook for each event that the pipeline names.

Hooks run one after another in a thread of their own: a slow one delays the next, never the run. One that
fails becomes a note.
"""

from __future__ import annotations

import http.client
import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from tats_core.errors import RunError
from tats_core.specs import StrictModel
from tats_core.store.run import RunRecord

Event = Literal["finished", "failed", "stopped", "stage_failed"]

SCHEMA = 1
WEBHOOK_SECONDS = 10.0
COMMAND_SECONDS = 60.0

_VARIABLE = 10_000  # letters of a value in a command's environment


class Hook(StrictModel):
    """What is told, and to whom: either a command or a webhook."""

    on: Annotated[
        tuple[Event, ...],
        BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
        Field(min_length=1, description="how a run ended, or `stage_failed`, told when it happens"),
    ] = ("finished", "failed", "stopped")
    command: str | None = Field(None, min_length=1, description="one line for the shell")
    webhook: str | None = Field(None, description="gets the JSON by POST; may be $NAME, from the environment")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.command is None) == (self.webhook is None):
            raise ValueError("give either 'command' or 'webhook'")
        if self.webhook is not None and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"webhook '{self.webhook}' is no http:// or https:// address")
        return self

    @property
    def url(self) -> str:
        """The webhook's address; it may hold a secret, so no message contains it."""
        return os.path.expandvars(self.webhook or "")

    def send(self, message: Mapping[str, Any]) -> None:
        """Deliver one message and wait until it is delivered.

        Raises:
            RunError: it could not be.
        """
        body = json.dumps(message, ensure_ascii=False).encode()
        if self.command is not None:
            _call(self.command, message, body)
        else:
            _post(self.url, body)


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
                hook.send(text)
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


def _call(command: str, message: Mapping[str, Any], body: bytes) -> None:
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
            process.communicate(body, timeout=COMMAND_SECONDS)
        except subprocess.TimeoutExpired as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise RunError(f"'{command}' took longer than {COMMAND_SECONDS:.0f} s") from error
        if process.returncode != 0:
            printed.seek(0)
            last = printed.read().decode(errors="replace").strip().splitlines()[-1:]
            why = f": {last[0]}" if last else ""
            raise RunError(f"'{command}' ended with code {process.returncode}{why}")


def _post(url: str, body: bytes) -> None:
    host = urllib.parse.urlsplit(url).hostname
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=WEBHOOK_SECONDS):
            return
    except urllib.error.HTTPError as error:
        error.close()
        raise RunError(f"{host} answered {error.code} {error.reason}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise RunError(f"{host} cannot be reached ({getattr(error, 'reason', error)})") from error

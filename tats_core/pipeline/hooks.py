"""The commands that a pipeline's `notify` calls when a run ends or a stage fails.

They run one after another in a thread: a slow one delays the next, never the run. A failure becomes a note.
"""

from __future__ import annotations

import json
import os
import queue
import re
import shlex
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence

from tats_core.addresses import masked
from tats_core.errors import RunError
from tats_core.pipeline.observers import Observer
from tats_core.pipeline.spec import Event, Hook
from tats_core.store.run import RunRecord, StageRecord

SCHEMA = 1
COMMAND_SECONDS = 60.0

_HASTE_SECONDS = 5.0
_VARIABLES = ("event", "run", "pipeline", "status", "stage", "error")  # in a command's environment
_VARIABLE = 10_000  # letters of each value
_PART = re.compile(r"[^\s'\"`<>{}]+")  # of a word in quotes
_SECRET = 6  # letters of a secret, at least

Message = dict[str, str | int | float]
"""What a command gets as JSON."""


class Notifier(Observer):
    """Calls the hooks of a run from a thread; only `deliver` waits.

    Args:
        note: takes a sentence about a hook that failed; called from that thread.
    """

    def __init__(self, hooks: Sequence[Hook], record: RunRecord, note: Callable[[str], None]) -> None:
        self._hooks = hooks
        self._record = record
        self._note = note
        self._waiting: queue.SimpleQueue[tuple[Hook, Message] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="notify", daemon=True)
        if hooks:
            self._thread.start()

    def stage_ended(self, stage: StageRecord, source: tuple[str, str] | None = None) -> None:
        if stage.status == "failed":
            self._put("stage_failed", stage.name, stage.error)

    def run_ended(self, record: RunRecord) -> None:
        if record.status != "running":
            self._put(record.status, "", record.error)

    def deliver(self) -> None:
        self.close(COMMAND_SECONDS)

    def aborted(self, record: RunRecord) -> None:
        self.run_ended(record)
        self.close(_HASTE_SECONDS)

    def close(self, seconds: float) -> None:
        """Wait until all hooks have ended, but no longer than this."""
        if not self._hooks:
            return
        self._waiting.put(None)
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._note(f"a notification was not delivered within {seconds:.0f} s and is given up")

    def _put(self, event: Event, stage: str, error: str | None) -> None:
        for hook in self._hooks:
            if event in hook.on:
                self._waiting.put((hook, message(self._record, event, stage, error)))

    def _work(self) -> None:
        while (item := self._waiting.get()) is not None:
            hook, text = item
            try:
                call(hook.command, text)
            except RunError as error:
                self._note(f"a notification of '{text['event']}' was not delivered: {error}")


def message(record: RunRecord, event: Event, stage: str, error: str | None) -> Message:
    """Return what a command gets; `text` is one sentence (which chat services show)."""
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


def call(command: str, message: Message) -> None:
    """Run a command, with a message in its environment and, as JSON, on its standard input.

    Raises:
        RunError: it cannot be started, takes too long, or fails. The message leaves the command out, which
            often holds the secret address of a chat, and all its words but names of programs.
    """
    # A variable cannot hold every character or any length; the JSON has everything.
    environment = os.environ | {
        f"TATS_{name.upper()}": str(message[name]).replace("\0", " ")[:_VARIABLE] for name in _VARIABLES
    }
    # Into a file, not a pipe: processes that the command leaves running would keep a pipe open.
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
            raise RunError(f"its command cannot be started ({error.strerror})") from error
        try:
            # A file's name in it may hold bytes that are no text.
            text = json.dumps(message, ensure_ascii=False).encode(errors="backslashreplace")
            process.communicate(text, timeout=COMMAND_SECONDS)
        except subprocess.TimeoutExpired as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise RunError(f"its command took longer than {COMMAND_SECONDS:.0f} s") from error
        if process.returncode != 0:
            printed.seek(0)
            last = printed.read().decode(errors="replace").strip().splitlines()[-1:]
            why = f": {_without(command, last[0])}" if last else ""
            raise RunError(f"its command ended with code {process.returncode}{why}")


def _without(command: str, line: str) -> str:
    """Return a line that a command printed without the command's words, which it may repeat.

    Names of programs stay: mostly one of them is not installed. The values of the variables that the command
    names are left out as well, and of an address what follows its host.
    """
    words = [part for word in _arguments(command) for part in (word, *_PART.findall(word))]
    words += [os.environ.get(name, "") for name in re.findall(r"\$\{?(\w+)", command)]
    words += [part for word in words for part in (word.partition("=")[2], word.partition("://")[2])]
    words += [word[word.index("/") :] for word in words if "/" in word.strip("/")]
    line = line.replace(command, "...")
    for word in sorted(set(words), key=len, reverse=True):
        if len(word) >= _SECRET:
            line = line.replace(word, "...")
    return masked(line)


def _arguments(command: str) -> list[str]:
    """Return the words of a command, without their quotes, but for the names of its programs."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        words = list(lexer)
    except ValueError:  # quotes that only the shell understands
        return command.split()
    arguments, begins = [], True
    for word in words:
        operator = set(word) <= {*lexer.punctuation_chars}
        if not begins or "=" in word:
            arguments.append(word)
        elif not operator:
            begins = False
        if operator:
            begins = not {*word} & {*"<>"}
    return arguments

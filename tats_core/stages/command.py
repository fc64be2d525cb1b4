"""Runs any program as a stage: it writes its output into the folder that TATS_OUT names."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import psutil
from pydantic import BeforeValidator, Field, field_validator

from tats_core.errors import StageError, Stopped
from tats_core.files import digest, write_json
from tats_core.specs import NotIdentity, StrictModel
from tats_core.stages.base import StageContext, StageKind, read_result
from tats_core.store.layout import EVENTS, OUTPUT, RESULT

_POLL_SECONDS = 0.5
_GRACE_SECONDS = 10.0
_READ_BYTES = 1 << 26
_SHELL = ("/bin/sh", "-c")


class CommandConfig(StrictModel):
    """A program, its arguments and what it needs."""

    run: Annotated[
        tuple[str, ...],
        BeforeValidator(lambda value: (*_SHELL, value) if isinstance(value, str) else value),
        Field(min_length=1, description="one line for the shell, or a list: the program and its arguments"),
    ]
    env: dict[str, str] = Field(default_factory=dict, description="added to the environment")
    cpus: Annotated[int, NotIdentity] = Field(1, ge=0, description="CPUs that it uses")
    gpus: Annotated[int, NotIdentity] = Field(0, ge=0, description="GPUs that it uses")

    @field_validator("env")
    @classmethod
    def _names_of_variables(cls, env: dict[str, str]) -> dict[str, str]:
        for name in env:
            if not name or "=" in name:
                raise ValueError(f"'{name}' cannot name a variable")
        return env


class Command(StageKind[CommandConfig]):
    """The program gets TATS_OUT (its folder) and TATS_INPUTS: JSON, a list of name, kind, axes, path.

    What it prints goes to `log/command.log`. Exit code 0 means that TATS_OUT holds its output; processes that
    it leaves running are killed. The content of a file that the command names is part of the key: the stage
    runs again when its script has changed.

    TATS_OUT is `output/` in the stage's folder: no name in it means anything to the engine, but that of
    `result.json`, an object with the numbers that a sweep may compare. To the file TATS_EVENTS the program
    may append metrics and notes while it runs (see `training.events`).
    """

    name = "command"
    version = 2
    Config = CommandConfig
    any_kind = True
    reports = None  # whatever the program writes into a result.json

    def cpus(self, config: CommandConfig) -> int:
        return config.cpus

    def gpus(self, config: CommandConfig) -> int:
        return config.gpus

    def external(self, config: CommandConfig) -> Mapping[str, str]:
        """Return the digest of each file that the command names, such as a script."""
        # Not Path.is_file: a word may be too long for a file name.
        return {word: _digest(Path(word)) for word in _words(config.run) if os.path.isfile(word)}  # noqa: PTH113

    def run(self, config: CommandConfig, ctx: StageContext) -> None:
        """Run the program and wait for it.

        Raises:
            StageError: it cannot be started, or ends with another exit code than 0.
        """
        inputs = [
            {
                "name": read.name,
                "kind": read.kind,
                "axes": dict(read.axes),
                "path": str(read.path / OUTPUT if read.kind == self.name else read.path),
            }
            for read in ctx.read
        ]
        out, log = ctx.out / OUTPUT, ctx.out / "log" / "command.log"
        for folder in (out, log.parent):
            folder.mkdir(parents=True, exist_ok=True)
        variables = {
            "TATS_OUT": str(out),
            "TATS_INPUTS": json.dumps(inputs),
            "TATS_EVENTS": str(ctx.out / EVENTS),
        }
        _end_leftovers(str(out))
        with log.open("ab") as printed:
            try:
                process = subprocess.Popen(
                    config.run,
                    env={**os.environ, **config.env, **variables},
                    stdin=subprocess.DEVNULL,
                    stdout=printed,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # a Ctrl-C in the terminal is passed on by `_wait`
                )
            except OSError as error:
                raise StageError(f"'{config.run[0]}' cannot be started ({error.strerror})") from error
            code = _wait(process, ctx)
        _end_leftovers(str(out))  # it would write into a committed output
        if code != 0:
            raise StageError(f"the command ended with code {code}; what it printed is in {log}")
        if (out / RESULT).exists():
            write_json(ctx.out / RESULT, read_result(out))


def _words(run: Sequence[str]) -> Sequence[str]:
    if tuple(run[:2]) != _SHELL:
        return run
    try:
        return shlex.split(run[2])
    except ValueError:  # quotes that only the shell understands
        return run[2].split()


def _digest(path: Path) -> str:
    # A plan must not read a data set that the command names: size and time of change stand for a large file.
    status = path.stat()
    if status.st_size > _READ_BYTES:
        return f"{status.st_size} bytes, changed {status.st_mtime_ns}"
    return digest(path)


def _end_leftovers(out: str) -> None:
    """Kill processes that a killed driver or the program left: they would write into the same folder."""
    left = []
    for process in psutil.process_iter():
        # A process may end meanwhile, or belong to another user.
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.environ().get("TATS_OUT") == out:
                process.kill()
                left.append(process)
    _, alive = psutil.wait_procs(left, _GRACE_SECONDS)
    if alive:
        numbers = ", ".join(str(process.pid) for process in alive)
        raise StageError(
            f"process {numbers}, which the command left, cannot be ended; end it, then run again"
        )


def _wait(process: subprocess.Popen[bytes], ctx: StageContext) -> int:
    while True:
        try:
            code = process.wait(_POLL_SECONDS)
            # Stopping a Ray job stops all its processes at once, perhaps this one first.
            if code == -signal.SIGTERM and ctx.stop.wait(_POLL_SECONDS):
                raise Stopped
            return code
        except subprocess.TimeoutExpired:
            if ctx.stop.is_set():
                break
    # The process group: a shell does not pass a signal on to its children.
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    raise Stopped


KIND = Command()

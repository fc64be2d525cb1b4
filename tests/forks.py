"""Python started by a fork of a process that has the slow libraries, but nothing of `tats_core`, imported.

It is a process of its own, which ends as Python ends; only the seconds that the libraries take are not spent
anew each time.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LIBRARIES = (
    "torch", "pandas", "matplotlib.figure", "pydantic", "typer", "rich.table", "rich.progress", "aiohttp",
    "optuna", "sqlalchemy", "alembic", "mlflow", "ray.train", "ray.tune",
)  # fmt: skip


class Forks:
    """Starts Python as `subprocess` does, from one process for all; close it in the end."""

    def __init__(self) -> None:
        self._parent = subprocess.Popen(
            [sys.executable, __file__],
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def start(self, *words: str, cwd: Path, env: Mapping[str, str], log: Path) -> Fork:
        """Start `python WORDS…` (`-c` or `-m` first), whose output goes to `log`.out and `log`.err."""
        for name in ("out", "err"):
            Path(f"{log}.{name}").touch()
        request = {"words": words, "cwd": str(cwd), "env": dict(env), "log": str(log)}
        return Fork(self, int(self.ask(request)), log)

    def run(self, *words: str, cwd: Path, env: Mapping[str, str], log: Path) -> tuple[int, str, str]:
        """The same to its end: exit code, standard output, standard error."""
        return self.start(*words, cwd=cwd, env=env, log=log).wait()

    def ask(self, request: Mapping[str, Any]) -> str:
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.write(json.dumps(request) + "\n")
        self._parent.stdin.flush()
        return self._parent.stdout.readline()

    def close(self) -> None:
        self._parent.communicate()


class Fork:
    """A process that `Forks` started."""

    def __init__(self, forks: Forks, pid: int, log: Path) -> None:
        self._forks, self.pid, self._log = forks, pid, log
        self._code: int | None = None

    @property
    def printed(self) -> tuple[str, str]:
        """What is on its standard output and standard error by now."""
        out, err = (Path(f"{self._log}.{name}").read_text() for name in ("out", "err"))
        return out, err

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it has been waited for."""
        if self._code is None:
            os.kill(self.pid, number)

    def wait(self) -> tuple[int, str, str]:
        """Return the exit code (negative: the signal that ended it) and what it printed."""
        if self._code is None:
            self._code = int(self._forks.ask({"wait": self.pid}))
        return self._code, *self.printed


def _serve() -> None:
    with warnings.catch_warnings(action="ignore"):
        for name in LIBRARIES:
            importlib.import_module(name)
    answers = os.fdopen(os.dup(1), "w")
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            print(os.waitstatus_to_exitcode(status), file=answers, flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            answers.close()
            _become(**request)
            return
        print(pid, file=answers, flush=True)


def _become(words: list[str], cwd: str, env: dict[str, str], log: str) -> None:
    for number, name in enumerate((os.devnull, f"{log}.out", f"{log}.err")):
        os.dup2(os.open(name, os.O_CREAT | os.O_RDWR | (os.O_TRUNC if number else 0), 0o644), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:1] = ["", *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    how, what, *rest = words
    if how == "-m":
        sys.argv = [what, *rest]
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.argv = [how, *rest]
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    _serve()

"""Faults for the processes under test. Python imports this module by itself when it starts.

TATS_FAULTS holds a JSON list; each entry wraps one function when its module is imported::

    {"at": "tats_core.training.pretrain:JointTrainer.step", "call": 5, "do": "kill", "mark": "/tmp/kill"}

    at      module:function, or module:Class.function
    call    the fault happens at this call in a process (from 1), of those that
    match   (a regular expression, by default any) is found in the text of the arguments
    rank    only in this worker (of a method whose object has a `world`)
    after   when the function has done its work, not before
    do      kill: by SIGKILL, as the out-of-memory killer does
            raise: a RuntimeError
            nan: from this call on, the first argument is NaN
            hold: wait until the file `mark`.go is there
            jump: the clock of this process, by `seconds`
    mark    a file that shows that it happened; while it is there, the fault does not happen again
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.util
import itertools
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any


def _happen(fault: dict[str, Any]) -> None:
    what = fault["do"]
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "raise":
        raise RuntimeError("injected")
    elif what == "hold":
        while not Path(fault["mark"] + ".go").exists():
            time.sleep(0.02)
    elif what == "jump":
        real, by = time.time, fault["seconds"]
        time.time = lambda: real() + by


def _first_time(fault: dict[str, Any]) -> bool:
    try:
        os.close(os.open(fault["mark"], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _faulty(function: Callable[..., Any], fault: dict[str, Any]) -> Callable[..., Any]:
    calls = itertools.count(1)
    storm = False

    def due(args: tuple[Any, ...]) -> bool:
        if "rank" in fault and args[0].world.rank != fault["rank"]:
            return False
        if not re.search(fault.get("match", ""), str(args) if "match" in fault else ""):
            return False
        return next(calls) == fault["call"] and _first_time(fault)

    @functools.wraps(function)
    def wrapped(*args: Any, **more: Any) -> Any:
        nonlocal storm
        now = due(args)
        storm = storm or (now and fault["do"] == "nan")
        if storm:
            args = (args[0], args[1] * float("nan"), *args[2:])
        if now and not fault.get("after"):
            _happen(fault)
        result = function(*args, **more)
        if now and fault.get("after"):
            _happen(fault)
        return result

    return wrapped


def _wrap(module: ModuleType, faults: list[dict[str, Any]]) -> None:
    for fault in faults:
        *path, name = fault["at"].partition(":")[2].split(".")
        owner: Any = functools.reduce(getattr, path, module)
        setattr(owner, name, _faulty(getattr(owner, name), fault))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds modules as without it, and wraps their functions once they are loaded."""

    def __init__(self, faults: dict[str, list[dict[str, Any]]]) -> None:
        self.faults = faults

    def find_spec(
        self, fullname: str, path: Any, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        faults = self.faults.pop(fullname, None)
        if faults is None:
            return None
        spec = importlib.util.find_spec(fullname)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def load_and_wrap(module: ModuleType) -> None:
            load(module)
            _wrap(module, faults)

        spec.loader.exec_module = load_and_wrap  # type: ignore[method-assign]
        return spec


def _install(entries: list[dict[str, Any]]) -> None:
    by_module: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        by_module.setdefault(entry["at"].partition(":")[0], []).append(entry)
    sys.meta_path.insert(0, _Finder(by_module))


if "TATS_FAULTS" in os.environ:
    _install(json.loads(os.environ["TATS_FAULTS"]))

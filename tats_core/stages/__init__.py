"""The stage kinds, by the name that a YAML file uses.

To add a kind: write `stages/<module>.py` with a module-level `KIND`, and register its name here.
A kind is imported when it is first asked for, so that a plan pays only for those it needs.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from tats_core.stages.base import StageKind


class Registry(Mapping[str, StageKind[Any]]):
    """Name → stage kind; the module's `KIND` is imported at the first look-up."""

    def __init__(self, modules: Mapping[str, str]) -> None:
        self._modules = dict(modules)
        self._kinds: dict[str, StageKind[Any]] = {}

    def register(self, kind: StageKind[Any]) -> None:
        """Add a kind that lives elsewhere; a known name is replaced."""
        self._kinds[kind.name] = kind
        self._modules[kind.name] = kind.__module__

    def __getitem__(self, name: str) -> StageKind[Any]:
        if name not in self._kinds:
            kind: StageKind[Any] = importlib.import_module(self._modules[name]).KIND
            assert kind.name == name, f"{kind} calls itself '{kind.name}', registered as '{name}'"
            self._kinds[name] = kind
        return self._kinds[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)


KINDS = Registry(
    {
        name: f"{__name__}.{name}"
        for name in ("data", "pretrain", "finetune", "probe", "evaluate", "report", "command")
    }
)

"""The stage kinds, by the name that a YAML file uses.

To add a kind, write `stages/<module>.py` with a module-level `KIND` and name it here. A kind is imported when
it is first asked for, so that a plan pays only for those it needs.
"""

from __future__ import annotations

from typing import Any, Final

from tats_core.registry import Registry
from tats_core.stages.base import StageKind

KINDS: Final[Registry[StageKind[Any]]] = Registry(
    "stage kind",
    "tats.stages",
    StageKind,
    {
        name: f"{__name__}.{name}:KIND"
        for name in ("data", "pretrain", "finetune", "probe", "evaluate", "report", "command")
    },
)

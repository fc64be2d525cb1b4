"""What a stage kind is, and what the engine hands to a stage while it runs.

A kind knows its configuration, what it reads, what it costs and how to do its work. It knows nothing of
the graph, the cache, MLflow or Ray: those are around it, and reach it through `StageContext`.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import JsonValue

from tats_core.errors import Stopped
from tats_core.files import read_json
from tats_core.report.metrics import Metric
from tats_core.specs import StrictModel
from tats_core.store.layout import RESULT
from tats_core.training.events import EventLog

C = TypeVar("C", bound=StrictModel)


@dataclass(frozen=True)
class Input:
    """The committed output of a stage that another one reads."""

    name: str
    kind: str
    axes: Mapping[str, str]
    path: Path


@dataclass(frozen=True)
class ParallelWork:
    """A call of `function(job, world, events, store)` in each of `workers` processes."""

    entry: str
    """`"module:function"`."""
    job: Mapping[str, Any]
    """Plain values only: it travels to the workers' machines."""
    workers: int
    fewer: tuple[int, ...] = ()
    """Smaller numbers of workers, for when there is no room for all. When there is more room, as many as
    then fit restart from the next checkpoint."""
    gpu: bool = False
    max_failures: int = 2
    """How often dead workers are replaced before the stage fails."""
    max_preemptions: int = 100
    """How often workers whose machine is taken away resume elsewhere before the stage fails."""
    dies: bool = False
    """A rehearsal: the first worker kills itself once, after the first checkpoint."""


@dataclass(frozen=True)
class StageContext:
    """A running stage's surroundings.

    `name` and `pipeline` are labels: an output must depend on the configuration and the inputs alone, because
    another stage with the same key may reuse it. (The key of a stage that gathers holds the pipeline's name
    and its inputs' axes, so it may use those.) `out` is the stage's folder; all that is left
    there becomes its output. After a kill, the stage runs again with the same `out`.
    """

    name: str
    pipeline: str
    key: str
    out: Path
    read: tuple[Input, ...]
    events: EventLog
    fit: Callable[[ParallelWork], None]
    """Does the work from its newest checkpoint, if there is one, and waits for it. Raises the TatsError that
    a worker raised, StageError where workers died too often, or Stopped."""
    stop: threading.Event
    home: Path | None = None
    """The project folder, for what outlives the stage, such as the index of a data set."""
    output_of: Callable[[StrictModel], Path | None] = lambda config: None
    """Returns the output of this stage with another configuration, or None."""

    def inputs(self, kind: str) -> list[Input]:
        """Return the outputs of all stages of `kind` that this stage reads, in plan order."""
        return [output for output in self.read if output.kind == kind]

    def input(self, kind: str) -> Input:
        """Return the output of `kind` that this stage reads; the graph makes sure of exactly one."""
        outputs = self.inputs(kind)
        assert len(outputs) == 1, f"{self.name} reads {len(outputs)} outputs of kind '{kind}'"
        return outputs[0]

    def check_stop(self) -> None:
        """Raise Stopped if the user asked to stop; call it between pieces of work."""
        if self.stop.is_set():
            raise Stopped


@dataclass(frozen=True)
class Preflight:
    """What is known before anything runs."""

    name: str
    axes: Mapping[str, str]
    home: Path


class StageKind(ABC, Generic[C]):
    """A kind of stage; each module of this package has one, as `KIND`.

    Attributes:
        name: as in YAML.
        version: raised when the form of the output changes; part of the stage key.
        Config: the keys of a stage of this kind, beside the engine's. A field that cannot change the output
            (resources, caches), or whose content is in `external`, is marked `NotIdentity`.
        gathers: reads all instances of what it needs, instead of those that agree with its own axes, and all
            that have something for the table.
        any_kind: reads all that it directly needs, and is read by all that directly need it.
        follows: axes that fill the field of the same name here when a stage that this one needs has them.
        reports: the numbers of its `result.json`, which a sweep may compare; None if known only after a run.
        curves: the numbers that its events hold after an epoch, by which a sweep may stop a trial early.
        code: modules whose code, with all they import from tats_core, can change the output. The kind's
            own module is always among them.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    Config: type[C]
    gathers: ClassVar[bool] = False
    any_kind: ClassVar[bool] = False
    follows: ClassVar[frozenset[str]] = frozenset({"benchmark", "init"})
    reports: ClassVar[frozenset[str] | None] = frozenset()
    curves: ClassVar[frozenset[str]] = frozenset()
    code: ClassVar[tuple[str, ...]] = ()

    def reads(self, config: C) -> tuple[str, ...]:
        """Return the kinds whose outputs this stage reads, among the stages it needs, however indirectly.

        Each must be there, save for a kind that gathers: it takes what there is.
        """
        return ()

    def narrowed(self, config: C, readers: Sequence[StrictModel]) -> C:
        """Return the configuration, reduced to what `readers`, the stages that read this one, use of it."""
        return config

    def serves(self, config: C, reader: StrictModel) -> bool:
        """Return whether the output has what `reader`, the configuration of a stage, reads of this kind."""
        return True

    def tabled(self, config: C) -> tuple[Metric, ...]:
        """Return the numbers of its `result.json` that the table of results shows, as columns of their own.

        They stand in the row of the benchmark and the start (`init`) that its axes or its result name, or in
        every row that agrees with those of them that it has.
        """
        return ()

    def summary(self, config: C) -> str:
        """Return a few words for the plan on what the stage needs from outside; "" for nothing."""
        return ""

    def cpus(self, config: C) -> int:
        """Return how many CPUs the stage uses at least."""
        return 1

    def gpus(self, config: C) -> int:
        """Return how many GPUs the stage uses at least."""
        return 0

    def spare(self, config: C) -> int:
        """Return how many more of each it uses where they are free."""
        return 0

    def preflight(self, config: C, ctx: Preflight) -> list[str]:
        """Return one sentence for each thing that would make the stage fail: missing data, weights."""
        return []

    def external(self, config: C) -> Mapping[str, str]:
        """Return name → digest of what the stage reads from outside the pipeline; part of the key."""
        return {}

    def identities(self, folder: Path) -> Mapping[str, str]:
        """Return file name → text that replaces its bytes in the output's digest.

        For a file with content that cannot matter to its readers, such as the path of a data set.
        """
        return {}

    @abstractmethod
    def run(self, config: C, ctx: StageContext) -> None:
        """Do the work and leave the output in `ctx.out`; resume where an earlier attempt ended.

        Raises:
            TatsError: the stage failed; the error's text is one sentence.
            Stopped: `ctx.stop` was set.
        """


def read_result(folder: Path) -> dict[str, JsonValue]:
    """Return the `result.json` of a stage.

    Raises:
        StoreError: the stage left none.
    """
    return read_json(folder / RESULT, dict[str, JsonValue], "the result of a stage")

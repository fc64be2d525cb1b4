"""Decides what happens to each stage. The plan before a run and the run itself decide by the same code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from tats_core.errors import SpecError
from tats_core.pipeline.graph import Graph, Instance
from tats_core.pipeline.keys import own_components, stage_key
from tats_core.pipeline.spec import Pipeline
from tats_core.store import history
from tats_core.store import key_diff as diff
from tats_core.store.key_diff import Change
from tats_core.store.outputs import StageKey, StageStore
from tats_core.store.run import SCHEMA

Action = Literal["run", "reuse", "skip"]

_RUNS_LOOKED_AT = 10  # for how long a stage took; in the newest ones most stages may have been reused


@dataclass(frozen=True)
class PlanItem:
    """What will happen to one stage, and why.

    `reason` is "" for a stage that runs only because those named in `after` come first. Until these have
    run, `key` cannot be known: it contains the digests of their outputs. `seconds` is what the stage took
    when it last ran, None where it never did.
    """

    name: str
    stage: str
    kind: str
    axes: Mapping[str, str]
    needs: tuple[str, ...]
    action: Action
    reason: str
    key: str | None = None
    folder: Path | None = None
    after: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()
    seconds: float | None = None


@dataclass(frozen=True)
class Plan:
    """The stages of a pipeline in an order in which they may run."""

    pipeline: str
    title: str
    items: tuple[PlanItem, ...]

    def count(self, action: Action) -> int:
        """Return how many stages have this action."""
        return sum(item.action == action for item in self.items)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain JSON values (schema 1)."""
        items = [asdict(item) | {"folder": item.folder and str(item.folder)} for item in self.items]
        return {"schema": SCHEMA, "pipeline": self.pipeline, "title": self.title, "stages": items}


@dataclass(frozen=True)
class Choice:
    """What the command line asks for, as instances."""

    wanted: frozenset[str]
    forced: frozenset[str]

    @classmethod
    def of(cls, graph: Graph, force: Sequence[str], only: Sequence[str], from_stage: str | None) -> Choice:
        """Resolve the options.

        Raises:
            SpecError: an option names no stage, or `force` one that `only` leaves out.
        """
        wanted = graph.select(only, "only") if only else set(graph.instances)
        for name in force:
            if not graph.select([name], "force") & wanted:
                raise SpecError(f"--force {name}: --only leaves it out; add it there, or take --force away")
        forced = graph.select(force, "force")
        if from_stage is not None:
            forced |= graph.followers(graph.select([from_stage], "from"))
        return cls(frozenset(wanted), frozenset(forced & wanted))


@dataclass(frozen=True)
class Decision:
    """What happens to a stage whose inputs are all there."""

    action: Action
    reason: str
    key: StageKey
    folder: Path
    fresh: bool = False
    """An earlier attempt is not gone on with."""
    changes: tuple[Change, ...] = ()
    """What differs from the newest output of this stage of this pipeline, if it runs for that."""


class Decider:
    """Decides about one stage at a time."""

    def __init__(self, pipeline: Pipeline, graph: Graph, store: StageStore, choice: Choice) -> None:
        self.pipeline = pipeline
        self.graph = graph
        self.store = store
        self.choice = choice
        self._history: dict[str, Mapping[tuple[str, str], Mapping[str, Any]]] = {}

    def decide(self, one: Instance, digests: Mapping[str, str]) -> Decision:
        """Decide about `one`, given the output digests of the instances that it reads."""
        inputs = [(self.graph.instances[need], digests[need]) for need in one.needs]
        key = stage_key(one, inputs, self.pipeline.name)
        folder = self.store.folder(one.kind.name, key)
        fault = self.store.fault(folder, key)
        unfinished = self.store.unfinished(folder)
        if one.name in self.choice.forced:
            return Decision("run", "forced", key, folder, fresh=True)
        if fault is None and unfinished != "forced":
            return Decision("reuse", "unchanged", key, folder)
        if unfinished:
            return Decision("run", "goes on where it was cut off", key, folder)
        if fault:
            return Decision("run", f"its output is damaged: {fault}", key, folder)
        found = self.changes(one, key.components)
        if found is None:
            return Decision("run", "has no output yet", key, folder)
        reason = "; ".join(diff.in_words(found)) or "its output is gone"
        return Decision("run", reason, key, folder, changes=found)

    def changes(self, one: Instance, components: Mapping[str, Any]) -> tuple[Change, ...] | None:
        """Return what differs from the newest output of this stage; None where it has none."""
        kind = one.kind.name
        if kind not in self._history:  # read once: it does not grow by what this run makes
            self._history[kind] = self.store.history(kind)
        before = self._history[kind].get((self.pipeline.name, one.name))
        return None if before is None else diff.between(before, components)


def make(decider: Decider) -> Plan:
    """Return what a run would do, as far as it can be known before.

    Raises:
        SpecError: `--only` names a stage that needs the output of one that has none.
    """
    items: dict[str, PlanItem] = {}
    digests: dict[str, str] = {}
    for one in decider.graph.instances.values():
        item = _item(decider, one, digests, items)
        if item.action == "reuse" and item.folder:
            digests[one.name] = decider.store.output_digest(item.folder)
        items[one.name] = item
    taken = _taken(decider.store.root.parent, decider.pipeline.name, items)
    timed = (replace(item, seconds=taken.get(item.name)) for item in items.values())
    return Plan(decider.pipeline.name, decider.pipeline.title, tuple(timed))


def _taken(home: Path, pipeline: str, names: Iterable[str]) -> dict[str, float]:
    """Return what each stage took in the newest run that did its work, among the newest few."""
    found: dict[str, float] = {}
    for record in islice(history.records(home, pipeline), _RUNS_LOOKED_AT):
        for stage in record.stages.values():
            if stage.status == "finished":
                found.setdefault(stage.name, stage.seconds)
        if found.keys() >= set(names):
            break
    return found


def _item(
    decider: Decider, one: Instance, digests: Mapping[str, str], items: Mapping[str, PlanItem]
) -> PlanItem:
    wanted = one.name in decider.choice.wanted
    missing = [need for need in one.needs if need not in digests]
    if missing:
        lost = [need for need in missing if items[need].action == "skip"]
        if wanted and lost:
            raise SpecError(
                f"--only {one.stage}: it needs the output of {lost[0]}, which has none yet; "
                f"run {lost[0]} first, or leave out --only"
            )
        if not wanted:
            return _as_item(one, "skip", "not asked for")
        return _waiting(decider, one, missing)
    decision = decider.decide(one, digests)
    if not wanted and decision.action == "run":
        return _as_item(one, "skip", "not asked for")
    return _as_item(
        one,
        decision.action,
        decision.reason,
        key=decision.key.digest,
        folder=decision.folder,
        changes=decision.changes,
    )


def _waiting(decider: Decider, one: Instance, missing: list[str]) -> PlanItem:
    """A stage whose inputs are still to be made; what else changed is known already."""
    found = decider.changes(one, own_components(one, decider.pipeline.name)) or ()
    forced = ["forced"] if one.name in decider.choice.forced else []
    reason = "; ".join([*forced, *diff.in_words(found)])
    return _as_item(one, "run", reason, after=tuple(missing), changes=found)


def _as_item(one: Instance, action: Action, reason: str, **known: Any) -> PlanItem:
    return PlanItem(one.name, one.stage, one.kind.name, one.axes, one.needs, action, reason, **known)

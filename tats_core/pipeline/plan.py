"""Decides what happens to each stage. The plan before a run and the run itself decide by the same code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tats_core.errors import SpecError
from tats_core.pipeline.cache import StageKey, StageStore, changes, stage_key
from tats_core.pipeline.graph import Graph, Instance
from tats_core.pipeline.records import Action, Plan, PlanItem
from tats_core.pipeline.spec import Pipeline


@dataclass(frozen=True)
class Choice:
    """What the command line asks for, as instances."""

    wanted: frozenset[str]
    forced: frozenset[str]

    @classmethod
    def of(cls, graph: Graph, force: Sequence[str], only: Sequence[str], from_stage: str | None) -> Choice:
        """Resolve the options.

        Raises:
            SpecError: an option names no stage.
        """
        forced = graph.select(force, "force")
        if from_stage is not None:
            forced |= graph.followers(graph.select([from_stage], "from"))
        wanted = graph.select(only, "only") if only else set(graph.instances)
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


class Decider:
    """Decides about one stage at a time."""

    def __init__(self, pipeline: Pipeline, graph: Graph, store: StageStore, choice: Choice) -> None:
        self.pipeline = pipeline
        self.graph = graph
        self.store = store
        self.choice = choice

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
        return Decision("run", self._why(one, key), key, folder)

    def _why(self, one: Instance, key: StageKey) -> str:
        before = self.store.previous(self.pipeline.name, one.name, one.kind.name)
        if before is None:
            return "has no output yet"
        return "; ".join(changes(before, key.components)) or "its output is gone"


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
    return Plan(decider.pipeline.name, decider.pipeline.title, tuple(items.values()))


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
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        forced = "forced; " if one.name in decider.choice.forced else ""
        return _as_item(one, "run", f"{forced}after {shown}")
    decision = decider.decide(one, digests)
    if not wanted and decision.action == "run":
        return _as_item(one, "skip", "not asked for")
    return _as_item(one, decision.action, decision.reason, decision.key.digest, decision.folder)


def _as_item(
    one: Instance, action: Action, reason: str, key: str | None = None, folder: Path | None = None
) -> PlanItem:
    return PlanItem(one.name, one.stage, one.kind.name, one.axes, one.needs, action, reason, key, folder)

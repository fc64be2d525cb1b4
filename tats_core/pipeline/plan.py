"""Decides what happens to each stage: one code path for the plan before a run and for the run itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal, TypedDict

from tats_core.errors import SpecError
from tats_core.pipeline import graph as graphs
from tats_core.pipeline.graph import Graph, Instance
from tats_core.pipeline.keys import own_components, stage_key
from tats_core.pipeline.spec import Pipeline
from tats_core.store import history
from tats_core.store import key_diff as diff
from tats_core.store.key_diff import Change
from tats_core.store.outputs import StageKey, StageStore
from tats_core.store.run import SCHEMA

Action = Literal["run", "reuse", "skip"]

_RECENT_RUNS = 10  # searched for the duration of a stage, which the newest runs may have reused


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

    def to_json(self) -> dict[str, object]:
        """Return the plan as plain JSON values (schema 1)."""
        items = [asdict(item) | {"folder": item.folder and str(item.folder)} for item in self.items]
        return {"schema": SCHEMA, "pipeline": self.pipeline, "title": self.title, "stages": items}


class Options(TypedDict, total=False):
    """Which stages run; each is named as in the file (`finetune`: all of its matrix) or in full."""

    force: Sequence[str]
    """Run even though they have an output."""
    only: Sequence[str]
    """Run these alone; what they need must have an output already."""
    from_stage: str | None
    """Run this one and all that follow it, even though they have outputs."""


@dataclass(frozen=True)
class Decision:
    """What happens to a stage whose inputs all exist."""

    action: Action
    reason: str
    key: StageKey
    folder: Path
    fresh: bool = False
    """Do not resume an earlier attempt."""
    changes: tuple[Change, ...] = ()
    """What differs from the newest output of this stage of this pipeline, if that is why it runs."""


class Decider:
    """Decides about stages, one at a time.

    Raises:
        SpecError: an option names no stage, or a stage that `only` leaves out.
    """

    def __init__(self, pipeline: Pipeline, home: Path, options: Options) -> None:
        self.pipeline = pipeline
        self.graph = graphs.build(pipeline)
        self.store = StageStore(home)
        self.wanted, self.forced = _chosen(self.graph, options)
        self._history: dict[str, Mapping[tuple[str, str], Mapping[str, object]]] = {}

    def decide(self, instance: Instance, digests: Mapping[str, str]) -> Decision:
        """Decide about `instance`, given the output digests of the instances that it reads."""
        inputs = [(self.graph.instances[need], digests[need]) for need in instance.needs]
        key = stage_key(instance, inputs, self.pipeline.name)
        folder = self.store.folder(instance.kind.name, key)
        fault = self.store.fault(folder, key)
        unfinished = self.store.unfinished(folder)
        if instance.name in self.forced:
            return Decision("run", "forced", key, folder, fresh=True)
        if fault is None and unfinished != "forced":
            return Decision("reuse", "unchanged", key, folder)
        if unfinished == "corrupt":
            return Decision("run", "its work folder is corrupt", key, folder, fresh=True)
        if unfinished:
            return Decision("run", "resumes where it stopped", key, folder)
        if fault:
            return Decision("run", f"its output is corrupt: {fault}", key, folder)
        changes = self.changes(instance, key.components)
        if changes is None:
            return Decision("run", "has no output yet", key, folder)
        reason = "; ".join(diff.in_words(changes)) or "its output is gone"
        return Decision("run", reason, key, folder, changes=changes)

    def changes(self, instance: Instance, components: Mapping[str, object]) -> tuple[Change, ...] | None:
        """Return what differs from the newest output of this stage; None where it has none."""
        kind = instance.kind.name
        if kind not in self._history:  # read once: without the outputs of this run
            self._history[kind] = self.store.history(kind)
        before = self._history[kind].get((self.pipeline.name, instance.name))
        return None if before is None else diff.between(before, components)


def _chosen(graph: Graph, options: Options) -> tuple[set[str], set[str]]:
    """Return the instances that are wanted, and those of them that are forced."""
    only, from_stage = options.get("only"), options.get("from_stage")
    wanted = graph.select(only, "only") if only else set(graph.instances)
    named = [("force", name) for name in options.get("force", ())]
    forced: set[str] = set()
    if from_stage is not None:
        named.append(("from", from_stage))
    for option, name in named:
        chosen = graph.select([name], option)
        if not chosen & wanted:
            raise SpecError(f"--{option} {name}: --only leaves it out; add it there, or take --{option} away")
        forced |= graph.followers(chosen) if option == "from" else chosen
    return wanted, forced & wanted


def make(decider: Decider) -> Plan:
    """Return what a run would do, as far as it can be known before.

    Raises:
        SpecError: `--only` names a stage whose need has no output.
    """
    items: dict[str, PlanItem] = {}
    digests: dict[str, str] = {}
    for instance in decider.graph.instances.values():
        item = _item(decider, instance, digests, items)
        if item.action == "reuse" and item.folder:
            digests[instance.name] = decider.store.manifest(item.folder).digest
        items[instance.name] = item
    seconds = _seconds(decider.store.root.parent, decider.pipeline.name, items)
    timed = (replace(item, seconds=seconds.get(item.name)) for item in items.values())
    return Plan(decider.pipeline.name, decider.pipeline.title, tuple(timed))


def _seconds(home: Path, pipeline: str, names: Iterable[str]) -> dict[str, float]:
    """Return how long each stage took in the newest run that did its work, among the recent ones."""
    seconds: dict[str, float] = {}
    for record in islice(history.records(home, pipeline), _RECENT_RUNS):
        for stage in record.stages.values():
            if stage.status == "finished":
                seconds.setdefault(stage.name, stage.seconds)
        if seconds.keys() >= set(names):
            break
    return seconds


def _item(
    decider: Decider, instance: Instance, digests: Mapping[str, str], items: Mapping[str, PlanItem]
) -> PlanItem:
    about = PlanItem(
        instance.name, instance.stage, instance.kind.name, instance.axes, instance.needs,
        "skip", "not asked for",
    )  # fmt: skip
    wanted = instance.name in decider.wanted
    missing = tuple(need for need in instance.needs if need not in digests)
    if not missing:
        decision = decider.decide(instance, digests)
        action, reason = decision.action, decision.reason
        if not wanted and action == "run":
            return about
        if action == "run" and (outside := instance.kind.summary(instance.config)):
            reason += f"; {outside}"
        key, folder, changes = decision.key.digest, decision.folder, decision.changes
        return replace(about, action=action, reason=reason, key=key, folder=folder, changes=changes)
    if not wanted:
        return about
    for need in missing:
        if items[need].action == "skip":
            raise SpecError(
                f"--only {instance.stage}: it needs the output of {need}, which has none yet; "
                f"run {need} first, or leave out --only"
            )
    # Its inputs are still to be made; what else changed is known already.
    changes = decider.changes(instance, own_components(instance, decider.pipeline.name)) or ()
    forced = ["forced"] if instance.name in decider.forced else []
    reason = "; ".join([*forced, *diff.in_words(changes)])
    return replace(about, action="run", reason=reason, after=missing, changes=changes)

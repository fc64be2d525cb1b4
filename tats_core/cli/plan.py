"""The plan of a run as a tree, for `tats run pipeline NAME --plan`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.console import Group
from rich.text import Text
from rich.tree import Tree

from tats_core.cli.options import many
from tats_core.report.units import duration

if TYPE_CHECKING:
    from tats_core.pipeline.plan import Plan, PlanItem

_DEEPEST = 8  # deeper stages get the same indent, to fit into 80 columns
_NAMED = 3
_ACTIONS = {"run": ("run", "yellow"), "reuse": ("reused", "green"), "skip": ("left out", "dim")}


def plan_tree(plan: Plan) -> Group:
    """Return what to print: the counts, then a tree with each stage below the deepest stage that it needs."""
    stages: dict[str, list[PlanItem]] = {}
    for item in _direct(plan):
        stages.setdefault(item.stage, []).append(item)
    tree = Tree("", guide_style="dim", hide_root=True)
    paths: dict[str, list[Tree]] = {}  # stage → the branches from the root to its own
    stage_of = {item.name: item.stage for item in plan.items}
    for stage, items in stages.items():
        needed = dict.fromkeys(stage_of[need] for item in items for need in item.needs)
        above = max((paths[need] for need in needed), key=len, default=[tree])[: _DEEPEST + 1]
        first, *others = _rows(stage, items)
        branch = above[-1].add(first)
        for row in others:
            branch.add(row)
        paths[stage] = [*above, branch]
    return Group(Text(f"{summary(plan)}\n"), tree)


def summary(plan: Plan) -> str:
    """Return how many stages run, are reused and are left out, and how long they took the last time."""
    counts = [f"{plan.count('run')} to run", f"{plan.count('reuse')} reused"]
    if plan.count("skip"):
        counts.append(f"{plan.count('skip')} left out")
    words = f"{plan.pipeline}: {many(len(plan.items), 'stage')}, {', '.join(counts)}"
    running = [item for item in plan.items if item.action == "run"]
    known = [item.seconds for item in running if item.seconds is not None]
    if not known:
        return words
    words += f"; about {duration(sum(known))} of work"
    if len(known) < len(running):
        words += f" and {many(len(running) - len(known), 'stage')} that never ran"
    return words


def _rows(stage: str, items: Sequence[PlanItem]) -> list[Text]:
    """Return the line of a stage and, where its instances differ in what happens, a line for each case."""
    cases: dict[tuple[str, str], list[PlanItem]] = {}
    for item in items:
        cases.setdefault((item.action, _reason(item)), []).append(item)
    head = Text(f"{stage} × {len(items)}" if items[0].axes else stage, style="bold")
    if len(cases) == 1:
        return [head + Text("  ") + _action(items[0])]
    rows, most = [head], max(map(len, cases.values()))
    for members in cases.values():
        part = Text(f"  [{_which(members, items, len(members) == most)}]", style="dim")
        rows.append(Text(f"{len(members)} ") + _action(members[0]) + part)
    return rows


def _action(item: PlanItem) -> Text:
    word, style = _ACTIONS[item.action]
    reason = "" if item.action == "reuse" else _reason(item)
    return Text(word, style=style) + Text(f": {reason}" if reason else "", style="default")


def _reason(item: PlanItem) -> str:
    """Return why an instance runs; it waits for stages, not instances, so that a matrix has one reason."""
    stages = dict.fromkeys(name.partition("[")[0] for name in item.after)
    return "; ".join(filter(None, (item.reason, f"after {', '.join(stages)}" if stages else "")))


def _direct(plan: Plan) -> Iterator[PlanItem]:
    """Yield the stages, each waiting only for its nearest predecessors."""
    before: dict[str, set[str]] = {}
    for item in plan.items:
        before[item.name] = set(item.after).union(*(before[name] for name in item.after))
        implied = set().union(*(before[name] for name in item.after))
        yield replace(item, after=tuple(name for name in item.after if name not in implied))


def _which(members: Sequence[PlanItem], all_items: Sequence[PlanItem], most: bool) -> str:
    """Name a part of a matrix by the axes that distinguish it, or else list its instances."""
    values = {axis: {item.axes[axis]: None for item in members} for axis in members[0].axes}
    apart = {
        axis: of_axis
        for axis, of_axis in values.items()
        if {item.axes[axis] for item in all_items} - of_axis.keys()
    }
    fitting = [item for item in all_items if all(item.axes[axis] in apart[axis] for axis in apart)]
    if apart and len(fitting) == len(members):
        return "; ".join(f"{axis}: {_few(list(of_axis), ', ')}" for axis, of_axis in apart.items())
    if most and len(members) > _NAMED:
        return "the others"
    return _few([",".join(item.axes.values()) for item in members], "; ")


def _few(names: Sequence[str], joint: str) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return joint.join(names[:_NAMED]) + more

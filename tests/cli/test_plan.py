"""The plan as a tree, line by line, 80 columns wide."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from tats_core.cli.plan import plan_tree, summary
from tats_core.pipeline.plan import Plan, PlanItem


def item(
    stage: str, needs: tuple[str, ...] = (), action: Any = "run", reason: str = "", **more: Any
) -> PlanItem:
    """Return one stage of a plan; `axes` makes it one of a matrix."""
    axes = more.pop("axes", {})
    name = stage + (f"[{','.join(axes.values())}]" if axes else "")
    return PlanItem(name, stage, stage, axes, needs, action, reason, **more)


def rows(*items: PlanItem) -> list[str]:
    """Return the lines of the tree, without the summary."""
    out = io.StringIO()
    Console(file=out, width=80).print(plan_tree(Plan("demo", "", items)))
    return [line.rstrip() for line in out.getvalue().splitlines()[2:]]


def finetunes(*fates: tuple[str, str, dict[str, Any]]) -> list[PlanItem]:
    """Return one fine-tuning for each (benchmark, init, what else)."""
    return [
        item("finetune", ("pretrain",), axes={"benchmark": benchmark, "init": init}, **more)
        for benchmark, init, more in fates
    ]


REUSED: dict[str, Any] = {"action": "reuse", "reason": "unchanged"}
AFTER: dict[str, Any] = {"after": ("pretrain",)}


def test_a_matrix_with_one_fate_is_one_line():
    tree = rows(
        item("pretrain", **REUSED), *finetunes(("a", "pretrained", REUSED), ("b", "pretrained", REUSED))
    )
    assert tree == ["pretrain  reused", "└── finetune × 2  reused"]


def test_a_part_of_a_matrix_is_named_by_the_axis_that_sets_it_apart():
    tree = rows(
        item("pretrain", reason="epochs: 3 → 4"),
        *finetunes(
            *((b, i, AFTER if i == "pretrained" else REUSED) for b in "ab" for i in ("pretrained", "scratch"))
        ),
    )
    assert tree == [
        "pretrain  run: epochs: 3 → 4",
        "└── finetune × 4",
        "    ├── 2 run: after pretrain  [init: pretrained]",
        "    └── 2 reused  [init: scratch]",
    ]


def test_single_members_are_named_and_many_are_the_others():
    corrupt = {"reason": "its output is corrupt"}
    fates = [(b, i, corrupt if (b, i) in (("a", "x"), ("b", "y")) else REUSED) for b in "abc" for i in "xy"]
    assert rows(item("pretrain", **REUSED), *finetunes(*fates)) == [
        "pretrain  reused",
        "└── finetune × 6",
        "    ├── 2 run: its output is corrupt  [a,x; b,y]",
        "    └── 4 reused  [the others]",
    ]


def test_a_stage_stands_below_the_last_that_it_needs_and_waits_for_the_nearest_alone():
    tree = rows(
        item("data", reason="has no output yet"),
        item("pretrain", ("data",), after=("data",)),
        item("probe", ("data", "pretrain"), after=("data", "pretrain")),
        item("report", ("probe", "pretrain"), after=("probe", "pretrain")),
    )
    assert tree == [
        "data  run: has no output yet",
        "└── pretrain  run: after data",
        "    └── probe  run: after pretrain",
        "        └── report  run: after probe",
    ]


def test_a_long_reason_is_wrapped_within_the_tree():
    tree = rows(
        item("data", **REUSED), item("pretrain", ("data",), reason="code changed: " + "module, " * 12)
    )
    assert all(len(line) <= 80 for line in tree)
    assert len(tree) == 3


def test_a_chain_of_five_hundred_stages_stays_within_80_columns():
    chain = [
        item(f"s{i}", (f"s{i - 1}",) if i else (), after=(f"s{i - 1}",) if i else ()) for i in range(500)
    ]
    tree = rows(*chain)
    assert len(tree) == 500
    assert max(map(len, tree)) <= 80
    assert tree[-1].endswith("s499  run: after s498")


def test_the_summary_counts_and_says_how_long_it_took_before():
    items = (
        item("a", seconds=60.0),
        item("b", seconds=12.0),
        item("c", **REUSED, seconds=999.0),
        item("d", action="skip"),
        item("e"),
    )
    assert summary(Plan("demo", "", items)) == (
        "demo: 5 stages, 3 to run, 1 reused, 1 left out; about 1 min 12 s of work and 1 stage that never ran"
    )
    assert summary(Plan("demo", "", items[4:])) == "demo: 1 stage, 1 to run, 0 reused"

"""The stage graph: how it is folded, arranged, drawn and written as Mermaid."""

from __future__ import annotations

import itertools
import random
import xml.etree.ElementTree as ET

import pytest

from tats_core.report import graph
from tats_core.report.graph import Box, Instance, Node


def demo(states: str = "run") -> list[Instance]:
    """Return a pipeline like the demo's, with a matrix of four."""
    instances = [
        Instance("data", "data", "data", (), "reuse"),
        Instance("pre", "pre", "pretrain", ("data",), states),
    ]
    for name in "abcd":
        instances.append(Instance(f"tune[{name}]", "tune", "finetune", ("data", "pre"), states, 30.0))
        instances.append(Instance(f"test[{name}]", "test", "evaluate", ("data", f"tune[{name}]"), states))
    needs = tuple(instance.name for instance in instances if instance.stage != "data")
    return [*instances, Instance("report", "report", "report", needs, "reuse")]


def test_a_stage_of_many_instances_becomes_one_stack() -> None:
    assert graph.fold(demo()) == [
        Node("data", "data", (), "reuse", "reused"),
        Node("pre", "pretrain", ("data",), "run", "to run"),
        Node("tune", "finetune", ("data", "pre"), "run", "4 to run · 2 min", 4),
        Node("test", "evaluate", ("data", "tune"), "run", "4 to run", 4),
        Node("report", "report", ("pre", "tune", "test"), "reuse", "reused"),
    ]


def test_a_stage_of_few_instances_is_drawn_one_by_one() -> None:
    instances = [
        Instance("a[1]", "a", "data", ()),
        Instance("a[2]", "a", "data", ()),
        Instance("b", "b", "report", ("a[1]", "a[2]")),
    ]
    assert [(node.name, node.needs, node.count) for node in graph.fold(instances)] == [
        ("a[1]", (), 1),
        ("a[2]", (), 1),
        ("b", ("a[1]", "a[2]"), 1),
    ]


def test_few_instances_of_many_stages_are_folded_too() -> None:
    instances = [Instance(f"{stage}[{k}]", stage, "command", ()) for stage in "abcdef" for k in range(2)]
    assert [node.count for node in graph.fold(instances)] == [2] * 6


def test_what_failed_decides_how_a_stack_is_drawn() -> None:
    states = ("finished", "failed", "cached", "skipped")
    instances = [Instance(f"a[{state}]", "a", "finetune", (), state) for state in states]
    (node,) = graph.fold(instances)
    assert (node.state, node.detail) == ("failed", "1 finished · 1 failed · 1 reused · 1 skipped")


def test_mermaid_is_exactly_this() -> None:
    assert graph.mermaid(graph.fold(demo())) == (
        "flowchart TD\n"
        '    s0[("data<br>reused")]\n'
        '    s1("pre<br>pretrain · to run")\n'
        '    s2["tune × 4<br>finetune · 4 to run · 2 min"]\n'
        '    s3[/"test × 4<br>evaluate · 4 to run"/]\n'
        '    s4[["report<br>reused"]]\n'
        "    s0 --> s1\n"
        "    s1 --> s2\n"
        "    s2 --> s3\n"
        "    s3 --> s4\n"
        "    style s0 stroke-dasharray:5 4\n"
        "    style s4 stroke-dasharray:5 4\n"
    )


def test_mermaid_takes_no_name_for_its_own_signs() -> None:
    assert '"a#quot;]#lt;b#gt;#amp;#35;<br>odd"' in graph.mermaid([Node('a"]<b>&#', "odd")])


def test_an_edge_that_follows_from_others_is_left_out() -> None:
    nodes = [Node("a", "data"), Node("b", "data", ("a",)), Node("c", "data", ("a", "b"))]
    assert [(start, end) for start, end, _ in graph.arrange(nodes).edges] == [("a", "b"), ("b", "c")]


def test_an_arrangement_is_the_nearest_to_the_wishes_that_keeps_the_gaps() -> None:
    # Both want to be at 0; each is 100 wide and 26 lie between: they share the way evenly.
    widths = {"a": 100, "b": 100}
    assert graph._apart({"a": 0, "b": 0}, widths) == {"a": -63, "b": 63}
    assert graph._apart({"a": -500, "b": 500}, widths) == {"a": -500, "b": 500}


def random_nodes(seed: int) -> list[Node]:
    dice = random.Random(seed)
    names = [f"stage_{index}" * dice.randint(1, 3) for index in range(dice.randint(1, 40))]
    return [
        Node(
            name,
            dice.choice(["data", "finetune", "odd"]),
            tuple(dice.sample(names[:index], min(index, dice.randint(0, 3)))),
            count=dice.randint(1, 9),
        )
        for index, name in enumerate(names)
    ]


def overlap(first: Box, second: Box) -> bool:
    return (
        first.x < second.x + second.width and second.x < first.x + first.width
        and first.y < second.y + second.height and second.y < first.y + first.height
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(30))
def test_no_boxes_overlap_and_each_stands_below_what_it_needs(seed: int) -> None:
    nodes = random_nodes(seed)
    layout = graph.arrange(nodes)
    assert not [pair for pair in itertools.combinations(layout.boxes.values(), 2) if overlap(*pair)]
    for node in nodes:
        box = layout.boxes[node.name]
        assert box.x >= 0
        assert box.x + box.width <= layout.width
        assert box.y + box.height <= layout.height
        assert all(layout.boxes[need].y + box.height < box.y for need in node.needs)


@pytest.mark.parametrize("seed", range(30))
def test_no_edge_runs_through_a_box_that_it_passes(seed: int) -> None:
    layout = graph.arrange(random_nodes(seed))
    for start, end, points in layout.edges:
        for (x, top), (_, bottom) in itertools.pairwise(points):
            line = Box(x, top + 0.1, 0, bottom - top - 0.2)
            passed = [name for name, box in layout.boxes.items() if name not in (start, end)]
            upright = bottom - top == layout.boxes[start].height  # between, a curve runs in the gap
            assert not upright or not [name for name in passed if overlap(line, layout.boxes[name])]


def test_a_drawing_is_well_formed_and_has_a_shape_for_each_box() -> None:
    nodes = [
        Node(f'<&"{kind}', kind, state="failed", detail="failed", count=2)
        for kind in ("data", "pretrain", "finetune", "probe", "evaluate", "report", "command", "odd")
    ]
    root = ET.fromstring(graph.svg(nodes, title='the <"graph">', standalone=True))
    space = "{http://www.w3.org/2000/svg}"
    assert root.attrib["aria-label"] == 'the <"graph">'
    assert [group.findtext(f"{space}text") for group in root.findall(f"{space}g")] == [
        f"{node.name} × 2" for node in nodes
    ]
    assert "prefers-color-scheme" in (root.findtext(f"{space}style") or "")


def test_five_hundred_instances_become_a_small_drawing() -> None:
    instances = [Instance("data", "data", "data", ())]
    for index in range(249):
        instances.append(Instance(f"a[{index}]", "a", "finetune", ("data",), "run"))
        instances.append(Instance(f"b[{index}]", "b", "evaluate", (f"a[{index}]",), "run"))
    drawn = graph.svg(graph.fold(instances), title="big")
    assert "a × 249" in drawn
    assert len(drawn) < 5000


def test_a_graph_without_stages_can_be_drawn() -> None:
    assert graph.svg([], title="empty").startswith("<svg")
    assert graph.mermaid([]) == "flowchart TD\n"


def test_a_drawing_can_be_opened_whatever_characters_a_name_has() -> None:
    nodes = [graph.Node("a[\x01\ud800\uffff]", "data"), graph.Node("b", "report", ("a[\x01\ud800\uffff]",))]
    drawing = ET.fromstring(graph.svg(nodes, title="<\x1b>", standalone=True))
    assert "a[���]" in [text.text for text in drawing.iter("{http://www.w3.org/2000/svg}text")]

from __future__ import annotations

import time

import pytest

from tats_core.errors import SpecError
from tats_core.pipeline import graph as graphs

FULL = """
defaults: {shape: {depth: 2}}
stages:
  make: {kind: make, shape: {preset: large}}
  grow: {kind: grow, needs: make, matrix: {benchmark: [a, b], init: [pretrained, scratch]}}
  more: {kind: grow, needs: [grow, make]}
  sum:  {kind: sum, needs: more}
"""


def test_a_matrix_is_expanded_and_followed_by_a_stage_without_one(load):
    graph = graphs.build(load(FULL))
    rows = ["[a,pretrained]", "[a,scratch]", "[b,pretrained]", "[b,scratch]"]
    assert list(graph.instances) == ["make", *(f"grow{r}" for r in rows), *(f"more{r}" for r in rows), "sum"]
    more = graph.instances["more[b,scratch]"]
    assert dict(more.axes) == {"benchmark": "b", "init": "scratch"}
    assert (more.config.benchmark, more.config.init) == ("b", "scratch")


def test_an_instance_waits_only_for_the_kinds_that_its_configuration_reads(load):
    graph = graphs.build(load(FULL))
    assert graph.instances["grow[a,pretrained]"].needs == ("make",)
    assert graph.instances["grow[a,scratch]"].needs == ()


def test_a_stage_that_gathers_takes_every_instance_of_all_ancestors_it_reads(load):
    needs = graphs.build(load(FULL)).instances["sum"].needs
    assert len(needs) == 8
    assert {name.partition("[")[0] for name in needs} == {"grow", "more"}


def test_axes_of_two_needs_are_joined_on_the_axis_that_they_share(load):
    graph = graphs.build(
        load("""
stages:
  make:  {kind: make, matrix: {value: [1, 2]}}
  left:  {kind: grow, needs: make, matrix: {benchmark: [a, b]}}
  both:  {kind: grow, needs: [left, make], matrix: {value: [2]}}
""")
    )
    both = [instance for instance in graph.instances.values() if instance.stage == "both"]
    assert [dict(instance.axes) for instance in both] == [
        {"value": "2", "benchmark": "a"},
        {"value": "2", "benchmark": "b"},
    ]
    assert {instance.needs for instance in both} == {("make[2]",)}


def test_a_default_is_merged_under_the_stage_and_only_where_the_kind_has_the_field(load):
    graph = graphs.build(load(FULL))
    assert graph.instances["make"].config.shape.model_dump() == {"preset": "large", "depth": 2}


def test_a_default_preset_is_refined_by_a_stage(load):
    graph = graphs.build(
        load("""
defaults: {shape: tiny}
stages:
  make: {kind: make, shape: {depth: 7}}
""")
    )
    assert graph.instances["make"].config.shape.model_dump() == {"preset": "tiny", "depth": 7}


def test_a_dotted_axis_sets_a_nested_key(load):
    graph = graphs.build(load("stages: {make: {kind: make, matrix: {shape.depth: [1, 3]}}}"))
    assert [instance.config.shape.depth for instance in graph.instances.values()] == [1, 3]
    assert list(graph.instances) == ["make[1]", "make[3]"]


def test_an_axis_of_another_stage_fills_a_field_only_if_the_kind_follows_it(load):
    graph = graphs.build(
        load("""
stages:
  make: {kind: make, matrix: {value: [5]}}
  next: {kind: make, needs: make}
  grow: {kind: grow, needs: make, matrix: {benchmark: [a]}}
  last: {kind: grow, needs: grow, benchmark: mine}
""")
    )
    assert graph.instances["next[5]"].config.value == 1
    assert graph.instances["last[5,a]"].config.benchmark == "mine"


@pytest.mark.parametrize(
    ("stages", "sentence"),
    [
        ("{a: {kind: make, needs: b}}", "a.needs: no stage named 'b'; valid: a"),
        ("{a: {kind: mkae}}", "a.kind: no stage kind named 'mkae'; did you mean 'make'?"),
        ("{a: {kind: make, needs: b}, b: {kind: make, needs: a}}", "the stages need each other in a circle"),
        ("{a: {kind: grow}}", "a.needs: leads to no stage of kind 'make', whose output it reads"),
        ("{a: {kind: make}, s: {kind: sum, needs: a}}", "s.needs: leads to no stage of kind grow"),
        ("{a: {kind: make, valu: 1}}", "a has no key 'valu'; did you mean 'value'?"),
        ("{a: {kind: make}, b: {kind: make}, g: {kind: grow, needs: [a, b]}}",
         "g.needs: leads to more than one stage of kind 'make': a, b"),
        ("{a: {kind: make, matrix: {value: [1]}}, b: {kind: make, needs: a, matrix: {value: [2]}}}",
         "b has nothing to run"),
        ("{a: {kind: make, matrix: {valve: [1]}}}", "a has no key 'valve'; did you mean 'value'?"),
    ],
)  # fmt: skip
def test_a_wrong_graph_is_named_with_the_stage_and_what_would_be_right(load, stages, sentence):
    with pytest.raises(SpecError) as error:
        graphs.build(load(f"stages: {stages}"))
    assert str(error.value).startswith(f"pipelines/toy.yaml: {sentence}")


def test_a_default_that_no_stage_takes_is_an_error(load):
    with pytest.raises(SpecError, match=r"defaults has 'shap', which no stage takes; did you mean 'shape'\?"):
        graphs.build(load("{defaults: {shap: 1}, stages: {a: {kind: make}}}"))


def test_a_stage_is_selected_with_its_whole_matrix_or_alone(load):
    graph = graphs.build(load(FULL))
    assert len(graph.select(["grow"], "force")) == 4
    assert graph.select(["grow[a,scratch]"], "force") == {"grow[a,scratch]"}
    with pytest.raises(SpecError, match=r"--force gorw: no stage named 'gorw'; did you mean 'grow'\?"):
        graph.select(["gorw"], "force")


def test_followers_are_found_through_what_they_read(load):
    graph = graphs.build(load(FULL))
    assert graph.followers({"grow[a,scratch]"}) == {"grow[a,scratch]", "sum"}
    assert "grow[a,scratch]" not in graph.followers({"make"})


def test_five_hundred_stages_are_expanded_within_a_second(load):
    values = list(range(250))
    pipeline = load(f"""
stages:
  make: {{kind: make}}
  grow: {{kind: grow, needs: make, matrix: {{add: {values}}}}}
  more: {{kind: grow, needs: [grow, make]}}
  sum:  {{kind: sum, needs: more}}
""")
    start = time.process_time()
    assert len(graphs.build(pipeline).instances) == 502
    assert time.process_time() - start < 1.0

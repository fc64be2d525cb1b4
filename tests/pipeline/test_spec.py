from __future__ import annotations

import pytest

from tats_core import specs
from tats_core.errors import SpecError
from tats_core.pipeline import graph, spec

STAGES = """
title: a toy
defaults: {shape: {depth: 2}}
stages:
  make: {kind: make, value: 3}
  grow: {kind: grow, needs: make, matrix: {benchmark: [a, b]}, retries: 2, add: 4}
"""


def test_the_engines_keys_are_separated_from_those_of_the_stage_kind(load):
    pipeline = load(STAGES)
    grow = pipeline.stages["grow"]
    assert (pipeline.name, pipeline.title, pipeline.where) == ("toy", "a toy", "pipelines/toy.yaml")
    assert (grow.kind, grow.needs, grow.retries) == ("grow", ("make",), 2)
    assert grow.matrix == {"benchmark": ("a", "b")}
    assert grow.config == {"add": 4}


def test_an_override_reaches_stages_defaults_and_the_engines_keys(load):
    pipeline = load(
        STAGES, "grow.add=9", "defaults.shape.depth=5", "grow.matrix.benchmark=[b]", "grow.new.x=1"
    )
    assert pipeline.stages["grow"].config == {"add": 9, "new": {"x": 1}}
    assert pipeline.stages["grow"].matrix == {"benchmark": ("b",)}
    assert pipeline.defaults == {"shape": {"depth": 5}}
    assert pipeline.overrides[0] == "grow.add=9"


@pytest.mark.parametrize(
    ("sets", "sentence"),
    [
        ("gro.add=1", "--set gro.add=1: no stage named 'gro'; did you mean 'grow'?"),
        ("grow=1", "--set grow=1: names no key of 'grow'; it must look like grow.key=value"),
        ("grow.add", "--set grow.add: must look like stage.key=value"),
        ("grow.benchmark=c", "pipelines/toy.yaml: grow.benchmark is an axis of its matrix; "
                             "set grow.matrix.benchmark"),
        ("grow.matrix.benchmark=[a, a]",
         "pipelines/toy.yaml: grow.matrix.benchmark has the same value twice"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_named_with_what_would_be_right(load, sets, sentence):
    with pytest.raises(SpecError) as error:
        load(STAGES, sets)
    assert str(error.value) == sentence


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("stages: {}", "stages"),
        ("stages: {a: {needs: b}}", "a.kind is missing"),
        ("{stages: {a: {kind: make}}, default: {}}", "no key 'default'; did you mean 'defaults'?"),
        ("name: other\nstages: {a: {kind: make}}", "name is 'other', but the file's name calls it 'toy'"),
        ("stages: {'a b': {kind: make}}", "'a b' cannot name a stage"),
        ("stages: {a: {kind: make, matrix: {x: []}}}", "a.matrix.x"),
        ("stages: {a: {kind: make, matrix: {x: [[1]]}}}", "a.matrix.x"),
        ("stages: {a: {kind: make, retries: -1}}", "a.retries"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(load, text, part):
    with pytest.raises(SpecError) as error:
        load(text)
    assert str(error.value).startswith("pipelines/toy.yaml: ")
    assert part in str(error.value)


def like(load, text: str, *sets: str):
    load(STAGES + "notify: [{command: 'true'}]\n", name="base")
    return load(text, *sets)


def test_a_pipeline_that_is_like_another_says_only_what_differs(load):
    text = (
        "{title: twin, like: base, set: {grow.add: 5, grow.matrix.benchmark: [b], defaults.shape.depth: 3}}"
    )
    pipeline = like(load, text, "make.value=7")
    assert (pipeline.name, pipeline.title, pipeline.where) == ("toy", "twin", "pipelines/toy.yaml")
    assert pipeline.stages["grow"].config == {"add": 5}
    assert pipeline.stages["grow"].matrix == {"benchmark": ("b",)}
    assert pipeline.stages["make"].config == {"value": 7}, "--set comes on top"
    assert pipeline.defaults == {"shape": {"depth": 3}}
    assert pipeline.notify[0].command == "true"
    assert pipeline.overrides == ("make.value=7",)


def test_a_pipeline_may_be_like_one_that_is_like_another(load):
    load(STAGES, name="base")
    load("{like: base, notify: [{command: a}], set: {grow.add: 5, make.value: 1}}", name="middle")
    pipeline = load("{like: middle, notify: [], set: {grow.add: 6}}")
    assert (pipeline.stages["grow"].config, pipeline.stages["make"].config) == ({"add": 6}, {"value": 1})
    assert (pipeline.title, pipeline.notify) == ("", ())
    assert [path.stem for path in spec.lineage(specs.find("pipelines", "toy"))] == ["toy", "middle", "base"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("like: bas", "like: no pipeline named 'bas'; did you mean 'base'?"),
        ("like: toy", "like: the pipelines are like each other in a circle: toy → toy"),
        ("{like: base, set: {gro.add: 1}}", "set: gro.add: no stage named 'gro'; did you mean 'grow'?"),
        ("{like: base, set: {grow: 1}}",
         "set: grow: names no key of 'grow'; it must look like grow.key=value"),
        ("{like: base, sett: {}}", "there is no key 'sett'; did you mean 'set'?"),
        ("{like: base, stages: {}}", "there is no key 'stages'; valid: like, name, notify, set, title"),
        ("{like: base, name: other}", "name is 'other', but the file's name calls it 'toy'"),
        ("{like: base, notify: [{comand: x}]}", "notify.0 has no key 'comand'; did you mean 'command'?"),
        ("{like: base, set: {grow.ad: 1}}", "grow has no key 'ad'; did you mean 'add'?"),
    ],
)  # fmt: skip
def test_a_wrong_variant_is_named_with_what_would_be_right(load, text, sentence):
    with pytest.raises(SpecError) as error:
        graph.build(like(load, text))
    assert str(error.value) == f"pipelines/toy.yaml: {sentence}"

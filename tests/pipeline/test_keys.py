"""What the key of a stage holds: of the code and the configuration only what its members mean."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest

from tats_core.data.benchmarks import BENCHMARKS
from tats_core.data.readers import READERS
from tats_core.pipeline.graph import Instance
from tats_core.pipeline.keys import code_of, own_components
from tats_core.registry import Registry
from tats_core.sampling import SAMPLERS
from tats_core.specs import validate
from tats_core.stages import KINDS
from tats_core.store.code import digests
from tats_core.training.optimizers import OPTIMIZERS
from tats_core.training.probes import PROBES
from tats_core.training.schedules import SCHEDULES

_PROBES = tuple(PROBES)
"""Those that the stage has keys of."""

REGISTRIES: list[tuple[Registry[Any], str, Any]] = [
    # registry, kind of stage, keys that choose a member
    (OPTIMIZERS, "finetune", lambda name: {"optimizer": {"kind": name}}),
    (SCHEDULES, "finetune", lambda name: {"optimizer": {"schedule": {"kind": name}}}),
    (OPTIMIZERS, "pretrain", lambda name: {"optimizer": {"kind": name}, "sampler_optimizer": {"kind": name}}),
    (SAMPLERS, "pretrain", lambda name: {"sampler": {"kind": name}}),
    (BENCHMARKS, "finetune", lambda name: {"benchmark": name}),
    (BENCHMARKS, "data", lambda name: {"benchmarks": [name]}),
    (READERS, "finetune", lambda name: {"data": {"reader": name}}),
    (PROBES, "probe", lambda name: {**dict.fromkeys(_PROBES), name: {}}),
]


each = pytest.mark.parametrize(
    ("registry", "kind", "keys"),
    REGISTRIES,
    ids=[f"{registry.what} of {kind}" for registry, kind, _ in REGISTRIES],
)


def instance(kind: str, keys: dict[str, Any]) -> Instance:
    named = {"benchmark": "ssv2"} if "benchmark" in KINDS[kind].Config.model_fields else {}
    config = validate(KINDS[kind].Config, named | keys, "p.yaml")
    return Instance(kind, kind, KINDS[kind], config, {}, (), 0)


@each
def test_the_code_of_a_key_is_that_of_the_chosen_member_alone(registry, kind, keys):
    modules = {name: registry.module(name) for name in registry}
    always = set.intersection(*(set(code_of(instance(kind, keys(name)))) for name in registry))
    for name in registry:
        code = code_of(instance(kind, keys(name)))
        assert modules[name] in code
        others = set(modules.values()) - always - digests((modules[name],)).keys()
        assert not others & code.keys(), f"{name} depends on another {registry.what}"
    assert len(always & set(modules.values())) < len(modules), "not all of them, whatever is chosen"


@each
def test_a_member_that_is_added_changes_no_key(registry, kind, keys, monkeypatch):
    before = [own_components(instance(kind, keys(name)), "mine") for name in registry]
    names = list(registry)
    monkeypatch.setitem(registry.shipped, "another", registry.shipped[names[0]])
    assert "another" in registry
    assert [own_components(instance(kind, keys(name)), "mine") for name in names] == before


@pytest.mark.parametrize("name", list(KINDS))
def test_a_stage_kind_that_is_added_changes_no_key(name, monkeypatch):
    stage = instance(name, {"run": "true"} if name == "command" else {})
    before = own_components(stage, "mine")
    monkeypatch.setitem(KINDS.shipped, "another", KINDS.shipped["command"])
    assert own_components(stage, "mine") == before
    assert KINDS.module(name) in before["code"]


def test_the_code_of_a_plugin_is_part_of_the_key_of_what_uses_it(tmp_path, monkeypatch):
    (tmp_path / "lab_rules.py").write_text(
        "from typing import Literal\n"
        "from tats_core.training.optimizers.sgd import SGDConfig\n\n"
        "class Own(SGDConfig):\n"
        '    kind: Literal["own"] = "own"\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint("own", "lab_rules:Own", OPTIMIZERS.group)
    monkeypatch.setattr(OPTIMIZERS, "_plugins", EntryPoints([point]))
    monkeypatch.setattr(OPTIMIZERS, "_members", {})
    assert OPTIMIZERS.module("own") == "lab_rules"
    code = code_of(instance("finetune", {"optimizer": {"kind": "own"}}))
    assert {"lab_rules", "tats_core.training.optimizers.sgd"} <= code.keys()
    assert "lab_rules" not in code_of(instance("finetune", {}))


def test_a_folder_of_ones_own_videos_depends_on_the_code_that_reads_it():
    stage = instance("data", {"videos": "mine"})
    stage = replace(stage, config=stage.kind.narrowed(stage.config, []))
    assert BENCHMARKS.module("own") in code_of(stage)

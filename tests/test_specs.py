"""Finding, reading, overriding and validating named YAML files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, field_validator

from tats_core import specs
from tats_core.errors import SpecError, TatsError
from tats_core.registry import Registry
from tats_core.specs import StrictModel


class Sampler(StrictModel):
    """A part of a configuration."""

    mask_ratio: float = Field(0.9, gt=0, lt=1)
    depth: int = 1


class Small(StrictModel):
    """One member of a union."""

    kind: Literal["small"]
    width: int = 8


class Large(StrictModel):
    """The other member."""

    kind: Literal["large"]
    height: int = 8


class Config(StrictModel):
    """A configuration with a nested part, a union and a check of its own."""

    epochs: int = Field(ge=1)
    sampler: Sampler = Sampler()
    body: Annotated[Small | Large, Field(discriminator="kind")] | None = None
    seed: int = 0

    @field_validator("seed")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("Seeds are even here")
        return value


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder with a `pipelines` menu."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pipelines").mkdir()
    return tmp_path


def sentence(raw: dict[str, object]) -> str:
    """Return what is said about `raw`."""
    with pytest.raises(SpecError) as caught:
        specs.validate(Config, raw, "my.yaml", "pretrain")
    return str(caught.value)


# ------------------------------------------------------------------------------------------------ finding


def test_the_working_directory_comes_before_the_shipped_menu(here: Path) -> None:
    mine = here / "pipelines" / "demo.yaml"
    mine.write_text("name: demo")
    assert specs.find("pipelines", "demo") == mine


def test_an_unknown_name_says_where_it_was_looked_up_and_which_is_nearest(here: Path) -> None:
    (here / "pipelines" / "full_mine.yaml").write_text("name: full_mine")
    with pytest.raises(SpecError) as caught:
        specs.find("pipelines", "ful_mine")
    said = str(caught.value)
    assert said.startswith("no pipeline named 'ful_mine' (looked in ./pipelines and ")
    assert said.endswith("; did you mean 'full_mine'?")


def test_a_path_is_taken_as_it_is(here: Path) -> None:
    path = here / "elsewhere.yaml"
    path.write_text("name: elsewhere")
    assert specs.find("pipelines", str(path)) == path
    with pytest.raises(SpecError, match=r"there is no file 'nowhere\.yaml'"):
        specs.find("pipelines", "nowhere.yaml")


@pytest.mark.parametrize("name", ["_-_", "it's", 'say "no"', "a b", "a\nb", "x" * 81, "größe", "-set"])
def test_a_file_name_that_cannot_be_the_name_of_runs_jobs_and_experiments_is_refused(tmp_path, name):
    path = tmp_path / f"{name}.yaml"
    path.write_text("stages: {}")
    with pytest.raises(SpecError, match="name is the name of its runs; use at most 80 letters") as error:
        specs.find("sweeps", str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a", "2.fast", "full_ssv2-v1.2", "x" * 80])
def test_a_file_name_of_letters_digits_dashes_and_dots_is_accepted(tmp_path, name):
    path = tmp_path / f"{name}.yaml"
    path.write_text("stages: {}")
    assert specs.find("pipelines", str(path)) == path


# ------------------------------------------------------------------------------------------------ reading


def test_a_key_given_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("epochs: 1\nseed: 2\nepochs: 3\n")
    with pytest.raises(SpecError, match=r"a\.yaml, line 3: the key 'epochs' is given twice"):
        specs.read(path)


def test_a_key_given_twice_deep_inside_is_refused_too(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("stages:\n  data: {kind: data, kind: probe}\n")
    with pytest.raises(SpecError, match="line 2: the key 'kind' is given twice"):
        specs.read(path)


def test_a_merged_mapping_may_be_overridden(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("base: &base {depth: 1, width: 2}\nother: {<<: *base, depth: 3}\n")
    assert specs.read(path)["other"] == {"depth": 3, "width": 2}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1", "line 1:"),
        ("- a\n- b", "must be a mapping of keys, not a list"),
        ("a", "must be a mapping of keys, not text"),
        ("", "is empty; it must be a mapping of keys"),
        ("[" * 3000, "is nested too deeply"),
        ("a: 1\nb: {{x}}", "line 2: a key must be plain text"),
        ("a: \0", "is not YAML"),
        ("a: 2024-13-45", "is not YAML (month must be in 1..12)"),
    ],
)
def test_what_is_not_a_mapping_in_yaml_is_refused_with_the_file(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        specs.read(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"none\.yaml: cannot be read \(No such file or directory\)"):
        specs.read(tmp_path / "none.yaml")
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"name: caf\xe9")
    with pytest.raises(SpecError, match=r"latin\.yaml: is not UTF-8 text"):
        specs.read(path)


def test_yaml_cannot_make_python_objects(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: !!python/object/apply:os.getcwd []")
    with pytest.raises(SpecError, match="line 1: could not determine a constructor"):
        specs.read(path)


# --------------------------------------------------------------------------------------------- overriding


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a.b=3", 3),
        ("a.b=.5", 0.5),
        ("a.b=[1, x]", [1, "x"]),
        ("a.b=", None),
        ("a.b=x=y", "x=y"),
        ("a.b=true", True),
        ("a.b=[1e-4, 5E3, .5e1, 1e]", [1e-4, 5000.0, 5.0, "1e"]),
    ],
)
def test_the_value_of_an_override_is_read_as_yaml(text: str, value: object) -> None:
    assert specs.parse_override(text) == (["a", "b"], value)


@pytest.mark.parametrize("text", ["a.b", "=3", "a..b=3", ".a=3", "a.=3"])
def test_an_override_without_key_or_equals_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match=r"must look like stage\.key=value"):
        specs.parse_override(text)


def test_an_override_that_is_not_yaml_is_refused() -> None:
    with pytest.raises(SpecError, match=r"--set a=\[1: '\[1' is not a YAML value"):
        specs.parse_override("a=[1")


def test_an_override_changes_one_place_of_a_copy() -> None:
    raw = {"a": {"b": 1, "c": 2}}
    assert specs.override(raw, ["a", "b"], 9) == {"a": {"b": 9, "c": 2}}
    assert raw == {"a": {"b": 1, "c": 2}}


def test_an_override_makes_the_mappings_on_its_way() -> None:
    assert specs.override({}, ["a", "b", "c"], 1) == {"a": {"b": {"c": 1}}}


def test_an_override_below_a_preset_refines_the_preset() -> None:
    raw = {"model": "vit_micro"}
    assert specs.override(raw, ["model", "depth"], 4) == {"model": {"preset": "vit_micro", "depth": 4}}


def test_merging_goes_into_mappings_and_replaces_everything_else() -> None:
    base = {"clip": {"frames": 8, "size": 48}, "views": [1, 2]}
    over = {"clip": {"size": 64}, "views": [3]}
    assert specs.merge(base, over) == {"clip": {"frames": 8, "size": 64}, "views": [3]}


trees = st.recursive(
    st.integers(), lambda below: st.dictionaries(st.sampled_from("abc"), below, max_size=3), max_leaves=8
)
mappings = st.dictionaries(st.sampled_from("abc"), trees, max_size=3)


@given(mappings)
def test_merging_with_nothing_or_with_itself_changes_nothing(raw: dict[str, object]) -> None:
    assert specs.merge(raw, {}) == raw
    assert specs.merge({}, raw) == raw
    assert specs.merge(raw, raw) == raw


@given(mappings, st.lists(st.sampled_from("abc"), min_size=1, max_size=3), st.integers())
def test_what_was_overridden_is_found_at_its_place(
    raw: dict[str, object], path: list[str], value: int
) -> None:
    found: object = specs.override(raw, path, value)
    for part in path:
        assert isinstance(found, dict)
        found = found[part]
    assert found == value


# --------------------------------------------------------------------------------------------- validating


def test_a_valid_mapping_becomes_a_frozen_model() -> None:
    config = specs.validate(Config, {"epochs": 3, "sampler": {"depth": 2}}, "my.yaml")
    assert (config.epochs, config.sampler.depth, config.sampler.mask_ratio) == (3, 2, 0.9)
    with pytest.raises(ValueError, match="frozen"):
        config.epochs = 4  # type: ignore[misc]


def test_an_unknown_key_is_named_with_its_owner_and_the_nearest() -> None:
    said = sentence({"epochs": 1, "sampler": {"mask_ration": 0.9}})
    assert said == "my.yaml: pretrain.sampler has no key 'mask_ration'; did you mean 'mask_ratio'?"


def test_an_unknown_key_at_the_top_is_named_too() -> None:
    assert sentence({"epocs": 1}).startswith("my.yaml: pretrain")


def test_a_missing_key_is_named() -> None:
    assert sentence({}) == "my.yaml: pretrain.epochs is missing"


def test_a_value_out_of_range_is_shown() -> None:
    said = sentence({"epochs": 0})
    assert said == "my.yaml: pretrain.epochs: input should be greater than or equal to 1 (it is 0)"


class Shapes(StrictModel):
    """What YAML and Python call by different names."""

    part: Sampler = Sampler()
    several: Annotated[tuple[str, ...], Field(min_length=1)] = ("a",)
    named: dict[str, int] = Field(default_factory=dict)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"part": 3}, "part must be a mapping of keys (it is 3)"),
        ({"named": [1]}, "named must be a mapping of keys (it is [1])"),
        ({"several": "a"}, "several must be a list (it is 'a')"),
        ({"several": [1]}, "several.0 must be text (it is 1)"),
        ({"several": []}, "several must not be empty (it is [])"),
        ({"named": {1: 2}}, "named.1: a key must be text; put it in quotes"),
    ],
)
def test_a_wrong_form_is_told_in_the_words_of_yaml(raw: dict[str, object], said: str) -> None:
    with pytest.raises(SpecError) as caught:
        specs.validate(Shapes, raw, "a.yaml")
    assert str(caught.value) == f"a.yaml: {said}"


def test_a_check_of_the_model_itself_is_said_in_its_own_words() -> None:
    assert sentence({"epochs": 1, "seed": 3}) == "my.yaml: pretrain.seed: seeds are even here (it is 3)"


def test_an_unknown_key_of_a_union_suggests_a_key_of_a_member() -> None:
    said = sentence({"epochs": 1, "body": {"kind": "small", "widht": 3}})
    assert said.endswith("has no key 'widht'; did you mean 'width'?")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_refused(value: float) -> None:
    assert "pretrain.sampler.mask_ratio" in sentence({"epochs": 1, "sampler": {"mask_ratio": value}})


def test_only_true_and_false_are_truth_values_so_that_on_can_be_a_key(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("{on: yes, off: true, no: False}")
    assert specs.read(path) == {"on": "yes", "off": True, "no": False}
    assert specs.parse_override("a.b=off") == (["a", "b"], "off")


class Clip(StrictModel):
    workers: Annotated[int, specs.NotIdentity] = 3
    size: int = 4


class Training(StrictModel):
    a: int = 1
    workers: Annotated[int, specs.NotIdentity] = 2
    clip: Clip = Clip()
    clips: tuple[Clip, ...] = (Clip(size=5), Clip(size=6))
    by_name: Mapping[str, Clip] = Field(default_factory=lambda: {"x": Clip(size=7)})
    free: Mapping[str, int] = Field(default_factory=lambda: {"workers": 8})


def test_marked_fields_are_no_part_of_an_identity_at_any_depth_and_names_alone_mark_nothing():
    assert specs.identity(Training()) == {
        "a": 1,
        "clip": {"size": 4},
        "clips": [{"size": 5}, {"size": 6}],
        "by_name": {"x": {"size": 7}},
        "free": {"workers": 8},
    }


class Later(Training):
    ema: float | None = None
    mirror: bool = False
    tags: tuple[str, ...] = ()
    either: bool | None = None


def test_an_option_that_is_added_and_off_changes_no_identity_and_every_other_value_does():
    assert specs.identity(Later()) == specs.identity(Training())
    others = [{"ema": 0.0}, {"mirror": True}, {"tags": ("a",)}, {"either": True}, {"either": False}]
    identities = [specs.identity(Later(**values)) for values in others]
    assert len({str(identity) for identity in identities}) == len(others)
    assert specs.identity(Training()) not in identities


class Changed(Later):
    a: int = 2
    ema: float | None = 0.9
    mirror: bool = True


def test_a_default_that_changes_changes_the_identity_of_what_left_it_out():
    before, after = specs.identity(Later()), specs.identity(Changed())
    assert after == before | {"a": 2, "ema": 0.9, "mirror": True}
    assert specs.identity(Changed(a=1, ema=None, mirror=False)) == before


def test_settings_can_be_built_again():
    changed = Changed(ema=None, mirror=False)
    assert Changed.model_validate(specs.settings(changed)) == changed


class Grid(StrictModel):
    kind: Literal["grid"]


class Random(StrictModel):
    kind: Literal["random"]
    samples: int = 1


class Search(StrictModel):
    searcher: Annotated[Grid | Random, Field(discriminator="kind")]


@pytest.mark.parametrize(
    ("searcher", "sentence"),
    [
        ({"kind": "grit"}, "s.yaml: searcher.kind: input should be 'grid' or 'random' (it is 'grit')"),
        ({"samples": 2}, "s.yaml: searcher.kind is missing"),
        ({"kind": "grid", "samples": 2}, "s.yaml: searcher.grid has no key 'samples'; valid: kind"),
    ],
)
def test_a_wrong_kind_and_a_key_of_another_kind_are_named(searcher: Mapping[str, object], sentence: str):
    with pytest.raises(SpecError) as error:
        specs.validate(Search, {"searcher": searcher}, "s.yaml")
    assert str(error.value) == sentence


def bomb(form: str, levels: int = 12) -> str:
    """Return YAML in which each level refers nine times to the one before."""
    lines = ["a0: &a0 {k0: x}" if "<<" in form else "a0: &a0 [x]"]
    for level in range(1, levels):
        refs = ", ".join([f"*a{level - 1}"] * 9)
        lines.append(f"a{level}: &a{level} {form.format(refs=refs, level=level)}")
    return "\n".join(lines)


@pytest.mark.parametrize("form", ["[{refs}]", "{{<<: [{refs}], k{level}: x}}", "{{k: [{refs}]}}"])
def test_a_file_that_expands_without_bound_is_refused_at_once(tmp_path: Path, form: str) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(bomb(form))
    with pytest.raises(SpecError, match="expands to more than 200,000 letters and values") as error:
        specs.read(path)
    assert len(str(error.value)) < 300


def test_a_reference_to_what_it_is_part_of_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("stages: &s\n  make: {kind: make, again: *s}\n")
    with pytest.raises(SpecError, match=r"a\.yaml, line 1: a reference \(\*name\) is part of"):
        specs.read(tmp_path / "a.yaml")


def test_references_that_stay_small_are_as_before(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("one: &one {a: 1}\ntwo: {<<: *one, b: 2}\nthree: *one\n")
    assert specs.read(tmp_path / "a.yaml") == {"one": {"a": 1}, "two": {"a": 1, "b": 2}, "three": {"a": 1}}


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.yaml").open("wb") as file:
        file.truncate(1 << 34)
    with pytest.raises(SpecError, match=r"a\.yaml: is larger than 200,000 bytes"):
        specs.read(tmp_path / "a.yaml")


@pytest.mark.parametrize("text", [r'"rm \0 it"', r'"\ud800"', r'{"a\0b": 1}'])
def test_a_character_that_no_command_can_have_is_refused_wherever_it_stands(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / "a.yaml").write_text(f"title: x\nrun: {text}\n")
    with pytest.raises(SpecError, match=r"a\.yaml, line 2: a text has a character \(NUL"):
        specs.read(tmp_path / "a.yaml")
    with pytest.raises(SpecError, match=r"--set work\.run=.* is not a YAML value \(a text has a character"):
        specs.parse_override(f"work.run={text}")


def test_a_message_shows_the_beginning_of_a_long_value_and_its_length() -> None:
    with pytest.raises(SpecError) as error:
        specs.validate(Sampler, {"depth": "x" * 100_000}, "a.yaml")
    assert len(str(error.value)) < 400
    assert "… (100,002 letters)" in str(error.value)
    assert len(str(TatsError("x" * 1_000_000))) < 21_000
    with pytest.raises(SpecError) as error:
        specs.parse_override("work.run=" + "[" * 100_000)
    assert len(str(error.value)) < 600


# --- one of a registry's configurations --------------------------------------------------------------------


class Shape(StrictModel):
    kind: str
    size: float = Field(1, gt=0)


class Disc(Shape):
    kind: Literal["disc"] = "disc"


class Ring(Shape):
    kind: Literal["ring"] = "ring"
    hole: Sampler = Sampler()


SHAPES: Registry[type[Shape]] = Registry("shape", "tats.test_shapes", Shape, {})
for _shape in (Disc, Ring):
    SHAPES._members[_shape.model_fields["kind"].default] = _shape


class Drawing(StrictModel):
    shape: Annotated[Shape, specs.OneOf(SHAPES, "ring")] = Field(default_factory=Ring)


def _shape_of(raw: dict[str, Any], **sets: Any) -> Shape:
    for key, value in sets.items():
        raw = specs.override(raw, ["shape", *key.split("__")], value)
    return specs.validate(Drawing, raw, "my.yaml").shape


def test_kind_names_the_configuration_and_the_default_is_one() -> None:
    assert _shape_of({}) == _shape_of({"shape": {}}) == Ring()
    assert _shape_of({"shape": {"kind": "disc", "size": 2}}) == Disc(size=2)
    drawing = Drawing(shape=Ring(hole=Sampler(depth=3)))
    assert Drawing.model_validate(drawing.model_dump(mode="json")) == drawing


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ({"kind": "disk"}, "my.yaml: shape: no shape 'disk'; did you mean 'disc'?"),
        ({"kind": "disc", "hole": {}}, "my.yaml: shape of kind 'disc' has no key 'hole'; valid: kind, size"),
        ({"sise": 1}, "my.yaml: shape of kind 'ring' has no key 'sise'; did you mean 'size'?"),
        ({"hole": {"dept": 1}}, "my.yaml: shape.hole has no key 'dept'; did you mean 'depth'?"),
        ({"size": -1}, "my.yaml: shape.size: input should be greater than 0 (it is -1)"),
        ("disc", "my.yaml: shape must be a mapping of keys (it is 'disc')"),
    ],
)
def test_what_is_no_configuration_of_the_kind_is_one_sentence(shape: Any, sentence: str) -> None:
    with pytest.raises(SpecError) as raised:
        specs.validate(Drawing, {"shape": shape}, "my.yaml")
    assert str(raised.value) == sentence


RING = {"shape": {"kind": "ring", "size": 2, "hole": {"depth": 3}}}


def test_an_override_of_the_kind_drops_what_only_other_kinds_have() -> None:
    assert _shape_of(RING, kind="disc") == Disc(size=2)
    assert _shape_of(RING, kind="ring") == Ring(size=2, hole=Sampler(depth=3))
    assert _shape_of({"shape": {"hole": {}}}, kind="disc") == Disc(), "the kind was the default one"
    assert specs.settled(Drawing, specs.override(RING, ["shape", "kind"], "disc")) == {
        "shape": {"kind": "disc", "size": 2}
    }


def test_the_same_kind_given_again_changes_nothing() -> None:
    disc = specs.override(RING, ["shape", "kind"], "disc")
    for again in (
        specs.override(disc, ["shape", "kind"], "disc"),
        specs.merge(disc, {"shape": {"kind": "disc"}}),
    ):
        assert specs.validate(Drawing, again, "my.yaml").shape == Disc(size=2)
    with pytest.raises(SpecError, match="shape of kind 'disc' has no key 'hole'"):
        specs.validate(Drawing, specs.merge(disc, {"shape": {"kind": "disc", "hole": {}}}), "my.yaml")


def test_a_stage_that_has_another_kind_than_the_defaults_drops_what_only_those_have() -> None:
    merged = specs.merge(RING, {"shape": {"kind": "disc"}})
    assert specs.validate(Drawing, merged, "my.yaml").shape == Disc(size=2)
    merged = specs.merge(RING, {"shape": {"kind": "disc", "hole": {}}})
    with pytest.raises(SpecError, match="shape of kind 'disc' has no key 'hole'"):
        specs.validate(Drawing, merged, "my.yaml")


def test_a_key_that_is_set_after_the_kind_is_meant_for_it() -> None:
    assert specs.kinds_first(["a.size", "a.kind", "kind"]) == ["a.kind", "kind", "a.size"]
    with pytest.raises(SpecError, match="shape of kind 'disc' has no key 'hole'"):
        _shape_of(RING, kind="disc", hole__depth=4)


def test_a_misspelt_key_is_refused_beside_a_changed_kind_too() -> None:
    with pytest.raises(SpecError, match="shape of kind 'disc' has no key 'hoel'"):
        _shape_of({"shape": {"kind": "ring", "hoel": {}}}, kind="disc")

"""Named YAML files (pipelines, sweeps): find, read, override, validate.

A name is looked up in `./<menu>/`, then beside the checkout's `pyproject.toml`, then in the packaged
`tats_core/_specs/<menu>/`; the first hit wins. Everything wrong with one of them is a `SpecError` that
names the file, the key and the nearest valid key.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticKnownError
from pydantic_core.core_schema import CoreSchema, no_info_plain_validator_function

from tats_core.addresses import masked
from tats_core.errors import SpecError, brief, did_you_mean
from tats_core.registry import Registry

Menu = Literal["pipelines", "sweeps"]
Model = TypeVar("Model", bound=BaseModel)
Raw = dict[str, Any]
"""A mapping of YAML as it is read, before a model validates it."""

REHEARSAL: Final = "-rehearsal"
"""How the name of every rehearsal ends, and of nothing else: it marks all tables and pages."""
NO_RESULT: Final = "A rehearsal with a tiny model: its numbers mean nothing"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NAME_LENGTH = 80

_PACKAGE = Path(__file__).resolve().parent


class StrictModel(BaseModel):
    """Base of every configuration: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _checked_size(value: object) -> object:
    sides = list(value) if isinstance(value, list | tuple) else [value, value]
    if len(sides) != 2 or not all(type(side) is int and side >= 1 for side in sides):
        raise ValueError("must be a number of pixels, or a list of two: height and width")
    return sides[0] if sides[0] == sides[1] else tuple(sides)


Size = Annotated[int | tuple[int, int], BeforeValidator(_checked_size)]
"""Pixels of a frame: height and width, or one number for both."""


def sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return height and width."""
    return (size, size) if isinstance(size, int) else size


class NotIdentity:
    """Marks a field that cannot change an output: `workers: Annotated[int, NotIdentity] = 1`."""


@dataclass(frozen=True)
class OneOf:
    """Marks a field whose value is one of a registry's configurations, which its key `kind` names.

    `sampler: Annotated[SamplerConfig, OneOf(SAMPLERS, "tats")]`. Each configuration has its own keys; one of
    another kind is refused beside it. An override (--set, a sweep, a matrix, a variant's `set`) of `kind`
    alone changes the kind: keys that stood there before and that only other kinds have no longer count.
    """

    registry: Registry[Any]
    default: str
    """The kind where none is named."""
    shared: Mapping[str, object] = field(default_factory=dict)
    """Other defaults than its class has, of every kind that has the key."""
    of_default_kind: Mapping[str, object] = field(default_factory=dict)
    """Other defaults than its class has, of the default kind alone."""

    def model(self, raw: Mapping[str, object]) -> type[BaseModel]:
        """Return the configuration of the kind that `raw` names.

        Raises:
            SpecError: there is no such kind, or its package cannot be imported.
        """
        model: type[BaseModel] = self.registry[str(raw.get("kind", self.default))]
        return model

    def build(self) -> Any:
        """Return the default kind with its defaults."""
        return self.validate({})

    def __get_pydantic_core_schema__(self, source: object, handler: object) -> CoreSchema:
        return no_info_plain_validator_function(self.validate)

    def validate(self, raw: object) -> Any:
        """Return the configuration that `raw` describes.

        Raises:
            ValueError: it describes none.
        """
        if isinstance(raw, self.registry.base):
            return raw
        if not isinstance(raw, Mapping):
            raise PydanticKnownError("dict_type")
        try:
            model = self.model(raw)
        except SpecError as error:
            raise ValueError(str(error)) from error
        kind = raw.get("kind", self.default)
        defaults = {key: value for key, value in self.shared.items() if key in model.model_fields}
        defaults |= self.of_default_kind if kind == self.default else {}
        return model.model_validate({**defaults, **raw, "kind": kind})


def identity(config: BaseModel) -> Raw:
    """Return what is part of a key: `config` as JSON values, at every depth without what cannot matter.

    That are the fields marked `NotIdentity`, and those that are off: None, or where None is no choice, False
    or empty. An option that a later version adds, off by default, thus leaves all keys as they are, while a
    default that changes, to or from off too, changes them. An option with another default changes what is
    done, and so the keys.
    """
    return config.model_dump(mode="json", by_alias=True, exclude=_left_out(config, off=True))


def settings(config: BaseModel) -> Raw:
    """Return `config` as JSON values, at every depth without the fields marked `NotIdentity`."""
    return config.model_dump(mode="json", by_alias=True, exclude=_left_out(config, off=False))


def _left_out(value: object, *, off: bool) -> Any:
    """Return the fields of `value` to leave out, as pydantic's `exclude` takes them."""
    parts: dict[str | int, object]
    if isinstance(value, BaseModel):
        parts = {}
        for name, field in type(value).model_fields.items():
            part = getattr(value, name)
            out = NotIdentity in field.metadata or (off and _is_off(part, field))
            parts[name] = out or _left_out(part, off=off)
    elif isinstance(value, Mapping):
        parts = {key: _left_out(part, off=off) for key, part in value.items()}
    elif isinstance(value, list | tuple):
        parts = {index: _left_out(part, off=off) for index, part in enumerate(value)}
    else:
        return None
    return {key: part for key, part in parts.items() if part} or None


def _is_off(value: object, field: FieldInfo) -> bool:
    # One value of a field: of two that are left out, the keys would be the same.
    if value is None or type(None) in get_args(field.annotation):
        return value is None
    return isinstance(value, bool | Mapping | list | tuple) and not value


def folders(menu: Menu) -> list[tuple[str, Path]]:
    """Return `(name in messages, folder)` for each folder where `menu` is looked up, in order."""
    candidates = [(f"./{menu}", Path.cwd() / menu)]
    checkout = _PACKAGE.parent
    if (checkout / "pyproject.toml").is_file():
        candidates.append((str(checkout / menu), checkout / menu))
    candidates.append(("the packaged ones", _PACKAGE / "_specs" / menu))
    unique: dict[Path, tuple[str, Path]] = {}
    for label, folder in candidates:
        unique.setdefault(folder.resolve(), (label, folder))
    return list(unique.values())


def names(menu: Menu) -> dict[str, Path]:
    """Return every name of `menu` with its file; an earlier folder hides a later one."""
    paths: dict[str, Path] = {}
    for _, folder in folders(menu):
        for path in sorted(folder.glob("*.yaml")):
            paths.setdefault(path.stem, path)
    return paths


def find(menu: Menu, name: str) -> Path:
    """Return the file of `name`; `name` may also be a path that ends in `.yaml`.

    Raises:
        SpecError: no such name; names the folders searched and the nearest name.
    """
    if name.endswith((".yaml", ".yml")):
        if Path(name).is_file():
            return _named(Path(name))
        raise SpecError(f"there is no file {name!r}")
    known = names(menu)
    if name in known:
        return _named(known[name])
    searched = " and ".join(label for label, _ in folders(menu))
    raise SpecError(f"no {menu[:-1]} named '{name}' (looked in {searched}){did_you_mean(name, known)}")


def _named(path: Path) -> Path:
    """Return a file whose name can be that of folders, jobs, MLflow's experiments and Kubernetes' objects."""
    if not _NAME.fullmatch(path.stem) or len(path.stem) > _NAME_LENGTH:
        raise SpecError(
            f"{str(path)!r}: the file's name is the name of its runs; use at most {_NAME_LENGTH} letters "
            "A-Z, digits, '-', '_' and '.', the first a letter or digit"
        )
    if path.stem.endswith(REHEARSAL):
        raise SpecError(
            f"{str(path)!r}: '{REHEARSAL}' marks the runs of --rehearse; give the file another name"
        )
    return path


class _UniqueKeyLoader(yaml.SafeLoader):
    """Safe loader that refuses a key given twice, of which plain YAML silently takes the last."""


def _mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Hashable, object]:
    # Before `<<` is resolved: a key that overrides one of a merged mapping is no repetition.
    seen: set[Hashable] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable):
            problem = "a key must be plain text, not a list or a mapping"
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        if key in seen:
            problem = f"the key '{key}' is given twice"
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)

# As in YAML 1.2: `on`, `off`, `yes` and `no` are words, or the key `on` would be called `true`. Where a field
# is a truth value, pydantic takes them for one.
_BOOL = "tag:yaml.org,2002:bool"
_UniqueKeyLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_UniqueKeyLoader.add_implicit_resolver(
    _BOOL, re.compile("(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
# Also as in YAML 1.2: `1e-4` is a number. YAML 1.1 demands `1.0e-4` and takes anything else for text.
_UniqueKeyLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


_LIMIT = 200_000
"""Letters and values of a file, once each reference (*name) is replaced by what it refers to."""


class _UnusableError(yaml.constructor.ConstructorError):
    """YAML that no configuration needs; `problem` says why."""

    def __init__(self, problem: str, node: yaml.Node) -> None:
        super().__init__(None, None, problem, node.start_mark)


def _load(text: str) -> Any:
    loader = _UniqueKeyLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > _LIMIT:
            raise _UnusableError(f"it expands to more than {_LIMIT:,} letters and values", node)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _size(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Return the letters and values that `node` expands to; `known` holds None for a node that is open."""
    if id(node) in known:
        size = known[id(node)]
        if size is None:
            raise _UnusableError("a reference (*name) is part of what it refers to", node)
        return size
    known[id(node)] = None
    if isinstance(node, yaml.ScalarNode):
        if any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in node.value):
            problem = "a text has a character (NUL, or half of a pair) that no file name or command can have"
            raise _UnusableError(problem, node)
        size = 1 + len(node.value)
    else:
        pairs = isinstance(node, yaml.MappingNode)
        parts = [part for pair in node.value for part in pair] if pairs else node.value
        size = 1 + sum(_size(part, known) for part in parts)
    known[id(node)] = size
    return size


def read(path: Path) -> Raw:
    """Read one YAML file as a mapping.

    Raises:
        SpecError: not readable, not YAML, a key given twice, or not a mapping; names file and line.
    """
    try:
        if path.stat().st_size > _LIMIT:
            raise SpecError(f"{path}: is larger than {_LIMIT:,} bytes, which no such file needs")
        raw = _load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: is not UTF-8 text") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise SpecError(f"{path}, line {line}: {error.problem}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an invalid date
        raise SpecError(f"{path}: is not YAML ({str(error).splitlines()[0]})") from error
    except RecursionError as error:
        raise SpecError(f"{path}: is nested too deeply") from error
    if raw is None:
        raise SpecError(f"{path}: is empty; it must be a mapping of keys")
    if not isinstance(raw, dict):
        raise SpecError(
            f"{path}: must be a mapping of keys, not {'a list' if isinstance(raw, list) else 'text'}"
        )
    return raw


def parse_override(text: str) -> tuple[list[str], Any]:
    """Split `a.b=c` into `(["a", "b"], value)`; the value is read as YAML (so `[1, 2]` is a list).

    Raises:
        SpecError: no `=`, an empty key, or a value that is not YAML.
    """
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise SpecError(f"--set {text}: must look like stage.key=value")
    try:
        return parts, _load(value)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        why = f" ({error.problem})" if isinstance(error, _UnusableError) else ""
        raise SpecError(f"--set {brief(text)}: '{brief(value)}' is not a YAML value{why}") from error


class _ChangedKind(str):
    """A `kind` that an override changed."""

    inherited: frozenset[str]
    """The keys that stood beside the other kind."""

    @classmethod
    def of(cls, kind: str, inherited: Iterable[str]) -> _ChangedKind:
        changed = cls(kind)
        changed.inherited = frozenset(inherited) - {"kind"}
        return changed


def kinds_first(keys: Iterable[str]) -> list[str]:
    """Order dotted keys that are set together: after a `kind`, the others count for it."""
    return sorted(keys, key=lambda key: not f".{key}".endswith(".kind"))


def override(raw: Mapping[str, object], path: Iterable[str], value: object) -> Raw:
    """Return a copy of `raw` with the value at `path` replaced; missing mappings on the way are made.

    Where `kind` gets another value, `settled` drops the keys beside it that the new kind does not have.
    """
    head, *rest = path
    copy = dict(raw)
    kind = copy.get("kind")
    if isinstance(kind, _ChangedKind):  # what is set from now on is meant for it
        copy["kind"] = _ChangedKind.of(kind, kind.inherited - {head})
    if not rest:
        if head == "kind" and isinstance(value, str):
            if value == kind:
                return copy  # what stood beside another kind, if it was one, still does not count
            value = _ChangedKind.of(value, copy)
        copy[head] = value
        return copy
    below = copy.get(head)
    if not isinstance(below, Mapping):
        # `model: vit_micro` may be refined by `model.depth=4`: a bare name is the preset of a mapping.
        below = {} if below is None else {"preset": below}
    copy[head] = override(below, rest, value)
    return copy


def merge(base: Mapping[str, object], over: Mapping[str, object]) -> Raw:
    """Return `base` with `over` on top; mappings are merged, everything else is replaced.

    Where `over` has another `kind`, `settled` drops the keys of `base` that it does not have.
    """
    merged = dict(base)
    for key, value in over.items():
        if key == "kind" and isinstance(value, str):
            before = base.get(key)
            if value != before:
                merged[key] = _ChangedKind.of(value, base.keys() - over.keys())
            elif isinstance(before, _ChangedKind):
                merged[key] = _ChangedKind.of(value, before.inherited - over.keys())
            continue
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            merged[key] = merge(below, value)
        else:
            merged[key] = value
    return merged


def settled(model: type[BaseModel], raw: Mapping[str, object]) -> Raw:
    """Return `raw` without the keys that stood beside a `kind` before it changed and are only another's."""
    fields = _fields(model)
    return {
        key: _settled_part(fields[key], value) if key in fields and isinstance(value, Mapping) else value
        for key, value in raw.items()
    }


def _settled_part(field: FieldInfo, raw: Mapping[str, object]) -> Raw:
    model, kind = _chosen(field, raw), raw.get("kind")
    if isinstance(kind, _ChangedKind):
        others = {key for key in kind.inherited if model is not None and key not in _fields(model)}
        # One that no kind has is misspelt; it stays, and is refused.
        dropped = {key for key in others if any(key in _fields(other) for other in choices(field))}
        raw = {key: value for key, value in raw.items() if key not in dropped} | {"kind": str(kind)}
    return dict(raw) if model is None else settled(model, raw)


def choices(field: FieldInfo) -> Iterator[type[BaseModel]]:
    """Yield the models that a field's value may have: those of a registry, or those of its annotation."""
    if one_of := _one_of(field):
        yield from (model for _, model in one_of.registry.items())
    else:
        yield from _models(field.annotation)


def _chosen(field: FieldInfo, raw: Mapping[str, object]) -> type[BaseModel] | None:
    """Return the model that the value `raw` of a field has; None if that cannot be told."""
    if one_of := _one_of(field):
        try:
            return one_of.model(raw)
        except SpecError:
            return None  # the validation says why
    models = list(_models(field.annotation))
    candidates = [model for model in models if _has_tag(model, str(raw.get("kind")))] or models
    return candidates[0] if len(candidates) == 1 else None


def _one_of(field: FieldInfo) -> OneOf | None:
    return next((mark for mark in field.metadata if isinstance(mark, OneOf)), None)


def validate(model: type[Model], raw: Mapping[str, object], where: str, prefix: str = "") -> Model:
    """Build `model` from `raw`.

    Args:
        where: how the source is named in messages, usually the file.
        prefix: dotted key of `raw` within the source (`stages.pretrain`).

    Raises:
        SpecError: the first thing that is wrong, with its dotted key and, for an unknown key, the nearest.
    """
    raw = settled(model, raw)
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        # A misspelt required key is missing and unknown at once: the unknown one names the mistake.
        first = min(error.errors(), key=lambda detail: detail["type"] != "extra_forbidden")
        raise SpecError(masked(f"{where}: {_sentence(model, raw, first, prefix)}")) from error


# Pydantic's messages that use Python's words, in those of YAML.
_IN_YAML = {
    "dict_type": "be a mapping of keys",
    "model_type": "be a mapping of keys",
    "tuple_type": "be a list",
    "list_type": "be a list",
    "string_type": "be text",
    "too_short": "not be empty",
}


def _sentence(model: type[BaseModel], raw: object, detail: ErrorDetails, prefix: str) -> str:
    # Names of union members and validators ("function-before[...]") are not keys of the file.
    location = [str(part) for part in detail["loc"] if not str(part).startswith("function-")]
    path = [prefix, *location] if prefix else location
    dotted = ".".join(path)
    if detail["type"] == "extra_forbidden":
        owner = ".".join(path[:-1])
        kind, keys = _keys(model, raw, location[:-1])
        near = did_you_mean(location[-1], keys)
        of_kind = f" of kind '{kind}'" if kind and not owner.endswith(f".{kind}") else ""
        return f"{f'{owner}{of_kind} has' if owner else 'there is'} no key '{location[-1]}'{near}"
    if detail["type"].startswith("union_tag"):
        context = detail["ctx"]
        kind = f"{dotted}.{context['discriminator'].strip(chr(39))}"
        if detail["type"] == "union_tag_not_found":
            return f"{kind} is missing"
        known = " or ".join(context["expected_tags"].rsplit(", ", 1))
        return f"{kind}: input should be {known} (it is '{context['tag']}')"
    if detail["type"] == "missing":
        return f"{dotted} is missing"
    if location[-1:] == ["[key]"]:
        return f"{dotted.removesuffix('.[key]')}: a key must be text; put it in quotes"
    if detail["type"] in _IN_YAML:
        return f"{dotted} must {_IN_YAML[detail['type']]}{_actual(detail['input'])}"
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    actual = "" if repr(detail["input"]) in message else _actual(detail["input"])
    return f"{f'{dotted}: ' if dotted else ''}{message[:1].lower()}{message[1:]}{actual}"


def _actual(value: object) -> str:
    return "" if isinstance(value, Mapping) else f" (it is {brief(repr(value))})"


def _keys(model: type[BaseModel], raw: object, path: list[str]) -> tuple[str, list[str]]:
    """Return kind, or "", and keys of the part of `model` at `path`; of a union, the keys of all members."""
    members = [model]
    for part in path:
        fields = [fields[part] for member in members if part in (fields := _fields(member))]
        if fields:
            raw = raw.get(part) if isinstance(raw, Mapping) else None
            chosen = _chosen(fields[0], raw) if isinstance(raw, Mapping) else None
            members = [chosen] if chosen else list(_models(fields[0].annotation))
        else:  # an index, which leads nowhere else, or the tag of a member
            members = [member for member in members if _has_tag(member, part)] or members
    keys = [list(_fields(member)) for member in members]
    if len(members) > 1:
        return "", sorted({key for names in keys for key in names})
    if "kind" not in keys[0] or not isinstance(raw, Mapping):
        return "", keys[0]
    return str(raw.get("kind", members[0].model_fields["kind"].default)), keys[0]


def _has_tag(model: type[BaseModel], tag: str) -> bool:
    kind = model.model_fields.get("kind")
    return kind is not None and tag in getattr(kind.annotation, "__args__", ())


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        return
    for argument in getattr(annotation, "__args__", ()):
        yield from _models(argument)


def flatten(values: Mapping[str, object], prefix: str = "") -> Raw:
    """Return nested mappings as one, with dotted keys."""
    result: Raw = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            result |= flatten(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value
    return result

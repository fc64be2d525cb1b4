"""The keys of a configuration, read off its pydantic models: type, default, meaning."""

from __future__ import annotations

import textwrap
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tats_core.registry import Registry
from tats_core.report.table import Table
from tats_core.specs import choices

_WORDS: Mapping[object, str] = {
    int: "integer", float: "number", str: "text", bool: "true or false", type(None): "null",
    object: "any value", Any: "any value",
}  # fmt: skip
_LIMITS = (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))


@dataclass(frozen=True)
class Key:
    """One key: its dotted name (`[]` stands for each element of a list), and what may be its value."""

    name: str
    type: str
    default: str
    """As in YAML; "" where the key has keys of its own, "required" where it must be given."""
    meaning: str

    @property
    def path(self) -> str:
        """The name as a user types it."""
        return self.name.replace("[]", "")


def keys(model: type[BaseModel]) -> Iterator[Key]:
    """Yield the keys of a model, each before the keys below it."""
    yield from _keys([model], None, "")


def _keys(members: Sequence[type[BaseModel]], values: object, prefix: str) -> Iterator[Key]:
    """Yield the keys of one model, or of all members of a union: those of one alone name its `kind`.

    The defaults are those of `values`, a configuration of a member, or of the models where it is none.
    """
    fields: dict[str, list[tuple[type[BaseModel], FieldInfo]]] = {}
    for member in members:
        for name, field in member.model_fields.items():
            fields.setdefault(field.alias or name, []).append((member, field))
    for name, owners in fields.items():
        owner, field = next((pair for pair in owners if isinstance(values, pair[0])), owners[0])
        of = ""
        if len(owners) < len(members):
            kinds = (get_args(model.model_fields["kind"].annotation) for model, _ in owners)
            of = f" (of {', '.join(chain.from_iterable(kinds))})"
        default = field.get_default(call_default_factory=True)
        attribute = next(key for key, other in owner.model_fields.items() if other is field)
        if isinstance(values, owner):
            default = getattr(values, attribute)
        annotation: object = Union[tuple(other.annotation for _, other in owners)]  # noqa: UP007
        below = list(dict.fromkeys(model for _, other in owners for model in choices(other)))
        if get_origin(field.annotation) is dict:
            below = []
        type_ = _named(field) or _limited(_type(annotation), field)
        meaning = _description(owner, attribute) or _first_line(below)
        yield Key(f"{prefix}{name}", type_, _default(default, nested=bool(below)), f"{meaning}{of}")
        if below:
            element = "[]" if get_origin(field.annotation) in (tuple, list) else ""
            yield from _keys(below, default, f"{prefix}{name}{element}.")


def _description(model: type[BaseModel], name: str) -> str:
    """Return what a field says, or what the field says that it replaces."""
    fields = [base.model_fields.get(name) for base in model.__mro__ if issubclass(base, BaseModel)]
    return next((field.description for field in fields if field and field.description), "")


def _type(annotation: object) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(parts[0])
    if origin is Literal:
        return " | ".join(map(str, parts))
    if origin in (Union, types.UnionType):
        if {str, int, float, bool} <= set(parts):
            return "any value"
        literals = [part for part in parts if get_origin(part) is Literal]
        words = " | ".join(map(_type, literals))
        others = [_type(part) for part in parts if part not in literals]
        return " or ".join(dict.fromkeys([*([words] if words else []), *others]))
    if origin is tuple and parts[-1] is not ...:
        return f"list of {len(parts)}: {', '.join(map(_type, parts))}"
    if origin in (tuple, list):
        return f"list of {_type(parts[0])}"
    if origin is dict:
        return f"mapping to {_type(parts[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "keys"
    if isinstance(annotation, TypeVar):
        return _type(annotation.__bound__)
    return _WORDS[annotation]


def _named(field: FieldInfo) -> str:
    """Return the names that are the values of a field, or "" if there is no list of them."""
    several = "list of " if get_origin(field.annotation) is tuple else ""
    names = (" | ".join(mark) for mark in field.metadata if isinstance(mark, Registry))
    return next((several + listed for listed in names), "")


def _limited(words: str, field: FieldInfo) -> str:
    limits = ", ".join(
        f"{sign} {getattr(mark, name)}"
        for mark in field.metadata
        for name, sign in _LIMITS
        if hasattr(mark, name)
    )
    first, null, _ = words.partition(" or null")
    return f"{first} {limits}{null}" if limits else words


def _default(value: object, *, nested: bool) -> str:
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        return ""
    if nested and value == ():
        return "[]"
    return as_yaml(list(value) if isinstance(value, tuple) else value)


def as_yaml(value: object) -> str:
    """Return a value as YAML on one line."""
    text: str = yaml.safe_dump(
        [value], default_flow_style=True, allow_unicode=True, width=10**6, sort_keys=False
    )
    return text.strip()[1:-1]


def _first_line(models: Sequence[type[BaseModel]]) -> str:
    """Return what the first of the models says of itself, "" of none."""
    text = (models[0].__doc__ or "").strip().splitlines()[0].rstrip(".") if models else ""
    return text[:1].lower() + text[1:] if text.split(" ")[0].istitle() else text


def as_text(listed: Sequence[Key]) -> str:
    """Return keys for a terminal: a line each, the meaning below it."""
    width = max(len(key.name) for key in listed)
    lines = []
    for key in listed:
        default = f" = {key.default}" if key.default and key.default != "required" else ""
        required = "  (required)" if key.default == "required" else ""
        lines.append(f"{key.name:<{width}}  {key.type}{default}{required}")
        lines.append(textwrap.indent(textwrap.fill(key.meaning, 92), "    "))
    return "\n".join(lines)


def _cell(markdown: str) -> str:
    return markdown.replace("|", "\\|")


def as_markdown(listed: Sequence[Key]) -> str:
    """Return keys as a table of GitHub Markdown."""
    rows = []
    for key in listed:
        default = key.default if key.default in ("", "required") else f"`{key.default}`"
        rows.append([f"`{key.name}`", key.type, default, key.meaning])
    return Table.of(("key", "type", "default", "meaning"), rows, labels=4).markdown(_cell)

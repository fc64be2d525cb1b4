"""What differs between two stage keys, component by component: why a stage runs although it ran before."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal

Component = Literal["config", "code", "inputs", "external", "kind"]

_LISTED = 4  # a change of one base module may reach thirty others; the first ones tell enough


@dataclass(frozen=True)
class Change:
    """One difference. `old` or `new` is None where there was or is no such thing.

    `name` is the dotted key of a configuration, a module, the kind of an input, or a data set.
    """

    component: Component
    name: str
    old: Any
    new: Any


def between(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[Change, ...]:
    """Return what differs between the components of two keys; the most telling comes first.

    Components that `new` lacks are not compared: before its inputs are there, a stage has none.
    """
    found: list[Change] = []
    if "config" in new:
        found += _differences("config", old["config"], new["config"])
    if "code" in new:
        found += _differences("code", old["code"], new["code"], nested=False)
    if "inputs" in new:
        found += _inputs(old["inputs"], new["inputs"])
    if "external" in new:
        found += _differences("external", old["external"], new["external"], nested=False)
    if "kind" in new and old["kind"] != new["kind"]:
        found.append(Change("kind", "kind", old["kind"], new["kind"]))
    return tuple(found)


def told(changes: Iterable[Change]) -> list[str]:
    """Return the changes in words: each key of the configuration, and the others by component."""
    of: dict[Component, list[Change]] = {}
    for one in changes:
        of.setdefault(one.component, []).append(one)
    said = [f"{one.name}: {_brief(one.old)} → {_brief(one.new)}" for one in of.get("config", ())]
    for component, words in (
        ("code", "code changed"),
        ("inputs", "inputs changed"),
        ("external", "data changed on disk"),
    ):
        if component in of:
            said.append(f"{words}: {_listed(of[component])}")
    return said + [f"{one.old} → {one.new}" for one in of.get("kind", ())]


def _differences(
    component: Component,
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    prefix: str = "",
    nested: bool = True,
) -> Iterator[Change]:
    for key in [*old, *(key for key in new if key not in old)]:
        was, now = old.get(key), new.get(key)
        if nested and isinstance(was, Mapping) and isinstance(now, Mapping):
            yield from _differences(component, was, now, f"{prefix}{key}.")
        elif was != now:
            yield Change(component, prefix + key, was, now)


def _inputs(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> Iterator[Change]:
    """Pair what was read with what is read by their names; those that are alike cancel out."""
    was, now = _by_name(old), _by_name(new)
    for name in [*now, *(name for name in was if name not in now)]:
        before, after = was.get(name, []), now.get(name, [])
        gone = [one for one in before if one not in after]
        come = [one for one in after if one not in before]
        for one, other in zip_longest(gone, come):
            yield Change("inputs", name, one, other)


def _by_name(inputs: list[dict[str, Any]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for one in inputs:
        found.setdefault(_input(one), []).append(one["digest"])
    return found


def _input(one: Mapping[str, Any]) -> str:
    axes = one.get("axes")
    return f"{one['kind']}[{','.join(axes.values())}]" if axes else str(one["kind"])


def _listed(changes: list[Change]) -> str:
    names = [
        one.name + (" (new)" if one.old is None else " (gone)" if one.new is None else "") for one in changes
    ]
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _brief(value: Any) -> str:
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."

"""The differences between two stage keys, by component: why a stage runs although it ran before."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal

Component = Literal["config", "code", "inputs", "external", "kind"]

_LISTED = 4  # names; a change of a base module may reach thirty others


@dataclass(frozen=True)
class Change:
    """One difference. `old` or `new` is None where there was or is no such key, module or input.

    `name` is the dotted key of a configuration, a module, the kind of an input, or a data set.
    """

    component: Component
    name: str
    old: object
    new: object


def between(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[Change, ...]:
    """Return what differs between the components of two keys, the most informative first.

    Components that `new` lacks are not compared: a stage has no inputs before they are made.
    """
    changes: list[Change] = []
    if "config" in new:
        changes += _differences("config", old["config"], new["config"])
    if "code" in new:
        changes += _differences("code", old["code"], new["code"], nested=False)
    if "inputs" in new:
        changes += _inputs(old["inputs"], new["inputs"])
    if "external" in new:
        changes += _differences("external", old["external"], new["external"], nested=False)
    if "kind" in new and old["kind"] != new["kind"]:
        changes.append(Change("kind", "kind", old["kind"], new["kind"]))
    return tuple(changes)


def in_words(changes: Iterable[Change]) -> list[str]:
    """Return a phrase for each changed key of the configuration, and one for each other component."""
    by_component: dict[Component, list[Change]] = {}
    for change in changes:
        by_component.setdefault(change.component, []).append(change)
    phrases = [
        f"{change.name}: {_brief(change.old)} → {_brief(change.new)}"
        for change in by_component.get("config", ())
    ]
    for component, words in (
        ("code", "code changed"),
        ("inputs", "inputs changed"),
        ("external", "data changed on disk"),
    ):
        if component in by_component:
            phrases.append(f"{words}: {_listed(by_component[component])}")
    return phrases + [f"{change.old} → {change.new}" for change in by_component.get("kind", ())]


def _differences(
    component: Component,
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    prefix: str = "",
    nested: bool = True,
) -> Iterator[Change]:
    for key in [*old, *(key for key in new if key not in old)]:
        before, after = old.get(key), new.get(key)
        if nested and isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _differences(component, before, after, f"{prefix}{key}.")
        elif before != after:
            yield Change(component, prefix + key, before, after)


def _inputs(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> Iterator[Change]:
    """Pair the inputs of both keys by their names; equal digests cancel out."""
    old_digests, new_digests = _by_name(old), _by_name(new)
    for name in [*new_digests, *(name for name in old_digests if name not in new_digests)]:
        before, after = old_digests.get(name, []), new_digests.get(name, [])
        removed = [digest for digest in before if digest not in after]
        added = [digest for digest in after if digest not in before]
        for pair in zip_longest(removed, added):
            yield Change("inputs", name, *pair)


def _by_name(inputs: list[dict[str, Any]]) -> dict[str, list[str]]:
    digests: dict[str, list[str]] = {}
    for entry in inputs:
        axes = entry.get("axes")
        name = f"{entry['kind']}[{','.join(axes.values())}]" if axes else str(entry["kind"])
        digests.setdefault(name, []).append(entry["digest"])
    return digests


def _listed(changes: list[Change]) -> str:
    names = [
        change.name + (" (new)" if change.old is None else " (gone)" if change.new is None else "")
        for change in changes
    ]
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _brief(value: object) -> str:
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."

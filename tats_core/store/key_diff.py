"""The differences between two stage keys, by component: why a stage runs although it ran before."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, zip_longest
from typing import Any, Final, Literal

Component = Literal["config", "code", "inputs", "external", "kind"]

_WORDS: Final[dict[Component, str]] = {
    "config": "",
    "code": "code changed",
    "inputs": "inputs changed",
    "external": "data changed on disk",
    "kind": "",
}
"""The components of a key, the most informative first, and how a change is called ("": each by its name)."""

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
    for component in _WORDS:
        if component not in new:
            continue
        before, after = old[component], new[component]
        if component == "inputs":
            changes += _inputs(before, after)
        elif component == "kind":
            changes += [Change("kind", "kind", before, after)] if before != after else []
        else:
            changes += _differences(component, before, after, nested=component == "config")
    return tuple(changes)


def in_words(changes: Iterable[Change]) -> list[str]:
    """Return a phrase for each changed key of the configuration, and one for each other component."""
    phrases = []
    for component, members in groupby(changes, lambda change: change.component):
        if component == "config":
            phrases += [
                f"{change.name}: {_brief(change.old, change.new)} → {_brief(change.new, change.old)}"
                for change in members
            ]
        elif component == "kind":
            phrases += [f"{change.old} → {change.new}" for change in members]
        else:
            phrases.append(f"{_WORDS[component]}: {_listed(list(members))}")
    return phrases


def _differences(
    component: Component, old: Mapping[str, Any], new: Mapping[str, Any], *, nested: bool, prefix: str = ""
) -> Iterator[Change]:
    for key in [*old, *(key for key in new if key not in old)]:
        before, after = old.get(key), new.get(key)
        if nested and isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _differences(component, before, after, nested=True, prefix=f"{prefix}{key}.")
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


def _brief(value: object, other: object) -> str:
    if value is None:  # what is off is not part of a key
        return "false" if other is True else "none"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."

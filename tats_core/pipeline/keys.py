"""The keys of stages: what decides whether an output can be reused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from pydantic import BaseModel

from tats_core.pipeline.graph import Instance
from tats_core.registry import Registry
from tats_core.specs import NotIdentity, identity
from tats_core.store import code
from tats_core.store.outputs import KeyInput, OwnComponents, StageKey, canonical


def stage_key(instance: Instance, inputs: Iterable[tuple[Instance, str]], pipeline: str) -> StageKey:
    """Return the key of `instance`, given each instance it reads with its output's digest.

    The names of stages and pipelines are not in it: two pipelines that do the same work share it. Only a
    stage that gathers is about its pipeline: it tells its inputs apart by their axes and names them as the
    sources of its numbers.
    """
    read: list[KeyInput] = []
    for source, digest in inputs:
        entry = KeyInput(kind=source.kind.name, digest=digest)
        if instance.kind.gathers:
            entry |= {"axes": dict(source.axes), "stage": source.name}
        read.append(entry)
    return StageKey({**own_components(instance, pipeline), "inputs": sorted(read, key=canonical)})


def own_components(instance: Instance, pipeline: str) -> OwnComponents:
    """Return the components of the key of `instance` that do not wait for its inputs."""
    kind = instance.kind
    return {
        "kind": f"{kind.name}/{kind.version}" + (f" of {pipeline}" if kind.gathers else ""),
        "config": identity(instance.config),
        "code": code_of(instance),
        "external": dict(kind.external(instance.config)),
    }


def code_of(instance: Instance) -> dict[str, str]:
    """Return module → digest of the code that can change the output of `instance`."""
    kind = instance.kind
    chosen = sorted(set(_chosen(instance.config)))
    return dict(code.digests((kind.__module__, *kind.code, *chosen)))


def _chosen(value: object) -> Iterator[str]:
    """Yield the modules of what a configuration chooses: those of its parts, and of members that it names."""
    if isinstance(value, BaseModel):
        yield type(value).__module__
        for name, field in type(value).model_fields.items():
            part = getattr(value, name)
            if NotIdentity not in field.metadata:
                yield from _chosen(part)
                names = part if isinstance(part, tuple) else (part,)
                registries = (mark for mark in field.metadata if isinstance(mark, Registry))
                yield from (registry.module(name) for registry in registries for name in names if name)
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _chosen(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _chosen(part)

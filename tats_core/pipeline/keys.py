"""The keys of stages: what decides whether an output can be reused."""

from __future__ import annotations

from collections.abc import Iterable

from tats_core.pipeline.graph import Instance
from tats_core.specs import identity
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
        "code": dict(code.digests((kind.__module__, *kind.code))),
        "external": dict(kind.external(instance.config)),
    }

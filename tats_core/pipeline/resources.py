"""CPUs and GPUs: how many exist, how many the stages of a run hold, how many are free."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tats_core.data.loaders import ClipOptions
from tats_core.errors import ResourceError
from tats_core.machine import available_cpus, available_gpus
from tats_core.pipeline.graph import Instance
from tats_core.pipeline.rehearse import Rehearsal


@dataclass(frozen=True)
class Resources:
    """A number of CPUs and a number of GPUs."""

    cpus: int
    gpus: int


class Pool:
    """The resources of a run; each running stage holds a share."""

    def __init__(self, total: Resources) -> None:
        self.total = total
        self._held: dict[str, Resources] = {}

    def fits(self, instance: Instance) -> bool:
        """Return whether enough is free for a stage."""
        share, held = self._share(instance), self._held.values()
        return (
            share.cpus + sum(part.cpus for part in held) <= self.total.cpus
            and share.gpus + sum(part.gpus for part in held) <= self.total.gpus
        )

    def take(self, instance: Instance) -> None:
        """Give a stage its share, even if less is free: a running stage is never stopped for another."""
        self._held[instance.name] = self._share(instance)

    def release(self, name: str) -> None:
        """Take back the share of a stage, if it has one."""
        self._held.pop(name, None)

    def _share(self, instance: Instance) -> Resources:
        """Return all that a stage can use, or all that exists."""
        spare = instance.kind.spare(instance.config)

        def most(least: int, total: int) -> int:
            return max(least, min(least + spare, total)) if least else 0

        cpus, gpus = _cpus(instance), instance.kind.gpus(instance.config)
        return Resources(most(cpus, self.total.cpus), most(gpus, self.total.gpus))


def available(instances: Sequence[Instance]) -> Resources:
    """Return the resources for stages that are to run.

    Raises:
        ResourceError: a stage needs more than exists; the message says how to ask for less.
    """
    total = capacity(any(instance.kind.gpus(instance.config) for instance in instances))
    for instance in instances:
        if _remote_decoders(instance) and not os.environ.get("RAY_ADDRESS"):
            raise ResourceError(
                f"{instance.name}: data.decode_on: cluster needs a Ray cluster; submit the run to one (tats "
                f"submit), or decode here (--set {instance.stage}.data.decode_on=worker)"
            )
        for name, needed, has in (
            ("CPU", _cpus(instance), total.cpus),
            ("GPU", instance.kind.gpus(instance.config), total.gpus),
        ):
            if needed > has:
                keys = ("workers", "test_workers", f"{name.lower()}s")
                key = next((key for key in keys if key in type(instance.config).model_fields), None)
                fewer = f"ask for fewer (--set {instance.stage}.{key}={has}) or " if has and key else ""
                raise ResourceError(
                    f"{instance.name} needs {needed} {name}s, but there are {has}; "
                    f"{fewer}use a larger machine"
                )
    return total


def _cpus(instance: Instance) -> int:
    return instance.kind.cpus(instance.config) + _remote_decoders(instance)


def _remote_decoders(instance: Instance) -> int:
    """The decoders of a stage that have CPUs of their own, anywhere in the cluster."""
    options = getattr(instance.config, "data", None)
    if not isinstance(options, ClipOptions) or options.decode_on == "worker":
        return 0
    kind, config = instance.kind, instance.config
    return options.decode_workers * (kind.gpus(config) or kind.cpus(config))


def for_rehearsal(instances: Iterable[Instance]) -> Rehearsal:
    """Return a rehearsal of `instances` on what this machine, or the cluster, has."""
    total = capacity(any(instance.kind.gpus(instance.config) for instance in instances))
    return Rehearsal(total.cpus, total.gpus)


def capacity(wants_gpu: bool) -> Resources:
    """Return what this machine has, or the Ray cluster of RAY_ADDRESS; starts no Ray."""
    if not os.environ.get("RAY_ADDRESS"):
        return Resources(available_cpus(), available_gpus() if wants_gpu else 0)
    from tats_core.launch import ray_train

    return Resources(*ray_train.capacity())

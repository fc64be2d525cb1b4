"""What a cluster is given to do: a pipeline or a sweep, and the files that travel with it.

The same description serves the machine that submits and the look from inside the cluster, which finds the
files in its working directory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from tats_core import specs
from tats_core.errors import SpecError
from tats_core.pipeline import graph
from tats_core.pipeline import spec as pipelines
from tats_core.pipeline.graph import Instance
from tats_core.specs import identity
from tats_core.store import code
from tats_core.sweep import spec as sweeps

Kind = Literal["pipeline", "sweep"]


@dataclass(frozen=True)
class Work:
    """One pipeline or sweep with its options."""

    kind: Kind
    name: str
    options: tuple[str, ...]
    """As they are typed, save for the project folder, which is the cluster's."""
    files: Mapping[str, Path]
    """Place below the job's working directory → file here."""
    stages: tuple[Instance, ...]
    """Every stage that may run, each configuration once."""
    facts: Any
    """What makes it another work, as plain values."""

    def identity(self, home: str | None = None) -> str:
        """Return `<name>-<key12>`: the same for the same work in the same project folder of the cluster.

        As in a stage's key, what changes only its speed does not count. What is read from outside does not
        either: it is the cluster's, and need not be visible here.
        """
        text = json.dumps({"home": home, self.kind: self.facts}, sort_keys=True, separators=(",", ":"))
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def described(self, home: str | None = None) -> list[str]:
        """Return the words that `load` understands, as a command line gives them."""
        return [self.kind, self.name, *self.options, *(("--home", home) if home else ())]

    def command(self, home: str | None = None) -> list[str]:
        """Return the command that does it, and goes on with what is there when it is called again."""
        if self.kind == "pipeline":
            return ["tats", "run", *self.described(home)]
        return ["tats", *self.described(home), "--continue"]


def load(
    kind: str,
    name: str,
    sets: Sequence[str] = (),
    *,
    samples: int | None = None,
    max_concurrent: int | None = None,
) -> Work:
    """Read what is to be done, and check all of it that can be checked here.

    Raises:
        SpecError: something in a file or an option is not valid.
    """
    if kind not in get_args(Kind):
        raise SpecError(f"'{kind}' is neither a pipeline nor a sweep")
    options = [word for text in sets for word in ("--set", text)]
    if kind == "pipeline":
        return _pipeline(name, sets, options)
    for option, value in (("--samples", samples), ("--max-concurrent", max_concurrent)):
        options += [option, str(value)] if value is not None else []
    return _sweep(sweeps.load(name, sets, samples=samples, max_concurrent=max_concurrent), options, name)


def _pipeline(name: str, sets: Sequence[str], options: list[str]) -> Work:
    loaded = pipelines.load(name, sets)
    stages = graph.build(loaded).instances.values()
    # The cluster may know a pipeline of this name; what runs there is the one that is meant here.
    files = {f"pipelines/{loaded.name}.yaml": specs.find("pipelines", name)}
    return Work("pipeline", loaded.name, tuple(options), files, tuple(stages), _facts(stages))


def _sweep(sweep: sweeps.Sweep, options: list[str], name: str) -> Work:
    base = specs.find("pipelines", sweep.pipeline)
    place = f"pipelines/{base.stem}.yaml"
    if sweep.pipeline not in (base.stem, place):
        raise SpecError(
            f"{sweep.where}: pipeline: {sweep.pipeline} cannot travel to a cluster; put it into pipelines/ "
            f"and name it {base.stem}"
        )
    files = {f"sweeps/{sweep.name}.yaml": specs.find("sweeps", name), place: base}
    stages: dict[str, Instance] = {}
    for point in sweep.points() or list(sweep.space.corners()):
        for one in graph.build(sweep.load(sweep.trials_of(point)[0].overrides)).instances.values():
            stages.setdefault(f"{one.name} {one.config.model_dump_json()}", one)
    common = graph.build(sweep.load({})).instances.values()
    facts = {"sweep": sweep.identity(), "stages": _facts(common)}
    return Work("sweep", sweep.name, tuple(options), files, tuple(stages.values()), facts)


def _facts(stages: Iterable[Instance]) -> dict[str, Any]:
    return {
        one.name: {
            "kind": f"{one.kind.name}/{one.kind.version}",
            "config": identity(one.config),
            "code": code.digests((one.kind.__module__, *one.kind.code)),
            "needs": list(one.needs),
        }
        for one in stages
    }

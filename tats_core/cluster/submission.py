"""A submission to a cluster: a pipeline or a sweep, and the files that travel with it.

The machine that submits and the preflight inside the cluster read the same description; the preflight finds
the files in its working directory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tats_core import specs
from tats_core.errors import SpecError
from tats_core.pipeline import graph, resources
from tats_core.pipeline import spec as pipelines
from tats_core.pipeline.graph import Instance
from tats_core.pipeline.keys import code_of
from tats_core.pipeline.spec import Pipeline
from tats_core.registry import plugins
from tats_core.specs import identity
from tats_core.sweep import engine
from tats_core.sweep import spec as sweeps

Kind = Literal["pipeline", "sweep"]


@dataclass(frozen=True)
class Submission:
    """One pipeline or sweep with its options."""

    kind: Kind
    name: str
    options: tuple[str, ...]
    """As on a command line, without the project folder, which is the cluster's."""
    files: Mapping[str, Path]
    """Path below the job's working directory → file here."""
    stages: tuple[Instance, ...]
    """Every stage that may run; each configuration once."""
    facts: Mapping[str, object]
    """What distinguishes this submission from others, as plain values."""

    @property
    def packages(self) -> dict[str, str]:
        """Name → version of the plugins that the stages use; they do not travel, the image must have them."""
        used = {module for stage in self.stages for module in code_of(stage)}
        return {package.name: package.version for package, point in plugins() if point.module in used}

    def identity(self, home: str | None = None) -> str:
        """Return `<name>-<key12>`: the same for the same work in the same project folder of the cluster.

        As in a stage's key, settings that change only the speed do not count. Neither do the data sets: they
        are the cluster's, and need not be visible here.
        """
        text = json.dumps({"home": home, self.kind: self.facts}, sort_keys=True, separators=(",", ":"))
        name = self.name + (specs.REHEARSAL if "--rehearse" in self.options else "")
        return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def words(self, home: str | None = None) -> list[str]:
        """Return kind, name and options as a command line gives them."""
        return [self.kind, self.name, *self.options, *(("--home", home) if home else ())]

    def command(self, home: str | None = None) -> list[str]:
        """Return the command that runs it, and resumes it when it is called again."""
        if self.kind == "pipeline":
            return ["tats", "run", *self.words(home)]
        return ["tats", *self.words(home), "--continue"]


def load(
    kind: Kind,
    name: str,
    sets: Sequence[str] = (),
    *,
    samples: int | None = None,
    max_concurrent: int | None = None,
    rehearse: bool = False,
) -> Submission:
    """Read the pipeline or sweep, and check everything that can be checked on this machine.

    Raises:
        SpecError: a file or an option is not valid.
    """
    options = [word for text in sets for word in ("--set", text)]
    for option, value in (("--samples", samples), ("--max-concurrent", max_concurrent)):
        if value is not None and kind == "pipeline":
            raise SpecError(f"{option} belongs to a sweep; leave it out")
        options += [option, str(value)] if value is not None else []
    options += ["--rehearse"] if rehearse else []
    if kind == "pipeline":
        pipeline = pipelines.load(name, sets)
        if rehearse:
            recipe = graph.build(pipeline).instances.values()
            pipeline = pipelines.load(name, sets, resources.for_rehearsal(recipe))
        return _pipeline(pipeline, options, name)
    sweep = sweeps.load(name, sets, samples=samples, max_concurrent=max_concurrent)
    return _sweep(engine.rehearsed(sweep) if rehearse else sweep, options, name)


def _pipeline(pipeline: Pipeline, options: list[str], name: str) -> Submission:
    stages = graph.build(pipeline).instances.values()
    # The cluster may have another pipeline of this name; the file that travels is the one that runs.
    file = specs.find("pipelines", name)
    files = _travelling(file)
    return Submission("pipeline", file.stem, tuple(options), files, tuple(stages), _facts(stages))


def _sweep(sweep: sweeps.Sweep, options: list[str], name: str) -> Submission:
    file = specs.find("pipelines", sweep.pipeline)
    if sweep.pipeline not in (file.stem, f"pipelines/{file.stem}.yaml"):
        raise SpecError(
            f"{sweep.source}: pipeline: {sweep.pipeline} cannot travel to a cluster; put it into pipelines/ "
            f"and name it {file.stem}"
        )
    file_of_sweep = specs.find("sweeps", name)
    files = {f"sweeps/{file_of_sweep.name}": file_of_sweep, **_travelling(file)}
    stages: dict[str, Instance] = {}
    for point in sweep.examples():
        for stage in graph.build(sweep.load(sweep.trials_of(point)[0].overrides)).instances.values():
            stages.setdefault(f"{stage.name} {stage.config.model_dump_json()}", stage)
    common = graph.build(sweep.load({})).instances.values()
    facts = {"sweep": sweep.identity(), "stages": _facts(common)}
    return Submission("sweep", file_of_sweep.stem, tuple(options), files, tuple(stages.values()), facts)


def _travelling(path: Path) -> dict[str, Path]:
    """Return path on the cluster → file, of a pipeline and of the pipelines that it is a variant of."""
    return {f"pipelines/{file.stem}.yaml": file for file in pipelines.lineage(path)}


def _facts(stages: Iterable[Instance]) -> dict[str, object]:
    return {
        stage.name: {
            "kind": f"{stage.kind.name}/{stage.kind.version}",
            "config": identity(stage.config),
            "code": code_of(stage),
            "needs": list(stage.needs),
        }
        for stage in stages
    }

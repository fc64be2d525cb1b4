"""A pipeline as people write it: one YAML file, its overrides, and the checks that need no stage kind.

::

    name: demo                         # must equal the file's name
    title: one sentence
    defaults: {model: vit_micro}       # given to every stage whose kind has that field
    notify: [{on: [failed], command: "mail -s $TATS_PIPELINE me@example.org"}]
    stages:
      data:     {kind: data, generate: {preset: demo}}
      pretrain: {kind: pretrain, needs: data, epochs: 12, retries: 1}
      finetune: {kind: finetune, needs: pretrain, matrix: {benchmark: [ssv2, ucf101]}}

`kind`, `needs`, `matrix` and `retries` belong to the engine; every other key is the stage kind's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from tats_core import specs
from tats_core.errors import SpecError, did_you_mean
from tats_core.pipeline.hooks import Hook
from tats_core.specs import StrictModel

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Stage:
    """One entry of `stages`, before its matrix is expanded; `config` is the stage kind's, not yet checked."""

    name: str
    kind: str
    needs: tuple[str, ...]
    matrix: Mapping[str, tuple[Any, ...]]
    retries: int
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Pipeline:
    """A pipeline whose file and overrides were read; `where` names the file in messages."""

    name: str
    title: str
    where: str
    defaults: Mapping[str, Any]
    stages: Mapping[str, Stage]
    overrides: tuple[str, ...] = ()
    notify: tuple[Hook, ...] = ()


def load(name: str, sets: Sequence[str] = ()) -> Pipeline:
    """Read pipeline `name` (or a path that ends in `.yaml`) with `stage.key=value` overrides on top.

    Raises:
        SpecError: no such pipeline, or something in the file or in an override is not valid.
    """
    path = specs.find("pipelines", name)
    where = shown(path)
    raw = specs.read(path)
    file = specs.validate(_File, _overridden(raw, sets), where)
    if file.name is not None and file.name != path.stem:
        raise SpecError(f"{where}: name is '{file.name}', but the file's name calls it '{path.stem}'")
    return Pipeline(
        name=path.stem,
        title=file.title,
        where=where,
        defaults=file.defaults,
        stages={stage: _stage(stage, entry, where) for stage, entry in file.stages.items()},
        overrides=tuple(sets),
        notify=file.notify,
    )


class _File(StrictModel):
    """The top level of the YAML file."""

    name: str | None = None
    title: str = ""
    defaults: dict[str, Any] = Field(default_factory=dict)
    notify: tuple[Hook, ...] = ()
    stages: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Scalar = str | int | float | bool


class _Head(StrictModel):
    """The keys of a stage that belong to the engine."""

    kind: str
    needs: Annotated[tuple[str, ...], BeforeValidator(_as_list)] = ()
    matrix: dict[str, Annotated[tuple[Scalar, ...], Field(min_length=1)]] = Field(default_factory=dict)
    retries: Annotated[int, Field(ge=0, le=10)] = 0


def _overridden(raw: dict[str, Any], sets: Sequence[str]) -> dict[str, Any]:
    stages = raw.get("stages")
    known = list(stages) if isinstance(stages, Mapping) else []
    for text in sets:
        (head, *rest), value = specs.parse_override(text)
        if head == "defaults" and rest:
            raw = specs.override(raw, ["defaults", *rest], value)
        elif head in known and rest:
            raw = specs.override(raw, ["stages", head, *rest], value)
        elif head in known or head == "defaults":
            raise SpecError(f"--set {text}: names no key of '{head}'; it must look like {head}.key=value")
        else:
            near = did_you_mean(head, [*known, "defaults"])
            raise SpecError(f"--set {text}: no stage named '{head}'{near}")
    return raw


def _stage(name: str, entry: Mapping[str, Any], where: str) -> Stage:
    if not _NAME.fullmatch(name) or name == "defaults":
        raise SpecError(f"{where}: '{name}' cannot name a stage; use letters, digits, '-' and '_'")
    engine = {key: value for key, value in entry.items() if key in _Head.model_fields}
    head = specs.validate(_Head, engine, where, prefix=name)
    config = {key: value for key, value in entry.items() if key not in _Head.model_fields}
    for axis, values in head.matrix.items():
        if axis in config:
            raise SpecError(f"{where}: {name}.{axis} is an axis of its matrix; set {name}.matrix.{axis}")
        if len({label(value) for value in values}) < len(values):
            raise SpecError(f"{where}: {name}.matrix.{axis} has the same value twice")
    return Stage(name, head.kind, head.needs, dict(head.matrix), head.retries, config)


def label(value: Scalar) -> str:
    """Return how a matrix value is written in the names of stages (as in YAML: `true`, not `True`)."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def shown(path: Path) -> str:
    """Return how a file is named in messages: as seen from the working directory, where it lies below."""
    try:
        return str(path.resolve().relative_to(Path.cwd().resolve()))
    except ValueError:
        return str(path)

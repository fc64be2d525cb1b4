"""A pipeline as its YAML file describes it, with overrides and the checks that need no stage kind.

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

A pipeline that differs from another in a few keys is a *variant*, and names only these::

    name: full_k400
    title: one sentence
    like: full_ssv2
    set: {pretrain.benchmark: kinetics400}     # as `--set`: stage.key, or defaults.key
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from tats_core import specs
from tats_core.errors import SpecError, did_you_mean
from tats_core.specs import NO_RESULT, REHEARSAL, StrictModel

if TYPE_CHECKING:  # at run time it would bring torch, which nothing here needs
    from tats_core.pipeline.rehearse import Rehearsal

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


Scalar = str | int | float | bool
Event = Literal["finished", "failed", "stopped", "stage_failed"]


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


class Hook(StrictModel):
    """A command and the events that call it."""

    on: Annotated[
        tuple[Event, ...],
        BeforeValidator(_as_list),
        Field(min_length=1, description="how a run ended, or `stage_failed`, which calls at once"),
    ] = ("finished", "failed", "stopped")
    command: str = Field(min_length=1, description="one line for the shell")


@dataclass(frozen=True)
class Stage:
    """One entry of `stages`, before its matrix is expanded; `config` is the stage kind's, not yet checked."""

    name: str
    kind: str
    needs: tuple[str, ...]
    matrix: Mapping[str, tuple[Scalar, ...]]
    retries: int
    config: Mapping[str, object]


@dataclass(frozen=True)
class Pipeline:
    """A pipeline whose file and overrides were read; `where` names the file in messages."""

    name: str
    title: str
    where: str
    defaults: Mapping[str, object]
    stages: Mapping[str, Stage]
    overrides: tuple[str, ...] = ()
    notify: tuple[Hook, ...] = ()
    rehearsal: Rehearsal | None = None
    """Every stage is scaled down; the name says so wherever a number of the run is shown."""


def load(name: str, sets: Sequence[str] = (), rehearsal: Rehearsal | None = None) -> Pipeline:
    """Read pipeline `name` (or a path that ends in `.yaml`) with `stage.key=value` overrides on top.

    Raises:
        SpecError: no such pipeline, or something in the file or in an override is not valid.
    """
    path = specs.find("pipelines", name)
    where = display_path(path)
    raw = read(path)
    for text in sets:
        raw = _override(raw, *specs.parse_override(text), f"--set {text}")
    file = specs.validate(File, raw, where)
    return Pipeline(
        name=path.stem + REHEARSAL if rehearsal else path.stem,
        title=f"{NO_RESULT}. {file.title}" if rehearsal else file.title,
        where=where,
        defaults=file.defaults,
        stages={stage: _stage(stage, entry, where) for stage, entry in file.stages.items()},
        overrides=tuple(sets),
        notify=file.notify,
        rehearsal=rehearsal,
    )


def read(path: Path) -> dict[str, Any]:
    """Return the content of a pipeline's file; of a variant, that of the file it is like, with its changes.

    Raises:
        SpecError: the file, or one that it is like, cannot be read; an unknown `like`, a circle, or a key of
            `set` that names no stage.
    """
    *variants, base = lineage(path)
    raw = specs.read(base)
    for file in reversed(variants):
        where = display_path(file)
        variant = specs.validate(Variant, specs.read(file), where)
        for key in specs.kinds_first(variant.set):
            raw = _override(raw, key.split("."), variant.set[key], f"{where}: set: {key}")
        raw |= {"name": variant.name, "title": variant.title}
        if variant.notify is not None:
            raw["notify"] = variant.notify
    return raw


def lineage(path: Path) -> list[Path]:
    """Return a pipeline's file, the file of the pipeline that it is like, and so on to a complete file.

    Raises:
        SpecError: as `read`.
    """
    files = [path]
    while "like" in (raw := specs.read(files[-1])):
        where = display_path(files[-1])
        variant = specs.validate(Variant, raw, where)
        _check_name(variant.name, files[-1])
        if variant.like not in (menu := specs.names("pipelines")):
            near = did_you_mean(variant.like, menu)
            raise SpecError(f"{where}: like: no pipeline named '{variant.like}'{near}")
        files.append(menu[variant.like])
        if files[-1].resolve() in {file.resolve() for file in files[:-1]}:
            circle = " → ".join(file.stem for file in files)
            raise SpecError(f"{where}: like: the pipelines are like each other in a circle: {circle}")
    _check_name(raw.get("name"), files[-1])
    return files


def _check_name(name: object, path: Path) -> None:
    if name is not None and name != path.stem:
        raise SpecError(f"{display_path(path)}: name is '{name}', but the file's name calls it '{path.stem}'")


class Variant(StrictModel):
    """The top level of the YAML file of a pipeline that is like another."""

    name: str | None = Field(None, description="that of the file, without .yaml")
    title: str = Field("", description="one line for `tats list`")
    like: str = Field(description="instead of `stages`: the pipeline whose stages and defaults it has")
    set: dict[str, object] = Field(
        default_factory=dict, description="STAGE.KEY or defaults.KEY → the value that it has here"
    )
    notify: object = Field(None, description="commands that are called instead of the other's")


class File(StrictModel):
    """The top level of the YAML file."""

    name: str | None = Field(None, description="that of the file, without .yaml")
    title: str = Field("", description="one line for `tats list`")
    defaults: dict[str, object] = Field(
        default_factory=dict, description="given to every stage whose kind has the key"
    )
    notify: tuple[Hook, ...] = Field((), description="commands that are called when the run ends")
    stages: dict[str, dict[str, object]] = Field(min_length=1, description="name → the keys of the stage")


class Head(StrictModel):
    """The keys of a stage that belong to the engine."""

    kind: str = Field(description="what the stage does")
    needs: Annotated[tuple[str, ...], BeforeValidator(_as_list)] = Field(
        (), description="the stages that must be finished before; what they need is at hand too"
    )
    matrix: dict[str, Annotated[tuple[Scalar, ...], Field(min_length=1)]] = Field(
        default_factory=dict,
        description="KEY → values: the stage runs once for each combination; a stage without a matrix "
        "follows the one that it needs",
    )
    retries: int = Field(0, ge=0, le=10, description="how often a failed stage is tried again")


def _override(raw: dict[str, Any], path: list[str], value: object, where: str) -> dict[str, Any]:
    """Return `raw` with one `stage.key` or `defaults.key` replaced; `where` opens the message of an error."""
    stages = raw.get("stages")
    names = list(stages) if isinstance(stages, Mapping) else []
    head, *keys = path
    if head not in (*names, "defaults"):
        raise SpecError(f"{where}: no stage named '{head}'{did_you_mean(head, [*names, 'defaults'])}")
    if not all(keys) or not keys:
        raise SpecError(f"{where}: names no key of '{head}'; it must look like {head}.key=value")
    return specs.override(raw, path if head == "defaults" else ["stages", *path], value)


def _stage(name: str, entry: Mapping[str, object], where: str) -> Stage:
    if not _NAME.fullmatch(name) or name == "defaults":
        raise SpecError(f"{where}: '{name}' cannot name a stage; use letters, digits, '-' and '_'")
    engine = {key: value for key, value in entry.items() if key in Head.model_fields}
    head = specs.validate(Head, engine, where, prefix=name)
    config = {key: value for key, value in entry.items() if key not in Head.model_fields}
    for axis, values in head.matrix.items():
        if axis in config:
            raise SpecError(f"{where}: {name}.{axis} is an axis of its matrix; set {name}.matrix.{axis}")
        if len({label(value) for value in values}) < len(values):
            raise SpecError(f"{where}: {name}.matrix.{axis} has the same value twice")
    return Stage(name, head.kind, head.needs, dict(head.matrix), head.retries, config)


def label(value: Scalar) -> str:
    """Return a matrix value as the names of stages show it (as in YAML: `true`, not `True`)."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def display_path(path: Path) -> str:
    """Return a path for messages: relative to the working directory, if it is below it."""
    try:
        return str(path.resolve().relative_to(Path.cwd().resolve()))
    except ValueError:
        return str(path)

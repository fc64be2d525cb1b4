"""`tats explain`: the keys of pipelines, stages, samplers and sweeps, from their configuration models."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tats_core.cli.options import write_file, writing
from tats_core.errors import SpecError, did_you_mean

if TYPE_CHECKING:
    from tats_core.report.reference import Key


@dataclass(frozen=True)
class Topic:
    """Something with keys; `name` is what a user types."""

    name: str
    title: str
    summary: str
    load: Callable[[], Iterable[Key]]
    measures: Mapping[str, Sequence[str]]
    """Names of what it measures, by what can be done with them."""

    @cached_property
    def keys(self) -> Sequence[Key]:
        """Its keys; a plugin is imported for them, and so only when it is asked for."""
        return list(self.load())


def explain(
    topic: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TOPIC",
            help="pipeline, stage KIND, sampler NAME, sweep, or a key: pretrain.optimizer, sweep.searcher.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write everything as Markdown pages into a folder.")
    ] = None,
) -> None:
    """Explain the keys of YAML files and of --set.

    A key has a type, a default, a meaning and an example. Without TOPIC, all topics are listed.
    """
    from tats_core.report import reference

    if out is not None:
        with writing(out, "--out"):
            out.mkdir(parents=True, exist_ok=True)
        for name, page in pages().items():
            write_file(out / name, page, "--out")
        return
    if not topic:
        typer.echo(_overview())
        return
    about, path = _find(topic)
    listed = [key for key in about.keys if not path or key.path == path or key.path.startswith(f"{path}.")]
    if not listed:
        raise SpecError(_unknown_key(about, path))
    if not path:
        typer.echo(f"{about.title}: {about.summary}\n")
    typer.echo(reference.as_text(listed))
    for what, names in about.measures.items():
        if names and not path:
            typer.echo(f"\n{what}: {', '.join(names)}")
    typer.echo(f"\nExample\n{_indented(_example(about, path, listed))}")


def _topics() -> Iterator[Topic]:
    from tats_core.pipeline.spec import File, Head, Variant
    from tats_core.report import reference
    from tats_core.sampling import SAMPLERS
    from tats_core.stages import KINDS
    from tats_core.sweep.spec import Sweep

    def stage_keys(kind: str) -> list[Key]:
        return [*reference.keys(Head), *reference.keys(KINDS[kind].Config)]

    def sampler_keys(kind: str) -> list[Key]:
        return list(reference.keys(SAMPLERS[kind]))

    like = [key for key in reference.keys(Variant) if key.name in ("like", "set")]
    top = "the top level of its file"
    yield Topic("pipeline", "A pipeline", top, lambda: [*reference.keys(File), *like], {})
    kinds = dict(KINDS.items())
    for name in KINDS:
        summary, measures = "", {}
        if name in kinds:  # else of a plugin that cannot be imported: its keys are refused with the reason
            kind = kinds[name]
            summary = (sys.modules[type(kind).__module__].__doc__ or "").strip().splitlines()[0].rstrip(".")
            measures["Numbers that a sweep can compare"] = sorted(kind.reports or ())
            measures["Curves, by which a sweep can stop a trial early"] = sorted(kind.curves)
        load = partial(stage_keys, name)
        yield Topic(f"stage {name}", f"The stage kind {name}", summary, load, measures)
    for name in SAMPLERS:
        package = SAMPLERS.distribution(name)
        summary = "the keys of `sampler` in a pre-training"
        summary += f", of the package {package.name} {package.version}" if package else ""
        load = partial(sampler_keys, name)
        yield Topic(f"sampler {name}", f"The sampler {name}", summary, load, {})
    yield Topic("sweep", "A sweep", top, lambda: reference.keys(Sweep), {})


def _find(words: Sequence[str]) -> tuple[Topic, str]:
    """Return the topic that the words of the command line name, and the key below it, "" for all."""
    topics = {topic.name: topic for topic in _topics()}
    # `stage pretrain.optimizer`, `pretrain.optimizer` and `sampler tats.ppo` name a key by dots.
    head, _, path = ".".join(words).partition(".")
    if head in ("stage", "sampler"):
        first, _, path = path.partition(".")
        head = f"{head} {first}"
    elif f"stage {head}" in topics:
        head = f"stage {head}"
    if head not in topics:
        group, _, name = head.partition(" ")
        members = [topic.removeprefix(f"{group} ") for topic in topics if topic.startswith(f"{group} ")]
        if members and not name:
            raise SpecError(f"explain which {group}? One of {', '.join(members)}")
        if members:
            raise SpecError(f"there is no {group} '{name}'{did_you_mean(name, members)}")
        known = [topic.removeprefix("stage ") for topic in topics if not topic.startswith("sampler ")]
        raise SpecError(f"nothing is called '{head}'{did_you_mean(head, [*known, 'stage', 'sampler'])}")
    return topics[head], path


def _unknown_key(topic: Topic, path: str) -> str:
    """Return the sentence that names the first unknown word of `path` and the nearest that is known."""
    known = {key.path for key in topic.keys}
    words = path.split(".")
    depth = next(count for count in range(1, len(words) + 1) if ".".join(words[:count]) not in known)
    above = ".".join(words[: depth - 1])
    siblings = {
        key.path.removeprefix(f"{above}." if above else "")
        for key in topic.keys
        if key.path.rpartition(".")[0] == above
    }
    owner = f"{topic.name}: {above}" if above else topic.name
    return f"{owner} has no key '{words[depth - 1]}'{did_you_mean(words[depth - 1], siblings)}"


def _example(topic: Topic, path: str, listed: Sequence[Key]) -> str:
    """Return YAML in which `path` stands: of the shipped menu, or with the default."""
    import yaml

    steps = path.split(".") if path else []
    for file, above, value in _shipped(topic):
        for step in steps:
            value = value.get(step) if isinstance(value, dict) else None
        if value is not None and (path or above != ["defaults"]):
            return f"# {file.parent.name}/{file.name}\n{_yaml([*above, *steps], value)}"
    group, _, name = topic.name.partition(" ")
    above = {"stage": ["stages", name], "sampler": ["stages", "pretrain", "sampler"]}.get(group, [])
    required = [key for key in listed if key.default == "required"]
    if group == "stage" and not path:
        return _yaml(above, {key.name: "…" for key in required if "." not in key.name} | {"kind": name})
    unset = ("", "required", "null", "[]", "{}", "''")
    leaf = next((key for key in listed if key.default not in unset), listed[0])
    value = "…" if leaf.default in unset else yaml.safe_load(leaf.default)
    parent = leaf.name.rpartition(".")[0]
    beside = [key.name.rpartition(".") for key in required if key is not leaf]
    needed = {key: "…" for of, _, key in beside if of == parent}
    steps = leaf.name.split(".")
    if needed and leaf.path != path:
        value = {steps.pop(): value, **needed}
    return _yaml([*above, *steps], value)


def _yaml(steps: Sequence[str], value: Any) -> str:
    """Return the value below its keys; `[]` at the end of a key stands for a list."""
    import yaml

    for step in reversed(steps):
        value = {step.removesuffix("[]"): [value] if step.endswith("[]") else value}
    # None: the innermost lists and mappings stand on one line each, here not the only one.
    flow = None if any(isinstance(part, list | dict) for part in value.values()) else False
    return yaml.safe_dump(value, sort_keys=False, default_flow_style=flow, allow_unicode=True, width=96)


def _shipped(topic: Topic) -> Iterator[tuple[Path, list[str], Any]]:
    """Yield each file of the menu, the path to the topic's keys in it, and the keys; the demos come first."""
    from tats_core import specs
    from tats_core.pipeline import spec

    group, _, name = topic.name.partition(" ")
    menu: specs.Menu = "sweeps" if group == "sweep" else "pipelines"
    # The last: a file of the working directory is somebody's own.
    folder = [folder for _, folder in specs.folders(menu) if folder.is_dir()][-1]
    for file in sorted(folder.glob("*.yaml"), key=lambda file: (not file.stem.startswith("demo"), file.stem)):
        if not name:
            yield file, [], specs.read(file)
            continue
        raw = spec.read(file)
        for stage, keys in raw["stages"].items():
            sampler = keys.get("sampler", {})
            if group == "stage" and keys["kind"] == name:
                yield file, ["stages", stage], keys
            elif group == "sampler" and sampler.get("kind") == name:
                yield file, ["stages", stage, "sampler"], sampler
        if group == "stage":
            yield file, ["defaults"], raw.get("defaults", {})


def _overview() -> str:
    topics = "\n".join(f"  tats explain {topic.name}" for topic in _topics())
    keys = "tats explain pretrain.optimizer, tats explain sweep.searcher"
    return f"What can be explained:\n{topics}\n\nAnd each key by its name: {keys}"


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.rstrip().splitlines())


# --- pages -----------------------------------------------------------------------------------------------


def pages() -> dict[str, str]:
    """Return file name → Markdown of docs/reference: a page for each topic, and one that lists them."""
    from tats_core.report import reference

    content = {}
    for topic in _topics():
        summary = f"{topic.summary[:1].upper()}{topic.summary[1:]}. `tats explain {topic.name}`"
        parts = [f"# {topic.title}", summary]
        parts.append(reference.as_markdown(topic.keys))
        for what, names in topic.measures.items():
            parts += [f"{what}: {', '.join(f'`{name}`' for name in names)}."] if names else []
        parts.append(f"```yaml\n{_example(topic, '', topic.keys).rstrip()}\n```")
        content[f"{topic.name.replace(' ', '-')}.md"] = "\n\n".join(part.strip() for part in parts) + "\n"
    links = [f"- [{name.removesuffix('.md').replace('-', ' ')}]({name})" for name in content]
    head = "# Keys\nWritten by `make docs` from the configuration models; `tats explain` prints the same.\n"
    return {"README.md": f"{head}\n" + "\n".join(links) + "\n", **content}

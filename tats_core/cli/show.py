"""`tats show`: one run, and where its numbers come from."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tats_core.cli.options import DEFAULT_HOME, AnyRun, Home, command_line, complete_stage

if TYPE_CHECKING:
    from tats_core.store.lineage import Link, Number
    from tats_core.store.run import RunRecord

SCHEMA = 1


def show(
    run: AnyRun,
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="WHAT",
            help="A number of the final table (ssv2/pretrained/top1, policy/motion_lift) or a stage.",
            autocompletion=complete_stage,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Show a run, and walk from its numbers back to checkpoints, configuration, code and data.

    All is read from the project folder and held against the digests that were written down there. With WHAT
    the weights are read too; without, of files beyond 1 MB only the size is compared.
    """
    from tats_core.store import history, lineage

    record = history.find(run, home.expanduser().absolute())
    number = None if what is None else lineage.find_number(record, what)
    ends = [number.report, number.source] if number else [what] if what else _last_stages(record)
    links = lineage.chain(record, ends, whole=what is not None)
    if number:
        links = _without_others(links, number)
    if as_json:
        typer.echo(json.dumps(_as_json(record, number, links, whole=what is None), indent=2))
        return
    if what is None:
        _print_run(record)
        _print_numbers(record)
    elif number:
        _print_number(number)
    _print_chain(record, links, whole=what is not None)


def _last_stages(record: RunRecord) -> list[str]:
    needed = {need for stage in record.stages.values() for need in stage.needs}
    return [name for name in record.stages if name not in needed]


def _without_others(links: list[Link], number: Number) -> list[Link]:
    """Return the report and what the number's own stage was made from: the report reads much else."""
    by_name = {link.stage: link for link in links}
    wanted = {number.report, number.source}
    for link in links:  # each comes before what it was made from
        if link.stage in wanted and link.stage != number.report:
            wanted.update(link.needs)
    return [link for name, link in by_name.items() if name in wanted]


# --- JSON ------------------------------------------------------------------------------------------------


def _as_json(record: RunRecord, number: Number | None, links: list[Link], *, whole: bool) -> dict[str, Any]:
    from dataclasses import asdict

    from tats_core.cli.runs import describe

    shown: dict[str, Any] = {"schema": SCHEMA, "run": describe(record) | _facts(record)}
    if whole:
        shown["stages"] = [asdict(stage) for stage in record.stages.values()]
        shown["numbers"] = [one.to_json() for one in _numbers(record)[0]]
    if number:
        shown["number"] = number.to_json()
    return shown | {"chain": [asdict(link) for link in links]}


def _facts(record: RunRecord) -> dict[str, Any]:
    from tats_core.cli import shown

    return {
        "folder": str(record.folder),
        "source": record.source,
        "overrides": record.overrides,
        "command": shown.again(record),
        "git_commit": record.git_commit,
        "tracking_uri": record.tracking_uri,
        "tracking_run": record.tracking_run,
    }


def _numbers(record: RunRecord) -> tuple[list[Number], str]:
    """Return the numbers of the final table, or none and why there are none."""
    from tats_core.errors import StoreError
    from tats_core.store import lineage

    try:
        return list(lineage.numbers(record).values()), ""
    except StoreError as error:
        return [], str(error)


# --- the run ---------------------------------------------------------------------------------------------


def _print_run(record: RunRecord) -> None:
    from tats_core.cli import shown

    state = record.state
    title = f": {record.title}" if record.title else ""
    shown.say(f"[bold]{shown.plain(record.id)}[/]{shown.plain(title)}")
    ended = f" after {shown.age(record.finished - record.started)}" if record.finished else ""
    facts = {
        "state": shown.state(state) + ended + (f": {shown.plain(record.error)}" if record.error else ""),
        "started": f"{shown.clock(record.started)}, {shown.age(time.time() - record.started)} ago",
        "command": shown.plain(shown.again(record)),
        "code": f"commit {record.git_commit}" if record.git_commit else "no git checkout",
        "folder": shown.plain(record.folder),
    }
    for name, text in facts.items():
        shown.say(f"{name:<8} {text}")
    typer.echo("")
    _print_stages(record)


def _print_stages(record: RunRecord) -> None:
    from tats_core.cli import shown
    from tats_core.cli.progress import duration

    rows = [
        [
            shown.plain(stage.name),
            shown.state(shown.stage_state(record, stage)),
            duration(stage.seconds) if stage.seconds else shown.DASH,
            str(stage.attempts or shown.DASH),
            (stage.key or shown.DASH)[:12],
            shown.plain(stage.error or stage.reason),
        ]
        for stage in record.stages.values()
    ]
    shown.table(
        ("stage", "state", "time", "attempts", "key", "why"), rows, right=("time", "attempts"), fold=("why",)
    )
    typer.echo(f"\nOutputs are in {Path(record.home) / 'stages'}, each in the folder KIND-KEY.")


def _print_numbers(record: RunRecord) -> None:
    from tats_core.cli import shown
    from tats_core.report.metrics import RESULTS

    found, why = _numbers(record)
    typer.echo("")
    if not found:
        typer.echo(why[:1].upper() + why[1:] + ".")
        return
    shown.say("[bold]Numbers of the final table[/]")
    headline = [one for one in found if one.metric in RESULTS or one.name.endswith("/motion_lift")]
    rows = [[shown.plain(one.name), _value(one), shown.plain(one.source)] for one in headline]
    shown.table(("number", "value", "measured by"), rows)
    first = headline[0] if headline else found[0]
    alone = command_line(["show", record.id, first.name], Path(record.home))
    typer.echo(f"\n{len(found)} numbers in all; one of them alone, with its weights checked: {alone}")
    for fault in dict.fromkeys(fault for one in found for fault in one.faults):
        shown.say(f"[bold red]does not fit:[/] {shown.plain(fault)}")


def _value(number: Number) -> str:
    if number.low is None or number.high is None:
        return f"{number.value:.4g}"
    clips = f", {number.clips} clips" if number.clips else ""
    return f"{number.value:.1f} (95%: {number.low:.1f}–{number.high:.1f}{clips})"


def _print_number(number: Number) -> None:
    from tats_core.cli import shown

    shown.say(f"[bold]{shown.plain(number.name)} = {_value(number)}[/]")
    shown.say(shown.plain(f"  stands in    {number.file}, {number.place}"))
    shown.say(shown.plain(f"  measured by  {number.source}: {number.source_file}, {number.metric}"))
    for fault in number.faults:
        shown.say(f"  [bold red]does not fit:[/] {shown.plain(fault)}")


# --- the chain -------------------------------------------------------------------------------------------


def _print_chain(record: RunRecord, links: Sequence[Link], *, whole: bool) -> None:
    from tats_core.cli import shown

    typer.echo("")
    shown.say("[bold]Made from[/] (each stage ← what it was made from)")
    shared = _shared(links)
    _print_settings("everywhere", shared)
    levels: dict[str, list[Link]] = {}
    for link in links:
        levels.setdefault(link.base, []).append(link)
    for depth, (base, level) in enumerate(levels.items()):
        kind = "" if base == level[0].kind else f" ({level[0].kind})"
        shown.say(f"\n{'← ' if depth else '  '}[bold]{shown.plain(base)}[/]{kind}")
        common = _common([link.settings for link in level])
        _print_settings("set", {key: value for key, value in common.items() if key not in shared})
        if whole:
            for link in level:
                _print_link(record, link)
        else:
            _print_level(record, level)
        _print_data(level, _used_data(links))
    _print_verdict(links, whole=whole)


def _print_level(record: RunRecord, level: Sequence[Link]) -> None:
    """Print one line a stage, and what made them above if that is the same for all."""
    from tats_core.cli import shown

    makers = {_maker(record, link) for link in level if link.run}
    if len(makers) == 1:
        shown.say(f"    made  by {makers.pop()}")
    wide = max(len(link.stage) for link in level)
    for link in level:
        files = ", ".join(f"{Path(kept.path).name} {kept.sha256[:12]}" for kept in link.files)
        words = [f"{link.stage:<{wide}}", (link.key or shown.DASH)[:12], shown.clock(link.made)]
        shown.say(f"    {shown.plain('  '.join(words))}  [dim]{shown.plain(files)}[/]")
        if len(makers) > 1 and link.run:
            shown.say(f"    {'':<{wide}}  by {_maker(record, link)}")
        _print_faults(link)


def _print_link(record: RunRecord, link: Link) -> None:
    """Print all that is known of one stage."""
    from tats_core.cli import shown

    shown.say(f"    stage {shown.plain(link.stage)}, key {link.key or shown.DASH}")
    if link.made is not None:
        shown.say(f"    made  {shown.clock(link.made)} by {_maker(record, link)}")
        shown.say(f"    in    {shown.plain(link.folder)}")
    for kept in link.files:
        name = Path(kept.path).name
        shown.say(f"    file  {shown.plain(name)} ({_bytes(kept.size)})  sha256 {kept.sha256}")
    _print_faults(link)


def _print_data(level: Sequence[Link], used: set[str]) -> None:
    from tats_core.cli import shown

    for one in (one for link in level for one in link.data if one.benchmark in used):
        told = f"{one.benchmark} {one.split}: {one.videos} videos, {one.classes} classes, digest"
        shown.say(f"    data  {shown.plain(told)} {one.digest[:12]}, in {shown.plain(one.root)}")


def _print_faults(link: Link) -> None:
    from tats_core.cli import shown

    for fault in link.faults:
        shown.say(f"    [bold red]does not fit:[/] {shown.plain(fault)}")


def _print_verdict(links: Sequence[Link], *, whole: bool) -> None:
    from tats_core.cli import shown

    typer.echo("")
    faults = sum(len(link.faults) for link in links)
    if faults:
        thing = "1 thing does" if faults == 1 else f"{faults} things do"
        shown.say(f"[bold red]{thing} not fit what was written down, see above.[/]")
        return
    sizes = "" if whole else ", sizes"
    digests = "the digests of all files named" if whole else "the digests of files up to 1 MB"
    shown.say(f"[green]Verified:[/] keys, inputs{sizes} and {digests} fit what was written down.")


def _maker(record: RunRecord, link: Link) -> str:
    from tats_core.cli import shown

    other = "" if link.run == record.id else f" (reused from {_origin(link, record)})"
    commit = f"commit {link.commit[:12]}" if link.commit else "commit unknown"
    return shown.plain(f"{link.run}{other}, {commit}, code {(link.code or '')[:12]}")


def _origin(link: Link, record: RunRecord) -> str:
    stage = "" if link.origin == link.stage else f"{link.origin} of "
    return f"{stage}that run" if link.pipeline == record.pipeline else f"{stage}pipeline {link.pipeline}"


def _print_settings(title: str, settings: Mapping[str, Any]) -> None:
    from tats_core.cli import shown

    if not settings:
        return
    words = [f"{key} {_brief(value)}" for key, value in settings.items()]
    start = f"    {title:<4}  "
    wide = shutil.get_terminal_size().columns if sys.stdout.isatty() else 110
    text = " · ".join(word.replace(" ", "\0") for word in words)
    for line in textwrap.wrap(text, wide, initial_indent=start, subsequent_indent=" " * len(start)):
        shown.say(f"[dim]{shown.plain(line.replace(chr(0), ' '))}[/]")


def _brief(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _common(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first, *rest = each
    return {
        key: value for key, value in first.items() if all(key in one and one[key] == value for one in rest)
    }


def _shared(links: Sequence[Link]) -> dict[str, Any]:
    """Return what several stages set, and all of those that set it alike: the pipeline's defaults."""
    bases: dict[str, set[str]] = {}
    values: dict[str, set[str]] = {}
    found: dict[str, Any] = {}
    for link in links:
        for key, value in link.settings.items():
            bases.setdefault(key, set()).add(link.base)
            values.setdefault(key, set()).add(_brief(value))
            found[key] = value
    return {key: found[key] for key in found if len(bases[key]) > 1 and len(values[key]) == 1}


def _used_data(links: Sequence[Link]) -> set[str]:
    """Return the data sets that the shown stages read; all of them where no stage names one."""
    named = {str(link.settings["benchmark"]) for link in links if "benchmark" in link.settings}
    return named or {one.benchmark for link in links for one in link.data}


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"

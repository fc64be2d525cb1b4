"""`tats show`: a run, and where its numbers come from."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tats_core.addresses import masked, masked_values
from tats_core.cli import printing
from tats_core.cli.options import DEFAULT_HOME, AnyRun, AsJson, Home, command_line, complete_stage
from tats_core.errors import StoreError
from tats_core.report.units import DASH, clock, duration, size

if TYPE_CHECKING:
    from rich.text import Text

    from tats_core.store.lineage import Link, Number
    from tats_core.store.run import Run, RunRecord

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
    as_json: AsJson = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Show a run and trace its numbers to their sources.

    The sources are checkpoints, configuration, code and data. Files are compared with the digests that were
    recorded when they were written; without WHAT, only the size of files above 1 MB is compared.
    """
    from tats_core.store import history, lineage
    from tats_core.store.run import Run

    opened = Run(history.find(run, home))
    number = None if what is None else lineage.find_number(opened, what)
    ends = [number.report, number.source] if number else [what] if what else _last_stages(opened.record)
    links = lineage.chain(opened, ends, whole=what is not None)
    if number:
        links = _without_others(links, number)
    if as_json:
        _print_json(opened, number, links, everything=what is None)
        return
    if what is None:
        _print_run(opened.record)
        _print_numbers(opened)
    elif number:
        _print_number(number)
    _print_chain(opened.record, links, detailed=what is not None)


def _last_stages(record: RunRecord) -> list[str]:
    needed = {need for stage in record.stages.values() for need in stage.needs}
    return [name for name in record.stages if name not in needed]


def _without_others(links: list[Link], number: Number) -> list[Link]:
    """Return only the report and what the number's stage was made from: the report reads much more."""
    wanted = {number.report, number.source}
    for link in links:  # each comes before what it was made from
        if link.stage in wanted and link.stage != number.report:
            wanted.update(link.needs)
    return [link for link in links if link.stage in wanted]


def _print_json(run: Run, number: Number | None, links: list[Link], *, everything: bool) -> None:
    from tats_core.cli.runs import overview

    record = run.record
    facts = {
        "folder": str(record.folder),
        "source": record.source,
        "overrides": masked_values(record.overrides),
        "command": printing.resume_command(record),
        "git_commit": record.git_commit,
        "tracking_uri": masked(record.tracking_uri) if record.tracking_uri else None,
        "tracking_run": record.tracking_run,
    }
    document: dict[str, object] = {"schema": SCHEMA, "run": asdict(overview(run)) | facts}
    if everything:
        document["stages"] = [asdict(stage) for stage in record.stages.values()]
        document["numbers"] = [asdict(entry) for entry in _numbers(run)[0]]
    if number:
        document["number"] = asdict(number)
    typer.echo(json.dumps(document | {"chain": [asdict(link) for link in links]}, indent=2))


def _numbers(run: Run) -> tuple[list[Number], str]:
    """Return the numbers of the final table, or none and why there are none."""
    from tats_core.store import lineage

    try:
        return list(lineage.numbers(run).values()), ""
    except StoreError as error:
        return [], str(error)


# --- the run ---------------------------------------------------------------------------------------------


def _print_run(record: RunRecord) -> None:
    printing.line((record.id, "bold"), f": {record.title}" if record.title else "")
    ended = f" after {duration(record.finished - record.started)}" if record.finished else ""
    error = f": {record.error}" if record.error else ""
    printing.line("state    ", printing.state(record.state), ended + error)
    printing.line(f"started  {clock(record.started)}, {duration(time.time() - record.started)} ago")
    printing.line(f"command  {printing.resume_command(record)}")
    code = f"commit {record.git_commit}" if record.git_commit else "not run from a git checkout"
    printing.line(f"code     {code}")
    printing.line(f"folder   {record.folder}\n")
    rows: list[list[str | Text]] = [
        [
            stage.name,
            # A stage that was running when its run was lost is lost with it.
            printing.state("lost" if stage.status == "running" and record.state == "lost" else stage.status),
            duration(stage.seconds) if stage.seconds else DASH,
            str(stage.attempts or DASH),
            (stage.key or DASH)[:12],
            stage.error or stage.reason,
        ]
        for stage in record.stages.values()
    ]
    columns = ("stage", "state", "time", "attempts", "key", "why")
    printing.table(columns, rows, right=("time", "attempts"), fold=("why",))
    typer.echo(f"\nOutputs are in {Path(record.home) / 'stages'}, each in the folder KIND-KEY.")


def _print_numbers(run: Run) -> None:
    from tats_core.report.metrics import RESULTS, declared

    numbers, why = _numbers(run)
    typer.echo("")
    if not numbers:
        typer.echo(why[:1].upper() + why[1:] + ".")
        return
    printing.line(("Numbers of the final table", "bold"))
    shown = {*RESULTS, *declared(run.results or {})}
    headline = [
        number for number in numbers if number.metric in shown or number.name.endswith("/motion_lift")
    ]
    rows = [[number.name, _value(number), number.source] for number in headline]
    printing.table(("number", "value", "measured by"), rows)
    example = (headline or numbers)[0].name
    command = command_line(["show", run.record.id, example], Path(run.record.home))
    typer.echo(f"\n{len(numbers)} numbers in all; to trace one and check its weights: {command}")
    _print_faults([fault for number in numbers for fault in number.faults], indent=0)


def _value(number: Number) -> str:
    if number.low is None or number.high is None:
        return f"{number.value:.4g}"
    clips = f", {number.clips} clips" if number.clips else ""
    return f"{number.value:.1f} (95%: {number.low:.1f}–{number.high:.1f}{clips})"


def _print_number(number: Number) -> None:
    printing.line((f"{number.name} = {_value(number)}", "bold"))
    printing.line(f"  stands in    {number.file}, {number.place}")
    printing.line(f"  measured by  {number.source}: {number.source_file}, {number.metric}")
    _print_faults(number.faults, indent=2)


# --- the chain -------------------------------------------------------------------------------------------


def _print_chain(record: RunRecord, links: Sequence[Link], *, detailed: bool) -> None:
    printing.line(("\nMade from", "bold"), " (each stage ← what it was made from)")
    shared = _shared(links)
    _print_settings("everywhere", shared)
    levels: dict[str, list[Link]] = {}
    for link in links:
        levels.setdefault(link.base, []).append(link)
    for depth, (base, level) in enumerate(levels.items()):
        kind = "" if base == level[0].kind else f" ({level[0].kind})"
        printing.line("\n", "← " if depth else "  ", (base, "bold"), kind)
        common = {
            key: value
            for key, value in level[0].settings.items()
            if key not in shared and all((key, value) in link.settings.items() for link in level)
        }
        _print_settings("set", common)
        if detailed:
            for link in level:
                _print_link(record, link)
        else:
            _print_level(record, level)
        _print_data(level, _used_data(links))
    _print_verdict(links, detailed=detailed)


def _print_level(record: RunRecord, level: Sequence[Link]) -> None:
    """Print a line for each stage, and the run that made them first if it is the same for all."""
    makers = {_maker(record, link) for link in level if link.run}
    if len(makers) == 1:
        printing.line(f"    made  by {makers.pop()}")
    width = max(len(link.stage) for link in level)
    for link in level:
        files = ", ".join(f"{Path(file.path).name} {file.sha256[:12]}" for file in link.files)
        stage = f"    {link.stage:<{width}}  {(link.key or DASH)[:12]}  {clock(link.made)}  "
        printing.line(stage, (files, "dim"))
        if len(makers) > 1 and link.run:
            printing.line(f"    {'':<{width}}  by {_maker(record, link)}")
        _print_faults(link.faults)


def _print_link(record: RunRecord, link: Link) -> None:
    """Print everything known about a stage."""
    printing.line(f"    stage {link.stage}, key {link.key or DASH}")
    if link.made is not None:
        printing.line(f"    made  {clock(link.made)} by {_maker(record, link)}")
        printing.line(f"    in    {link.folder}")
    for file in link.files:
        printing.line(f"    file  {Path(file.path).name} ({size(file.size)})  sha256 {file.sha256}")
    _print_faults(link.faults)


def _print_data(level: Sequence[Link], used: set[str]) -> None:
    for entry in (entry for link in level for entry in link.data if entry.benchmark in used):
        counts = f"{entry.videos} videos, {entry.classes} classes, digest {entry.digest[:12]}"
        printing.line(f"    data  {entry.benchmark} {entry.split}: {counts}, in {entry.root}")


def _print_faults(faults: Sequence[str], indent: int = 4) -> None:
    for fault in dict.fromkeys(faults):
        printing.line(" " * indent, ("does not match:", "bold red"), f" {fault}")


def _print_verdict(links: Sequence[Link], *, detailed: bool) -> None:
    faults = sum(len(link.faults) for link in links)
    if faults:
        things = "1 thing does" if faults == 1 else f"{faults} things do"
        printing.line((f"\n{things} not match the records, see above.", "bold red"))
        return
    sizes = "" if detailed else ", sizes"
    digests = "the digests of all files named" if detailed else "the digests of files up to 1 MB"
    printing.line(("\nVerified:", "green"), f" keys, inputs{sizes} and {digests} match the records.")


def _maker(record: RunRecord, link: Link) -> str:
    stage = "" if link.origin == link.stage else f"{link.origin} of "
    origin = "that run" if link.pipeline == record.pipeline else f"pipeline {link.pipeline}"
    other = "" if link.run == record.id else f" (reused from {stage}{origin})"
    commit = f"commit {link.commit[:12]}" if link.commit else "commit unknown"
    return f"{link.run}{other}, {commit}, code {(link.code or '')[:12]}"


def _print_settings(title: str, settings: Mapping[str, object]) -> None:
    if not settings:
        return
    words = [f"{key} {_text(value)}" for key, value in settings.items()]
    start = f"    {title:<4}  "
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 110
    text = " · ".join(word.replace(" ", "\0") for word in words)
    for line in textwrap.wrap(text, width, initial_indent=start, subsequent_indent=" " * len(start)):
        printing.line((line.replace("\0", " "), "dim"))


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _shared(links: Sequence[Link]) -> dict[str, object]:
    """Return the settings that several stages have and that are the same in all: the pipeline's defaults."""
    values: dict[str, list[tuple[str, object]]] = {}
    for link in links:
        for key, value in link.settings.items():
            values.setdefault(key, []).append((link.base, value))
    return {
        key: of_key[0][1]
        for key, of_key in values.items()
        if len({base for base, _ in of_key}) > 1 and len({_text(value) for _, value in of_key}) == 1
    }


def _used_data(links: Sequence[Link]) -> set[str]:
    """Return the data sets that the stages read; all data sets where no stage names any."""
    named = {str(link.settings["benchmark"]) for link in links if "benchmark" in link.settings}
    return named or {entry.benchmark for link in links for entry in link.data}

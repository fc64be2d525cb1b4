"""`tats run pipeline`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tats_core.cli.options import DEFAULT_HOME, Home, PipelineName, command_line, write_file
from tats_core.errors import RunError, SpecError

if TYPE_CHECKING:
    from tats_core.pipeline.records import Plan, RunRecord

STOPPED = 130  # what a shell expects of a command that was ended by Ctrl-C


class OnError(StrEnum):
    """What a failed stage does to the others."""

    stop = "stop"
    go_on = "continue"


def pipeline(
    name: PipelineName,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="STAGE.KEY=VALUE", help="Change a key; repeatable.")
    ] = None,
    show_plan: Annotated[bool, typer.Option("--plan", help="Say what would run and why, then stop.")] = False,
    graph: Annotated[
        str | None,
        typer.Option("--graph", metavar="FILE", help="Draw the plan as FILE.svg or .mmd (- for the screen)."),
    ] = None,
    from_stage: Annotated[
        str | None, typer.Option("--from", metavar="STAGE", help="Run this stage and all after it again.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="STAGE", help="Run this stage alone; repeatable.")
    ] = None,
    force: Annotated[
        list[str] | None,
        typer.Option("--force", metavar="STAGE", help="Run it though its output is there; repeatable."),
    ] = None,
    on_error: Annotated[
        OnError, typer.Option("--on-error", help="After a failure: stop, or go on with what can.")
    ] = OnError.stop,
    home: Home = DEFAULT_HOME,
) -> None:
    """Run a pipeline; what is finished already is reused, what was interrupted goes on."""
    from tats_core.cli import progress
    from tats_core.pipeline import runner, spec

    home = home.expanduser().absolute()
    loaded = spec.load(name, sets or [])
    if show_plan or graph is not None:
        if graph is not None:
            check_graph_file(graph)
        plan = runner.plan(loaded, home, force=force or (), only=only or (), from_stage=from_stage)
        if graph is not None:
            write_graph(plan, graph)
        if show_plan:
            typer.echo(plan_text(plan))
        return
    ui = progress.for_terminal()
    try:
        record = runner.run(
            loaded,
            home,
            force=force or (),
            only=only or (),
            from_stage=from_stage,
            on_error=on_error.value,
            ui=ui,
        )
    finally:
        ui.close()
    # --force and --from are left out: what they started goes on, it need not start again.
    words = ["run", "pipeline", name, *(word for text in sets or [] for word in ("--set", text))]
    words += [word for stage in only or [] for word in ("--only", stage)]
    _conclude(record, name, home, resume=command_line(words, home))


def plan_text(plan: Plan) -> str:
    """Return the plan for a terminal: one line a stage with what happens to it and why."""
    lines = [
        f"{plan.pipeline}: {len(plan.items)} stages, {plan.count('run')} to run, {plan.count('reuse')} reused"
    ]
    width = max((len(item.name) for item in plan.items), default=0)
    lines += [f"  {item.action:<5}  {item.name:<{width}}  {item.reason}".rstrip() for item in plan.items]
    return "\n".join(lines)


def check_graph_file(file: str) -> None:
    """Refuse a file that is neither a drawing nor Mermaid text.

    Raises:
        SpecError: another ending.
    """
    if file != "-" and Path(file).suffix not in (".svg", ".mmd"):
        raise SpecError(f"--graph {file}: must end in .svg (a drawing) or .mmd (Mermaid), or be - (Mermaid)")


def write_graph(plan: Plan, file: str) -> None:
    """Draw what would run and what would be reused, as the file's ending says; `-` prints Mermaid."""
    from tats_core.report import graph

    nodes = graph.fold(
        graph.Instance(item.name, item.stage, item.kind, item.needs, item.action) for item in plan.items
    )
    if file == "-":
        typer.echo(graph.mermaid(nodes), nl=False)
        return
    title = f"plan of {plan.pipeline}: what would run, and what each stage needs"
    drawn = graph.svg(nodes, title=title, standalone=True) if file.endswith(".svg") else graph.mermaid(nodes)
    write_file(Path(file).expanduser().absolute(), drawn, option="--graph")


def _conclude(record: RunRecord, name: str, home: Path, resume: str) -> None:
    """Print the results, or how to go on; a run that did not finish ends with an exit code."""
    from tats_core.cli.results import print_results, read_results

    if record.status == "stopped":
        typer.echo(f"Stopped; what is done is kept. Go on with: {resume}")
        raise typer.Exit(STOPPED)
    if record.status == "failed":
        raise RunError(f"{record.error or 'a stage failed'}; what is done is kept, go on with: {resume}")
    found = read_results(record)
    if found is None:
        return
    typer.echo("")
    print_results(found)
    typer.echo("\nWhere to look next")
    page = record.folder / "report.html"
    for what, where in (
        *([("all of it on one page", str(page))] if page.exists() else []),
        ("curves and pictures", command_line(["ui"], home)),
        ("this table again", command_line(["results", name], home)),
        ("table and figures as files", str(record.outputs("report")[-1])),
    ):
        typer.echo(f"  {what:<27} {where}")

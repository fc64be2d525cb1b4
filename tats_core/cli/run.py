"""`tats run pipeline`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tats_core.addresses import masked
from tats_core.cli.options import (
    DEFAULT_HOME,
    INTERRUPTED,
    Home,
    PipelineName,
    command_line,
    repeated,
    write_file,
)
from tats_core.errors import RunError, SpecError, TatsError

if TYPE_CHECKING:
    from tats_core.pipeline.plan import Options, Plan
    from tats_core.store.run import RunRecord


def pipeline(
    name: PipelineName,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="STAGE.KEY=VALUE", help="Change a key of a stage, see tats explain; repeatable."
        ),
    ] = None,
    show_plan: Annotated[
        bool, typer.Option("--plan", help="Print which stages would run and why, and run nothing.")
    ] = False,
    graph: Annotated[
        str | None,
        typer.Option(
            "--graph",
            metavar="FILE",
            help="Draw the plan as an .svg or .mmd (Mermaid) file; - prints Mermaid.",
        ),
    ] = None,
    from_stage: Annotated[
        str | None,
        typer.Option("--from", metavar="STAGE", help="Run this stage and all that depend on it again."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="STAGE", help="Run only this stage; repeatable.")
    ] = None,
    force: Annotated[
        list[str] | None,
        typer.Option(
            "--force", metavar="STAGE", help="Run this stage even if its output exists; repeatable."
        ),
    ] = None,
    fork: Annotated[
        str | None,
        typer.Option(
            "--fork",
            metavar="RUN:STAGE@STEP",
            help="Start this stage from another run's checkpoint at a step, with the settings given here.",
        ),
    ] = None,
    on_error: Annotated[
        Literal["stop", "continue"],
        typer.Option(
            "--on-error",
            help="After a failure: stop, or continue with the stages that do not need the failed one.",
        ),
    ] = "stop",
    notify: Annotated[
        str | None,
        typer.Option(
            "--notify",
            metavar="COMMAND",
            envvar="TATS_NOTIFY",
            help="A command to run when the run has ended.",
        ),
    ] = None,
    grace: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="SECONDS",
            envvar="TATS_GRACE",
            help="After SIGTERM, wait so long for the next checkpoints; default: as long as they take.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per line (docs/json.md).")
    ] = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Run a pipeline. Finished stages are reused, and interrupted stages resume from their checkpoints."""
    from tats_core.cli import progress
    from tats_core.pipeline import runner, spec

    if fork is not None:
        from tats_core.store import forks

        sets = [*(sets or []), forks.override(fork, home)]
    # Without --force and --from: the stages that they started resume and need not start again.
    words = [*repeated("--set", sets), *repeated("--only", only)]
    resume = command_line(["run", "pipeline", name, *words], home)
    ui = progress.JsonUI(resume) if as_json else progress.for_terminal()
    choice: Options = {"force": force or (), "only": only or (), "from_stage": from_stage}
    try:
        loaded = spec.load(name, sets or [])
        if notify:
            loaded = replace(loaded, notify=(*loaded.notify, spec.Hook(command=notify)))
        if show_plan or graph is not None:
            if graph is not None:
                _check_graph_file(graph)
            plan = runner.plan(loaded, home, **choice)
            if graph is not None:
                _write_graph(plan, graph)
            if show_plan and isinstance(ui, progress.JsonUI):
                ui.plan(plan)
            elif show_plan:
                _print_plan(plan)
            return
        record = runner.run(loaded, home, **choice, on_error=on_error, grace=grace, ui=ui)
    except TatsError as error:
        if not isinstance(ui, progress.JsonUI):
            raise
        ui.error(masked(str(error)))
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt:
        ui.close()
        text = f"Stopped at once; checkpoints and finished stages are saved. Resume with: {resume}"
        typer.echo(text, err=as_json)
        raise typer.Exit(INTERRUPTED) from None
    finally:
        ui.close()
    if as_json:
        failed = TatsError if record.refused else RunError
        raise typer.Exit({"finished": 0, "stopped": INTERRUPTED}.get(record.status, failed.exit_code))
    _conclude(record, name, home, resume)


def _print_plan(plan: Plan) -> None:
    from rich.console import Console

    from tats_core.cli.plan import plan_tree

    console = Console(highlight=False)
    for part in plan_tree(plan):
        console.print(part)


def _check_graph_file(file: str) -> None:
    if file != "-" and Path(file).suffix not in (".svg", ".mmd"):
        raise SpecError(f"--graph {file}: must end in .svg (a drawing) or .mmd (Mermaid), or be - (Mermaid)")


def _write_graph(plan: Plan, file: str) -> None:
    from tats_core.report import graph

    nodes = graph.fold(
        graph.Instance(item.name, item.stage, item.kind, item.needs, item.action) for item in plan.items
    )
    if file == "-":
        typer.echo(graph.mermaid(nodes), nl=False)
        return
    title = f"plan of {plan.pipeline}: what would run, and what each stage needs"
    drawing = (
        graph.svg(nodes, title=title, standalone=True) if file.endswith(".svg") else graph.mermaid(nodes)
    )
    write_file(Path(file).expanduser().absolute(), drawing, option="--graph")


def _conclude(record: RunRecord, name: str, home: Path, resume: str) -> None:
    """Print the results, or the command that resumes the run; exit with its code if it did not finish."""
    from tats_core.cli.results import print_results
    from tats_core.store.run import Run

    if record.status == "stopped":
        typer.echo(f"Stopped; finished work is saved. Resume with: {resume}")
        raise typer.Exit(INTERRUPTED)
    if record.status == "failed":
        failed = TatsError if record.refused else RunError
        raise failed(f"{record.error or 'a stage failed'}; finished work is saved, resume with: {resume}")
    table = Run(record).results
    if table is None:
        return
    typer.echo("")
    print_results(table)
    typer.echo("\nNext")
    page = record.folder / "report.html"
    for what, command in (
        *([("report with curves, as a page", str(page))] if page.exists() else []),
        ("curves and pictures", command_line(["ui"], home)),
        ("this table again", command_line(["results", name], home)),
        ("table and figures as files", str(record.outputs("report")[-1])),
    ):
        typer.echo(f"  {what:<27} {command}")

"""`tats run pipeline`."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from tats_core.addresses import masked
from tats_core.cli.options import (
    DEFAULT_HOME,
    INTERRUPTED,
    Home,
    PipelineName,
    Rehearse,
    command_line,
    rehearsals,
    repeated,
    write_file,
)
from tats_core.errors import DataError, ResourceError, RunError, SpecError, TatsError

if TYPE_CHECKING:
    from tats_core.pipeline.plan import Options, Plan
    from tats_core.pipeline.spec import Pipeline
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
    rehearse: Rehearse = False,
    show_estimate: Annotated[
        bool,
        typer.Option("--estimate", help="Print what each stage would cost, and run nothing."),
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="With --estimate: time three real steps of each training here.")
    ] = False,
    gpu: Annotated[
        Literal["a100", "h100", "h200"] | None,
        typer.Option(help="With --estimate: the GPU that is meant; default: h100."),
    ] = None,
    share: Annotated[
        float | None,
        typer.Option(
            min=0.01, max=1, help="With --estimate: the share of its peak that steps reach; default: 0.3."
        ),
    ] = None,
    price: Annotated[
        float | None, typer.Option(min=0, help="With --estimate: the price of an hour of one GPU.")
    ] = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Run a pipeline. Finished stages are reused, and interrupted stages resume from their checkpoints."""
    from tats_core.cli import progress
    from tats_core.pipeline import graph as graphs
    from tats_core.pipeline import resources, runner, spec

    if fork is not None:
        from tats_core.store import forks

        try:
            sets = [*(sets or []), forks.override(fork, home)]
        except TatsError as error:
            _raise(error, as_json)
    # Without --force and --from: the stages that they started resume and need not start again.
    words = [*repeated("--set", sets), *repeated("--only", only)]
    command = ["run", "pipeline", name, *words]
    resume = command_line([*command, *(["--rehearse"] if rehearse else [])], home)
    home = rehearsals(home) if rehearse else home
    ui = progress.JsonUI(resume) if as_json else progress.for_terminal()
    choice: Options = {"force": force or (), "only": only or (), "from_stage": from_stage}
    try:
        asked = {"--measure": measure or None, "--gpu": gpu, "--share": share, "--price": price}
        idle = [option for option, value in asked.items() if value is not None]
        if idle and not (show_estimate or (show_plan and not measure)):
            raise SpecError(f"{idle[0]} does nothing without --estimate; add that, or leave {idle[0]} out")
        loaded = spec.load(name, sets or [])
        if rehearse:
            recipe = graphs.build(loaded)
            loaded = spec.load(name, sets or [], resources.for_rehearsal(recipe.instances.values()))
        if notify:
            loaded = replace(loaded, notify=(*loaded.notify, spec.Hook(command=notify)))
        if show_estimate:
            _print_estimate(loaded, gpu, share, price, measured=measure, as_json=as_json)
            return
        if show_plan or graph is not None:
            from rich.console import Console

            from tats_core.cli.plan import plan_tree

            if graph is not None:
                _check_graph_file(graph)
            plan = runner.plan(loaded, home, **choice)
            if graph is not None:
                _write_graph(plan, graph)
            if show_plan and isinstance(ui, progress.JsonUI):
                ui.plan(plan)
            elif show_plan:
                Console(highlight=False).print(plan_tree(plan))
                if any(stage.kind.gpus(stage.config) for stage in graphs.build(loaded).instances.values()):
                    typer.echo("")
                    _print_estimate(loaded, gpu, share, price)
            return
        try:
            record = runner.run(loaded, home, **choice, on_error=on_error, grace=grace, ui=ui)
        except (DataError, ResourceError) as error:
            if rehearse:
                raise
            hint = command_line([*command, "--rehearse"], home)
            raise type(error)(f"{error}\nto see it work here: {hint}") from error
    except TatsError as error:
        _raise(error, as_json)
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
    _conclude(record, loaded.name, home, resume)
    if rehearse:
        from tats_core.pipeline import exercised
        from tats_core.store.run import Run

        typer.echo("\nWhat the rehearsal exercised")
        typer.echo(exercised.table(Run(record), recipe, record).text())


def _raise(error: TatsError, as_json: bool) -> NoReturn:
    """End the command with an error: in a sentence, or as an event of `--json`."""
    if not as_json:
        raise error
    from tats_core.cli.progress import print_event

    print_event("error", message=masked(str(error)))
    raise typer.Exit(error.exit_code) from error


def _print_estimate(
    pipeline: Pipeline,
    gpu: Literal["a100", "h100", "h200"] | None,
    share: float | None,
    price: float | None,
    *,
    measured: bool = False,
    as_json: bool = False,
) -> None:
    from tats_core.pipeline import estimate, graph

    gpu, share = gpu or "h100", share or 0.3
    costs = estimate.of(graph.build(pipeline), estimate.GPUS[gpu], share, measured=measured)
    if as_json:
        from tats_core.cli.progress import print_event

        print_event("estimate", stages=[asdict(cost) for cost in costs])
        return
    typer.echo(f"Estimate, where steps reach {share:.0%} of the peak of {gpu}s:")
    typer.echo(estimate.table(costs, price).text())
    for note in estimate.notes(costs):
        typer.echo(note)


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

"""The command `tats`. Each command imports its engine when it is called: `tats --help` needs no torch."""

from __future__ import annotations

import io
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tats_core import __version__
from tats_core.addresses import masked
from tats_core.cli import (
    compare,
    data,
    doctor,
    gc,
    logs,
    models,
    report,
    results,
    run,
    runs,
    show,
    stop,
    submit,
    sweep,
    sync,
    ui,
    visualise,
)
from tats_core.errors import SpecError, TatsError

_ORDER = (
    "run", "sweep", "submit", "jobs", "list", "runs", "show", "logs", "stop", "results", "compare", "report",
    "ui", "visualise", "predict", "export", "weights", "data", "doctor", "sync", "gc",
)  # fmt: skip


class _Root(TyperGroup):
    """Lists the commands in the order of their use; Typer would list groups last."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(self.commands, key=_ORDER.index)


class _RunGroup(TyperGroup):
    """Recognises `tats run demo`, which lacks the word "pipeline"."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        from tats_core import specs

        if args and args[0] not in self.commands and args[0] in specs.names("pipelines"):
            raise SpecError(
                f"'tats run {args[0]}' is incomplete; did you mean 'tats run pipeline {args[0]}'?"
            )
        return super().resolve_command(ctx, args)


_PLAIN: dict[str, Any] = {"no_args_is_help": True, "rich_markup_mode": None}  # rich would cost 0.1 s a call

app = typer.Typer(
    name="tats",
    cls=_Root,
    help="Masked video modelling with a learned token sampler: pre-train, fine-tune, evaluate, compare.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    **_PLAIN,
)
run_app = typer.Typer(
    cls=_RunGroup, help="Run a pipeline here, or on the Ray cluster of RAY_ADDRESS.", **_PLAIN
)
data_app = typer.Typer(help="Generate and check video data sets.", **_PLAIN)

app.add_typer(run_app, name="run")
run_app.command("pipeline")(run.pipeline)
app.command("sweep")(sweep.sweep)
app.command("submit", no_args_is_help=True)(submit.submit)
app.command("jobs")(submit.jobs)
app.command("list")(results.list_pipelines)
app.command("runs")(runs.runs)
app.command("show")(show.show)
app.command("logs")(logs.logs)
app.command("stop")(stop.stop)
app.command("results")(results.results)
app.command("compare")(compare.compare)
app.command("report")(report.report)
app.command("ui")(ui.ui)
app.command("visualise")(visualise.visualise)
app.command("predict")(models.predict)
app.command("export")(models.export)
app.command("weights")(models.weights)
app.add_typer(data_app, name="data")
data_app.command("generate")(data.generate)
data_app.command("check")(data.check)
app.command("doctor")(doctor.doctor)
app.command("sync")(sync.sync)
app.command("gc")(gc.gc)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tats {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; a `TatsError` becomes one sentence on stderr and its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may lack some letters
    try:
        app(prog_name="tats")
    except TatsError as error:
        for line in masked(str(error)).splitlines():  # a line for each problem
            typer.echo(f"tats: {line}", err=True)
        sys.exit(error.exit_code)

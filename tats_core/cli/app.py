"""The command `tats`. Each command imports its engine when it is called: `tats --help` needs no torch."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from types import FunctionType
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from tats_core import __version__
from tats_core.addresses import masked
from tats_core.errors import SpecError, TatsError, did_you_mean
from tats_core.registry import Registry

_SHIPPED = {
    "run pipeline": "run.pipeline",
    "sweep": "sweep.sweep",
    "submit": "submit.submit",
    "jobs": "submit.jobs",
    "list": "results.list_pipelines",
    "explain": "explain.explain",
    "runs": "runs.runs",
    "show": "show.show",
    "logs": "logs.logs",
    "stop": "stop.stop",
    "results": "results.results",
    "compare": "compare.compare",
    "report": "report.report",
    "ui": "ui.ui",
    "visualise": "visualise.visualise",
    "predict": "models.predict",
    "export": "models.export",
    "weights": "models.weights",
    "replay": "replay.replay",
    "data generate": "data.generate",
    "data index": "data.index",
    "data check": "data.check",
    "data shrink": "data.shrink",
    "data pack": "data.pack",
    "doctor": "doctor.doctor",
    "sync": "sync.sync",
    "gc": "gc.gc",
}
"""Words of a command → the function of this package that it calls, in the order of their use."""

COMMANDS: Final[Registry[Callable[..., None]]] = Registry(
    "command",
    "tats.commands",
    FunctionType,
    {words: f"{__package__}.{function.replace('.', ':')}" for words, function in _SHIPPED.items()},
)
"""The functions behind the words of a command: `tats WORD` or `tats GROUP WORD`."""


class _Group(TyperGroup):
    """Imports a command when it is called or its help is asked for; names the nearest for an unknown one."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the commands in the order of their use."""
        above = self._words(ctx)
        listed = [words.split() for words in COMMANDS]
        return list(dict.fromkeys(words[len(above)] for words in listed if words[: len(above)] == above))

    def get_command(self, ctx: Any, name: str) -> Any:
        """Return a command of this group, or a group; None where there is no such name."""
        words = " ".join([*self._words(ctx), name])
        if words in COMMANDS:
            single = typer.Typer(name=name, add_completion=False, rich_markup_mode=None)
            single.command(name)(_callable(words))
            return typer.main.get_command(single)
        if name in self.list_commands(ctx):
            text = _GROUPS.get(name, f"Commands of {name}.")
            group = typer.Typer(name=name, cls=_Group, help=text, add_completion=False, **_PLAIN)
            group.callback()(lambda: None)
            return typer.main.get_command(group)
        return None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Refuse an unknown command, `tats run demo` too, which lacks the word "pipeline"."""
        known = self.list_commands(ctx)
        if args and args[0] not in known and not args[0].startswith("-"):
            from tats_core import specs

            name = args[0]
            if self.name == "run" and name in specs.names("pipelines"):
                raise SpecError(f"'tats run {name}' is incomplete; did you mean 'tats run pipeline {name}'?")
            raise SpecError(f"'{ctx.command_path}' has no command '{name}'{did_you_mean(name, known)}")
        return super().resolve_command(ctx, args)

    def _words(self, ctx: Any) -> list[str]:
        return [] if ctx.parent is None else [str(self.name)]


_PLAIN: dict[str, Any] = {"no_args_is_help": True, "rich_markup_mode": None}  # rich would cost 0.1 s a call
_GROUPS = {
    "run": "Run a pipeline here, or on the Ray cluster of RAY_ADDRESS.",
    "data": "Generate, index, check, shrink and pack video data sets.",
}

app = typer.Typer(
    name="tats",
    cls=_Group,
    help="Masked video modelling with a learned token sampler: pre-train, fine-tune, evaluate, compare.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    **_PLAIN,
)


def _callable(words: str) -> Callable[..., None]:
    """Return the function of a command; for a broken plugin, a stub whose help and call say why."""
    try:
        return COMMANDS[words]
    except SpecError as error:
        broken = error

    def command() -> None:
        raise broken

    command.__doc__ = f"Not usable: {broken}."
    return command


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
    """Run the command line; an error becomes one sentence on stderr and its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may lack some letters
    try:
        sys.exit(app(prog_name="tats", standalone_mode=False) or 0)
    except TatsError as error:
        code, text = error.exit_code, masked(str(error))
    except TyperException as error:
        code, text = error.exit_code, masked(_wrong_usage(error))
    for line in text.splitlines():  # a line for each problem
        typer.echo(f"tats: {line}", err=True)
    sys.exit(code)


def _wrong_usage(error: TyperException) -> str:
    """Return what is wrong with the words of the command line, and the nearest that would be right."""
    text, context = error.format_message(), getattr(error, "ctx", None)
    if context is None:
        return text
    command: str = context.command_path
    if text == context.get_help():  # nothing follows a command that needs something
        typer.echo(text, err=True)
        return ""
    text = text.replace("Value error, ", "").replace("Input should be", "must be").rstrip(".")
    text = re.sub(", unable to parse .*", "", text)
    text, near = f"{text[:1].lower()}{text[1:]}", ""
    if text.startswith("no such option"):
        option = str(vars(error)["option_name"])
        names = {name for parameter in context.command.params for name in parameter.opts}
        text = f"no option '{option}'"
        near = did_you_mean(option, {"--help", *(name for name in names if name.startswith("--"))})
    elif " is not one of " in text:
        wrong, *choices = re.findall(r"'([^']*)'", text.rpartition(": ")[2])
        near = did_you_mean(wrong, choices)
        near = near if near.endswith("?") else ""
    where = command.removeprefix("tats").strip()
    return f"{where}{where and ': '}{text}{near or f'; see {command} --help'}"

"""Options that several commands share."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tats_core.errors import StoreError

if TYPE_CHECKING:
    from tats_core.specs import Menu

DEFAULT_HOME = Path(".tats")


def _expanded(home: Path) -> Path:
    try:
        return home.expanduser()
    except RuntimeError as error:  # no such user, or one without a home
        raise StoreError(f"--home {home}: '~' stands for no folder here; give the whole path") from error


Home = Annotated[
    Path,
    typer.Option(
        "--home",
        envvar="TATS_HOME",
        callback=_expanded,
        help="Project folder: results, checkpoints, tracking.",
        show_default=True,
    ),
]


def complete_pipeline(incomplete: str) -> list[str]:
    """Return the pipeline names that start with `incomplete`, for the shell's completion."""
    return _on_menu("pipelines", incomplete)


def complete_sweep(incomplete: str) -> list[str]:
    """Return the sweeps whose names start with `incomplete`, for the shell's completion."""
    return _on_menu("sweeps", incomplete)


def _on_menu(menu: Menu, incomplete: str) -> list[str]:
    from tats_core import specs

    return [name for name in specs.names(menu) if name.startswith(incomplete)]


PipelineName = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="A name of `tats list`, or a .yaml file.", autocompletion=complete_pipeline
    ),
]


SweepName = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="A sweep of `tats list`, or a .yaml file.", autocompletion=complete_sweep
    ),
]

RunName = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A pipeline (its newest finished run), a run's id or its beginning, or a model's folder.",
        autocompletion=complete_pipeline,
    ),
]

ModelStage = Annotated[
    str | None, typer.Option("--stage", metavar="STAGE", help="Which model, where the run has several.")
]


def complete_run(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the pipelines that were run, `latest` and the runs' ids, for the shell's completion."""
    from tats_core.store import history

    home = _home_of(ctx)
    known = [*history.pipelines(home), history.LATEST, *history.ids(home)]
    return [name for name in known if name.startswith(incomplete)]


AnyRun = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A pipeline (its newest run), a run's id or its beginning, or 'latest'.",
        autocompletion=complete_run,
    ),
]


def complete_stage(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the stages of the run that was named before, for the shell's completion."""
    from tats_core.errors import TatsError
    from tats_core.store import history

    try:
        record = history.find(str(ctx.params.get("run")), _home_of(ctx))
    except TatsError:
        return []
    return [name for name in record.stages if name.startswith(incomplete)]


def _home_of(ctx: typer.Context) -> Path:
    return Path(ctx.params.get("home") or os.environ.get("TATS_HOME") or DEFAULT_HOME).expanduser()


def command_line(words: Iterable[str], home: Path) -> str:
    """Return `tats WORDS…` as one would type it, with `--home` where it differs from what is found anyway."""
    line = ["tats", *words]
    if home.absolute() != Path(os.environ.get("TATS_HOME", DEFAULT_HOME)).absolute():
        line += ["--home", str(home)]
    return shlex.join(line)


def many(count: int, what: str) -> str:
    """Return `1 run`, `2 runs`."""
    return f"{count} {what}" + ("s" if count != 1 else "")


@contextmanager
def writing(path: Path, option: str) -> Iterator[None]:
    """Turn what goes wrong in here into a sentence about the place that a person named with `option`.

    Raises:
        StoreError: the place cannot be written.
    """
    try:
        yield
    except BrokenPipeError:
        raise  # who read what is printed has left
    except OSError as error:
        raise StoreError(f"{option} {path}: cannot be written ({error.strerror or error})") from error


def write_file(path: Path, content: str | bytes, option: str) -> None:
    """Write a file that a person named with `option`, whole or not at all.

    Raises:
        StoreError: the place cannot be written.
    """
    beside = path.with_name(path.name + ".tmp")
    with writing(path, option):
        try:
            beside.write_bytes(content.encode() if isinstance(content, str) else content)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)

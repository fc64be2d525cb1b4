"""Options that several commands share."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from tats_core.errors import StoreError, TatsError

DEFAULT_HOME = Path(".tats")

INTERRUPTED = 130
"""The exit code that a shell expects after Ctrl-C."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
TestOf = Annotated[
    str | None,
    typer.Option(
        "--benchmark",
        help="The data set whose test protocol picks the clips; needed only if the model does not record it.",
    ),
]


def _absolute(home: Path) -> Path:
    try:
        return home.expanduser().absolute()
    except RuntimeError as error:  # the user is unknown, or has no home folder
        raise StoreError(
            f"--home {home}: '~' cannot be expanded to a folder here; give the full path"
        ) from error


Home = Annotated[
    Path,
    typer.Option(
        "--home",
        envvar="TATS_HOME",
        callback=_absolute,
        help="The project folder: runs, results, checkpoints, tracking database.",
        show_default=True,
    ),
]


Rehearse = Annotated[
    bool,
    typer.Option(
        "--rehearse",
        help="See all of it work in minutes, with a tiny model on few clips; its numbers mean nothing.",
    ),
]


def rehearsals(home: Path) -> Path:
    """Return the project folder of the rehearsals of `home`: no result of theirs is among the real ones."""
    return home / "rehearsal"


def complete_pipeline(incomplete: str) -> list[str]:
    """Return the pipelines whose names start with `incomplete`, for the shell's completion."""
    from tats_core import specs

    return [name for name in specs.names("pipelines") if name.startswith(incomplete)]


def complete_sweep(incomplete: str) -> list[str]:
    """Return the sweeps whose names start with `incomplete`, for the shell's completion."""
    from tats_core import specs

    return [name for name in specs.names("sweeps") if name.startswith(incomplete)]


PipelineName = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A pipeline's name as in `tats list`, or a .yaml file.",
        autocompletion=complete_pipeline,
    ),
]


SweepName = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A sweep's name as in `tats list`, or a .yaml file.",
        autocompletion=complete_sweep,
    ),
]

RunName = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A pipeline (its newest finished run), a run's id or the beginning of it, or a model's folder.",
        autocompletion=complete_pipeline,
    ),
]

ModelStage = Annotated[
    str | None,
    typer.Option(
        "--stage", metavar="STAGE", help="The stage that trained the model, if the run trained several."
    ),
]


def complete_run(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the pipelines that have runs, `latest` and the runs' ids, for the shell's completion."""
    from tats_core.store import history

    home = _home_of(ctx)
    known = [*history.pipelines(home), history.LATEST, *history.ids(home)]
    return [name for name in known if name.startswith(incomplete)]


AnyRun = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A pipeline (its newest run), a run's id or the beginning of it, or 'latest'.",
        autocompletion=complete_run,
    ),
]


def complete_stage(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the stages of the run on the command line, for the shell's completion."""
    from tats_core.store import history

    try:
        record = history.find(str(ctx.params.get("run")), _home_of(ctx))
    except TatsError:
        return []
    return [name for name in record.stages if name.startswith(incomplete)]


def _home_of(ctx: typer.Context) -> Path:
    return Path(ctx.params.get("home") or os.environ.get("TATS_HOME") or DEFAULT_HOME).expanduser()


def command_line(words: Iterable[str], home: Path) -> str:
    """Return `tats WORDS…` as a shell line, with `--home` where the default would be another folder."""
    line = ["tats", *words]
    if home.absolute() != Path(os.environ.get("TATS_HOME", DEFAULT_HOME)).absolute():
        line += ["--home", str(home)]
    return shlex.join(line)


def repeated(option: str, values: Iterable[str] | None) -> list[str]:
    """Return `option` before each of the values, as a command line repeats it."""
    return [word for value in values or () for word in (option, value)]


def many(count: int, what: str) -> str:
    """Return `1 run`, `2 runs`."""
    return f"{count} {what}" + ("s" if count != 1 else "")


@contextmanager
def writing(path: Path, option: str) -> Iterator[None]:
    """Raise an error of the file system as a StoreError about `path`, which the user gave with `option`."""
    try:
        yield
    except BrokenPipeError:
        raise  # the reader of standard output has closed it
    except OSError as error:
        raise StoreError(f"{option} {path}: cannot be written ({error.strerror or error})") from error


def write_file(path: Path, content: str | bytes, option: str) -> None:
    """Write a file that the user named with `option`, complete or not at all; see `writing`."""
    from tats_core.files import replacing

    with writing(path, option), replacing(path, durable=False) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)

"""`tats replay`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tats_core.errors import RunError


def replay(
    dump: Annotated[
        Path, typer.Argument(metavar="DUMP", help="The folder that the message of a failed training names.")
    ],
    gpu: Annotated[bool, typer.Option("--gpu", help="Repeat the step on a GPU instead of the CPU.")] = False,
) -> None:
    """Repeat the last step of a training that went non-finite, and name what made the first such value.

    A dump holds state, random numbers and batch of that step. Workers are repeated one after the other, each
    on its own share of the batch.
    """
    import torch

    from tats_core.training import replay as engine

    about = engine.read(dump)
    culprit = engine.replay(dump, about, torch.device("cuda" if gpu else "cpu"))
    if culprit is None:
        raise RunError(
            f"{dump}: step {about.step} of {about.kind} was repeated and stayed finite here; "
            "repeat it on the device on which it failed"
        )
    typer.echo(f"{about.kind}, step {about.step}, worker {culprit.worker} of {about.workers}")
    typer.echo(f"first non-finite value: {culprit.text}")

"""`tats visualise`: pictures of what a pre-trained model does with videos."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tats_core.cli.options import DEFAULT_HOME, Home, ModelStage, RunName, TestOf, writing
from tats_core.errors import VideoError


def visualise(
    run: RunName,
    videos: Annotated[list[Path], typer.Argument(metavar="VIDEO", help="Video files.")],
    out: Annotated[Path, typer.Option("--out", help="The folder for the pictures.")] = Path("pictures"),
    clips: Annotated[
        int,
        typer.Option("--clips", min=1, help="Clips per video, evenly spread; 1 is the middle of the video."),
    ] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampler.")] = 0,
    stage: ModelStage = None,
    benchmark: TestOf = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Draw what a pre-trained model does with videos.

    The pictures have visible tokens, policy, value, prediction and error. Each clip becomes a grid of frames
    (.png) and an animation (.gif).
    """
    from tats_core.store import models
    from tats_core.training.visualise import Visualiser

    folder = models.find_model(run, home, "pretrain", stage)
    visualiser = Visualiser.load(folder, benchmark)
    unread = []
    with writing(out, "--out"):
        paths = [video.expanduser() for video in videos]
        for drawn in visualiser.draw(paths, out.expanduser(), n_clips=clips, seed=seed):
            if isinstance(drawn, VideoError):
                unread.append(str(drawn))
                continue
            for path in drawn:
                typer.echo(str(path))
    if unread:
        raise VideoError("\n".join(unread))

"""`tats export`, `tats predict` and `tats weights`: trained models, out of a run and into one."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tats_core.cli.options import DEFAULT_HOME, Home, ModelStage, RunName

if TYPE_CHECKING:
    from tats_core.models.checkpoints_io import Foreign


class ExportFormat(StrEnum):
    """What reads the exported folder."""

    hf = "hf"
    safetensors = "safetensors"
    mlflow = "mlflow"


def export(
    run: RunName,
    form: Annotated[
        ExportFormat,
        typer.Option(
            "--format",
            help="hf: Hugging Face's VideoMAE; safetensors: as a run keeps it; mlflow: for MLflow to serve.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The folder to make.")],
    stage: ModelStage = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Write a trained model for other tools."""
    from tats_core.store import models
    from tats_core.tracking import export as exports

    folder, kind = models.find_one(run, home.expanduser(), ("finetune", "pretrain"), stage)
    out = out.expanduser().absolute()
    exports.export(folder, kind, form.value, out)
    typer.echo(f"{out}: the model of {folder}, as {form.value}")


def predict(
    run: RunName,
    videos: Annotated[list[str], typer.Argument(metavar="VIDEO...", help="Video files.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
    stage: ModelStage = None,
    benchmark: Annotated[
        str | None,
        typer.Option(help="Take clips as in this data set's test; needed only where the model does not say."),
    ] = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Print the most probable classes of videos."""
    from tats_core.store import models
    from tats_core.training.predict import Predictor, existing

    paths = existing(videos)  # before the model is read
    folder = models.find_model(run, home.expanduser(), "finetune", stage)
    found = Predictor.load(folder, benchmark).predict(paths)
    if as_json:
        rows = [
            {
                "video": str(path),
                "classes": [
                    {"label": guess.label, "name": guess.name, "probability": guess.probability}
                    for guess in guesses
                ],
            }
            for path, guesses in zip(paths, found, strict=True)
        ]
        typer.echo(json.dumps({"model": str(folder), "videos": rows}, indent=2))
        return
    for path, guesses in zip(paths, found, strict=True):
        typer.echo(str(path))
        for guess in guesses:
            typer.echo(f"  {100 * guess.probability:5.1f}%  {guess.name}")


def weights(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="FILE", help="A checkpoint, or a folder that holds one.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Say what a checkpoint from elsewhere holds."""
    from tats_core.models import checkpoints_io

    checkpoint = checkpoint.expanduser().absolute()
    found = checkpoints_io.read(checkpoint)
    if as_json:
        said = {"layout": found.layout, "kind": found.kind, **found.size}
        told = {"tensors": len(found.tensors), "unknown": list(found.unknown)}
        typer.echo(json.dumps({"checkpoint": str(checkpoint), **said, **told}, indent=2))
        return
    typer.echo(report(found, checkpoint))


def report(found: Foreign, checkpoint: Path) -> str:
    """Return what `tats weights` prints."""
    size = found.size
    shape = [f"{what} {size[what]}" for what in ("width", "depth", "heads", "mlp") if what in size]
    cut = [f"{what} {size[what]}" for what in ("tubelet", "patch", "frames", "size") if what in size]
    lines = [
        f"layout     {found.layout}",
        f"kind       {found.kind}",
        f"encoder    {', '.join(shape)}; positions {size.get('positions', 'unknown')}",
        f"clip       {', '.join(cut)}",
    ]
    if found.kind == "fine-tuned":
        lines.append(f"classes    {len(found.tensors['head.weight'])}")
    lines.append(f"understood {len(found.tensors)} tensors")
    if found.unknown:
        shown = ", ".join(found.unknown[:3]) + (", …" if len(found.unknown) > 3 else "")
        lines.append(f"unexpected {len(found.unknown)} tensors: {shown}")
    if "heads" not in size:
        lines.append(
            "The number of heads leaves no trace in the weights: set model.heads as its authors did."
        )
    lines.append(
        f"Start from it with the key 'encoder: {checkpoint}' of a finetune or probe stage, "
        "or with 'start:' of a pretrain stage."
    )
    return "\n".join(lines)

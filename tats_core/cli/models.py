"""`tats export`, `tats predict` and `tats weights`: trained models, out of a run and into one."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tats_core.cli.options import DEFAULT_HOME, AsJson, Home, ModelStage, RunName, TestOf

if TYPE_CHECKING:
    from tats_core.models.checkpoints_io import Foreign


def export(
    run: RunName,
    form: Annotated[
        Literal["hf", "safetensors", "mlflow"],
        typer.Option(
            "--format",
            help="hf: for Hugging Face's VideoMAE classes; safetensors: as in the run; mlflow: for MLflow.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The folder to create.")],
    stage: ModelStage = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Export a trained model for other tools."""
    from tats_core.store import models
    from tats_core.tracking import export as exports

    folder, kind = models.find_model_of(run, home, ("finetune", "pretrain"), stage)
    out = out.expanduser().absolute()
    exports.export(folder, kind, form, out)
    typer.echo(f"{out}: the model of {folder}, as {form}")


def predict(
    run: RunName,
    videos: Annotated[list[str], typer.Argument(metavar="VIDEO", help="Video files, or folders of such.")],
    as_json: AsJson = False,
    stage: ModelStage = None,
    benchmark: TestOf = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Print the most probable classes of videos."""
    from tats_core.store import models
    from tats_core.training.predict import Predictor, existing

    paths = existing(videos)  # before the model is read
    folder = models.find_model(run, home, "finetune", stage)
    predictions = Predictor.load(folder, benchmark).predict(paths)
    if as_json:
        rows = [
            {"video": str(path), "classes": [asdict(guess) for guess in guesses]}
            for path, guesses in zip(paths, predictions, strict=True)
        ]
        typer.echo(json.dumps({"model": str(folder), "videos": rows}, indent=2))
        return
    for path, guesses in zip(paths, predictions, strict=True):
        typer.echo(str(path))
        for guess in guesses:
            typer.echo(f"  {100 * guess.probability:5.1f}%  {guess.name}")


def weights(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="FILE", help="A checkpoint file, or a folder with a checkpoint.")
    ],
    as_json: AsJson = False,
) -> None:
    """Describe a checkpoint that was made by another program."""
    from tats_core.models import checkpoints_io

    checkpoint = checkpoint.expanduser().absolute()
    weights = checkpoints_io.read(checkpoint)
    if as_json:
        described = {
            "checkpoint": str(checkpoint),
            "layout": weights.layout,
            "kind": weights.kind,
            **weights.size,
            "tensors": len(weights.tensors),
            "unknown": list(weights.unknown),
        }
        typer.echo(json.dumps(described, indent=2))
        return
    typer.echo(report(weights, checkpoint))


def report(weights: Foreign, checkpoint: Path) -> str:
    """Return what `tats weights` prints."""
    size = weights.size
    shape = [f"{what} {size[what]}" for what in ("width", "depth", "heads", "mlp") if what in size]
    clip = [f"{what} {size[what]}" for what in ("tubelet", "patch", "frames", "size") if what in size]
    lines = [
        f"layout     {weights.layout}",
        f"kind       {weights.kind}",
        f"encoder    {', '.join(shape)}; positions {size.get('positions', 'unknown')}",
        f"clip       {', '.join(clip)}",
    ]
    if weights.kind == "fine-tuned":
        lines.append(f"classes    {len(weights.tensors['head.weight'])}")
    lines.append(f"understood {len(weights.tensors)} tensors")
    if weights.unknown:
        names = ", ".join(weights.unknown[:3]) + (", …" if len(weights.unknown) > 3 else "")
        lines.append(f"unexpected {len(weights.unknown)} tensors: {names}")
    if "heads" not in size:
        lines.append("The weights do not determine the number of heads: set model.heads as its authors did.")
    lines.append(
        f"Initialise from it with the key 'encoder: {checkpoint}' of a finetune or probe stage, "
        "or with 'start:' of a pretrain stage."
    )
    return "\n".join(lines)

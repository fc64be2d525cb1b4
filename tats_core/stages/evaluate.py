"""Multi-view test of a fine-tuned model on its benchmark.

Axes: B videos, C classes, K bins of confidence.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor

from tats_core.data.loaders import eval_views
from tats_core.data.manifest import Manifest
from tats_core.errors import SpecError
from tats_core.files import replacing, write_json, write_text
from tats_core.report import charts
from tats_core.report import classes as by_class
from tats_core.specs import NotIdentity
from tats_core.stages import jobs
from tats_core.stages.base import StageContext, StageKind
from tats_core.stages.configs import Init, Placed
from tats_core.training import metrics, weights
from tats_core.training.checkpoint import CheckpointStore
from tats_core.training.evaluate import score_views
from tats_core.training.events import EventLog
from tats_core.training.optim import parameter_count
from tats_core.training.world import Precision, World


class EvaluateStage(Placed):
    """Views, and where the test runs."""

    splits = frozenset({"test"})

    init: Init = Field("pretrained", description="which fine-tuned model")
    clips: int | None = Field(None, ge=1, description="clips of each video; null: the benchmark's")
    crops: int | None = Field(None, ge=1, description="crops of each clip; null: the benchmark's")
    batch_size: Annotated[int, NotIdentity] = Field(
        8, ge=1, description="videos scored together by one worker"
    )
    precision: Precision = Field("fp32", description="bf16: matrix products in bfloat16 (autocast)")
    test_workers: Annotated[int, NotIdentity] = Field(
        0,
        ge=0,
        description="workers that share the videos; 0: the driver alone, or one worker where gpu is true",
    )

    @property
    def started(self) -> int:
        """How many workers are started besides the driver, which never holds a GPU."""
        workers = self.test_workers or int(self.gpu)
        return min(workers, self.max_workers or workers)


class Evaluate(StageKind[EvaluateStage]):
    """Output: `result.json` (top-1, top-5, interval, mean class accuracy, calibration error, chance).

    Beside it tables and pictures of the classes (`per_class.csv`, `confusion.csv`, `confusion.png`) and of
    the calibration (`calibration.csv`, `calibration.png`), `scores.safetensors` and `predictions.json`.
    """

    name = "evaluate"
    version = 2
    Config = EvaluateStage
    # Its tables of classes are output; how its pictures are drawn is not.
    code = ("tats_core.report.classes", "tats_core.report.table")
    reports = frozenset(
        {
            *("top1", "low", "high", "top5", "mean_class_accuracy", "ece", "chance"),
            *("clips", "classes", "parameters", "test_seconds"),
        }
    )

    def reads(self, config: EvaluateStage) -> tuple[str, ...]:
        return ("data", "finetune")

    def cpus(self, config: EvaluateStage) -> int:
        return max(1, config.started)

    def gpus(self, config: EvaluateStage) -> int:
        return config.started if config.gpu else 0

    def run(self, config: EvaluateStage, ctx: StageContext) -> None:
        inputs = {"data": ctx.input("data").path, "model": ctx.input("finetune").path}
        jobs.run_workers(score_videos, config, inputs, ctx, workers=config.started)


# --- in a worker ---------------------------------------------------------------------------------------


def score_videos(raw_job: Mapping[str, Any], world: World, events: EventLog, store: CheckpointStore) -> None:
    """Multi-view test: each worker scores its share of the videos, rank 0 writes the result."""
    began = time.perf_counter()
    job = jobs.Job[EvaluateStage].model_validate(raw_job)
    config, out = job.config, Path(job.out)
    manifest = jobs.labelled(job.manifest("test"))
    model, classes = weights.load_classifier(Path(job.inputs["model"]))
    if tuple(classes) != manifest.classes:
        raise SpecError(
            f"the model in {job.inputs['model']} knows other classes than the test videos of "
            f"{manifest.benchmark}: {other_classes(classes, manifest.classes)}; evaluate it on the data it "
            "was fine-tuned for"
        )
    views = eval_views(
        manifest,
        jobs.clip_options(model.encoder.clip, config.data),
        clips=config.clips,
        crops=config.crops,
        batch_size=config.batch_size,
        rank=world.rank,
        world_size=world.size,
    )
    scores_BC, label_B, index_B = score_views(
        model.to(world.device), store.until_stopped(views), world, config.precision
    )
    scores_BC, label_B, index_B = gather_uneven(world, scores_BC, label_B, index_B)
    if not world.is_first:
        return
    order = index_B.argsort()
    scores_BC, label_B = scores_BC[order], label_B[order]  # now in the manifest's order
    top1 = metrics.top_k_percent(scores_BC, label_B, 1)
    low, high = metrics.wilson_interval(top1, len(manifest))
    confusion_CC = metrics.confusion(scores_BC.argmax(1), label_B, len(classes))
    calibration = metrics.calibration(scores_BC, label_B)
    results = {
        "top1": top1,
        "top5": metrics.top_k_percent(scores_BC, label_B, 5),
        "low": low,
        "high": high,
        "mean_class_accuracy": metrics.mean_class_accuracy(confusion_CC),
        "ece": calibration.ece,
        "chance": 100 / len(classes),
    }
    events.metrics(1, results)
    described = {
        "benchmark": config.benchmark,
        "init": config.init,
        "clips": len(manifest),
        "classes": len(classes),
        "parameters": parameter_count([model]),
        "test_seconds": time.perf_counter() - began,
        **manifest.absence(),
    }
    write_scores(out, scores_BC, label_B, manifest)
    title = f"{config.benchmark}, {config.init}: top-1 {top1:.1f}% of {len(manifest)} clips"
    describe_classes(out, confusion_CC, classes, title, events)
    describe_calibration(out, calibration, events)
    jobs.write_result(out, results | described)


def other_classes(model: Sequence[str], test: Sequence[str]) -> str:
    """Return which of a model's classes the test videos do not have, and the other way round."""
    parts = []
    for owner, names, others in (("the model", model, test), ("the test", test, model)):
        alone = [name for name in names if name not in set(others)]
        if alone:
            more = f" and {len(alone) - 3} more" if len(alone) > 3 else ""
            parts.append(f"{owner} alone has {', '.join(repr(name) for name in alone[:3])}{more}")
    if parts:
        return "; ".join(parts)
    label = next(label for label, pair in enumerate(zip(model, test, strict=False)) if pair[0] != pair[1])
    return f"the same in another order, first at {label}, which is {model[label]!r} and {test[label]!r}"


def write_scores(out: Path, scores_BC: Tensor, label_B: Tensor, manifest: Manifest) -> None:
    """Write the scores, from which other metrics can be computed, and the predictions in plain text.

    `scores.safetensors` holds `scores` [videos, classes] (probabilities, float16: the metrics are computed
    before the rounding) and `label`; its metadata has `names`, as JSON: the videos' `ids` and the `classes`.
    """
    ids = [video.id for video in manifest.videos]
    # One entry: several are written in random order, so equal scores would have different bytes.
    named = {"names": json.dumps({"ids": ids, "classes": manifest.classes})}
    with replacing(out / "scores.safetensors") as temporary:
        save_file({"scores": scores_BC.half(), "label": label_B}, temporary, named)
    rows = zip(manifest.videos, label_B.tolist(), scores_BC.argmax(1).tolist(), strict=True)
    predictions = [{"id": video.id, "label": label, "predicted": best} for video, label, best in rows]
    write_json(out / "predictions.json", predictions)


def describe_classes(
    out: Path, confusion_CC: Tensor, classes: list[str], title: str, events: EventLog
) -> None:
    """Write how often each class is recognised and what it is confused with: two tables and a picture."""
    counts = confusion_CC.numpy()
    write_text(out / "per_class.csv", by_class.per_class(counts, classes))
    write_text(out / "confusion.csv", by_class.matrix(counts, classes))
    charts.save(charts.confusion(counts, classes, title), out / "confusion.png")
    for name in ("per_class.csv", "confusion.csv", "confusion.png"):
        events.file(1, "classes", name)


def describe_calibration(out: Path, calibration: metrics.Calibration, events: EventLog) -> None:
    """Write how sure the model is and how often it is right: a table and a picture."""
    bins = (calibration.clips_K, calibration.confidence_K, calibration.accuracy_K)
    clips_K, confidence_K, accuracy_K = (values_K.tolist() for values_K in bins)
    write_text(out / "calibration.csv", by_class.calibration(clips_K, confidence_K, accuracy_K))
    chart = charts.reliability(clips_K, confidence_K, accuracy_K, calibration.ece)
    charts.save(chart, out / "calibration.png")
    for name in ("calibration.csv", "calibration.png"):
        events.file(1, "calibration", name)


def gather_uneven(world: World, *tensors: Tensor) -> list[Tensor]:
    """Join tensors of all workers along axis 0; their lengths may differ a little."""
    if world.size == 1:
        return list(tensors)
    lengths = world.gather(torch.tensor([len(tensors[0])], device=world.device)).tolist()
    joined = []
    for tensor in tensors:
        padded = tensor.new_zeros(max(lengths), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        parts = torch.split(world.gather(padded.to(world.device)).cpu(), max(lengths))
        joined.append(torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)]))
    return joined


KIND = Evaluate()

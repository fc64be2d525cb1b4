"""Multi-view test of a fine-tuned model on its benchmark."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tats_core.pipeline.stages.base import StageContext, StageKind
from tats_core.pipeline.stages.training import KEY_EXCLUDES, Placed, run_here
from tats_core.training.jobs import evaluate
from tats_core.training.jobs.evaluate import EvaluateJob
from tats_core.training.world import Precision


class EvaluateStage(Placed):
    """Views, and where the test runs."""

    init: Literal["pretrained", "scratch"] = Field("pretrained", description="which fine-tuned model")
    clips: int | None = Field(None, ge=1, description="clips of each video; null: the benchmark's")
    crops: int | None = Field(None, ge=1, description="crops of each clip; null: the benchmark's")
    batch_size: int = Field(8, ge=1, description="videos scored together by one worker")
    precision: Precision = Field("fp32", description="bf16: matrix products in bfloat16 (autocast)")
    test_workers: int = Field(
        0,
        ge=0,
        description="workers that share the videos; 0: the driver alone, or one worker where gpu is true",
    )

    @property
    def beside(self) -> int:
        """How many workers are started beside the driver, which never holds a GPU."""
        return self.test_workers or int(self.gpu)


class Evaluate(StageKind[EvaluateStage]):
    """Output: `result.json` (top-1, top-5, interval, mean class accuracy, calibration error, chance).

    Beside it tables and pictures of the classes (`per_class.csv`, `confusion.csv`, `confusion.png`) and of
    the calibration (`calibration.csv`, `calibration.png`), `scores.safetensors` and `predictions.json`.
    """

    name = "evaluate"
    version = 2
    Config = EvaluateStage
    key_excludes = KEY_EXCLUDES | {"batch_size", "test_workers"}
    # Its tables of classes are output; how its pictures are drawn is not.
    code = ("tats_core.training.jobs.evaluate", "tats_core.report.classes")
    reports = frozenset(
        {
            "chance",
            "classes",
            "clips",
            "ece",
            "high",
            "low",
            "mean_class_accuracy",
            "parameters",
            "test_seconds",
            "top1",
            "top5",
        }
    )

    def reads(self, config: EvaluateStage) -> tuple[str, ...]:
        """It reads the manifests and the model."""
        return ("data", "finetune")

    def cpus(self, config: EvaluateStage) -> int:
        """One a worker."""
        return max(1, config.beside)

    def gpus(self, config: EvaluateStage) -> int:
        """One a worker, if at all."""
        return config.beside if config.gpu else 0

    def run(self, config: EvaluateStage, ctx: StageContext) -> None:
        """Score all test videos."""
        job = EvaluateJob(
            data=config.data,
            test=str(ctx.input("data").path / f"{config.benchmark}.test.json"),
            model=str(ctx.input("finetune").path),
            clips=config.clips,
            crops=config.crops,
            batch_size=config.batch_size,
            precision=config.precision,
            benchmark=config.benchmark,
            init=config.init,
            out=str(ctx.out),
        ).model_dump(mode="json", exclude_unset=True)
        if not config.beside:
            run_here(evaluate.run, job, ctx)
            return
        ctx.fit(
            "tats_core.training.jobs.evaluate:run",
            job,
            workers=config.beside,
            gpu=config.gpu,
            max_failures=config.max_failures,
        )


KIND = Evaluate()

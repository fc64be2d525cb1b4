"""How clips are taken from a video by someone who has a model and a file, but no data set."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError

from tats_core.data import benchmarks
from tats_core.data.clips import Protocol, Sampling
from tats_core.data.loaders import ClipOptions, TrainLoader, clip_rules
from tats_core.errors import WeightsError
from tats_core.specs import StrictModel
from tats_core.training import weights


class Views(StrictModel):
    """How clips are taken from a video to test a model; saved with it."""

    benchmark: str = Field(description="whose test gives the number of clips and crops")
    sampling: Sampling = Field(description="a frame of each segment, or every stride-th")
    stride: int = Field(ge=1, description="frames from one to the next of a dense clip")
    protocol: Protocol = Field("ours", description="of frames and resizing, as in `data.protocol`")

    @classmethod
    def of(cls, loader: TrainLoader) -> Self:
        """Those of the clips that a model was trained on."""
        rules = loader.rules
        return cls(
            benchmark=loader.manifest.benchmark,
            sampling=rules.sampling,
            stride=rules.stride,
            protocol="published" if rules.published else "ours",
        )

    @classmethod
    def named(cls, benchmark: str) -> Self:
        """Those of a benchmark.

        Raises:
            SpecError: no benchmark of this name.
        """
        rules = clip_rules(ClipOptions(), benchmarks.BENCHMARKS[benchmark], "finetune")
        return cls(benchmark=benchmark, sampling=rules.sampling, stride=rules.stride)


def saved_views(folder: Path) -> Views:
    """Return how clips are taken for the model in `folder`, as saved with it.

    Raises:
        WeightsError: nothing is saved.
    """
    ours = (folder / "model.json").exists()
    described = weights.describe(folder, "model" if ours else "config")
    saved = described.get("views" if ours else "tats_views")
    if saved is None:
        raise WeightsError(
            f"{folder}: its model does not say how clips are taken from a video; name the benchmark whose "
            "test shall be used (--benchmark)"
        )
    try:
        return Views.model_validate(saved)
    except ValidationError as error:
        raise WeightsError(f"{folder}: its views are not valid ({error.errors()[0]['msg']})") from error

"""Classes of single videos, by a fine-tuned model and the multi-view test of its benchmark.

Axes: B videos, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tats_core.data import shards
from tats_core.data.benchmarks.base import VIDEO_SUFFIXES, walk
from tats_core.data.loaders import ClipOptions, eval_views
from tats_core.data.manifest import UNLABELLED, Manifest, VideoRecord
from tats_core.errors import DataError
from tats_core.models.classifier import VideoClassifier
from tats_core.training import weights
from tats_core.training.evaluate import score_views
from tats_core.training.views import Views, saved_views
from tats_core.training.world import World


@dataclass(frozen=True)
class Guess:
    """One class that a video may be of."""

    label: int
    name: str
    probability: float


@dataclass(frozen=True)
class Predictor:
    """A fine-tuned model with what it needs to read a video file."""

    model: VideoClassifier
    classes: tuple[str, ...]
    views: Views

    @classmethod
    def load(cls, folder: Path, benchmark: str | None = None) -> Self:
        """Read a fine-tuned model of ours, or Hugging Face's.

        Args:
            benchmark: whose test is used; by default the one saved with the model.

        Raises:
            WeightsError: no such model, or how its clips are taken is not saved and `benchmark` is None.
            SpecError: no benchmark of this name.
        """
        model, classes = weights.load_classifier(folder)
        return cls(model, tuple(classes), Views.named(benchmark) if benchmark else saved_views(folder))

    def predict(
        self,
        videos: Sequence[Path],
        *,
        top: int = 5,
        clips: int | None = None,
        crops: int | None = None,
        world: World | None = None,
    ) -> list[list[Guess]]:
        """Return the `top` most probable classes of each video, best first.

        A probability is the mean over the views' softmax; each file is opened and each of its frames
        decoded once.

        Args:
            clips, crops: views of each video; left out, the benchmark's.

        Raises:
            VideoError: a video cannot be read; names it.
        """
        if not videos:
            return []
        world = world or World()
        shape = self.model.encoder.clip
        options = ClipOptions(
            frames=shape.frames,
            size=shape.size,
            protocol=self.views.protocol,
            sampling=self.views.sampling,
            stride=self.views.stride,
        )
        records = tuple(
            VideoRecord(str(number), str(path.absolute()), UNLABELLED) for number, path in enumerate(videos)
        )
        listed = Manifest(self.views.benchmark, "given", self.classes, Path.cwd(), records)
        batches = eval_views(listed, options, clips=clips, crops=crops)
        scores_BC, _, _ = score_views(self.model.to(world.device), batches, world)
        best = scores_BC.topk(min(top, len(self.classes)), dim=1)
        return [
            [
                Guess(label, self.classes[label], probability)
                for label, probability in zip(labels, probabilities, strict=True)
            ]
            for labels, probabilities in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


def existing(videos: Sequence[str]) -> list[Path]:
    """Return the paths of video files; a folder stands for all in it and below it, in sorted order.

    Raises:
        DataError: a file does not exist, or a folder holds no video.
    """
    paths: list[Path] = []
    for path in (Path(video).expanduser() for video in videos):
        if not path.exists() and shards.find(path) is None:
            raise DataError(f"{path}: there is no such file")
        files = list(walk(path)) if path.is_dir() else [path]
        if not files:
            raise DataError(f"{path}: holds no video (a file that ends in {', '.join(VIDEO_SUFFIXES)})")
        paths += files
    return paths

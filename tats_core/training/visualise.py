"""Mask pictures of single videos, by a pre-trained autoencoder and its sampler.

Axes: B clips of a video, C=3 channels, T frames (X: of all clips, one after the other), H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from tats_core.data import clips, readers, transforms
from tats_core.errors import VideoError, WeightsError
from tats_core.models.mae import VideoMAE
from tats_core.sampling import CHOICE, Sampler, SamplerSite
from tats_core.training import pictures, weights
from tats_core.training.optim import evaluating, fresh_weights
from tats_core.training.views import Views, saved_views


@dataclass(frozen=True)
class Visualiser:
    """A pre-trained autoencoder and its sampler, with what they need to read a video file."""

    mae: VideoMAE
    sampler: Sampler
    views: Views

    @classmethod
    def load(cls, folder: Path, benchmark: str | None = None) -> Self:
        """Read the output of a pre-training.

        Args:
            benchmark: take clips as in its test; needed where the model does not say how.

        Raises:
            WeightsError: no autoencoder, no sampler, or no record of how clips are taken.
            DataError: no benchmark of this name.
        """
        mae = weights.load_mae(folder)
        views = Views.named(benchmark) if benchmark else saved_views(folder)
        return cls(mae, load_sampler(folder, mae), views)

    def read(self, path: Path, n_clips: int = 1) -> Tensor:
        """Return clips that cover a video evenly (one: its middle), their central square, as `video_BCTHW`.

        Raises:
            VideoError: the file cannot be read.
        """
        shape, views = self.mae.clip, self.views

        def choose(n_frames: int) -> clips.Indices:
            indices_BT = clips.view_indices(n_frames, shape.frames, views.sampling, views.stride, n_clips)
            return indices_BT.flatten()

        frames_XHWC = torch.from_numpy(readers.read_clip(path, choose))
        (cut_XHWC,) = transforms.crops_of_test(frames_XHWC, shape.size, crops=1)
        frames_BTHWC = cut_XHWC.unflatten(0, (n_clips, shape.frames))  # type: ignore[no-untyped-call]
        return clips.normalise(transforms.channels_first(frames_BTHWC))

    def draw(
        self, videos: Sequence[Path], out: Path, *, n_clips: int = 1, seed: int = 0
    ) -> Iterator[tuple[Path, ...] | VideoError]:
        """Write the pictures of each video into `out`; yield their files, or why they could not be drawn.

        Args:
            n_clips: of each video; each clip has its own pictures.
            seed: of the sampler's draws; the same for each video, so that the others do not matter.
        """
        names: set[str] = set()
        for path in videos:
            numbered = (f"{path.stem}-{number}" for number in count(2))  # two folders may have the same name
            name = next(name for name in chain([path.stem], numbered) if name not in names)
            names.add(name)
            try:
                video_BCTHW = self.read(path, n_clips)
            except VideoError as error:
                yield error
                continue
            files: list[Path] = []
            generator = torch.Generator().manual_seed(seed)
            for number, clip_1CTHW in enumerate(torch.split(video_BCTHW, 1), start=1):
                with evaluating(self.mae, self.sampler):
                    (picture,) = pictures.reconstructions(self.mae, self.sampler, clip_1CTHW, generator)
                of_clip = f", clip {number} of {n_clips}" if n_clips > 1 else ""
                visible, tokens = self.sampler.visible, self.sampler.tokens
                clip_name = f"{name}-clip{number}" if n_clips > 1 else name
                title = f"{path.name}{of_clip}: {visible} of {tokens} tokens visible"
                files += pictures.write(self.mae, picture, out / clip_name, title)
            yield tuple(files)


def load_sampler(folder: Path, mae: VideoMAE) -> Sampler:
    """Rebuild the sampler that was trained with `mae`, from `sampler.safetensors` and `sampler.json`.

    Raises:
        WeightsError: it is missing or does not fit.
    """
    if not (folder / "sampler.json").is_file():
        raise WeightsError(
            f"{folder}: holds an autoencoder without its sampler; name a run or the output of a pre-training"
        )
    described = weights.describe(folder, "sampler")
    try:
        config = CHOICE.validate(described["sampler"])
    except (KeyError, ValueError) as error:
        raise WeightsError(f"{folder / 'sampler.json'}: does not describe a sampler ({error})") from error
    clip, vit = mae.clip, mae.encoder.config
    site = SamplerSite(clip.slices, clip.rows, clip.columns, vit.width, vit.heads)
    with fresh_weights(0):  # loaded below; the draws must not disturb those of another stage
        sampler: Sampler = config.build(site)
    weights.load(folder, sampler, "sampler")
    return sampler

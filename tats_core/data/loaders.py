"""Batches of clips for training and views for testing, from a manifest of video files; pixels are uint8.

One epoch is a function of `(seed, epoch)` and nothing else: the shuffle from `(seed, epoch)`, the frames
of a clip from `(seed, epoch, index)`, its augmentation from `(seed, epoch, index, sample)`. So a run that is
resumed, even in the middle of an epoch, sees what it would have seen, with any number of decoding processes.

Axes: B clips, V views, C colours, T frames, H × W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Final, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from tats_core.data import benchmarks, clips, decoded, readers, transforms
from tats_core.data.benchmarks import Benchmark
from tats_core.data.clips import Batch, Erased
from tats_core.data.manifest import Manifest
from tats_core.errors import DataError, SpecError, TatsError, VideoError
from tats_core.specs import NotIdentity, StrictModel

Purpose = Literal["pretrain", "finetune"]


class ClipOptions(StrictModel):
    """How a clip is taken from a video. A field left empty is the benchmark's or the purpose's choice."""

    frames: int = Field(16, ge=1, description="frames T of a clip")
    size: int = Field(224, ge=8, description="height and width of a clip in pixels")
    sampling: Literal["uniform", "dense"] | None = Field(
        None,
        description="a frame of each segment, or every stride-th; pre-training: dense, else the benchmark's",
    )
    stride: int | None = Field(None, ge=1, description="frames from one to the next of a dense clip")
    crop: Literal["multi_scale", "random_resized", "centre"] | None = Field(
        None, description="of a training clip; pre-training: multi_scale, fine-tuning: random_resized"
    )
    crop_scales: tuple[float, ...] = Field(
        transforms.MULTI_SCALES, min_length=1, description="multi_scale: sides as shares of the shorter side"
    )
    crop_area: tuple[float, float] = Field((0.08, 1.0), description="random_resized: share of the area")
    crop_ratio: tuple[float, float] = Field((0.75, 4 / 3), description="random_resized: width / height")
    flip: bool | None = Field(
        None, description="mirror half of the clips; pre-training: no, fine-tuning: if the classes allow"
    )
    rand_augment: str | None = Field(
        None,
        pattern=r"rand(-[a-z]+[0-9.]*)*$",
        description="timm's RandAugment of the training clips, on whole frames as VideoMAE's, so large "
        "videos are slow (fine-tuning: rand-m7-n4-mstd0.5-inc1)",
    )
    colour_jitter: float = Field(0.0, ge=0, lt=1, description="brightness, saturation, contrast: 1 ± this")
    hue_jitter: float = Field(0.0, ge=0, le=0.5, description="share of the colour circle, either way")
    erase: float = Field(0.0, ge=0, le=1, description="share of the training clips with a box erased")
    cache: Annotated[bool, NotIdentity] = Field(
        False, description="keep decoded videos in memory, for small data sets"
    )
    cache_mb: Annotated[int, NotIdentity] = Field(
        4096, ge=0, description="its size; videos beyond it are decoded each time"
    )
    decode_workers: Annotated[int, NotIdentity] = Field(
        0, ge=0, description="decoding processes beside each training worker, with a batch each"
    )
    reader: Literal["auto", "decord", "pyav"] = Field("auto", description="how files are decoded")
    time_limit: Annotated[float, NotIdentity] = Field(
        readers.TIME_LIMIT, gt=0, description="seconds that one file may take"
    )
    max_unreadable: float = Field(0.05, ge=0, le=1, description="share of the videos that training may skip")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.cache and self.decode_workers:
            raise ValueError("cache keeps videos in the training process, so it needs decode_workers: 0")
        for name, (low, high) in (("crop_area", self.crop_area), ("crop_ratio", self.crop_ratio)):
            if not 0 < low <= high:
                raise ValueError(f"{name} must be two positive numbers, the smaller first")
        if self.crop_area[1] > 1 or not all(0 < scale <= 1 for scale in self.crop_scales):
            raise ValueError("crop_area and crop_scales are shares, at most 1")
        return self


@dataclass(frozen=True)
class Recipe:
    """`ClipOptions` with nothing left open, for one data set and purpose; what the run header prints."""

    sampling: Literal["uniform", "dense"]
    stride: int
    crop: Literal["multi_scale", "random_resized", "centre"]
    flip: bool


def recipe(options: ClipOptions, benchmark: Benchmark, purpose: Purpose) -> Recipe:
    """Return `options` with the open fields filled: by VideoMAE's recipe for `purpose`, by the benchmark."""
    pretrain = purpose == "pretrain"
    return Recipe(
        sampling=options.sampling or ("dense" if pretrain else benchmark.sampling),
        stride=options.stride or (benchmark.pretrain_stride if pretrain else benchmark.stride),
        crop=options.crop or ("multi_scale" if pretrain else "random_resized"),
        flip=options.flip if options.flip is not None else (not pretrain and benchmark.flip),
    )


def steps_per_epoch(n_videos: int, batch_size: int, world_size: int = 1) -> int:
    """Return the number of whole batches of `batch_size` that each of `world_size` workers gets.

    Raises:
        DataError: not even one.
    """
    steps = n_videos // (batch_size * world_size)
    if not steps:
        raise DataError(
            f"{n_videos} videos do not fill one batch of {batch_size} on each of {world_size} workers; "
            "use a smaller batch or more videos"
        )
    return steps


# What a stream of random numbers is for: two purposes must never share one, whatever their other keys.
_ORDER: Final = 1
_CLIP: Final = 2


def _rng(purpose: int, *key: int) -> np.random.Generator:
    return np.random.default_rng((purpose, *key))


class _Videos:
    """Decoded frames by index, kept in memory if asked for; remembers the files that cannot be read."""

    def __init__(self, manifest: Manifest, options: ClipOptions) -> None:
        self.manifest = manifest
        self.options = options
        self.unreadable: dict[str, str] = {}
        self._kept: dict[int, Tensor] = {}
        self._free_bytes = options.cache_mb * 2**20 if options.cache else 0

    def clip(self, index: int, choose: readers.Choose) -> Tensor:
        """Return uint8 `frames_THWC` of video `index`, the frames that `choose` picks.

        Raises:
            VideoError: the file cannot be read, now or the last time it was tried.
        """
        video = self.manifest.videos[index]
        if self.manifest.decoded is not None:
            decoded_THWC = decoded.opened(self.manifest.decoded).frames(video.id)
            if decoded_THWC is not None:
                return torch.from_numpy(decoded_THWC[choose(len(decoded_THWC))])
        path = video.path
        if index in self._kept:
            frames_THWC = self._kept[index]
            return frames_THWC[torch.from_numpy(choose(len(frames_THWC)))]
        if path in self.unreadable:
            raise VideoError(self.unreadable[path])
        try:
            return self._read(index, path, choose)
        except VideoError as error:
            self.unreadable[path] = str(error)
            raise

    def _read(self, index: int, path: str, choose: readers.Choose) -> Tensor:
        reader, limit = self.options.reader, self.options.time_limit
        if not self._free_bytes:
            return torch.from_numpy(readers.read_clip(path, choose, reader, limit))
        frames_THWC = torch.from_numpy(readers.read_all(path, reader, limit))
        if frames_THWC.nbytes <= self._free_bytes:
            self._free_bytes -= frames_THWC.nbytes
            self._kept[index] = frames_THWC
        return frames_THWC[torch.from_numpy(choose(len(frames_THWC)))]


@dataclass(frozen=True)
class _Request:
    """One batch: which videos of which epoch."""

    epoch: int
    indices: tuple[int, ...]


@dataclass(frozen=True)
class _Answer:
    """One batch, or the reason why there is none, with the files found unreadable so far.

    An error travels as a value: torch would wrap it with a traceback, and the sentence would be lost.
    """

    batch: Batch | None
    unreadable: dict[str, str]
    error: TatsError | None = None

    def pin_memory(self) -> _Answer:
        """Move the batch to page-locked memory; torch calls it where there is a GPU."""
        return replace(self, batch=self.batch.pin_memory()) if self.batch is not None else self


class _TrainClips(Dataset[_Answer]):
    """Makes the batch of a request, in the training process or in a decoding one."""

    def __init__(
        self, manifest: Manifest, options: ClipOptions, plan: Recipe, seed: int, samples: int
    ) -> None:
        self.videos = _Videos(manifest, options)
        self.plan = plan
        self.seed = seed
        self.samples = samples

    def __getitem__(self, request: _Request) -> _Answer:
        try:
            batch = self._batch(request)
        except TatsError as error:
            return _Answer(None, dict(self.videos.unreadable), error)
        return _Answer(batch, dict(self.videos.unreadable))

    def _batch(self, request: _Request) -> Batch:
        options, manifest = self.videos.options, self.videos.manifest
        found, frames, rngs, indices = [], [], [], []
        for wanted in request.indices:
            index, clip_THWC, rng = self._readable(request.epoch, wanted)
            # As in VideoMAE, the samples are the same frames, decoded once, each with its own augmentation.
            for sample in range(self.samples):
                if sample:
                    rng = _rng(_CLIP, self.seed, request.epoch, wanted, sample)
                found.append(manifest.videos[index].label)
                frames.append(self._cut(clip_THWC, rng))
                rngs.append(rng)
                indices.append(index)
        video_BCTHW = transforms.channels_first(torch.stack(frames))
        if options.colour_jitter or options.hue_jitter:
            colours = [transforms.draw_colour(options.colour_jitter, options.hue_jitter, rng) for rng in rngs]
            video_BCTHW = transforms.recolour(video_BCTHW, colours)
        erased = [self._erased(clip, rng) for clip, rng in enumerate(rngs)]
        boxes = tuple(box for box in erased if box is not None)
        return Batch(video_BCTHW, torch.tensor(found), torch.tensor(indices), boxes)

    def _erased(self, clip: int, rng: np.random.Generator) -> Erased | None:
        """Draw the box of a clip that is erased, and its standard normal noise, another for each frame."""
        options = self.videos.options
        box = transforms.draw_erased(options.size, options.erase, rng)
        if box is None:
            return None
        noise = rng.standard_normal((3, options.frames, box.height, box.width), dtype=np.float32)
        return Erased(clip, box.top, box.left, torch.from_numpy(noise))

    def _readable(self, epoch: int, wanted: int) -> tuple[int, Tensor, np.random.Generator]:
        """Return a random clip of video `wanted`, or of the next one in the manifest that can be read.

        It comes as `(index, frames_THWC, the clip's random stream)`. The stream belongs to the place in the
        epoch, so that a stand-in differs from that video's own clip, and to the attempt, so that nothing
        depends on whether a failure is met now or was remembered.
        """
        options, n_videos = self.videos.options, len(self.videos.manifest)
        for attempt in range(n_videos):
            index = (wanted + attempt) % n_videos
            rng = _rng(_CLIP, self.seed, epoch, wanted, 0, attempt)
            choose = partial(
                clips.train_indices,
                frames=options.frames,
                sampling=self.plan.sampling,
                stride=self.plan.stride,
                rng=rng,
            )
            try:
                return index, self.videos.clip(index, choose), rng
            except VideoError:
                _check_unreadable(self.videos.unreadable, options.max_unreadable, n_videos)
        raise DataError(f"none of the {n_videos} videos can be read")

    def _cut(self, clip_THWC: Tensor, rng: np.random.Generator) -> Tensor:
        options = self.videos.options
        height, width = clip_THWC.shape[1:3]
        if options.rand_augment:
            # On the whole frame, as VideoMAE does: a crop of a turned frame is not a turned crop.
            clip_THWC = transforms.rand_augment(clip_THWC, options.rand_augment, rng)
        if self.plan.crop == "multi_scale":
            box = transforms.multi_scale_box(height, width, options.crop_scales, rng)
        elif self.plan.crop == "random_resized":
            box = transforms.random_resized_box(height, width, options.crop_area, options.crop_ratio, rng)
        else:
            box = transforms.whole_box(height, width)
        flip = self.plan.flip and rng.random() < 0.5
        return transforms.crop_resize(clip_THWC, box, options.size, flip)


def _check_unreadable(unreadable: dict[str, str], share: float, n_videos: int) -> None:
    if len(unreadable) > share * n_videos:
        first = next(iter(unreadable.values()))
        raise DataError(
            f"{len(unreadable)} of {n_videos} videos cannot be read, more than max_unreadable = {share:g} "
            f"allows; the first: {first}"
        )


class _Requests(Sampler[Any]):
    """The requests of the epoch that runs; persistent decoding processes see each epoch's new ones."""

    def __init__(self) -> None:
        self.pending: Sequence[Any] = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.pending)

    def __len__(self) -> int:
        return len(self.pending)


def _pool(dataset: Dataset[_Answer], requests: _Requests, workers: int) -> DataLoader[_Answer]:
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=requests,
        num_workers=workers,
        persistent_workers=True,
        # One batch ahead, not two as by default: what waits lies in shared or page-locked memory; 64 clips
        # are 150 MB, 8 videos of 30 views 580 MB.
        prefetch_factor=1,
        pin_memory=torch.cuda.is_available(),
        # A plain fork copies the locks of a launcher's threads as they stand, and may wait on one for ever.
        multiprocessing_context="forkserver",
        collate_fn=_as_it_is,
    )


def _as_it_is(answer: Any) -> Any:
    return answer


class TrainLoader:
    """Batches of random clips for one training worker, epoch after epoch; keeps its cache and processes.

    All workers shuffle alike and take equal shares, so that each has `steps` batches in every epoch; the
    rest of a shuffle that fills no batch on all of them is left out.

    Args:
        batch_size: videos of a batch of this worker; with `samples_per_clip` s it has s times as many clips,
            those of a video side by side.
        purpose: fills the fields that `options` leaves open.
    """

    def __init__(
        self,
        manifest: Manifest,
        options: ClipOptions,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        samples_per_clip: int = 1,
        purpose: Purpose = "finetune",
    ) -> None:
        self.manifest = manifest
        self.options = options
        self.plan = recipe(options, benchmarks.find(manifest.benchmark), purpose)
        self.batch_size = batch_size
        self.steps = steps_per_epoch(len(manifest), batch_size, world_size)
        self.unreadable: dict[str, str] = {}
        """Reason by path, of each file that was skipped so far."""
        self._seed, self._rank, self._world_size = seed, rank, world_size
        self._clips = _TrainClips(manifest, options, self.plan, seed, samples_per_clip)
        self._requests = _Requests()
        self._processes: DataLoader[_Answer] | None = None

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of `epoch` (from 0), from `first_step` on.

        Raises:
            DataError: more videos are unreadable than `max_unreadable` allows.
        """
        order = _rng(_ORDER, self._seed, epoch).permutation(len(self.manifest))
        share = order[self._rank :: self._world_size].tolist()
        self._requests.pending = [
            _Request(epoch, tuple(share[step * self.batch_size : (step + 1) * self.batch_size]))
            for step in range(first_step, self.steps)
        ]
        for answer in self._answers():
            self.unreadable.update(answer.unreadable)
            # Each decoding process knows its own failures only: the limit is on all of them together.
            _check_unreadable(self.unreadable, self.options.max_unreadable, len(self.manifest))
            yield _batch_of(answer)

    def close(self) -> None:
        """End the decoding processes and forget the cache."""
        self._processes = None
        self._clips = _TrainClips(self.manifest, self.options, self.plan, self._seed, self._clips.samples)

    def _answers(self) -> Iterator[_Answer]:
        if not self.options.decode_workers:
            return (self._clips[request] for request in self._requests)
        if self._processes is None:
            self._processes = _pool(self._clips, self._requests, self.options.decode_workers)
        return iter(self._processes)


def _batch_of(answer: _Answer) -> Batch:
    if answer.error is not None:
        raise answer.error
    assert answer.batch is not None
    return answer.batch


# ------------------------------------------------------------------------------------------- testing


class _TestViews(Dataset[_Answer]):
    """Makes the test views of a few videos; each file is opened once and each of its frames decoded once."""

    def __init__(
        self, manifest: Manifest, options: ClipOptions, n_clips: int, n_crops: int, *, stand_in: bool
    ) -> None:
        self.videos = _Videos(manifest, options.model_copy(update={"cache": False}))
        self.plan = recipe(options, benchmarks.find(manifest.benchmark), "finetune")
        self.n_clips, self.n_crops, self.stand_in = n_clips, n_crops, stand_in

    def __getitem__(self, indices: tuple[int, ...]) -> _Answer:
        unreadable = self.videos.unreadable
        try:
            places, views = zip(*(self._readable(index) for index in indices), strict=True)
        except TatsError as error:
            return _Answer(None, dict(unreadable), error)
        labels = torch.tensor([self.videos.manifest.videos[place].label for place in places])
        return _Answer(Batch(torch.stack(views), labels, torch.tensor(places)), dict(unreadable))

    def _readable(self, wanted: int) -> tuple[int, Tensor]:
        """Return `(index, views_VCTHW)` of video `wanted`, or of the next one if it may stand in."""
        n_videos = len(self.videos.manifest)
        for index in ((wanted + attempt) % n_videos for attempt in range(n_videos)):
            try:
                return index, self._views(index)
            except VideoError:
                if not self.stand_in:
                    raise
                _check_unreadable(self.videos.unreadable, self.videos.options.max_unreadable, n_videos)
        raise DataError(f"none of the {n_videos} videos can be read")

    def _views(self, index: int) -> Tensor:
        options = self.videos.options
        places_VT: list[clips.Indices] = []

        def choose(n_frames: int) -> clips.Indices:
            indices_VT = clips.view_indices(
                n_frames, options.frames, self.plan.sampling, self.plan.stride, self.n_clips
            )
            # Views overlap; a frame that stands in several is decoded and resized once.
            needed, place = np.unique(indices_VT, return_inverse=True)
            places_VT[:] = place.reshape(indices_VT.shape)
            return needed

        frames_THWC = self.videos.clip(index, choose)
        height, width = frames_THWC.shape[1:3]
        crops = [
            transforms.crop_resize(frames_THWC, box, options.size)
            for box in transforms.view_boxes(height, width, self.n_crops)
        ]
        views = [crop_THWC[torch.from_numpy(place_T)] for place_T in places_VT for crop_THWC in crops]
        return transforms.channels_first(torch.stack(views))


def eval_views(
    manifest: Manifest,
    options: ClipOptions,
    *,
    clips: int | None = None,
    crops: int | None = None,
    batch_size: int = 1,
    rank: int = 0,
    world_size: int = 1,
    unreadable: dict[str, str] | None = None,
) -> Iterator[Batch]:
    """Yield `(views_BVCTHW, label_B, index_B)` of every video once, in the manifest's order.

    Args:
        clips, crops: temporal and spatial views, V = clips · crops, the crops of a clip side by side;
            left out, they are the benchmark's.
        batch_size: videos B of a batch; the last one may be smaller.
        rank, world_size: take every `world_size`-th video from `rank` on.
        unreadable: for what is no benchmark's score: gets the reason by path of each video that cannot be
            read, and the next one that can takes its place, as in training.

    Raises:
        VideoError: a video cannot be read. A score over the rest would not be the benchmark's.
        DataError: more videos are unreadable than `max_unreadable` allows, or there are fewer than workers.
    """
    if len(manifest) < world_size:
        raise DataError(
            f"{manifest.benchmark} ({manifest.split}): {len(manifest)} videos are too few for {world_size} "
            "workers; use fewer workers"
        )
    benchmark = benchmarks.find(manifest.benchmark)
    n_clips = benchmark.test_clips if clips is None else clips
    n_crops = benchmark.test_crops if crops is None else crops
    if min(n_clips, n_crops, batch_size) < 1:
        raise SpecError(
            f"clips ({n_clips}), crops ({n_crops}) and batch_size ({batch_size}) must be positive"
        )
    views = _TestViews(manifest, options, n_clips, n_crops, stand_in=unreadable is not None)
    share = range(len(manifest))[rank::world_size]
    requests = _Requests()
    requests.pending = [
        tuple(share[start : start + batch_size]) for start in range(0, len(share), batch_size)
    ]
    answers: Iterator[_Answer] = (views[request] for request in requests)
    if options.decode_workers:
        answers = iter(_pool(views, requests, options.decode_workers))
    for answer in answers:
        if unreadable is not None:
            unreadable.update(answer.unreadable)
            _check_unreadable(unreadable, options.max_unreadable, len(manifest))
        yield _batch_of(answer)

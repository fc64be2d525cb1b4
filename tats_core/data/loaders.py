"""Batches of clips for training and views for testing, from a manifest of video files; pixels are uint8.

One epoch is a function of `(seed, epoch)` and nothing else: the order from `(seed, epoch)`, the frames
of a clip from `(seed, epoch, index)`, its augmentation from `(seed, epoch, index, sample)`. So a run that is
resumed, even in the middle of an epoch, sees what it would have seen, with any number of decoding processes.

Axes: B clips, V views, C colours, T frames, H × W pixels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Final, Literal, NamedTuple, Self, TypeVar

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tats_core.data import augment, benchmarks, clips, decoded, readers, transforms
from tats_core.data.benchmarks import Benchmark
from tats_core.data.clips import Batch, Erased, Indices, Protocol, Purpose, Sampling
from tats_core.data.manifest import Manifest
from tats_core.data.video import Choose
from tats_core.errors import DataError, SpecError, TatsError, VideoError
from tats_core.machine import end_with_parent
from tats_core.specs import NotIdentity, Size, StrictModel, sides

Result = TypeVar("Result")


class ClipOptions(StrictModel):
    """How a clip is taken from a video. A field left empty is the benchmark's or the purpose's choice."""

    frames: int = Field(16, ge=1, description="frames T of a clip")
    size: Size = Field(224, description="height and width of a clip in pixels, or a list of both")
    protocol: Protocol = Field(
        "ours",
        description="published: frames and resizing of VideoMAE's code, to compare with its numbers; ours: "
        "every frame can be drawn, and what is reduced is antialiased (docs/method.md)",
    )
    sampling: Sampling | None = Field(
        None,
        description="a frame of each segment, or every stride-th; pre-training: dense, else the benchmark's",
    )
    stride: int | None = Field(None, ge=1, description="frames from one to the next of a dense clip")
    crop: Literal["multi_scale", "random_resized", "centre"] | None = Field(
        None, description="of a training clip; pre-training: multi_scale, fine-tuning: random_resized"
    )
    crop_scales: tuple[float, ...] = Field(
        transforms.MULTI_SCALES, min_length=1, description="multi_scale: sides as shares of the largest crop"
    )
    crop_area: tuple[float, float] = Field((0.08, 1.0), description="random_resized: share of the area")
    crop_ratio: tuple[float, float] = Field(
        (0.75, 4 / 3), description="random_resized: width / height, a square clip's"
    )
    flip: bool | None = Field(
        None, description="mirror half of the clips; pre-training: no, fine-tuning: if the classes allow"
    )
    rand_augment: str | None = Field(
        None,
        pattern=r"rand(-[a-z]+[0-9.]*)*$",
        description="timm's RandAugment of the training clips, on whole frames as VideoMAE's, so large "
        "videos are slow (fine-tuning: rand-m7-n4-mstd0.5-inc1)",
    )
    augment_on: Literal["worker", "device"] = Field(
        "worker",
        description="where training clips are cut, resized and changed: where they are decoded, or on the "
        "training's own device, a GPU, which takes whole frames; equal within a grey level",
    )
    colour_jitter: float = Field(0.0, ge=0, lt=1, description="brightness, saturation, contrast: 1 ± this")
    hue_jitter: float = Field(0.0, ge=0, le=0.5, description="share of the colour circle, either way")
    erase: float = Field(0.0, ge=0, le=1, description="share of the training clips with a box erased")
    cache: Annotated[bool, NotIdentity] = Field(
        False, description="hold decoded videos in memory, for small data sets"
    )
    cache_mb: Annotated[int, NotIdentity] = Field(
        4096, ge=0, description="its size; videos beyond it are decoded each time"
    )
    decode_workers: Annotated[int, NotIdentity] = Field(
        0, ge=0, description="decoding processes of each training worker, with a batch each"
    )
    decode_on: Annotated[Literal["worker", "cluster"], NotIdentity] = Field(
        "worker",
        description="where they run: beside their worker, or on any CPUs of the Ray cluster; same samples",
    )
    reader: Annotated[str, readers.READERS] = Field(
        "auto",
        description="what decodes: auto is pyav; decord decodes the kinds of file of which it gives the same "
        "frames, and is slower",
    )
    time_limit: Annotated[float, NotIdentity] = Field(
        readers.TIME_LIMIT, gt=0, description="seconds of computing that one file may take"
    )
    max_unreadable: float = Field(0.05, ge=0, le=1, description="share of the videos that training may skip")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.cache and self.decode_workers:
            raise ValueError("cache holds videos in the training process, so it needs decode_workers: 0")
        if self.decode_on == "cluster" and not self.decode_workers:
            raise ValueError("decode_on: cluster needs decode_workers, the decoders of each worker")
        for name, (low, high) in (("crop_area", self.crop_area), ("crop_ratio", self.crop_ratio)):
            if not 0 < low <= high:
                raise ValueError(f"{name} must be two positive numbers, the smaller first")
        if self.crop_area[1] > 1 or not all(0 < scale <= 1 for scale in self.crop_scales):
            raise ValueError("crop_area and crop_scales are shares, at most 1")
        return self


@dataclass(frozen=True)
class ClipRules:
    """What `ClipOptions` leave open, decided for one data set and purpose."""

    sampling: Sampling
    stride: int
    crop: Literal["multi_scale", "random_resized", "centre"]
    flip: bool
    published: Purpose | None = None
    """Of which of VideoMAE's trainings frames and resizing are; None: ours."""

    @property
    def antialias(self) -> bool:
        """Whether what is reduced is antialiased: not in VideoMAE's fine-tuning and test."""
        return self.published != "finetune"


def clip_rules(options: ClipOptions, benchmark: Benchmark, purpose: Purpose) -> ClipRules:
    """Fill the open fields of `options`: by VideoMAE's recipe for `purpose`, by the benchmark."""
    pretrain = purpose == "pretrain"
    return ClipRules(
        sampling=options.sampling or ("dense" if pretrain else benchmark.sampling),
        stride=options.stride or (benchmark.pretrain_stride if pretrain else benchmark.stride),
        crop=options.crop or ("multi_scale" if pretrain else "random_resized"),
        flip=options.flip if options.flip is not None else (not pretrain and benchmark.flip),
        published=purpose if options.protocol == "published" else None,
    )


# Purposes of a random stream, the first part of its key: two purposes never share a stream.
_ORDER: Final = 1
_CLIP: Final = 2


def _rng(purpose: int, *key: int) -> np.random.Generator:
    return np.random.default_rng((purpose, *key))


_Request = tuple[int, tuple[int, ...]]
"""A batch to make: the epoch, and the videos by their indices in the manifest."""


class Cut(NamedTuple):
    """What becomes of the frames of a training clip."""

    seed: int | None
    """Of RandAugment; None: there is none."""
    box: transforms.Box
    flip: bool
    colour: transforms.Colour | None


class Uncut(NamedTuple):
    """A training batch before its clips are cut: frames of any size, and what becomes of them."""

    frames: list[Tensor]
    """uint8 `frames_THWC` of each video."""
    cuts: list[list[Cut]]
    """Of each video, one for each of its samples."""
    label_B: Tensor
    index_B: Tensor
    erased: list[Erased]


class _Answer(NamedTuple):
    """A batch or an error, which torch would wrap in a traceback if it were raised.

    A named tuple of named tuples: torch moves their tensors to page-locked memory by itself.
    """

    outcome: Batch | Uncut | TatsError
    unreadable: dict[str, str]


@dataclass(kw_only=True)
class _Clips(Dataset[_Answer]):
    """Makes batches from the videos of a manifest, in the training process or in a decoding process."""

    manifest: Manifest
    options: ClipOptions
    rules: ClipRules
    stand_in: bool = True
    """Whether the next video replaces a video that cannot be read."""
    unreadable: dict[str, str] = field(default_factory=dict)
    cache: dict[int, Tensor] = field(default_factory=dict)

    @abstractmethod
    def batch(self, epoch: int, videos: tuple[int, ...]) -> Batch | Uncut:
        """Make the batch of a request."""

    def __getitem__(self, request: _Request) -> _Answer:
        try:
            return _Answer(self.batch(*request), dict(self.unreadable))
        except TatsError as error:
            return _Answer(error, dict(self.unreadable))

    def readable(self, video: int, read: Callable[[int, int], Result]) -> tuple[int, Result]:
        """Return `(index, read(index, attempt))` of `video`, or of the next one that can be read.

        Raises:
            VideoError: it cannot be read, and no other may replace it.
            DataError: more videos are unreadable than `max_unreadable` allows.
        """
        n_videos = len(self.manifest)
        for attempt in range(n_videos):
            index = (video + attempt) % n_videos
            try:
                return index, read(index, attempt)
            except VideoError:
                if not self.stand_in:
                    raise
                self.check(self.unreadable)
        raise DataError(f"none of the {n_videos} videos can be read")

    def check(self, unreadable: dict[str, str]) -> None:
        """Raise DataError where more videos are `unreadable` than `max_unreadable` allows."""
        share, n_videos = self.options.max_unreadable, len(self.manifest)
        if len(unreadable) > share * n_videos:
            first = next(iter(unreadable.values()))
            raise DataError(
                f"{len(unreadable)} of {n_videos} videos cannot be read, more than max_unreadable = "
                f"{share:g} allows; the first: {first}"
            )

    def frames(self, index: int, choose: Choose) -> Tensor:
        """Return uint8 `frames_THWC` of video `index`, the frames that `choose` picks.

        Raises:
            VideoError: the file cannot be read, now or the last time it was tried.
        """
        video, options = self.manifest.videos[index], self.options
        if self.manifest.decoded is not None:
            decoded_THWC = decoded.opened(self.manifest.decoded).frames(video.id)
            if decoded_THWC is not None:
                return torch.from_numpy(decoded_THWC[choose(len(decoded_THWC))])
        if video.path in self.unreadable:
            raise VideoError(self.unreadable[video.path])
        frames_THWC = self.cache.get(index)
        if frames_THWC is None:
            limit = options.cache_mb * 2**20 if options.cache else 0
            wanted: Choose = np.arange if limit else choose
            try:
                frames_THWC = torch.from_numpy(
                    readers.read_clip(video.path, wanted, options.reader, options.time_limit, video.segment)
                )
            except VideoError as error:
                self.unreadable[video.path] = str(error)
                raise
            if not limit:
                return frames_THWC
            if sum(cached.nbytes for cached in self.cache.values()) + frames_THWC.nbytes <= limit:
                self.cache[index] = frames_THWC
        return frames_THWC[torch.from_numpy(choose(len(frames_THWC)))]


def _pool(clips: _Clips, requests: list[_Request]) -> Iterable[_Answer]:
    """Return decoding processes that answer `requests`, whatever the list holds when they are iterated."""
    if clips.options.decode_on == "cluster":
        from tats_core.data.remote import RemoteDecoders  # here: Ray takes a second to import

        return RemoteDecoders(clips, requests, clips.options.decode_workers)
    return DataLoader(
        clips,
        batch_size=None,
        sampler=requests,
        num_workers=clips.options.decode_workers,
        persistent_workers=True,
        # One batch ahead, not two as by default: what waits lies in shared or page-locked memory; 64 clips
        # are 150 MB, 8 videos of 30 views 580 MB.
        prefetch_factor=1,
        pin_memory=torch.cuda.is_available(),
        # A plain fork copies locks that other threads of the launcher hold, and may wait for ever.
        multiprocessing_context="forkserver",
        worker_init_fn=end_with_parent,
    )


def _batches(
    answers: Iterable[_Answer], clips: _Clips, unreadable: dict[str, str] | None
) -> Iterator[Batch | Uncut]:
    for answer in answers:
        if unreadable is not None:
            unreadable.update(answer.unreadable)
            # A decoding process knows its own failures only; the limit is on those of all processes.
            clips.check(unreadable)
        if isinstance(answer.outcome, TatsError):
            raise answer.outcome
        yield answer.outcome


# ------------------------------------------------------------------------------------------ training


@dataclass(kw_only=True)
class _TrainClips(_Clips):
    """Random clips, each a function of seed, epoch, video and sample."""

    seed: int
    samples: int

    def batch(self, epoch: int, videos: tuple[int, ...]) -> Batch | Uncut:
        frames: list[Tensor] = []
        cuts: list[list[Cut]] = []
        boxes: list[Erased | None] = []
        indices: list[int] = []
        for video in videos:
            index, (clip_THWC, rng) = self.readable(video, partial(self._clip, epoch, video))
            frames.append(clip_THWC)
            cuts.append([])
            # As in VideoMAE, the samples are the same frames, decoded once, each with its own augmentation.
            for sample in range(self.samples):
                if sample:
                    rng = _rng(_CLIP, self.seed, epoch, video, sample)
                cuts[-1].append(self._drawn(clip_THWC.shape[1], clip_THWC.shape[2], rng))
                boxes.append(self._erased(len(indices), rng))
                indices.append(index)
        labels = torch.tensor([self.manifest.videos[index].label for index in indices])
        erased = [box for box in boxes if box is not None]
        uncut = Uncut(frames, cuts, labels, torch.tensor(indices), erased)
        return uncut if self.options.augment_on == "device" else self.cut(uncut, augment.on_cpu)

    def cut(
        self, uncut: Uncut, rand_augment: augment.RandAugment, device: torch.device | None = None
    ) -> Batch:
        """Cut the clips of a batch on a device; None: where its frames are."""
        options, policy, clips_THWC = self.options, self.options.rand_augment, []
        for frames_THWC, cuts in zip(uncut.frames, uncut.cuts, strict=True):
            # One video after the other: the whole frames of a batch may be gigabytes.
            there_THWC = frames_THWC.to(device, non_blocking=True)
            for cut in cuts:
                # On the whole frame, as VideoMAE does: a crop of a turned frame is not a turned crop.
                whole_THWC = there_THWC
                if policy is not None and cut.seed is not None:
                    whole_THWC = rand_augment(there_THWC, policy, cut.seed)
                clips_THWC.append(
                    transforms.crop_resize(whole_THWC, cut.box, options.size, cut.flip, self.rules.antialias)
                )
        video_BCTHW = transforms.channels_first(clips_THWC)
        colours = [cut.colour for cuts in uncut.cuts for cut in cuts if cut.colour is not None]
        if colours:
            video_BCTHW = transforms.recolour(video_BCTHW, colours)
        return Batch(video_BCTHW, uncut.label_B, uncut.index_B, uncut.erased)

    def _clip(self, epoch: int, video: int, index: int, attempt: int) -> tuple[Tensor, np.random.Generator]:
        """Return the frames of a random clip of video `index`, and the clip's random stream.

        The stream belongs to `video`, which was asked for, so that a stand-in differs from its usual clip,
        and to the attempt, so that nothing depends on whether a failure is new or remembered.
        """
        rng = _rng(_CLIP, self.seed, epoch, video, 0, attempt)
        frames, rules = self.options.frames, self.rules

        def choose(n_frames: int) -> Indices:
            return clips.train_indices(n_frames, frames, rules.sampling, rules.stride, rng, rules.published)

        return self.frames(index, choose), rng

    def _drawn(self, height: int, width: int, rng: np.random.Generator) -> Cut:
        """Draw what becomes of a clip of frames of this size."""
        options = self.options
        seed = int(rng.integers(2**32)) if options.rand_augment else None
        if self.rules.crop == "multi_scale":
            box = transforms.multi_scale_box(height, width, options.size, options.crop_scales, rng)
        elif self.rules.crop == "random_resized":
            box = transforms.random_resized_box(
                height, width, options.crop_area, options.crop_ratio, rng, options.size
            )
        else:
            box = transforms.central_box(height, width, options.size)
        flip = self.rules.flip and rng.random() < 0.5
        changed = options.colour_jitter or options.hue_jitter
        colour = transforms.draw_colour(options.colour_jitter, options.hue_jitter, rng) if changed else None
        return Cut(seed, box, flip, colour)

    def _erased(self, clip: int, rng: np.random.Generator) -> Erased | None:
        """Draw the box of a clip that is erased, and its standard normal noise, another for each frame."""
        box = transforms.draw_erased(self.options.size, self.options.erase, rng)
        if box is None:
            return None
        noise = rng.standard_normal((3, self.options.frames, box.height, box.width), dtype=np.float32)
        return Erased(clip, *box.slices, torch.from_numpy(noise))


class TrainLoader:
    """Batches of random clips for a training worker, epoch after epoch, with a cache or decoding processes.

    All workers shuffle alike and take equal shares, so that each has `steps` batches in every epoch; the
    rest of a shuffle that fills no batch on all of them is left out.

    Args:
        batch_size: videos of a batch of this worker; with `samples_per_clip` s it has s times as many clips,
            those of a video side by side.
        purpose: fills the fields that `options` leaves open.
        device: on which clips are cut with `augment_on: device`.

    Raises:
        DataError: the videos do not fill a batch on each worker.
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
        device: torch.device | None = None,
    ) -> None:
        self.manifest = manifest
        self.batch_size = batch_size
        self.steps = len(manifest) // (batch_size * world_size)
        """Batches of an epoch."""
        if not self.steps:
            raise DataError(
                f"{len(manifest)} videos do not fill one batch of {batch_size} on each of {world_size} "
                "workers; use a smaller batch or more videos"
            )
        self.unreadable: dict[str, str] = {}
        """Reason by path, of each file that was skipped so far."""
        self._rank, self._world_size, self._device = rank, world_size, device
        self.rules = clip_rules(options, benchmarks.BENCHMARKS[manifest.benchmark], purpose)
        self._clips = _TrainClips(
            manifest=manifest, options=options, rules=self.rules, seed=seed, samples=samples_per_clip
        )
        self._requests: list[_Request] = []
        self._processes: Iterable[_Answer] | None = None

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of `epoch` (from 0), from `first_step` on.

        Raises:
            DataError: more videos are unreadable than `max_unreadable` allows.
        """
        order = _rng(_ORDER, self._clips.seed, epoch).permutation(len(self.manifest))
        share = order[self._rank :: self._world_size].tolist()
        # In place: the decoding processes persist and read the same list.
        self._requests[:] = [
            (epoch, tuple(share[step * self.batch_size : (step + 1) * self.batch_size]))
            for step in range(first_step, self.steps)
        ]
        batches = _batches(self._answers(), self._clips, self.unreadable)
        return (
            batch if isinstance(batch, Batch) else self._clips.cut(batch, augment.on_device, self._device)
            for batch in batches
        )

    def close(self) -> None:
        """End the decoding processes and empty the cache."""
        self._processes = None
        self._clips.cache.clear()

    def _answers(self) -> Iterator[_Answer]:
        if not self._clips.options.decode_workers:
            return (self._clips[request] for request in self._requests)
        if self._processes is None:
            self._processes = _pool(self._clips, self._requests)
        return iter(self._processes)


# ------------------------------------------------------------------------------------------- testing


@dataclass(kw_only=True)
class _TestViews(_Clips):
    """The test views of a few videos; each file is opened once and each of its frames decoded once."""

    n_clips: int
    n_crops: int

    def batch(self, epoch: int, videos: tuple[int, ...]) -> Batch:
        n_views, frames = self.n_clips * self.n_crops, self.options.frames
        shape = (len(videos), n_views, 3, frames, *sides(self.options.size))
        views_BVCTHW = torch.empty(shape, dtype=torch.uint8)
        indices = [
            self.readable(video, partial(self._fill, views_VCTHW))[0]
            for video, views_VCTHW in zip(videos, views_BVCTHW, strict=True)
        ]
        labels = [self.manifest.videos[index].label for index in indices]
        return Batch(views_BVCTHW, torch.tensor(labels), torch.tensor(indices))

    def _fill(self, views_VCTHW: Tensor, index: int, attempt: int) -> None:
        """Write the views of video `index`."""
        options, rules = self.options, self.rules
        inverse_VT: list[Indices] = []

        def choose(n_frames: int) -> Indices:
            indices_VT = clips.view_indices(
                n_frames, options.frames, rules.sampling, rules.stride, self.n_clips, bool(rules.published)
            )
            # Views overlap; a frame of several views is decoded and resized once.
            needed, inverse = np.unique(indices_VT, return_inverse=True)
            inverse_VT[:] = inverse.reshape(indices_VT.shape)
            return needed

        frames_THWC = self.frames(index, choose)
        crops = transforms.crops_of_test(frames_THWC, options.size, self.n_crops, rules.antialias)
        places = [(index_T, crop_THWC) for index_T in inverse_VT for crop_THWC in crops]
        for view_CTHW, (index_T, crop_THWC) in zip(views_VCTHW, places, strict=True):
            # Straight to its place: the views of a video are tens of megabytes.
            crop_CTHW = crop_THWC.permute(3, 0, 1, 2)
            torch.index_select(crop_CTHW, 1, torch.from_numpy(index_T), out=view_CTHW)


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
    """Yield the test views `views_BVCTHW` of every video once, in the manifest's order.

    Args:
        clips, crops: temporal and spatial views, V = clips · crops, the crops of a clip side by side;
            left out, they are the benchmark's.
        batch_size: videos B of a batch; the last one may be smaller.
        rank, world_size: take every `world_size`-th video from `rank` on.
        unreadable: given where the result is no benchmark's score; gets the reason by path of each video
            that cannot be read, and the next readable video replaces it, as in training.

    Raises:
        VideoError: a video cannot be read. A score over the rest would not be the benchmark's.
        DataError: more videos are unreadable than `max_unreadable` allows, or there are fewer than workers.
    """
    if len(manifest) < world_size:
        raise DataError(
            f"{manifest.benchmark} ({manifest.split}): {len(manifest)} videos are too few for {world_size} "
            "workers; use fewer workers"
        )
    benchmark = benchmarks.BENCHMARKS[manifest.benchmark]
    n_clips = benchmark.test_clips if clips is None else clips
    n_crops = benchmark.test_crops if crops is None else crops
    if min(n_clips, n_crops, batch_size) < 1:
        raise SpecError(
            f"clips ({n_clips}), crops ({n_crops}) and batch_size ({batch_size}) must be positive"
        )
    views = _TestViews(
        manifest=manifest,
        options=options.model_copy(update={"cache": False}),
        rules=clip_rules(options, benchmark, "finetune"),
        stand_in=unreadable is not None,
        n_clips=n_clips,
        n_crops=n_crops,
    )
    share = range(len(manifest))[rank::world_size]
    requests = [(0, tuple(share[start : start + batch_size])) for start in range(0, len(share), batch_size)]
    pooled = options.decode_workers > 0
    answers = _pool(views, requests) if pooled else (views[request] for request in requests)
    for batch in _batches(answers, views, unreadable):
        assert isinstance(batch, Batch), "test views are cut where they are decoded"
        yield batch

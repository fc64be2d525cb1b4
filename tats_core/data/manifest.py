"""The videos of one split of a data set, which stages pass on as a JSON file."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from tats_core.data.clips import Segment
from tats_core.errors import DataError
from tats_core.files import write_text

UNLABELLED: Final = -1
"""Label of a video without a class; good for pre-training only."""

_FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """One video: `id` is unique within its data set, `path` is absolute, `label` counts from 0."""

    id: str
    path: str
    label: int
    segment: Segment | None = None
    """The part of the file that is the video; None: all of it."""


@dataclass(frozen=True)
class Manifest:
    """The videos of one split, in the order of the data set's own lists.

    `absent` counts videos that the lists name and the disk lacks; with any, every table of results is marked.
    Kinetics-400 may have some, since every copy of it differs; other data sets where it is allowed.
    """

    benchmark: str
    split: str
    classes: tuple[str, ...]
    root: Path
    videos: tuple[VideoRecord, ...]
    absent: int = 0
    decoded: Path | None = None
    """File of the decoded frames of all videos (`data.decoded`), beside the manifest's file."""
    content: str = ""
    """Digest of the sizes and first bytes of the files (`index.Index.content`)."""
    notes: tuple[str, ...] = field(default=(), compare=False)
    """What the person should know of the lists, a sentence each; not saved."""
    missing: tuple[str, ...] = field(default=(), compare=False)
    """The videos of `absent` as the lists name them; not saved."""

    def __post_init__(self) -> None:
        if not self.videos:
            raise DataError(f"{self._name}: no video is listed in {self.root}")
        if len(set(self.classes)) < len(self.classes):
            twice = next(name for name in self.classes if self.classes.count(name) > 1)
            raise DataError(f"{self._name}: two classes are called '{twice}'; each needs a name of its own")
        seen: set[str] = set()
        for video in self.videos:
            if not UNLABELLED <= video.label < len(self.classes):
                raise DataError(
                    f"{self._name}: video '{video.id}' has label {video.label}, "
                    f"but there are {len(self.classes)} classes (0 to {len(self.classes) - 1})"
                )
            if video.id in seen:
                raise DataError(f"{self._name}: video '{video.id}' is listed twice; remove one of the rows")
            seen.add(video.id)

    def __len__(self) -> int:
        return len(self.videos)

    @property
    def _name(self) -> str:
        return f"{self.benchmark} ({self.split})"

    def digest(self) -> str:
        """Return the sha256 of what is listed (names, paths below the root, labels) and of `content`.

        It does not depend on where the root is.
        """
        listed: list[Any] = [self.benchmark, self.split, self.classes, self._rows()]
        if self.content:
            listed.append(self.content)
        return hashlib.sha256(json.dumps(listed, separators=(",", ":")).encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Write as JSON, complete or not at all.

        Paths are relative to the root, and the root to the file where it lies below it, so that a stage's
        folder can be moved with everything in it.
        """
        folder, root = path.absolute().parent, self.root.absolute()
        stored: dict[str, Any] = {
            "format": _FORMAT,
            "benchmark": self.benchmark,
            "split": self.split,
            "root": str(root.relative_to(folder) if root.is_relative_to(folder) else root),
            "absent": self.absent,
            "classes": list(self.classes),
            "videos": self._rows(),
        }
        if self.decoded is not None:
            stored["decoded"] = self.decoded.name
        if self.content:
            stored["content"] = self.content
        write_text(path, json.dumps(stored, indent=0) + "\n")

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read a manifest written by `save`.

        Raises:
            DataError: the file is missing, is not JSON or is not a manifest.
        """
        path = path.absolute()
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(f"the manifest {path} cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise DataError(f"the manifest {path} is not JSON ({error}); make it again") from error
        try:
            if stored["format"] != _FORMAT:
                raise ValueError(stored["format"])
            root = path.parent / stored["root"]
            return cls(
                benchmark=stored["benchmark"],
                split=stored["split"],
                classes=tuple(stored["classes"]),
                root=root,
                videos=tuple(
                    VideoRecord(name, str(root / below), label, Segment(*part) if part else None)
                    for name, below, label, *part in stored["videos"]
                ),
                absent=int(stored["absent"]),
                content=stored.get("content", ""),
                decoded=path.parent / stored["decoded"] if "decoded" in stored else None,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} is not a manifest of format {_FORMAT}; make it again") from error

    def few_labels(self, per_class: int, seed: int) -> Manifest:
        """Return the same manifest with `per_class` videos of each class, chosen by `seed`.

        The choice does not depend on the order of the list, and a larger `per_class` contains the smaller
        ones of the same seed, so that curves over the number of labels are nested.

        Raises:
            DataError: a class has fewer videos, which would make the choice unbalanced.
        """
        by_class: dict[int, list[VideoRecord]] = defaultdict(list)
        for video in self.videos:
            by_class[video.label].append(video)
        chosen: set[str] = set()
        for label, name in enumerate(self.classes):
            videos = by_class[label]
            if len(videos) < per_class:
                raise DataError(
                    f"{self._name}: class '{name}' has {len(videos)} videos, fewer than the {per_class} "
                    "labels a class that were asked for; ask for fewer"
                )
            chosen.update(video.id for video in sorted(videos, key=lambda v: rank(seed, v.id))[:per_class])
        return replace(self, videos=tuple(video for video in self.videos if video.id in chosen))

    def first(self, count: int) -> Manifest:
        """Return `count` videos: the first one of each class, then the second of each, and so on."""
        if count >= len(self.videos):
            return self
        counters: dict[int, Iterator[int]] = defaultdict(itertools.count)
        turns = [next(counters[video.label]) for video in self.videos]
        chosen = sorted(sorted(range(len(turns)), key=turns.__getitem__)[:count])
        return replace(self, videos=tuple(self.videos[index] for index in chosen))

    def spread(self, count: int) -> Manifest:
        """Return `count` videos at equal distances in the list, so that every class has its share."""
        if count >= len(self.videos):
            return self
        videos = tuple(self.videos[step * len(self.videos) // count] for step in range(count))
        return replace(self, videos=videos)

    def unlabelled(self) -> Manifest:
        """Return the same videos without their labels."""
        return replace(self, videos=tuple(replace(video, label=UNLABELLED) for video in self.videos))

    def absence(self) -> dict[str, int]:
        """Return what a stage's result has of `absent`, so that tables are marked; most often nothing."""
        return {f"absent_{self.split}": self.absent} if self.absent else {}

    def labels(self) -> list[int]:
        """Return the label of every video, in order."""
        return [video.label for video in self.videos]

    def below(self, video: VideoRecord) -> str:
        """Return a video's path below the root; that of a video elsewhere is absolute."""
        return video.path.removeprefix(self._prefix)

    @cached_property
    def _prefix(self) -> str:
        return str(self.root.absolute()) + os.sep

    def _rows(self) -> list[list[Any]]:
        """Return each video as JSON: id, path below the root, label and, of a part of a file, the segment."""
        return [[video.id, self.below(video), video.label, *(video.segment or ())] for video in self.videos]


def rank(seed: int, video_id: str) -> bytes:
    """Return the key of a random order of videos that is the same on every machine and Python version."""
    return hashlib.sha256(f"{seed}\0{video_id}".encode(errors="surrogateescape")).digest()

"""The frames of all videos of a manifest, decoded once, in one file that readers map into memory.

For small data sets that many runs read: processes of one machine share the pages, and none decodes again.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tats_core.data import readers
from tats_core.data.manifest import Manifest
from tats_core.data.readers import Frames
from tats_core.errors import VideoError
from tats_core.files import replacing, write_text


class Decoded:
    """A file of frames: for each video id its offset and `(T, H, W)`."""

    def __init__(self, path: Path) -> None:
        self._bytes: NDArray[np.uint8] = np.load(path, mmap_mode="r")
        self._index: dict[str, tuple[int, int, int, int]] = json.loads(_index(path).read_text("utf-8"))

    def frames(self, video_id: str) -> Frames | None:
        """Return all `frames_THWC` of a video, read-only; None where it could not be decoded."""
        if video_id not in self._index:
            return None
        start, T, H, W = self._index[video_id]
        return self._bytes[start : start + T * H * W * 3].reshape(T, H, W, 3)


opened = functools.lru_cache(maxsize=8)(Decoded)
"""The file at a path; one mapping a process."""


def write(manifest: Manifest, path: Path, progress: Callable[[], None]) -> Manifest:
    """Decode all videos into `path` (`.npy`), and return the manifest that names it.

    A video that cannot be read is left out: the reason comes when it is read, as without this file.

    Args:
        progress: called after each video.
    """
    index: dict[str, tuple[int, int, int, int]] = {}
    parts: list[NDArray[np.uint8]] = [np.empty(0, np.uint8)]
    start = 0
    for video in manifest.videos:
        try:
            frames_THWC = readers.read_all(video.path)
        except VideoError:
            continue
        T, H, W, _ = frames_THWC.shape
        index[video.id] = (start, T, H, W)
        parts.append(frames_THWC.ravel())
        start += frames_THWC.size
        progress()
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, np.concatenate(parts))
    write_text(_index(path), json.dumps(index))
    return replace(manifest, decoded=path)


def _index(path: Path) -> Path:
    return path.with_suffix(".json")

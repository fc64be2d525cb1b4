"""The frames of all videos of a manifest, decoded once, in one file that readers map into memory.

For small data sets that many runs read: processes of one machine share the pages, and none decodes again.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
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
    """A file of frames: video id → where in it, and `(T, H, W)`."""

    def __init__(self, path: Path) -> None:
        self._bytes: NDArray[np.uint8] = np.load(path, mmap_mode="r")
        self._places: Mapping[str, tuple[int, int, int, int]] = json.loads(_index(path).read_text("utf-8"))

    def frames(self, video_id: str) -> Frames | None:
        """Return all `frames_THWC` of a video, not to be written to; None where it could not be decoded."""
        if video_id not in self._places:
            return None
        start, T, H, W = self._places[video_id]
        return self._bytes[start : start + T * H * W * 3].reshape(T, H, W, 3)


opened = functools.lru_cache(maxsize=8)(Decoded)
"""The file at a path; one mapping a process."""


def write(manifest: Manifest, path: Path, decoded: Callable[[], None]) -> Manifest:
    """Decode all videos into `path` (`.npy`), and return the manifest that knows of it.

    A video that cannot be read is left out: who asks for it is told why, as without this file.

    Args:
        decoded: called after each video.
    """
    places: dict[str, tuple[int, int, int, int]] = {}
    parts: list[NDArray[np.uint8]] = []
    start = 0
    for video in manifest.videos:
        try:
            frames_THWC = readers.read_all(video.path)
        except VideoError:
            continue
        T, H, W, _ = frames_THWC.shape
        places[video.id] = (start, T, H, W)
        parts.append(frames_THWC.ravel())
        start += frames_THWC.size
        decoded()
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, np.concatenate(parts) if parts else np.empty(0, np.uint8))
    write_text(_index(path), json.dumps(places))
    return replace(manifest, decoded=path)


def _index(path: Path) -> Path:
    return path.with_suffix(".json")

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
import torch

from tats_core.data import readers, transforms
from tats_core.data.manifest import Manifest
from tats_core.data.video import Frames
from tats_core.errors import DataError, VideoError
from tats_core.files import replacing, write_text


class Decoded:
    """A file of frames: for each video id its offset and `(T, H, W)`."""

    def __init__(self, path: Path) -> None:
        self._bytes = np.memmap(path, np.uint8, "r")
        self._index: dict[str, tuple[int, int, int, int]] = json.loads(_index(path).read_text("utf-8"))

    def frames(self, video_id: str) -> Frames | None:
        """Return all `frames_THWC` of a video, read-only; None where it could not be decoded."""
        if video_id not in self._index:
            return None
        start, T, H, W = self._index[video_id]
        return self._bytes[start : start + T * H * W * 3].reshape(T, H, W, 3)


opened = functools.lru_cache(maxsize=8)(Decoded)
"""The file at a path; one mapping a process."""


def write(
    manifest: Manifest, path: Path, progress: Callable[[], None], short_side: int | None = None
) -> Manifest:
    """Decode all videos into `path`, a few frames at a time, and return the manifest that names it.

    A video that cannot be read is left out: the reason comes when it is read, as without this file.

    Args:
        progress: called after each video.
        short_side: reduce frames with a longer one to it.

    Raises:
        DataError: no video can be read.
    """
    index: dict[str, tuple[int, int, int, int]] = {}
    reason = ""
    with replacing(path) as temporary, temporary.open("wb") as file:
        for video in manifest.videos:
            start, T = file.tell(), 0
            try:
                for frames_THWC in readers.pieces(video.path, segment=video.segment):
                    small_THWC = transforms.shrink(torch.from_numpy(frames_THWC), short_side).numpy()
                    file.write(np.ascontiguousarray(small_THWC).data)
                    T += len(small_THWC)
            except VideoError as error:
                reason = str(error)
                file.seek(start)
                file.truncate()
            else:
                index[video.id] = (start, T, *small_THWC.shape[1:3])
            progress()
        if not index:
            name = f"{manifest.benchmark} ({manifest.split})"
            raise DataError(f"{name}: none of the videos can be read: {reason}")
    write_text(_index(path), json.dumps(index))
    return replace(manifest, decoded=path)


def _index(path: Path) -> Path:
    return path.with_suffix(".json")

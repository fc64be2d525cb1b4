"""A smaller copy of a data set, in the same layout: frames of the size that training crops, more key frames.

A clip of the copy costs a fraction of the time to decode; its pixels are those of another compression.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from tats_core.data import readers, shards, transforms
from tats_core.data.benchmarks.base import VIDEO_SUFFIXES, copy_lists, refuse_inside, walk
from tats_core.data.generate import Encoding, encode
from tats_core.data.parallel import in_pieces
from tats_core.data.video import opened
from tats_core.errors import DataError, VideoError
from tats_core.files import replacing, write_text

_MARKER: Final = "shrunk.json"


@dataclass(frozen=True)
class Smaller:
    """How a copy is made."""

    short_side: int = 256
    """Pixels; a video that is no larger is copied as it is."""
    key_frames: int = 16
    """Frames from one key frame to the next, at most."""

    def encoding(self, suffix: str) -> Encoding:
        """Return the encoding of files whose name ends like this: visually lossless, quick to decode."""
        group = {"g": str(self.key_frames), "threads": "1"}
        if suffix == ".avi":
            return Encoding("avi", "mpeg4", {"qmin": "2", "qmax": "4", "bf": "0", **group})
        # Under other suffixes too: players and readers look at the content, and VP9 takes twice as long to
        # decode. Three of four frames are such as nothing refers to, so a reader passes over them.
        quick = {"tune": "fastdecode", "bf": "3", "x264-params": "b-adapt=0:b-pyramid=none:ref=1"}
        container = "matroska" if suffix in (".webm", ".mkv") else "mp4"
        return Encoding(container, "libx264", {"preset": "fast", "crf": "18", **quick, **group})


def shrink(
    root: Path,
    out: Path,
    smaller: Smaller,
    progress: Callable[[int, int], None],
    workers: int | None = None,
) -> dict[str, str]:
    """Copy the lists and videos below `root` to `out`; videos that are there already are not made again.

    Each file that is written is decoded and has the frames of its source, or it is not there.

    Returns:
        A sentence by path of each video that was copied as it is because it is damaged.

    Raises:
        DataError: `root` is packed; `out` is a copy of other settings, or is `root` itself or in it.
    """
    if shards.above(os.path.abspath(root)) is not None:  # noqa: PTH100
        raise DataError(f"{root} is a packed copy; shrink the plain one, and pack the smaller copy")
    refuse_inside(root, out)
    marker = out / _MARKER
    if marker.exists() and json.loads(marker.read_text("utf-8")) != asdict(smaller):
        raise DataError(f"{out} is a copy of other settings (see {_MARKER} there); choose another folder")
    write_text(marker, json.dumps(asdict(smaller)) + "\n")
    copy_lists(root, out)
    videos = [(path, out / path.relative_to(root)) for path in walk(root, VIDEO_SUFFIXES)]
    todo = [(source, copy) for source, copy in videos if not copy.exists()]
    faults: dict[str, str] = {}
    done = len(videos) - len(todo)
    for piece, texts in in_pieces(partial(_shrink, smaller), todo, workers):
        faults |= {str(source): text for (source, _), text in zip(piece, texts, strict=True) if text}
        done += len(piece)
        progress(done, len(videos))
    return faults


def _shrink(smaller: Smaller, files: tuple[Path, Path]) -> str:
    """Write the copy of a video; return why it is as large as its source, or nothing."""
    source, copy = files
    copy.parent.mkdir(parents=True, exist_ok=True)
    with replacing(copy, durable=False) as temporary:
        try:
            _encode(source, temporary, smaller)
        except VideoError as error:
            shutil.copyfile(source, temporary)
            return str(error)
    return ""


def _encode(source: Path, target: Path, smaller: Smaller) -> None:
    """Write a smaller video; raise VideoError where the source is damaged or the frames are not the same."""
    with opened(source, readers.whole_limit(source)) as video:
        properties, condition = video.properties(), video.condition()
        rate = video.stream.average_rate
    if not condition.is_sound or properties.height is None or properties.width is None or not rate:
        raise VideoError(f"{source}: is damaged ({condition}), so it is copied as it is")
    if min(properties.height, properties.width) <= smaller.short_side:
        shutil.copyfile(source, target)
        return
    encode(target, _reduced(source, smaller.short_side), rate, smaller.encoding(source.suffix.lower()))
    made = readers.check(target)
    if not made.is_sound or made.frames != condition.frames:
        raise VideoError(f"{source}: a smaller copy has other frames ({made}), so it is copied as it is")


def _reduced(source: Path, short_side: int) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames with sides that are even, as chroma of half the size needs them."""
    for frames_THWC in readers.pieces(source):
        small_THWC = transforms.shrink(torch.from_numpy(frames_THWC), short_side).numpy()
        height, width = (side - side % 2 for side in small_THWC.shape[1:3])
        yield from small_THWC[:, :height, :width]

"""decord, for comparisons: it decodes the kinds of file (`is_proven`) of which it was seen to be exact.

PyAV decodes all others. decord is slower, and 0.6.0 errs without saying so (tests/data/test_readers.py):

* MPEG-4 with B-frames in avi: most frames are not the ones asked for;
* H.264 with open groups of pictures: some frames after a jump are wrong;
* H.264 cut without re-encoding (an edit list, or no key frame at the start): more frames than there are;
* 10-bit and interlaced video, several video streams: other pixels, another stream.

It does not say that a frame is damaged, and fills gaps in its own way: of a damaged file, its frames may
differ.
"""

from __future__ import annotations

import functools
import importlib.util
import threading
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Final

import numpy as np

from tats_core.data import shards
from tats_core.data.clips import Indices, Segment
from tats_core.data.pixels import Geometry
from tats_core.data.readers import pyav
from tats_core.data.video import Choose, Frames, Video, opened
from tats_core.errors import DataError, VideoError

_PROVEN: Final = {("mov,mp4,m4a,3gp,3g2,mj2", "h264"), ("matroska,webm", "vp9")}  # container and codec


@functools.cache
def is_installed() -> bool:
    """Return whether decord is installed; it has no wheels for some platforms."""
    return importlib.util.find_spec("decord") is not None


def is_proven(video: Video) -> bool:
    """Return whether decord was seen to give the exact frames of this kind of file, if nothing is damaged."""
    first = video.first()
    if first is None or video.numbering is None:
        return False
    return (
        (video.container.format.name, video.stream.codec_context.name) in _PROVEN
        and {*video.key_frames} <= {*video.numbering.starts}  # decord jumps to any of them
        and len(video.container.streams.video) == 1
        and first.format.name == "yuv420p"
        and not first.interlaced_frame
        and Geometry.of(first, video.stream.sample_aspect_ratio).keeps_layout
    )


def read(path: str, choose: Choose, time_limit: float, segment: Segment | None) -> Frames:
    """Return the chosen frames of a segment."""
    if not is_installed():
        raise DataError("the reader 'decord' is not installed; use the reader 'pyav' or 'auto'")
    with opened(path, time_limit) as video:
        choose = video.within(segment, choose)
        if not is_proven(video):
            return video.frames(choose)
        n_packets = video.n_packets
        wanted_T = choose(n_packets)

    def agreed(n_frames: int) -> Indices:
        if n_frames != n_packets:
            raise VideoError(f"{path}: decord counts {n_frames} frames, the file has {n_packets}")
        return wanted_T

    try:
        return _within(path, agreed, time_limit)
    except VideoError:  # it cannot read some sizes, such as a width of 72
        return pyav.read(path, lambda _: wanted_T, time_limit, None)


def _within(path: str, choose: Choose, time_limit: float) -> Frames:
    frames: Future[Frames] = Future()

    def work() -> None:
        try:
            frames.set_result(_read(path, choose))
        except BaseException as error:  # noqa: BLE001 - it is raised in the caller's thread
            frames.set_exception(error)

    # decord cannot be interrupted: a file that makes it hang costs a thread that never ends.
    threading.Thread(target=work, name=f"decord {Path(path).name}", daemon=True).start()
    if not wait([frames], time_limit).done:
        # Not a VideoError, for which training takes the next video: what is read never depends on the clock.
        raise DataError(f"{path}: decord did not finish within {time_limit:g} s; use the reader 'auto'")
    return frames.result()


def _read(path: str, choose: Choose) -> Frames:
    import decord

    decord.logging.set_level(decord.logging.FATAL)
    try:
        packed = shards.find(path)
        video = decord.VideoReader(path if packed is None else packed.opened(), num_threads=1)
        wanted_T = choose(len(video))
        needed, inverse_T = np.unique(wanted_T, return_inverse=True)
        frames: Frames = video.get_batch(needed.tolist()).asnumpy()
    except (decord.DECORDError, RuntimeError, UnicodeError) as error:
        raise VideoError(f"{path}: decord cannot read it ({str(error).splitlines()[0]})") from error
    return frames if np.array_equal(needed, wanted_T) else frames[inverse_T]

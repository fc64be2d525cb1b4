"""Videos that are not what their headers promise, named before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tats_core.data import readers
from tats_core.data.manifest import Manifest, VideoRecord
from tats_core.data.parallel import in_pieces
from tats_core.errors import VideoError


def damaged(
    manifest: Manifest, progress: Callable[[int, int], None], workers: int | None = None
) -> dict[str, str]:
    """Decode all videos from start to end, on all CPUs, and return a sentence by id of each damaged one.

    Args:
        progress: called now and then with the videos done and their number; if it raises, the work stops.
        workers: processes, see `parallel.in_pieces`.

    Returns:
        In the manifest's order.
    """
    faults: dict[str, str] = {}
    done = 0
    for videos, wrong in in_pieces(_wrong, manifest.videos, workers):
        faults |= wrong
        done += len(videos)
        progress(done, len(manifest))
    return {video.id: faults[video.id] for video in manifest.videos if video.id in faults}


def fault(path: str) -> str | None:
    """Return a sentence that names the file and what is wrong with it, or None."""
    try:
        condition = readers.check(path)
    except VideoError as error:
        return str(error)
    return None if condition.is_sound else f"{path}: is damaged ({condition})"


def _wrong(videos: Sequence[VideoRecord]) -> dict[str, str]:
    faults = {video.id: fault(video.path) for video in videos}
    return {name: text for name, text in faults.items() if text is not None}

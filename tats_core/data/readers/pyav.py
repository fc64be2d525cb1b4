"""PyAV, which decodes with FFmpeg and defines the frames (`video`, `pixels`)."""

from __future__ import annotations

from tats_core.data.clips import Segment
from tats_core.data.video import Choose, Frames, opened


def read(path: str, choose: Choose, time_limit: float, segment: Segment | None) -> Frames:
    """Return the chosen frames of a segment."""
    with opened(path, time_limit) as video:
        return video.frames(video.within(segment, choose))

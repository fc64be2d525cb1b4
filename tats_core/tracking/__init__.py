"""What MLflow is told about a run: a parent run for the pipeline, a child run for each stage.

What is to be told is written down first (`journal`), by the runner, which never waits for a server; a thread
of the same process, or `tats sync` later, tells it (`sender`), in order and once. So a server that is slow,
restarts, or is away for the whole run costs the training nothing and the record nothing.
"""

from __future__ import annotations

from tats_core.tracking.sender import numbers
from tats_core.tracking.server import aliased, connect, tracking_uri
from tats_core.tracking.tracker import Tracker, sync

__all__ = ["Tracker", "aliased", "connect", "numbers", "sync", "tracking_uri"]

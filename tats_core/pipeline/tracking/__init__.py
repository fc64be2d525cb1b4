"""What MLflow is told about a run: a parent run for the pipeline, a child run for each stage.

What is to be told is written down first (`journal`), by the runner, which never waits for a server; a thread
of the same process, or `tats sync` later, tells it (`sender`), in order and once. So a server that is slow,
restarts, or is away for the whole run costs the training nothing and the record nothing.
"""

from __future__ import annotations

from tats_core.pipeline.tracking.journal import Spool, pending
from tats_core.pipeline.tracking.sender import flat, numbers
from tats_core.pipeline.tracking.server import aliased, connect, tracking_uri, without_password
from tats_core.pipeline.tracking.tracker import Tracker, sync

__all__ = [
    "Spool",
    "Tracker",
    "aliased",
    "connect",
    "flat",
    "numbers",
    "pending",
    "sync",
    "tracking_uri",
    "without_password",
]

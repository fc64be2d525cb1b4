"""What MLflow gets of a run: a parent run for the pipeline, a child run for each stage.

The runner writes what is to be sent into a journal (`store.journal`), and never waits for a server; a thread
of the same process, or `tats sync` later, sends it (`sender`), in order and once. So a server that is slow,
restarts, or is away for the whole run costs the training nothing and the record nothing.
"""

from __future__ import annotations

from tats_core.tracking.server import AwayError, RefusedError, aliased, check, connect, tracking_uri
from tats_core.tracking.tracker import Tracker, sync

__all__ = ["AwayError", "RefusedError", "Tracker", "aliased", "check", "connect", "sync", "tracking_uri"]

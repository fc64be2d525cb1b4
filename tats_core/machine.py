"""What this machine has."""

from __future__ import annotations

import os


def available_cpus() -> int:
    """Return the CPUs that this process may use, which a container or a batch system may have cut."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS has no affinity

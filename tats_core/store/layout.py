"""Names of files and folders that several rooms read and write in a project folder."""

from __future__ import annotations

# In a run's folder.
RUN = "run.json"
CONFIG = "config.json"
ENVIRONMENT = "environment.json"

# In a stage's folder.
MANIFEST = "manifest.json"
KEY = "key.json"
ATTEMPT = "attempt.json"
EVENTS = "events.jsonl"
RESULT = "result.json"
RESULTS = "results.json"
METRICS = "metrics.json"

OUTPUT = "output"
"""What the program of a `command` stage writes, apart from what the engine writes."""

CHECKPOINTS = "checkpoints"
STATE = "state"
"""The checkpoint in which a training that stops before its last epoch ends; part of the output."""
RAY = "ray"
DUMP = "dump"
SCRATCH = (CHECKPOINTS, RAY, DUMP)
"""Folders of an attempt that are not part of the output: checkpoints, Ray's own records, and what a training
that went non-finite left for `tats replay`."""

"""Names of files and folders that several rooms read and write in a project folder."""

from __future__ import annotations

MANIFEST = "manifest.json"
KEY = "key.json"
ATTEMPT = "attempt.json"
EVENTS = "events.jsonl"

CHECKPOINTS = "checkpoints"
RAY = "ray"
SCRATCH = (CHECKPOINTS, RAY)
"""Folders in a stage's work folder that an attempt needs and that are no output: checkpoints, and Ray's own
records of a training, which nobody reads again."""

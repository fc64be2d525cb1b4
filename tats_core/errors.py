"""Every error that TATS raises on purpose.

::

    TatsError                 what is wrong, where, and what to do: one sentence, exit code 2
    ├── SpecError             a YAML file or a --set override is not valid
    ├── DataError             a data set is missing or its layout is not the expected one
    │   └── VideoError        one video file cannot be read
    ├── WeightsError          a checkpoint does not fit the model
    ├── ResourceError         the machine or the cluster lacks what was asked for
    ├── StoreError            the project folder cannot be read or written
    └── RunError              something failed while running (exit code 1)
        ├── TrainingError     training cannot continue (non-finite loss, nothing left to read)
        └── StageError        a stage of a pipeline failed

The command line prints the sentence without a traceback. An `assert` marks a bug of ours instead.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TatsError(Exception):
    """Base of all errors that a user may meet; `str(error)` is one readable sentence."""

    exit_code = 2

    def __str__(self) -> str:
        return brief(super().__str__(), 20_000)


class SpecError(TatsError):
    """A YAML file or an override is not valid; names file, key and the nearest valid name."""


class DataError(TatsError):
    """A data set is missing or its layout is not the expected one; names the folders searched."""


class VideoError(DataError):
    """One video file cannot be read; names the file and the reason."""


class WeightsError(TatsError):
    """A checkpoint does not fit the model; names what is missing or unexpected."""


class ResourceError(TatsError):
    """The machine or the cluster lacks what was asked for (CPUs, GPUs, memory)."""


class StoreError(TatsError):
    """The project folder (`TATS_HOME`) cannot be read or written."""


class RunError(TatsError):
    """Something failed while running; the input was fine."""

    exit_code = 1


class TrainingError(RunError):
    """Training cannot continue: too many non-finite steps, or no clip left to read."""


class StageError(RunError):
    """A stage of a pipeline failed; names the stage and the cause."""


class Stopped(Exception):  # noqa: N818 (nothing went wrong)
    """The work has stopped because a user asked for it; the next run resumes from the last checkpoint."""


PREEMPTED = "the machine of a worker was taken away"
"""The text of `Preempted`, by which the driver recognises it: Ray delivers only texts."""


class Preempted(Exception):  # noqa: N818 (nothing went wrong)
    """The machine of a worker is taken away; all workers have saved their work, and may resume elsewhere."""


def brief(text: str, limit: int = 200) -> str:
    """Return `text`, or its beginning and its length where it has more letters than `limit`."""
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text):,} letters)"


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the valid name nearest to `name`, else the list of valid names."""
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; valid: {', '.join(names)}" if names else ""

"""Runs a pipeline or a sweep on a Ray cluster, through its Jobs API.

A submission is named by what it would do, `<name>-<key12>-a<attempt>`, so that to submit again is safe:
what runs is attached to, what succeeded is left alone, what failed gets its next attempt, and that goes on
from what is in the project folder. The same holds after the head died and forgot its jobs.

The YAML files travel with the job; the code does not, it is in the cluster's image. Before it is submitted, a
short job looks at the cluster from inside (`tats_core.cluster.look`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import re
import secrets
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from tats_core.cluster import look
from tats_core.cluster.work import Work
from tats_core.errors import ResourceError, SpecError, did_you_mean

Outcome = Literal["started", "runs already", "succeeded already"]

CHECK = "check-"
"""How the ids of the looks begin."""

_ID = re.compile(r"(?P<key>.+-[0-9a-f]{12})-a(?P<attempt>[0-9]+)")
# From SIGTERM to SIGKILL. On SIGTERM a run keeps its state after the next step, and then leaves.
_STOP_SECONDS = 600
_CHECK_SECONDS = 300
_TICK = 0.5

ENVIRONMENT: Mapping[str, str] = {
    "RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_SECONDS),
    "PYTHONUNBUFFERED": "1",
}
"""Of a job's command."""


@dataclass(frozen=True)
class Job:
    """One attempt at one submission, as the cluster knows it."""

    id: str
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    command: str
    started: float | None
    """Seconds since the epoch."""
    ended: float | None
    message: str

    @property
    def over(self) -> bool:
        """True where it will not change any more."""
        return JobStatus(self.status).is_terminal()

    @property
    def name(self) -> str:
        """The id without its attempt."""
        return _parts(self.id)[0]

    @property
    def attempt(self) -> int:
        """Counted from 1."""
        return _parts(self.id)[1]


def _parts(job: str) -> tuple[str, int]:
    found = _ID.fullmatch(job)
    return (found["key"], int(found["attempt"])) if found else (job, 0)


class Cluster:
    """The Jobs API of one cluster.

    Args:
        address: as in `http://head:8265`. A token comes from RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, with
            RAY_AUTH_MODE=token.

    Raises:
        SpecError: the address is none, or the environment would override it.
        ResourceError: nothing answers there, or it refuses the token.
    """

    def __init__(self, address: str) -> None:
        if not re.fullmatch(r"https?://[^/\s]+/?", address):
            raise SpecError(f"--address {address}: must look like http://head:8265")
        self.address = address.rstrip("/")
        for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
            # Ray would take it in place of the argument without a word.
            if os.environ.get(name, self.address).rstrip("/") != self.address:
                raise SpecError(
                    f"--address {address}: {name} is set to {os.environ[name]} and Ray would go there; "
                    f"unset {name}"
                )
        # What they say of their own accord (a package is uploaded) is no message of ours.
        for name in ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging"):
            logging.getLogger(name).setLevel(logging.WARNING)
        with self._answering():
            self._client = JobSubmissionClient(self.address)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Turn what a connection can fail with into one sentence."""
        try:
            yield
        except AuthenticationError as error:
            raise ResourceError(
                f"{self.address}: refuses the token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to the "
                "file that holds the cluster's token"
            ) from error
        except (OSError, requests.RequestException, aiohttp.ClientError) as error:
            raise ResourceError(
                f"{self.address}: no Ray dashboard answers there ({_short(error)}); is the head up, and its "
                "port reachable from here?"
            ) from error
        except RuntimeError as error:  # how the Jobs API tells all else
            raise ResourceError(f"{self.address}: {_short(error)}") from error

    def jobs(self) -> list[Job]:
        """Return the jobs that were submitted to the cluster, newest first."""
        with self._answering():
            listed = self._client.list_jobs()
        jobs = [
            Job(
                one.submission_id,
                str(one.status),
                one.entrypoint,
                one.start_time and one.start_time / 1000,
                one.end_time and one.end_time / 1000,
                one.message or "",
            )
            for one in listed
            if one.submission_id
        ]
        return sorted(jobs, key=lambda job: (job.started or float("inf"), job.attempt), reverse=True)

    def find(self, name: str) -> Job:
        """Return the job of this id, or the newest one whose id begins with `name`.

        Raises:
            SpecError: there is none.
        """
        jobs = self.jobs()
        for job in [*(one for one in jobs if one.id == name), *jobs]:
            if job.id.startswith(name):
                return job
        known = {one.id for one in jobs}
        near = did_you_mean(name, known) if known else "; nothing was submitted to it"
        raise SpecError(f"{self.address} has no job '{name}'{near}")

    def submit(self, work: Work, *, home: str | None = None, check: bool = True) -> tuple[Job, Outcome]:
        """Start the work, unless it runs or has succeeded.

        Args:
            home: the project folder as the cluster's machines see it; default: their TATS_HOME.
            check: look at the cluster from inside before something is started.

        Raises:
            ResourceError: the look found something; one line for each thing.
        """
        key = work.identity(home)
        tried = [job for job in self.jobs() if job.name == key]
        newest = max(tried, key=lambda job: job.attempt, default=None)
        if newest is not None and newest.status == "SUCCEEDED":
            return newest, "succeeded already"
        if newest is not None and not newest.over:
            return newest, "runs already"
        if check:
            self.check(work, home=home)
        job = f"{key}-a{newest.attempt + 1 if newest else 1}"
        try:
            self._start(job, work.command(home), work)
        except ResourceError:
            if all(one.id != job for one in self.jobs()):
                raise
            return self.find(job), "runs already"  # somebody else submitted the same a moment ago
        return self.find(job), "started"

    def check(self, work: Work, *, home: str | None = None) -> None:
        """Look at the cluster from inside: versions, resources, data, project folder, tracking server.

        Raises:
            ResourceError: one line for each thing that is wrong.
        """
        job = f"{CHECK}{secrets.token_hex(6)}"
        words = ["python", "-m", look.__name__, json.dumps(look.versions()), *work.described(home)]
        self._start(job, words, work)
        ended = self.ended(job, _CHECK_SECONDS)
        if not ended.over:
            self.stop(job)
            raise ResourceError(
                f"{self.address}: the look at the cluster did not end within {_CHECK_SECONDS} s; are its "
                "machines up?"
            )
        lines = self.logs(job).splitlines()
        if ended.status == "SUCCEEDED":
            return
        found = [line.removeprefix(look.TROUBLE) for line in lines if line.startswith(look.TROUBLE)]
        raise ResourceError(
            "\n".join(found) or f"{self.address}: cannot be looked at ({_last(lines) or ended.message})"
        )

    def follow(self, job: str, echo: Callable[[str], None]) -> Job:
        """Pass on what a job prints until it ends; return how it ended."""

        async def tail() -> None:
            async for text in self._client.tail_job_logs(job):
                echo(text)

        with self._answering():
            try:
                asyncio.run(tail())
            except RuntimeError as error:  # how Ray tells that the connection closed in the middle
                raise ResourceError(
                    f"{self.address}: the connection ended ({_short(error)}); submit again to go on"
                ) from error
        return self.ended(job)

    def logs(self, job: str) -> str:
        """Return what a job has printed so far."""
        with self._answering():
            return str(self._client.get_job_logs(job))

    def stop(self, job: str) -> None:
        """Ask a job to keep its state and leave; after ten minutes it is killed."""
        with self._answering():
            self._client.stop_job(job)

    def ended(self, job: str, seconds: float = math.inf) -> Job:
        """Return the job once it is over, or as it is after so many seconds."""
        until = time.monotonic() + seconds
        while not (found := self.find(job)).over and time.monotonic() < until:
            time.sleep(_TICK)
        return found

    def _start(self, job: str, words: Sequence[str], work: Work) -> None:
        with tempfile.TemporaryDirectory() as folder, self._answering():
            for place, source in work.files.items():
                path = Path(folder) / place
                path.parent.mkdir(exist_ok=True)
                shutil.copyfile(source, path)
            self._client.submit_job(
                entrypoint=shlex.join(words),
                submission_id=job,
                runtime_env={"working_dir": folder, "env_vars": dict(ENVIRONMENT)},
                metadata={"tats": look.versions()["tats"]},
            )


def _last(lines: Sequence[str]) -> str:
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__

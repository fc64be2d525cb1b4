"""Runs a submission on a Ray cluster, through its Jobs API.

A job is named by what it runs, `<name>-<key12>-a<attempt>`, so that submitting again is safe: what runs is
attached to, what succeeded is left alone, what failed gets its next attempt, which resumes from the project
folder. The same holds after the head died and forgot its jobs.

The YAML files travel with the job; the code does not, it is in the cluster's image. Before a submission, a
short job checks the cluster from inside (`tats_core.cluster.preflight`).
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
from pathlib import Path
from typing import Literal, NamedTuple

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from tats_core import addresses
from tats_core.addresses import masked
from tats_core.cluster import preflight
from tats_core.cluster.submission import Submission
from tats_core.errors import ResourceError, SpecError, did_you_mean

Outcome = Literal["started", "runs already", "succeeded already"]

CHECK = "check-"
"""Prefix of the ids of preflight jobs."""

# From SIGTERM to SIGKILL. On SIGTERM a run saves a checkpoint after the next step, and then ends.
_STOP_SECONDS = 600
_CHECK_SECONDS = 300
_TICK = 0.5

ENVIRONMENT: Mapping[str, str] = {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_SECONDS), "PYTHONUNBUFFERED": "1"}
"""Environment variables of a job's command."""


class Job(NamedTuple):
    """An attempt at a submission, as the cluster knows it."""

    id: str
    status: JobStatus
    command: str
    started: float | None
    """Seconds since the epoch."""
    message: str

    @property
    def ended(self) -> bool:
        """True where the status is final."""
        return self.status.is_terminal()


class Cluster:
    """The Jobs API of one cluster.

    Args:
        address: as in `http://head:8265`. A token comes from RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, with
            RAY_AUTH_MODE=token.

    Raises:
        SpecError: the address is not valid, or the environment would override it.
        ResourceError: nothing answers there, or it refuses the token.
    """

    def __init__(self, address: str) -> None:
        if not re.fullmatch(r"https?://[^/\s]+/?", addresses.check(address, "--address", "http://head:8265")):
            raise SpecError(f"--address {masked(address)}: must look like http://head:8265")
        uri = address.rstrip("/")
        self.address = masked(uri)
        for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
            # Ray would silently use it instead of the argument.
            other = os.environ.get(name, uri).rstrip("/")
            if other != uri:
                raise SpecError(
                    f"--address {self.address}: {name} is set to {masked(other)} and Ray would go there; "
                    f"unset {name}"
                )
        # These loggers report each uploaded package.
        for name in ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging"):
            logging.getLogger(name).setLevel(logging.WARNING)
        with self._connection():
            self._client = JobSubmissionClient(uri)

    @contextmanager
    def _connection(self) -> Iterator[None]:
        """Raise each failure of the connection as a ResourceError."""
        try:
            yield
        except AuthenticationError as error:
            raise ResourceError(
                f"{self.address}: refuses the token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to the "
                "file that holds the cluster's token"
            ) from error
        except (OSError, requests.RequestException, aiohttp.ClientError) as error:
            raise ResourceError(
                f"{self.address}: no Ray dashboard answers there ({_first_line(error)}); is the head up, and "
                "its port reachable from here?"
            ) from error
        except RuntimeError as error:  # the Jobs API raises it for everything else
            raise ResourceError(f"{self.address}: {_first_line(error)}") from error

    def jobs(self) -> list[Job]:
        """Return the jobs that were submitted to the cluster, newest first."""
        with self._connection():
            listed = self._client.list_jobs()
        jobs = [
            Job(
                details.submission_id,
                details.status,
                details.entrypoint,
                details.start_time and details.start_time / 1000,
                details.message or "",
            )
            for details in listed
            if details.submission_id
        ]
        return sorted(jobs, key=lambda job: job.started or math.inf, reverse=True)

    def find(self, name: str) -> Job:
        """Return the job of this id, or the newest one whose id begins with `name`.

        Raises:
            SpecError: the cluster has no such job.
        """
        jobs = {job.id: job for job in self.jobs()}
        if job := jobs.get(name) or next((jobs[job_id] for job_id in jobs if job_id.startswith(name)), None):
            return job
        near = did_you_mean(name, jobs) if jobs else "; nothing was submitted to it"
        raise SpecError(f"{self.address} has no job '{name}'{near}")

    def submit(
        self, submission: Submission, *, home: str | None = None, check: bool = True
    ) -> tuple[Job, Outcome]:
        """Start the submission, unless it runs or has succeeded.

        Args:
            home: the project folder as the cluster's machines see it; default: their TATS_HOME.
            check: run the preflight before something is started.

        Raises:
            ResourceError: the preflight failed; a line for each problem.
        """
        prefix = f"{submission.identity(home)}-a"
        jobs = (job for job in self.jobs() if re.fullmatch(re.escape(prefix) + "[0-9]+", job.id))
        attempts = {int(job.id.removeprefix(prefix)): job for job in jobs}
        attempt = max(attempts, default=0)
        newest = attempts.get(attempt)
        if newest is not None and newest.status == JobStatus.SUCCEEDED:
            return newest, "succeeded already"
        if newest is not None and not newest.ended:
            return newest, "runs already"
        if check:
            self.check(submission, home=home)
        job_id = f"{prefix}{attempt + 1}"
        try:
            self._start(job_id, submission.command(home), submission)
        except ResourceError:
            if all(job.id != job_id for job in self.jobs()):
                raise
            return self.find(job_id), "runs already"  # somebody else has just submitted the same
        return self.find(job_id), "started"

    def check(self, submission: Submission, *, home: str | None = None) -> None:
        """Check the cluster from inside: versions, resources, data, project folder, tracking server.

        Raises:
            ResourceError: the check failed; a line for each problem.
        """
        job_id = f"{CHECK}{secrets.token_hex(6)}"
        versions = json.dumps(preflight.versions() | submission.packages)
        words = ["python", "-m", preflight.__name__, versions, *submission.words(home)]
        self._start(job_id, words, submission)
        job = self.wait(job_id, _CHECK_SECONDS)
        if job.status == JobStatus.SUCCEEDED:
            return
        if not job.ended:
            self.stop(job_id)
            raise ResourceError(
                f"{self.address}: the check of the cluster did not end within {_CHECK_SECONDS} s; are its "
                "machines up?"
            )
        lines = [line.strip() for line in self.logs(job_id).splitlines() if line.strip()]
        problems = [
            line.removeprefix(preflight.PROBLEM) for line in lines if line.startswith(preflight.PROBLEM)
        ]
        raise ResourceError(
            "\n".join(problems)
            or f"{self.address}: cannot be checked ({masked(lines[-1] if lines else job.message)})"
        )

    def follow(self, job_id: str, echo: Callable[[str], None]) -> Job:
        """Pass the output of a job to `echo` until the job ends; return the ended job."""

        async def tail() -> None:
            async for text in self._client.tail_job_logs(job_id):
                echo(text)

        with self._connection():
            try:
                asyncio.run(tail())
            except RuntimeError as error:  # Ray raises it when the connection closes in the middle
                raise ResourceError(
                    f"{self.address}: the connection ended ({_first_line(error)}); submit again to resume"
                ) from error
        return self.wait(job_id)

    def logs(self, job_id: str) -> str:
        """Return what a job has printed so far."""
        with self._connection():
            return str(self._client.get_job_logs(job_id))

    def stop(self, job_id: str) -> None:
        """Ask a job to save a checkpoint and end; after ten minutes it is killed."""
        with self._connection():
            self._client.stop_job(job_id)

    def wait(self, job_id: str, seconds: float = math.inf) -> Job:
        """Return the job once it has ended, or as it is after `seconds`."""
        deadline = time.monotonic() + seconds
        while not (job := self.find(job_id)).ended and time.monotonic() < deadline:
            time.sleep(_TICK)
        return job

    def _start(self, job_id: str, words: Sequence[str], submission: Submission) -> None:
        with tempfile.TemporaryDirectory() as folder, self._connection():
            for name, source in submission.files.items():
                path = Path(folder) / name
                path.parent.mkdir(exist_ok=True)
                shutil.copyfile(source, path)
            self._client.submit_job(
                entrypoint=shlex.join(words),
                submission_id=job_id,
                runtime_env={"working_dir": folder, "env_vars": dict(ENVIRONMENT)},
                metadata={"tats": preflight.versions()["tats"]},
            )


def _first_line(error: BaseException) -> str:
    return masked(str(error)).strip().partition("\n")[0] or type(error).__name__

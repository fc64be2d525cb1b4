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
from typing import Literal

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

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

    def jobs(self) -> dict[str, JobDetails]:
        """Return id → job of all that were submitted to the cluster, newest first."""
        with self._connection():
            listed = self._client.list_jobs()
        listed.sort(key=lambda job: job.start_time or math.inf, reverse=True)
        return {job.submission_id: job for job in listed if job.submission_id}

    def find(self, name: str) -> tuple[str, JobDetails]:
        """Return id and job of the job of this id, or of the newest one whose id begins with `name`.

        Raises:
            SpecError: the cluster has no such job.
        """
        jobs = self.jobs()
        matching = [name] if name in jobs else [job_id for job_id in jobs if job_id.startswith(name)]
        if matching:
            return matching[0], jobs[matching[0]]
        near = did_you_mean(name, jobs) if jobs else "; nothing was submitted to it"
        raise SpecError(f"{self.address} has no job '{name}'{near}")

    def submit(
        self, submission: Submission, *, home: str | None = None, check: bool = True
    ) -> tuple[str, Outcome]:
        """Start the submission, unless it runs or has succeeded; return the job's id.

        Args:
            home: the project folder as the cluster's machines see it; default: their TATS_HOME.
            check: run the preflight before something is started.

        Raises:
            ResourceError: the preflight failed; a line for each problem.
        """
        prefix = f"{submission.identity(home)}-a"
        jobs = self.jobs()
        attempts = [job_id for job_id in jobs if re.fullmatch(re.escape(prefix) + "[1-9][0-9]*", job_id)]
        attempt = max((int(job_id.removeprefix(prefix)) for job_id in attempts), default=0)
        if attempt:
            job_id = f"{prefix}{attempt}"
            if jobs[job_id].status == JobStatus.SUCCEEDED:
                return job_id, "succeeded already"
            if not jobs[job_id].status.is_terminal():
                return job_id, "runs already"
        if check:
            self.check(submission, home=home)
        job_id = f"{prefix}{attempt + 1}"
        try:
            self._start(job_id, submission.command(home), submission)
        except ResourceError:
            if job_id not in self.jobs():
                raise
            return job_id, "runs already"  # somebody else has just submitted the same
        return job_id, "started"

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
        if not job.status.is_terminal():
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
            or f"{self.address}: cannot be checked ({masked(lines[-1] if lines else job.message or '')})"
        )

    def follow(self, job_id: str, echo: Callable[[str], None]) -> JobDetails:
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

    def wait(self, job_id: str, seconds: float = math.inf) -> JobDetails:
        """Return the job once it has ended, or as it is after `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            _, job = self.find(job_id)
            if job.status.is_terminal() or time.monotonic() >= deadline:
                return job
            time.sleep(_TICK)

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

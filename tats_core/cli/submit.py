"""`tats submit pipeline` and `tats jobs`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from tats_core.cli.options import PipelineName
from tats_core.errors import RunError

if TYPE_CHECKING:
    from tats_core.cluster.submit import Cluster, Job

Result = TypeVar("Result")

_INTERRUPTED = 130

Address = Annotated[
    str, typer.Option("--address", metavar="URL", help="The cluster's dashboard, as in http://head:8265.")
]

ClusterAddress = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="URL",
        help="RUN is a job of the cluster with this dashboard.",
    ),
]


def pipeline(
    name: PipelineName,
    address: Address,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="STAGE.KEY=VALUE", help="Change a key; repeatable.")
    ] = None,
    home: Annotated[
        str | None,
        typer.Option(
            "--home", metavar="FOLDER", help="Project folder on the cluster; default: TATS_HOME over there."
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Look at the cluster from inside first.")
    ] = True,
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", help="Print what the run says until it ends.")
    ] = True,
) -> None:
    """Run a pipeline on a cluster; to submit it again attaches to it, or goes on where it failed.

    A token is read from RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN, with RAY_AUTH_MODE=token.
    """
    from tats_core.cluster.submit import Cluster
    from tats_core.pipeline import spec

    loaded = spec.load(name, sets or [])
    cluster = Cluster(address)
    job, outcome = cluster.submit(loaded, home=home, check=check)
    typer.echo(f"{job.id} {outcome} on {cluster.address}")
    if outcome == "succeeded already":
        typer.echo(f"Its output again: tats logs {job.id} --address {cluster.address}")
    elif follow:
        follow_job(cluster, job.id)


def jobs(address: Address) -> None:
    """List what was submitted to a cluster, newest first."""
    from tats_core.cli import shown
    from tats_core.cluster.submit import CHECK, Cluster

    cluster = Cluster(address)
    found = [job for job in cluster.jobs() if not job.id.startswith(CHECK)]
    if not found:
        typer.echo(f"Nothing was submitted to {cluster.address} yet")
        return
    rows = [[shown.plain(job.id), job.status.lower(), _age(job), shown.plain(job.command)] for job in found]
    shown.table(("job", "state", "started", "command"), rows, fold=("command",))


def print_logs(address: str, name: str, follow: bool) -> None:
    """Print what a job has said; with `follow` until it ends."""
    from tats_core.cluster.submit import Cluster

    cluster = Cluster(address)
    job = cluster.find(name)
    if follow:
        follow_job(cluster, job.id)
    else:
        typer.echo(cluster.logs(job.id), nl=False)


def stop_job(address: str, name: str, wait: bool) -> None:
    """Stop a job at its next checkpoints."""
    from tats_core.cluster.submit import Cluster

    cluster = Cluster(address)
    job = cluster.find(name)
    if job.over:
        typer.echo(f"{job.id} does not run: it has {job.status.lower()}")
        return
    cluster.stop(job.id)
    typer.echo(f"{job.id} is asked to stop at its next checkpoints")
    if wait:
        ended = _patiently(lambda: cluster.ended(job.id), "It goes on stopping.")
        again = "" if ended.status == "SUCCEEDED" else "; submit it again to go on"
        typer.echo(f"{job.id} has {ended.status.lower()}{again}")


def follow_job(cluster: Cluster, job: str) -> None:
    """Print what a job says until it ends; a job that did not succeed ends with an exit code.

    Raises:
        RunError: it failed.
    """
    again = f"tats logs {job} --follow --address {cluster.address}"
    stop = f"tats stop {job} --address {cluster.address}"
    parting = f"It goes on without this terminal. Look again: {again}; stop it: {stop}"
    ended = _patiently(lambda: cluster.follow(job, lambda text: typer.echo(text, nl=False)), parting)
    if ended.status == "STOPPED":
        typer.echo(f"{job} was stopped; what is done is kept, submit it again to go on")
        raise typer.Exit(_INTERRUPTED)
    if ended.status == "FAILED":
        raise RunError(f"{job} failed; what is done is kept, submit it again to go on")


def _patiently(work: Callable[[], Result], parting: str) -> Result:
    try:
        return work()
    except KeyboardInterrupt:
        typer.echo(f"\n{parting}")
        raise typer.Exit(_INTERRUPTED) from None


def _age(job: Job) -> str:
    from tats_core.cli import shown

    return f"{shown.age(time.time() - job.started)} ago" if job.started else shown.DASH

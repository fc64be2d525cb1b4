"""`tats submit` and `tats jobs`, and what `tats logs` and `tats stop` do with `--address`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from tats_core.addresses import masked
from tats_core.cli import printing
from tats_core.cli.options import INTERRUPTED, Rehearse, complete_pipeline, complete_sweep, write_file
from tats_core.errors import RunError, SpecError
from tats_core.report.units import DASH, duration

if TYPE_CHECKING:
    from tats_core.cluster.jobs import Cluster

Result = TypeVar("Result")

_URL = "The cluster's dashboard, as in http://head:8265."

ClusterAddress = Annotated[
    str | None,
    typer.Option("--address", metavar="URL", help="RUN is a job of the cluster with this dashboard."),
]


def _complete(ctx: typer.Context, incomplete: str) -> list[str]:
    return (complete_sweep if ctx.params.get("kind") == "sweep" else complete_pipeline)(incomplete)


def submit(
    kind: Annotated[Literal["pipeline", "sweep"], typer.Argument(metavar="KIND", help="pipeline or sweep.")],
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="A name of `tats list`, or a .yaml file.", autocompletion=_complete
        ),
    ],
    address: Annotated[str | None, typer.Option(metavar="URL", help=_URL)] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change STAGE.KEY or a sweep's key; repeatable."),
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="How many points a sweep tries.")] = None,
    max_concurrent: Annotated[int | None, typer.Option(min=1, help="A sweep's trials at a time.")] = None,
    home: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Project folder on the cluster; default: its TATS_HOME."),
    ] = None,
    rehearse: Rehearse = False,
    check: Annotated[bool, typer.Option(help="Check the cluster from inside first.")] = True,
    follow: Annotated[bool, typer.Option(help="Print the output until the run ends.")] = True,
    render: Annotated[
        Literal["kuberay", "raycluster"] | None,
        typer.Option(
            help="Instead, write manifests for KubeRay: a job with its own cluster, or a cluster that stays."
        ),
    ] = None,
    image: Annotated[str | None, typer.Option(help="With --render: the image, with tag or digest.")] = None,
    settings: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --render: claims, secrets, machines (docker/kuberay.yaml)."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --render: write to this file instead of printing."),
    ] = None,
) -> None:
    """Run a pipeline or a sweep on a Ray cluster.

    Submitting it again attaches to the job while it runs, and resumes it where it failed: finished stages and
    trials are reused. A token is read from RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN, with RAY_AUTH_MODE=token.
    """
    from tats_core.cluster import submission

    if (address is None) == (render is None):
        raise SpecError("say where: either --address URL of a cluster, or --render kuberay for a manifest")
    loaded = submission.load(
        kind, name, sets or [], samples=samples, max_concurrent=max_concurrent, rehearse=rehearse
    )
    if render is not None:
        from tats_core.cluster import manifests

        if image is None:
            raise SpecError("--render needs --image NAME:TAG, the image that the pods run")
        text = manifests.render(loaded, render, image, manifests.settings(settings), home=home)
        if out is None:
            typer.echo(text, nl=False)
        else:
            write_file(out, text, option="--out")
            typer.echo(f"{out} is written; its first lines say what it needs")
        return
    for option, value in (("image", image), ("settings", settings), ("out", out)):
        if value is not None:
            raise SpecError(
                f"--{option} belongs to --render; a job runs with the cluster's image and settings"
            )
    from tats_core.cluster.jobs import Cluster

    cluster = Cluster(str(address))
    job_id, outcome = cluster.submit(loaded, home=home, check=check)
    typer.echo(f"{job_id} {outcome} on {cluster.address}")
    if outcome == "succeeded already":
        typer.echo(f"To print its output again: tats logs {job_id} --address {cluster.address}")
    elif follow:
        follow_job(cluster, job_id)


def jobs(address: Annotated[str, typer.Option("--address", metavar="URL", help=_URL)]) -> None:
    """List what was submitted to a cluster, newest first."""
    from tats_core.cluster.jobs import CHECK, Cluster

    cluster = Cluster(address)
    rows = []
    for job_id, job in cluster.jobs().items():
        age = f"{duration(time.time() - job.start_time / 1000)} ago" if job.start_time else DASH
        if not job_id.startswith(CHECK):
            rows.append([job_id, job.status.lower(), age, masked(job.entrypoint)])
    if rows:
        printing.table(("job", "state", "started", "command"), rows, fold=("command",))
    else:
        typer.echo(f"Nothing was submitted to {cluster.address} yet")


def print_logs(address: str, name: str, follow: bool) -> None:
    """Print what a job has printed; with `follow` until it ends."""
    from tats_core.cluster.jobs import Cluster

    cluster = Cluster(address)
    job_id, _ = cluster.find(name)
    if follow:
        follow_job(cluster, job_id)
    else:
        typer.echo(cluster.logs(job_id), nl=False)


def stop_job(address: str, name: str, wait: bool) -> None:
    """Ask a job to stop at its next checkpoints; with `wait`, wait until it has ended."""
    from tats_core.cluster.jobs import Cluster

    cluster = Cluster(address)
    job_id, job = cluster.find(name)
    if job.status.is_terminal():
        typer.echo(f"{job_id} does not run: it has {job.status.lower()}")
        return
    cluster.stop(job_id)
    typer.echo(f"{job_id} is asked to stop at its next checkpoints")
    if wait:
        ended = _interruptible(lambda: cluster.wait(job_id), f"{job_id} is still stopping.")
        again = "" if ended.status == "SUCCEEDED" else "; submit it again to resume"
        typer.echo(f"{job_id} has {ended.status.lower()}{again}")


def follow_job(cluster: Cluster, job_id: str) -> None:
    """Print what a job prints until it ends; a failed job raises a RunError, a stopped job exits with 130."""
    again = f"tats logs {job_id} --follow --address {cluster.address}"
    stop = f"tats stop {job_id} --address {cluster.address}"
    farewell = f"The job runs on without this terminal. Follow it again: {again}; stop it: {stop}"
    ended = _interruptible(lambda: cluster.follow(job_id, lambda text: typer.echo(text, nl=False)), farewell)
    if ended.status == "STOPPED":
        typer.echo(f"{job_id} was stopped; finished work is saved, submit it again to resume")
        raise typer.Exit(INTERRUPTED)
    if ended.status == "FAILED":
        raise RunError(f"{job_id} failed; finished work is saved, submit it again to resume")


def _interruptible(wait: Callable[[], Result], farewell: str) -> Result:
    try:
        return wait()
    except KeyboardInterrupt:
        typer.echo(f"\n{farewell}")
        raise typer.Exit(INTERRUPTED) from None

"""`tats submit` and `tats jobs`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from tats_core.cli.options import PipelineName, SweepName, write_file
from tats_core.errors import RunError, SpecError

if TYPE_CHECKING:
    from tats_core.cluster.submit import Cluster, Job
    from tats_core.cluster.work import Work

Result = TypeVar("Result")

_INTERRUPTED = 130

_URL = "The cluster's dashboard, as in http://head:8265."

Address = Annotated[str, typer.Option("--address", metavar="URL", help=_URL)]

ClusterAddress = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="URL",
        help="RUN is a job of the cluster with this dashboard.",
    ),
]


class Render(StrEnum):
    """What a work can be written as instead of being submitted."""

    kuberay = "kuberay"
    raycluster = "raycluster"


OptionalAddress = Annotated[str | None, typer.Option("--address", metavar="URL", help=_URL)]
ClusterHome = Annotated[
    str | None,
    typer.Option(
        "--home", metavar="FOLDER", help="Project folder on the cluster; default: TATS_HOME over there."
    ),
]
Check = Annotated[bool, typer.Option("--check/--no-check", help="Look at the cluster from inside first.")]
Follow = Annotated[bool, typer.Option("--follow/--no-follow", help="Print what the run says until it ends.")]
RenderAs = Annotated[
    Render | None,
    typer.Option(
        "--render",
        help="Instead, write manifests for KubeRay: a job with its own cluster, or a cluster that stays.",
    ),
]
Image = Annotated[
    str | None, typer.Option("--image", help="With --render: the image, with its tag or digest.")
]
SettingsFile = Annotated[
    Path | None,
    typer.Option(
        "--settings", metavar="FILE", help="With --render: claims, secrets, machines (docker/kuberay.yaml)."
    ),
]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="With --render: write there instead of printing.")
]


def pipeline(
    name: PipelineName,
    address: OptionalAddress = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="STAGE.KEY=VALUE", help="Change a key; repeatable.")
    ] = None,
    home: ClusterHome = None,
    check: Check = True,
    follow: Follow = True,
    render: RenderAs = None,
    image: Image = None,
    settings: SettingsFile = None,
    out: Out = None,
) -> None:
    """Run a pipeline on a cluster; to submit it again attaches to it, or goes on where it failed.

    A token is read from RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN, with RAY_AUTH_MODE=token.
    """
    from tats_core.cluster import work

    loaded = work.load("pipeline", name, sets or [])
    written = _Written(image, settings, out)
    _hand_over(loaded, address, render, written, home=home, check=check, follow=follow)


def sweep(
    name: SweepName,
    address: OptionalAddress = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a stage's key or the sweep's; repeatable."),
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="How many points are tried.")] = None,
    max_concurrent: Annotated[int | None, typer.Option(min=1, help="Trials at a time, at most.")] = None,
    home: ClusterHome = None,
    check: Check = True,
    follow: Follow = True,
    render: RenderAs = None,
    image: Image = None,
    settings: SettingsFile = None,
    out: Out = None,
) -> None:
    """Run a sweep on a cluster; to submit it again attaches to it, or goes on with the trials that are left.

    A token is read from RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN, with RAY_AUTH_MODE=token.
    """
    from tats_core.cluster import work

    loaded = work.load("sweep", name, sets or [], samples=samples, max_concurrent=max_concurrent)
    written = _Written(image, settings, out)
    _hand_over(loaded, address, render, written, home=home, check=check, follow=follow)


@dataclass(frozen=True)
class _Written:
    """The options that belong to `--render`."""

    image: str | None
    settings: Path | None
    out: Path | None


def _hand_over(
    work: Work,
    address: str | None,
    render: Render | None,
    written: _Written,
    *,
    home: str | None,
    check: bool,
    follow: bool,
) -> None:
    """Give the work to a cluster, or write it as manifests."""
    if address is not None and render is None:
        for name, value in asdict(written).items():
            if value is not None:
                raise SpecError(
                    f"--{name} belongs to --render; a job runs with the cluster's image and settings"
                )
        _submit(work, address, home=home, check=check, follow=follow)
    elif render is not None and address is None:
        _render(work, render, written, home)
    else:
        raise SpecError("say where: either --address URL of a cluster, or --render kuberay for a manifest")


def _render(work: Work, render: Render, written: _Written, home: str | None) -> None:
    from tats_core.cluster import manifests

    if written.image is None:
        raise SpecError("--render needs --image NAME:TAG, the image that the pods run")
    settings = manifests.settings(written.settings)
    text = manifests.render(work, render.value, written.image, settings, home=home)
    if written.out is None:
        typer.echo(text, nl=False)
    else:
        write_file(written.out, text, option="--out")
        typer.echo(f"{written.out} is written; what it needs stands on top of it")


def _submit(work: Work, address: str, *, home: str | None, check: bool, follow: bool) -> None:
    from tats_core.cluster.submit import Cluster

    cluster = Cluster(address)
    job, outcome = cluster.submit(work, home=home, check=check)
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

"""Kubernetes manifests for KubeRay: a job that brings its own Ray cluster, or a cluster that stays.

`templates/` holds the manifests. The size of the cluster follows from the stages; what a lab chooses is in
`Settings`, read from YAML. A RayJob is retried on a new cluster and resumes, because the project folder
is a claim that outlives the clusters.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

import jinja2
import yaml
from markupsafe import Markup
from pydantic import AfterValidator, Field, model_validator

from tats_core import addresses, specs
from tats_core.addresses import masked
from tats_core.cluster.jobs import ENVIRONMENT
from tats_core.cluster.submission import Submission
from tats_core.errors import SpecError
from tats_core.pipeline.graph import Instance
from tats_core.specs import StrictModel
from tats_core.stages.configs import Trained

Target = Literal["kuberay", "raycluster"]

HOME = "/srv/tats"
"""Where the claim of the project folder is mounted; the image's TATS_HOME."""

_NAME_LENGTH = 47  # KubeRay adds a suffix for the cluster of each attempt
_CRON_SUFFIX = 6  # and another one for the job of each time
_POD_CPUS = 16  # of a pod without GPUs, at most

_Label = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
_Key = Annotated[
    str,
    Field(
        pattern=r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?$",
        description="letters, digits, '-', '_' and '.', at most 63; before it, a domain and '/' if need be",
    ),
]
_Value = Annotated[str, Field(pattern=r"^([A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?)?$")]


def _without_password(uri: str | None) -> str | None:
    """Refuse an address that is none, or whose password everybody who sees the manifest could read."""
    if uri is not None:
        try:
            addresses.check(uri, "the address")
        except SpecError as error:
            raise ValueError(str(error)) from error
        if masked(uri) != uri:
            raise ValueError("has a user or password, which the manifest would show; use tracking_secret")
    return uri


# How each cloud marks machines that it may take away: label, value, whether the label is also a taint.
_SPOT: Mapping[str, tuple[str, str, bool]] = {
    "gke": ("cloud.google.com/gke-spot", "true", True),
    "eks": ("eks.amazonaws.com/capacityType", "SPOT", False),
    "aks": ("kubernetes.azure.com/scalesetpriority", "spot", True),
}


class Toleration(StrictModel):
    """A taint that pods tolerate."""

    key: str
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class Placement(StrictModel):
    """Which machines pods run on."""

    node_selector: dict[str, str] = Field(default_factory=dict, description="labels that a machine must have")
    tolerations: tuple[Toleration, ...] = ()


class Head(Placement):
    """The pod of Ray's head and of the run itself: it trains nothing, and should not be on a spot machine."""

    cpus: int = Field(4, ge=1)
    memory: int = Field(16, ge=2, description="GiB")


class Workers(Placement):
    """The pods that train."""

    gpus: int = Field(8, ge=1, description="of one machine; pods get no more than the stages need")
    cpus: int | None = Field(
        None, ge=1, description="of one pod; null: one for each process that trains or decodes in it"
    )
    memory: int | None = Field(None, ge=1, description="GiB of one pod; null: 4 for each CPU")
    shm: int | None = Field(None, ge=1, description="GiB of it for /dev/shm; null: a quarter")
    spot: Literal["gke", "eks", "aks"] | None = Field(None, description="only on spot machines of this cloud")

    def placement(self, gpus: int) -> Placement:
        """Return the placement of pods with `gpus` GPUs; GPUs and spot machines need tolerations."""
        selector, tolerations = dict(self.node_selector), list(self.tolerations)
        if self.spot is not None:
            label, value, tainted = _SPOT[self.spot]
            selector[label] = value
            if tainted:
                tolerations.append(Toleration(key=label, operator="Equal", value=value, effect="NoSchedule"))
        if gpus:
            tolerations.append(Toleration(key="nvidia.com/gpu", effect="NoSchedule"))
        return Placement(node_selector=selector, tolerations=tuple(tolerations))


class Settings(StrictModel):
    """What a lab chooses about its Kubernetes cluster, once."""

    namespace: _Label | None = Field(None, description="null: kubectl's default")
    cluster_name: _Label = Field("tats", description="of a cluster that stays")
    home_claim: _Label = Field("tats-home", description="ReadWriteMany claim: the project folder")
    data_claim: _Label | None = Field(None, description="claim with the data sets; mounted as TATS_DATA")
    tracking_uri: Annotated[str | None, AfterValidator(_without_password)] = Field(
        None, description="MLflow's server; null: a file in the project folder"
    )
    tracking_secret: _Label | None = Field(None, description="Secret with its 'username' and 'password'")
    pull_secret: _Label | None = Field(None, description="Secret for the image's registry")
    labels: dict[_Key, _Value] = Field(
        default_factory=dict, description="of all objects and pods, beside app.kubernetes.io/name"
    )
    annotations: dict[_Key, str] = Field(default_factory=dict, description="of all objects and pods")
    queue: _Label | None = Field(None, description="Kueue's LocalQueue, in which job or cluster waits")
    suspend: bool = Field(
        False, description="create no pods until spec.suspend is set to false; with a queue, Kueue does that"
    )
    schedule: str | None = Field(
        None,
        min_length=1,
        description='of a RayCronJob, as cron has it: "0 3 * * *" is every night at three',
    )
    time_zone: str | None = Field(
        None, min_length=1, description="of the schedule, as in Europe/Zurich; null: the operator's"
    )
    user: int = Field(1000, ge=1, description="user and group of all processes, as in the image")
    retries: int = Field(3, ge=0, description="new clusters for a job whose head died")
    deadline_hours: float = Field(168, gt=0, description="a job is ended after so long")
    keep_minutes: float = Field(10, ge=0, description="a job's cluster stays so long after its end")
    head: Head = Head()
    workers: Workers = Workers()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.schedule is not None and self.queue is not None:
            raise ValueError("a RayCronJob does not pass the queue on to its jobs: give schedule or queue")
        if self.time_zone is not None and self.schedule is None:
            raise ValueError("time_zone does nothing without schedule")
        return self


class Size(NamedTuple):
    """How many worker pods of which size, and how few will do."""

    pods: int
    cpus: int
    gpus: int
    least: int


def settings(path: Path | None) -> Settings:
    """Read the settings from a YAML file, or return the defaults.

    Raises:
        SpecError: a setting is not valid; names file and key.
    """
    return Settings() if path is None else specs.validate(Settings, specs.read(path), str(path))


def check_image(image: str) -> str:
    """Return `image` if it always names the same image.

    Raises:
        SpecError: the image has no tag, or a tag that moves.
    """
    name, _, digest = image.partition("@")
    tag = name.rpartition("/")[2].partition(":")[2]
    if not re.fullmatch(r"[\w][\w.:/-]*(@sha256:[0-9a-f]{64})?", image) or image.endswith((":", "/")):
        raise SpecError(f"--image {image}: is not the name of an image")
    if not digest and tag in ("", "latest"):
        raise SpecError(
            f"--image {image}: name a tag other than 'latest', or better a digest (…@sha256:…): a job "
            "that is tried again must find the same code"
        )
    return image


def size(stages: Iterable[Instance], workers: Workers) -> Size:
    """Return the pods on which the largest stage fits."""
    # What the largest CPU stage and the largest GPU stage need, and what they can use.
    needed, useful, decoders = {"cpu": 0, "gpu": 0}, {"cpu": 0, "gpu": 0}, 0
    for stage in stages:
        gpus = stage.kind.gpus(stage.config)
        device = "gpu" if gpus else "cpu"
        least = gpus or stage.kind.cpus(stage.config)
        needed[device] = max(needed[device], least)
        # Stages that do not train can use more as well, but run on the head.
        spare = stage.kind.spare(stage.config) if isinstance(stage.config, Trained) else 0
        useful[device] = max(useful[device], least + spare)
        if gpus:
            data = getattr(stage.config, "data", None)
            decoders = max(decoders, getattr(data, "decode_workers", 0))
    if not useful["gpu"]:
        pods = math.ceil(useful["cpu"] / (workers.cpus or _POD_CPUS))
        cpus = workers.cpus or math.ceil(useful["cpu"] / pods)
        return Size(pods, cpus, 0, math.ceil(needed["cpu"] / cpus))
    pods = math.ceil(useful["gpu"] / workers.gpus)
    gpus = math.ceil(useful["gpu"] / pods)
    least = math.ceil(needed["gpu"] / gpus)
    cpus = workers.cpus or max(gpus * (1 + decoders), math.ceil(needed["cpu"] / least))
    return Size(pods, cpus, gpus, least)


def render(
    submission: Submission, target: Target, image: str, settings: Settings, *, home: str | None = None
) -> str:
    """Return the manifests as YAML, with what they need and how to apply them on top.

    Args:
        home: the project folder, below the mounted claim; default: its root.

    Raises:
        SpecError: the image is not pinned, or `home` is not on the claim.
    """
    check_image(image)
    if home is not None and not (home == HOME or home.startswith(f"{HOME}/")):
        claim = settings.home_claim
        raise SpecError(f"--home {home}: must lie below {HOME}, where the claim {claim} is mounted")
    identity = submission.identity(home)
    key = identity.rpartition("-")[2]
    readable = re.sub("[^a-z0-9]+", "-", submission.name.lower()).strip("-")
    if not readable[:1].isalpha():
        readable = f"tats-{readable}"
    job = target == "kuberay"
    length = _NAME_LENGTH - (_CRON_SUFFIX if settings.schedule else 0)
    name = f"{readable[: length - len(key) - 1]}-{key}" if job else settings.cluster_name
    namespace = {"namespace": settings.namespace} if settings.namespace else {}
    needed = size(submission.stages, settings.workers)
    labels = {**settings.labels, "app.kubernetes.io/name": "tats"}
    notes = {"annotations": settings.annotations} if settings.annotations else {}
    queue = {"kueue.x-k8s.io/queue-name": settings.queue} if settings.queue else {}
    return _TEMPLATES.get_template(f"{target}.yaml.j2").render(
        settings=settings,
        image=image,
        packages=", ".join(f"{name} {version}" for name, version in submission.packages.items()),
        name=name,
        metadata={"name": name, **namespace, "labels": labels, **notes},
        queued={"name": name, **namespace, "labels": {**labels, **queue}, **notes},
        pod_metadata={"labels": labels, **notes},
        suspend=settings.suspend or settings.queue is not None,
        kubectl=f"kubectl -n {settings.namespace}" if settings.namespace else "kubectl",
        job_id=f"{identity}-a1",
        script=f"cd /etc/tats\nexec {shlex.join(submission.command(home))}\n",
        files={path: file.read_text(encoding="utf-8") for path, file in submission.files.items() if job},
        runtime_env=yaml.safe_dump({"env_vars": dict(ENVIRONMENT)}),
        ray_version=importlib.metadata.version("ray"),
        size=needed,
        worker_placement=settings.workers.placement(needed.gpus),
    )


def _quote(value: object, style: str = '"') -> Markup:
    """Return a value as YAML, each text in quotes; values that are YAML already stay."""
    if isinstance(value, Markup):
        return value
    if isinstance(value, int):
        return Markup(json.dumps(value))
    dumped = yaml.safe_dump(
        value,
        default_style=style,
        default_flow_style=True,
        allow_unicode=True,
        width=math.inf,
        sort_keys=False,
    )
    return Markup(dumped.rstrip("\n"))


def _block(text: str) -> Markup:
    """Return text of several lines as a literal block, where YAML can express it."""
    lines = text.splitlines()
    literal = "\n".join(lines) + "\n" == text and lines[-1:] != [""]
    return _quote(text, "|" if literal else '"')


def _bare(text: str) -> Markup:
    """Return a word or two for a comment without quotes, where they hold nothing but letters and dashes."""
    return Markup(text) if re.fullmatch(r"[a-z0-9. -]+", text) else _quote(text)


# Each {{ value }} passes through `_quote`: no text is read as YAML.
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    finalize=_quote,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_TEMPLATES.filters |= {"block": _block, "bare": _bare}

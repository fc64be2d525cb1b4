"""Kubernetes manifests for KubeRay: a job that brings its own Ray cluster, or a cluster that stays.

How large the cluster is follows from the work; what a lab chooses is in `Settings`, read from a YAML file.
A RayJob's retry is a new cluster: it goes on because the project folder is a claim that outlives it.
"""

from __future__ import annotations

import importlib.metadata
import math
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from tats_core import specs
from tats_core.cluster.submit import ENVIRONMENT
from tats_core.cluster.work import Work
from tats_core.errors import SpecError
from tats_core.pipeline.graph import Instance
from tats_core.specs import StrictModel
from tats_core.stages.training import Trained

Manifest = dict[str, Any]
Target = Literal["kuberay", "raycluster"]

HOME = "/srv/tats"
"""Where the claim of the project folder is mounted; the image's TATS_HOME."""

_DATA = "/srv/data"  # as in the image
_FILES = "/etc/tats"
_DASHBOARD, _GCS, _AGENT = 8265, 6379, 52365
_NAME_LENGTH = 47  # KubeRay adds a suffix for the cluster of each attempt
_POD_CPUS = 16  # of a pod without GPUs, at most
_CPU_GIB = 4
_OBJECT_STORE_BYTES = 2**30  # next to nothing goes through it; the rest of /dev/shm is for decoded clips

_Label = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]

# How each cloud marks machines that it may take away: (label and value, whether it is a taint too).
_SPOT: Mapping[str, tuple[str, str, bool]] = {
    "gke": ("cloud.google.com/gke-spot", "true", True),
    "eks": ("eks.amazonaws.com/capacityType", "SPOT", False),
    "aks": ("kubernetes.azure.com/scalesetpriority", "spot", True),
}


class Toleration(StrictModel):
    """A taint that pods may be placed in spite of."""

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

    gpus: int = Field(8, ge=1, description="of one machine; pods get no more than the work needs")
    cpus: int | None = Field(None, ge=1, description="of one pod; null: what trains and decodes there")
    memory: int | None = Field(None, ge=1, description="GiB of one pod; null: 4 for each CPU")
    shm: int | None = Field(None, ge=1, description="GiB of it for /dev/shm; null: a quarter")
    spot: Literal["gke", "eks", "aks"] | None = Field(None, description="spot machines of this cloud alone")


class Settings(StrictModel):
    """What a lab chooses about its Kubernetes cluster, once."""

    namespace: _Label | None = Field(None, description="null: the one that kubectl uses")
    cluster_name: _Label = Field("tats", description="of a cluster that stays")
    home_claim: _Label = Field("tats-home", description="ReadWriteMany claim: the project folder")
    data_claim: _Label | None = Field(None, description="claim with the data sets; mounted as TATS_DATA")
    tracking_uri: str | None = Field(None, description="MLflow's server; null: a file in the project folder")
    tracking_secret: _Label | None = Field(None, description="Secret with its 'username' and 'password'")
    pull_secret: _Label | None = Field(None, description="Secret for the image's registry")
    user: int = Field(1000, ge=1, description="user and group of all processes: the image's own")
    retries: int = Field(3, ge=0, description="new clusters for a job whose head died")
    deadline_hours: float = Field(168, gt=0, description="a job is ended after so long")
    keep_minutes: float = Field(10, ge=0, description="a job's cluster stays so long after its end")
    head: Head = Head()
    workers: Workers = Workers()


@dataclass(frozen=True)
class Size:
    """How many worker pods of which size, and how few will do."""

    pods: int
    cpus: int
    gpus: int
    least: int


def settings(path: Path | None) -> Settings:
    """Read the settings from a YAML file, or return the defaults.

    Raises:
        SpecError: something in it is not valid; names file and key.
    """
    if path is None:
        return Settings()
    return specs.validate(Settings, specs.read(path), str(path))


def check_image(image: str) -> str:
    """Return `image` if it names one and the same image for ever after.

    Raises:
        SpecError: no tag, or one that moves.
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


def size(stages: Iterable[Instance], wanted: Workers) -> Size:
    """Return the pods on which the largest stage fits."""
    # Of CPU stages and of GPU stages: what the largest needs, and what it can use.
    needed, useful, decoders = {"cpu": 0, "gpu": 0}, {"cpu": 0, "gpu": 0}, 0
    for one in stages:
        gpus = one.kind.gpus(one.config)
        what = "gpu" if gpus else "cpu"
        least = gpus or one.kind.cpus(one.config)
        needed[what] = max(needed[what], least)
        # Other stages than those that train may use more as well, but of the head.
        more = one.kind.spare(one.config) if isinstance(one.config, Trained) else 0
        useful[what] = max(useful[what], least + more)
        if gpus:
            data = getattr(one.config, "data", None)
            decoders = max(decoders, getattr(data, "decode_workers", 0))
    if not useful["gpu"]:
        pods = math.ceil(useful["cpu"] / (wanted.cpus or _POD_CPUS))
        cpus = wanted.cpus or math.ceil(useful["cpu"] / pods)
        return Size(pods, cpus, 0, math.ceil(needed["cpu"] / cpus))
    pods = math.ceil(useful["gpu"] / wanted.gpus)
    each = math.ceil(useful["gpu"] / pods)
    least = math.ceil(needed["gpu"] / each)
    return Size(
        pods, wanted.cpus or max(each * (1 + decoders), math.ceil(needed["cpu"] / least)), each, least
    )


def render(work: Work, target: Target, image: str, given: Settings, *, home: str | None = None) -> str:
    """Return the manifests as YAML, with what one has to know on top.

    Args:
        home: the project folder, below the mounted claim; default: its root.

    Raises:
        SpecError: the image is not pinned, or `home` is not on the claim.
    """
    check_image(image)
    if home is not None and not (home == HOME or home.startswith(f"{HOME}/")):
        raise SpecError(
            f"--home {home}: must lie below {HOME}, where the claim {given.home_claim} is mounted"
        )
    if target == "raycluster":
        manifests = [_ray_cluster(work, image, given)]
        header = _cluster_header(given)
    else:
        manifests = _ray_job(work, image, given, home)
        header = _job_header(manifests[-1]["metadata"]["name"], given)
    text = yaml.dump_all(
        manifests, Dumper=_Dumper, sort_keys=False, explicit_start=True, allow_unicode=True, width=110
    )
    return "".join(f"# {line}".rstrip() + "\n" for line in header) + text


class _Dumper(yaml.SafeDumper):
    """Writes YAML as people do: text of several lines as such, nothing by reference."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def _job_header(name: str, given: Settings) -> list[str]:
    kubectl = _kubectl(given)
    return [
        *_needs(given),
        "",
        f"{kubectl} apply -f THIS_FILE",
        f"{kubectl} get rayjob {name}",
        f"{kubectl} logs --follow job/{name}",
        f"{kubectl} delete rayjob {name}",
        "",
        "Applied again, it does nothing; deleted and applied again, it goes on from what is on the claim.",
    ]


def _cluster_header(given: Settings) -> list[str]:
    kubectl, name = _kubectl(given), given.cluster_name
    return [
        *_needs(given),
        "",
        f"{kubectl} apply -f THIS_FILE",
        f"{kubectl} port-forward service/{name}-head-svc {_DASHBOARD}",
        f"export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$({kubectl} get secret {name} "
        "-o jsonpath={.data.auth_token} | base64 -d)",
        f"tats submit pipeline NAME --address http://127.0.0.1:{_DASHBOARD}",
    ]


def _kubectl(given: Settings) -> str:
    return f"kubectl -n {given.namespace}" if given.namespace else "kubectl"


def _needs(given: Settings) -> list[str]:
    lines = [
        "KubeRay 1.5.1 or newer: authOptions makes it write a token into a Secret and give it to all pods.",
        f"There must be: the ReadWriteMany claim {given.home_claim}, in which user {given.user} may write",
    ]
    if given.data_claim:
        lines.append(f"  the claim {given.data_claim} (data sets, one folder each)")
    if given.tracking_secret:
        lines.append(
            f"  the Secret {given.tracking_secret} with 'username' and 'password' of {given.tracking_uri}"
        )
    if given.pull_secret:
        lines.append(f"  the Secret {given.pull_secret} for the image's registry")
    return lines


def _metadata(name: str, given: Settings) -> Manifest:
    labels = {"app.kubernetes.io/name": "tats"}
    return {"name": name, **({"namespace": given.namespace} if given.namespace else {}), "labels": labels}


def _ray_cluster(work: Work, image: str, given: Settings) -> Manifest:
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": _metadata(given.cluster_name, given),
        "spec": _cluster_spec(work, image, given, files=None),
    }


def _ray_job(work: Work, image: str, given: Settings, home: str | None) -> list[Manifest]:
    identity = work.identity(home)
    key = identity.rpartition("-")[2]
    readable = re.sub("[^a-z0-9]+", "-", work.name.lower()).strip("-")
    name = f"{readable[: _NAME_LENGTH - len(key) - 1]}-{key}"
    run = f"cd {_FILES}\nexec {shlex.join(work.command(home))}\n"
    keys = {place.replace("/", "."): place for place in work.files}
    contents = {key: work.files[place].read_text(encoding="utf-8") for key, place in keys.items()}
    files = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(name, given),
        "immutable": True,
        "data": {"run": run, **contents},
    }
    mounted = {
        "name": name,
        "items": [{"key": "run", "path": "run"}, *({"key": k, "path": place} for k, place in keys.items())],
    }
    job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": _metadata(name, given),
        "spec": {
            "jobId": f"{identity}-a1",
            # A script: what passes through two shells on its way had better hold no quotes.
            "entrypoint": f"sh {_FILES}/run",
            "runtimeEnvYAML": yaml.safe_dump({"env_vars": dict(ENVIRONMENT)}),
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": round(60 * given.keep_minutes),
            "activeDeadlineSeconds": max(1, round(3600 * given.deadline_hours)),
            "backoffLimit": given.retries,
            "submitterPodTemplate": _submitter(image, given),
            "rayClusterSpec": _cluster_spec(work, image, given, files=mounted),
        },
    }
    return [files, job]


def _cluster_spec(work: Work, image: str, given: Settings, files: Manifest | None) -> Manifest:
    needed = size(work.stages, given.workers)
    head, workers = given.head, given.workers
    memory = workers.memory or _CPU_GIB * needed.cpus
    health = {"head": ("/api/gcs_healthz", _DASHBOARD), "worker": ("/api/local_raylet_healthz", _AGENT)}
    start = {"object-store-memory": str(_OBJECT_STORE_BYTES)}
    head_container = {
        **_container("ray-head", image, given, head.cpus, head.memory),
        "ports": [
            {"name": "gcs-server", "containerPort": _GCS},
            {"name": "dashboard", "containerPort": _DASHBOARD},
        ],
        **_probes(*health["head"]),
    }
    worker_container = {
        **_container("ray-worker", image, given, needed.cpus, memory, needed.gpus),
        **_probes(*health["worker"]),
    }
    elastic = needed.least < needed.pods
    # Not read by the operator, but by Ray's autoscaler, which it starts beside the head.
    scaling = {
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {"version": "v2", "securityContext": _LOCKED},
    }
    return {
        # The token needs it: the operator wants to know that this Ray understands tokens.
        "rayVersion": importlib.metadata.version("ray"),
        "authOptions": {"mode": "token"},
        **(scaling if elastic else {}),
        "headGroupSpec": {
            "rayStartParams": {"dashboard-host": "0.0.0.0", "num-cpus": "0", **start},
            "template": _pod(
                head_container, given, head, max(1, head.memory // 4), files=files, asks_kubernetes=elastic
            ),
        },
        "workerGroupSpecs": [
            {
                "groupName": "workers",
                "replicas": needed.least,
                "minReplicas": needed.least,
                "maxReplicas": needed.pods,
                "rayStartParams": {"dashboard-agent-listen-port": str(_AGENT), **start},
                "template": _pod(
                    worker_container, given, _where(workers, needed), workers.shm or max(1, memory // 4)
                ),
            }
        ],
    }


def _where(workers: Workers, needed: Size) -> Placement:
    """Add what spot machines and machines with GPUs ask for."""
    selector, tolerations = dict(workers.node_selector), list(workers.tolerations)
    if workers.spot is not None:
        label, value, tainted = _SPOT[workers.spot]
        selector[label] = value
        if tainted:
            tolerations.append(Toleration(key=label, operator="Equal", value=value, effect="NoSchedule"))
    if needed.gpus:
        tolerations.append(Toleration(key="nvidia.com/gpu", effect="NoSchedule"))
    return Placement(node_selector=selector, tolerations=tuple(tolerations))


def _container(name: str, image: str, given: Settings, cpus: int, memory: int, gpus: int = 0) -> Manifest:
    resources = {"cpu": str(cpus), "memory": f"{memory}Gi", **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    mounts: list[Manifest] = [{"name": "home", "mountPath": HOME}, {"name": "shm", "mountPath": "/dev/shm"}]
    if given.data_claim:
        mounts.append({"name": "data", "mountPath": _DATA, "readOnly": True})
    return {
        "name": name,
        "image": image,
        "resources": {"limits": resources, "requests": resources},
        "env": _environment(given),
        "securityContext": _LOCKED,
        "volumeMounts": mounts,
    }


_LOCKED: Manifest = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _environment(given: Settings) -> list[Manifest]:
    env: list[Manifest] = [{"name": "TATS_HOME", "value": HOME}]
    if given.data_claim:
        env.append({"name": "TATS_DATA", "value": _DATA})
    if given.tracking_uri:
        env.append({"name": "MLFLOW_TRACKING_URI", "value": given.tracking_uri})
    if given.tracking_secret:
        for key in ("username", "password"):
            secret = {"secretKeyRef": {"name": given.tracking_secret, "key": key}}
            env.append({"name": f"MLFLOW_TRACKING_{key.upper()}", "valueFrom": secret})
    return env


def _probes(path: str, port: int) -> Manifest:
    """The operator would ask with wget, which the image lacks, or at an address that knows Ray 2.53 alone."""
    asked = {"httpGet": {"path": path, "port": port}, "periodSeconds": 10, "timeoutSeconds": 5}
    return {
        "readinessProbe": {**asked, "initialDelaySeconds": 10, "failureThreshold": 3},
        "livenessProbe": {**asked, "initialDelaySeconds": 60, "failureThreshold": 12},
    }


def _pod(
    container: Manifest,
    given: Settings,
    where: Placement,
    shm: int,
    files: Manifest | None = None,
    asks_kubernetes: bool = False,
) -> Manifest:
    volumes: list[Manifest] = [
        {"name": "home", "persistentVolumeClaim": {"claimName": given.home_claim}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{shm}Gi"}},
    ]
    if given.data_claim:
        claim = {"claimName": given.data_claim, "readOnly": True}
        volumes.append({"name": "data", "persistentVolumeClaim": claim})
    if files is not None:
        volumes.append({"name": "files", "configMap": files})
        mount = {"name": "files", "mountPath": _FILES, "readOnly": True}
        container = {**container, "volumeMounts": [*container["volumeMounts"], mount]}
    spec = _pod_spec(given, container)
    spec["automountServiceAccountToken"] = asks_kubernetes
    return {"spec": {**spec, **_placed(where), "volumes": volumes}}


def _submitter(image: str, given: Settings) -> Manifest:
    """As the operator would make it, but fit for a namespace that lets nothing run as root."""
    resources = {"cpu": "500m", "memory": "1Gi"}
    container = {
        "name": "ray-job-submitter",
        "image": image,
        "resources": {"limits": resources, "requests": resources},
        "securityContext": _LOCKED,
    }
    return {"spec": {**_pod_spec(given, container), "restartPolicy": "Never"}}


def _pod_spec(given: Settings, container: Manifest) -> Manifest:
    spec: Manifest = {
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": given.user,
            "runAsGroup": given.user,
            "fsGroup": given.user,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
    }
    if given.pull_secret:
        spec["imagePullSecrets"] = [{"name": given.pull_secret}]
    return spec


def _placed(where: Placement) -> Manifest:
    placed: Manifest = {}
    if where.node_selector:
        placed["nodeSelector"] = dict(where.node_selector)
    if where.tolerations:
        placed["tolerations"] = [one.model_dump(exclude_none=True) for one in where.tolerations]
    return placed

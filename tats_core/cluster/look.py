"""Looks at a cluster from inside, before a long job is given to it; `submit` runs it there as a short job.

    python -m tats_core.cluster.look '{"tats": "0.1.0", …}' pipeline|sweep NAME [OPTION]… [--home FOLDER]

Each thing that is wrong is one line on standard output, behind `TROUBLE`; the exit code is 2 if there is one.
"""

from __future__ import annotations

import argparse
import base64
import importlib.metadata
import json
import os
import platform
import secrets
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tats_core import __version__
from tats_core.cluster import work
from tats_core.errors import TatsError
from tats_core.pipeline.graph import Instance
from tats_core.stages.base import Preflight

TROUBLE = "tats-trouble: "
_NODE_SECONDS = 120
_SERVER_SECONDS = 10


def versions() -> dict[str, str]:
    """Return what must be the same here and on each machine of the cluster."""
    python = ".".join(platform.python_version_tuple()[:2])
    # CPU and CUDA builds of one release of torch ("2.14.1+cpu") read each other's checkpoints.
    torch = importlib.metadata.version("torch").partition("+")[0]
    return {"tats": __version__, "python": python, "ray": importlib.metadata.version("ray"), "torch": torch}


def look(asked: Mapping[str, Any], home: Path, expected: Mapping[str, str]) -> list[str]:
    """Return one sentence for each thing that would keep the work from being done on this cluster.

    Args:
        asked: the arguments of `work.load`.
    """
    import ray

    from tats_core.launch import ray_train

    troubles = too_small(work.load(**asked).stages, *ray_train.capacity())
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    folder = home / f".look-{secrets.token_hex(6)}"
    try:
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            return [*troubles, f"{home}: the head cannot write there ({error.strerror})"]
        troubles += _ask(nodes, _one_machine, dict(asked), str(home), str(folder), dict(expected))
        troubles += _ask(nodes, _sees_all, str(folder), sorted(node["NodeID"] for node in nodes))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return troubles + server_troubles(os.environ)


def too_small(instances: Iterable[Instance], cpus: int, gpus: int) -> list[str]:
    """Return a sentence for the first stage that needs more CPUs or GPUs than the cluster has."""
    for one in instances:
        for what, needed, there in (
            ("CPU", one.kind.cpus(one.config), cpus),
            ("GPU", one.kind.gpus(one.config), gpus),
        ):
            if needed > there:
                return [f"{one.name} needs {needed} {what}s and the cluster has {there}; add machines to it"]
    return []


def differing(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Return a sentence for each version that is not the expected one."""
    return [
        f"{name} is {found.get(name, 'absent')} there and {version} here; use the same image on both sides"
        for name, version in expected.items()
        if found.get(name) != version
    ]


def server_troubles(environment: Mapping[str, str]) -> list[str]:
    """Return a sentence if the tracking server of MLFLOW_TRACKING_URI does not answer or refuses.

    It asks an API path: `/health` answers even where the server refuses the name that it is called by.
    """
    uri = environment.get("MLFLOW_TRACKING_URI", "")
    if not uri.startswith(("http://", "https://")):
        return []
    request = urllib.request.Request(f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/search?max_results=1")
    user, password = (environment.get(f"MLFLOW_TRACKING_{one}", "") for one in ("USERNAME", "PASSWORD"))
    if user:
        word = base64.b64encode(f"{user}:{password}".encode()).decode()
        request.add_header("Authorization", f"Basic {word}")
    elif token := environment.get("MLFLOW_TRACKING_TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=_SERVER_SECONDS):
            return []
    except urllib.error.HTTPError as error:
        advice = {
            401: "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the cluster's environment",
            403: "add the name to the server's --allowed-hosts, or give the user access",
        }.get(error.code, "see the server's log")
        return [f"the tracking server {uri} answers {error.code}; {advice}"]
    except OSError as error:
        why = getattr(error, "reason", error)
        return [f"the tracking server {uri} does not answer the cluster ({why}); start it, or mend the URI"]


def _ask(nodes: Sequence[Mapping[str, Any]], question: Any, *words: Any) -> list[str]:
    """Ask each machine; return what is wrong, each sentence once, with the machines that say it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(num_cpus=0, max_retries=0)(question)
    asked = [
        remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
            *words
        )
        for node in nodes
    ]
    said: dict[str, list[str]] = {}
    for node, answer in zip(nodes, asked, strict=True):
        try:
            found = ray.get(answer, timeout=_NODE_SECONDS)
        except ray.exceptions.GetTimeoutError:
            found = [f"does not answer within {_NODE_SECONDS} s"]
        except ray.exceptions.RayError as error:
            found = [f"cannot be asked ({str(error).strip().splitlines()[-1]})"]
        for sentence in found:
            said.setdefault(sentence, []).append(node["NodeManagerAddress"])
    return [f"on {', '.join(sorted(set(where)))}: {sentence}" for sentence, where in said.items()]


def _one_machine(asked: dict[str, Any], home: str, folder: str, expected: dict[str, str]) -> list[str]:
    """What is wrong on this machine. Leaves a file of its name in the project folder."""
    import ray

    own = ray.get_runtime_context().get_node_id()
    troubles = differing(expected, versions())
    other_code = bool(troubles)
    try:
        (Path(folder) / own).touch()
    except OSError as error:
        troubles.append(
            f"{home} is not the project folder that the head sees, or read-only ({error.strerror})"
        )
    if other_code:
        return troubles  # it would say the same again in other words
    stages = work.load(**asked).stages
    (here,) = (node for node in ray.nodes() if node["NodeID"] == own)  # type: ignore[no-untyped-call]
    if here["Resources"].get("GPU") and any(one.kind.gpus(one.config) for one in stages):
        import torch

        troubles += without_cuda(torch.version.cuda)
    wrong: dict[str, None] = {}  # an ordered set: many stages may miss the same data set
    for one in stages:
        found = one.kind.preflight(one.config, Preflight(one.name, one.axes, Path(home)))
        wrong.update(dict.fromkeys(found))
    return [*troubles, *wrong]


def without_cuda(cuda: str | None) -> list[str]:
    """Return a sentence if torch on a machine with GPUs was built for CPUs alone."""
    if cuda is not None:
        return []
    return ["its torch is built without CUDA and cannot use its GPUs; use an image with PyPI's torch"]


def _sees_all(folder: str, nodes: list[str]) -> list[str]:
    there = {path.name for path in Path(folder).glob("*")}
    lost = [node for node in nodes if node not in there]
    if not lost:
        return []
    home = Path(folder).parent
    return [f"{home} lacks what {len(lost)} of {len(nodes)} machines wrote there; it must be shared by all"]


def main() -> None:
    """Look, as the arguments say, and end with the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("expected", type=json.loads)
    parser.add_argument("kind")
    parser.add_argument("name")
    parser.add_argument("--set", action="append", default=[], dest="sets")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--max-concurrent", type=int)
    parser.add_argument("--home", type=Path, default=os.environ.get("TATS_HOME", ".tats"))
    asked = vars(parser.parse_args())
    home, expected = Path(asked.pop("home")).absolute(), asked.pop("expected")
    try:
        troubles = look(asked, home, expected)
    except TatsError as error:
        troubles = str(error).splitlines()
    for one in troubles:
        sys.stdout.write(f"{TROUBLE}{one}\n")
    sys.exit(2 if troubles else 0)


if __name__ == "__main__":
    main()

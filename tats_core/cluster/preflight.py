"""Checks a cluster from inside before a long job; `Cluster.submit` runs it as a short job on the cluster.

    python -m tats_core.cluster.preflight '{"tats": "0.1.0", …}' pipeline|sweep NAME [OPTION]… [--home FOLDER]

Each problem is a line on standard output that starts with `PROBLEM`; the exit code is then 2.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import os
import platform
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

from tats_core import __version__, tracking
from tats_core.addresses import masked
from tats_core.cluster import submission
from tats_core.cluster.submission import Submission
from tats_core.errors import TatsError
from tats_core.pipeline.graph import Instance
from tats_core.stages.base import Preflight

PROBLEM = "tats-problem: "
_NODE_SECONDS = 120

Load = Callable[[], Submission]
"""Reads the submission on the machine that calls it."""


def versions(packages: Iterable[str] = ()) -> dict[str, str]:
    """Return what must be the same here and on each machine of the cluster.

    Args:
        packages: plugins; those that are not installed here are left out.
    """
    python = ".".join(platform.python_version_tuple()[:2])
    # CPU and CUDA builds of one release of torch ("2.14.1+cpu") read each other's checkpoints.
    torch = importlib.metadata.version("torch").partition("+")[0]
    ours = {"tats": __version__, "python": python, "ray": importlib.metadata.version("ray"), "torch": torch}
    for name in set(packages) - ours.keys():
        with suppress(importlib.metadata.PackageNotFoundError):
            ours[name] = importlib.metadata.version(name)
    return ours


def check(load: Load, home: Path, expected: Mapping[str, str]) -> list[str]:
    """Return a sentence for each problem that would keep the submission from running on this cluster."""
    from tats_core.launch import ray_train

    problems = too_small(load().stages, *ray_train.capacity())
    nodes = _nodes()
    folder = home / f".preflight-{secrets.token_hex(6)}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        return [*problems, f"{home}: the head cannot write there ({error.strerror})"]
    try:
        problems += _on_each(nodes, _check_machine, load, home, folder, dict(expected))
        problems += _on_each(nodes, _check_shared, folder, sorted(nodes))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return problems + server_problems(home)


def too_small(stages: Iterable[Instance], cpus: int, gpus: int) -> list[str]:
    """Return a sentence for the first stage that needs more CPUs or GPUs than the cluster has."""
    for stage in stages:
        needs = (("CPUs", stage.kind.cpus(stage.config), cpus), ("GPUs", stage.kind.gpus(stage.config), gpus))
        for unit, needed, has in needs:
            if needed > has:
                return [f"{stage.name} needs {needed} {unit} and the cluster has {has}; add machines to it"]
    return []


def differing(expected: Mapping[str, str], actual: Mapping[str, str]) -> list[str]:
    """Return a sentence for each version that is not the expected one."""
    return [
        f"{name} is {actual.get(name, 'absent')} there and {version} here; use the same image on both sides"
        for name, version in expected.items()
        if actual.get(name) != version
    ]


def without_cuda(cuda: str | None) -> list[str]:
    """Return a sentence if torch on a machine with GPUs was built for CPUs alone."""
    sentence = "its torch is built without CUDA and cannot use its GPUs; use an image with PyPI's torch"
    return [sentence] if cuda is None else []


def server_problems(home: Path) -> list[str]:
    """Return a sentence if the tracking server of MLFLOW_TRACKING_URI does not answer or refuses.

    The client is MLflow's own: it knows the same users, passwords, tokens and certificates as the run.
    """
    try:
        uri = tracking.tracking_uri(home)
        if uri.startswith(("http://", "https://")):
            tracking.check(tracking.connect(home, uri), uri)
    except TatsError as error:
        return [masked(str(error))]
    except tracking.AwayError as error:
        server = f"the tracking server {masked(uri)}"
        return [f"{server} does not answer the cluster ({error}); start it, or correct MLFLOW_TRACKING_URI"]
    return []


def _nodes() -> dict[str, Any]:
    """Return id → Ray's description of each machine that is up."""
    import ray

    return {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]


def _on_each(nodes: dict[str, Any], check: Callable[..., list[str]], *arguments: object) -> list[str]:
    """Call `check` on each machine; return each problem once, with the machines that have it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(num_cpus=0, max_retries=0)(check)
    pinned = {node: NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes}
    answers = {
        node: remote.options(scheduling_strategy=strategy).remote(*arguments)
        for node, strategy in pinned.items()
    }
    machines: dict[str, set[str]] = {}
    deadline = time.monotonic() + _NODE_SECONDS  # of all of them: the whole check has a limit, too
    for node, answer in answers.items():
        try:
            sentences = ray.get(answer, timeout=max(0, deadline - time.monotonic()))
        except ray.exceptions.GetTimeoutError:
            sentences = [f"does not answer within {_NODE_SECONDS} s"]
        except ray.exceptions.RayError as error:
            sentences = [f"cannot be checked ({str(error).strip().splitlines()[-1]})"]
        for sentence in sentences:
            machines.setdefault(sentence, set()).add(nodes[node]["NodeManagerAddress"])
    return [f"on {', '.join(sorted(addresses))}: {sentence}" for sentence, addresses in machines.items()]


def _check_machine(load: Load, home: Path, folder: Path, expected: dict[str, str]) -> list[str]:
    """Check this machine, and create a file named after it in `folder`."""
    import ray

    node_id = ray.get_runtime_context().get_node_id()
    problems = differing(expected, versions(expected))
    other_code = bool(problems)
    try:
        (folder / node_id).touch()
    except OSError as error:
        problems.append(
            f"{home} is not the project folder that the head sees, or read-only ({error.strerror})"
        )
    if other_code:
        return problems  # the other checks would report the same mismatch in other words
    stages = load().stages
    if _nodes()[node_id]["Resources"].get("GPU") and any(stage.kind.gpus(stage.config) for stage in stages):
        import torch

        problems += without_cuda(torch.version.cuda)
    for stage in stages:
        problems += stage.kind.preflight(stage.config, Preflight(stage.name, stage.axes, home))
    return list(dict.fromkeys(problems))  # many stages may miss the same data set


def _check_shared(folder: Path, nodes: list[str]) -> list[str]:
    """Return a sentence if this machine does not see the files of all machines in the project folder."""
    missing = set(nodes) - {path.name for path in folder.glob("*")}
    lacks = f"{folder.parent} lacks what {len(missing)} of {len(nodes)} machines wrote there"
    return [f"{lacks}; it must be shared by all"] if missing else []


def main() -> None:
    """Run the checks that the command line asks for, and exit with their code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("expected", type=json.loads)
    parser.add_argument("kind", choices=get_args(submission.Kind))
    parser.add_argument("name")
    parser.add_argument("--set", action="append", default=[], dest="sets")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--max-concurrent", type=int)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--home", type=Path, default=os.environ.get("TATS_HOME", ".tats"))
    options = vars(parser.parse_args())
    home, expected = Path(options.pop("home")).absolute(), options.pop("expected")
    try:
        problems = check(functools.partial(submission.load, **options), home, expected)
    except TatsError as error:
        # A plugin that is absent makes its keys unknown: that comes first.
        problems = [*differing(expected, versions(expected)), *str(error).splitlines()]
    for sentence in problems:
        sys.stdout.write(f"{PROBLEM}{sentence}\n")
    sys.exit(2 if problems else 0)


if __name__ == "__main__":
    main()

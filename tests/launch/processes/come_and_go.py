"""A training on a cluster of two machines, of which one leaves midway and is replaced by another.

    come_and_go.py OUT FEWEST

The last line that it prints holds the number of workers after each start, the steps and their sum.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TOGETHER = 3


def work(job: dict[str, Any], world: Any, events: Any, store: Any) -> None:
    """Add 1 a step, over all workers; end when two workers have done some steps after the replacement."""
    import ray
    import torch

    from tats_core.training.checkpoint import CheckpointConfig

    Path(job["out"], ray.get_runtime_context().get_node_id()).write_text(str(os.getpid()))
    state = store.begin(CheckpointConfig()) or {"step": 0, "total": 0.0, "starts": []}
    starts = [*state["starts"], world.size]
    events.note(f"{world.size} workers from step {state['step']}")
    step, total, steps_here = state["step"], state["total"], 0
    while not (steps_here >= TOGETHER and world.any(Path(job["out"], "came").exists()) and world.size == 2):
        step, steps_here = step + 1, steps_here + 1
        total += float(world.sum(torch.tensor(1 / world.size, dtype=torch.float64)))
        time.sleep(0.1)
        store.save({"step": step, "total": total, "starts": starts, "rank": {}}, step=step, metrics={})
    if world.is_first:
        Path(job["out"], "outcome").write_text(json.dumps({"starts": starts, "steps": step, "total": total}))


def main(out: Path, fewest: int) -> None:
    import psutil
    import ray
    from ray.cluster_utils import Cluster

    from tats_core.launch import ray_train
    from tats_core.stages.base import ParallelWork

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    leaves = cluster.add_node(num_cpus=1)
    os.environ["RAY_ADDRESS"] = cluster.address
    failed: list[BaseException] = []

    def fit() -> None:
        try:
            fewer = tuple(range(fewest, 2))
            parallel = ParallelWork("come_and_go:work", {"out": str(out)}, 2, fewer, max_failures=3)
            ray_train.fit(parallel, "fit", out, threading.Event())
        except BaseException as error:  # noqa: BLE001, it ends the process
            failed.append(error)

    def until(holds: Callable[[], Any]) -> None:
        while training.is_alive() and not holds():
            time.sleep(0.1)

    def logged(text: str) -> bool:
        path = out / "events.jsonl"
        return path.exists() and text in path.read_text()

    training = threading.Thread(target=fit)
    training.start()
    until(lambda: len(list(out.glob("checkpoints/fit/step-*"))) >= 2)
    worker = int((out / leaves.node_id).read_text())
    cluster.remove_node(leaves, allow_graceful=False)
    until(lambda: not psutil.pid_exists(worker))
    until(lambda: fewest == 2 or logged("1 workers from step"))
    cluster.add_node(num_cpus=1)
    (out / "came").touch()
    training.join()
    ray.shutdown()
    cluster.shutdown()
    if failed:
        raise failed[0]
    print((out / "outcome").read_text(), flush=True)  # noqa: T201 (the test reads it)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

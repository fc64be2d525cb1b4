"""What the workers of `test_ray_train.py` do: a sum over steps that reveals any step lost or repeated."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

from tats_core.training.checkpoint import CheckpointConfig


def count(job, world, events, store):
    state = store.begin(CheckpointConfig())
    step, total = (state["step"], state["total"]) if state else (0, torch.zeros(1))
    events.note(f"starts after step {step}")
    generator = torch.Generator().manual_seed(world.rank)
    if state:
        generator.set_state(state["rank"]["generator"])
    while step < job["steps"]:
        step += 1
        total = total + world.sum(torch.rand(1, generator=generator))
        events.metrics(step, {"total": total.item()})
        if job.get("die_at") == step and state is None and world.rank == 1:
            os._exit(1)
        if job.get("raise_at") == step:
            from tats_core.errors import TrainingError

            raise TrainingError("the loss is not finite")
        if job.get("break_at") == step:
            raise RuntimeError("no memory")
        rank = {"generator": generator.get_state()}
        store.save({"step": step, "total": total, "rank": rank}, step=step, metrics={"total": total.item()})
        if job.get("ask_at") == step:
            # Stands for the user: the test acts when it sees this file, and says when it has.
            written = Path(job["out"], f"ask-{os.getpid()}")
            written.write_text(str(os.getpid()))
            written.replace(Path(job["out"], "ask"))
            while not Path(job["out"], "answered").exists():
                time.sleep(0.05)
            time.sleep(1)  # the store looks for a request twice a second
    if world.is_first:
        Path(job["out"], "total").write_text(f"{total.item()!r} {step} {world.size}")

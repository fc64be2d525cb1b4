"""What each of two gloo workers of `test_world.py` runs: `two_workers.py RANK RENDEZVOUS OUT`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from tats_core.errors import Stopped
from tats_core.models.mae import VideoMAE
from tats_core.sampling import Sampler
from tats_core.stages.evaluate import gather_uneven
from tats_core.training import checkpoint
from tats_core.training.checkpoint import CheckpointConfig, CheckpointStore
from tats_core.training.events import EventLog, read_events
from tats_core.training.finetune import FinetuneConfig, FinetuneTrainer
from tats_core.training.loop import restore
from tats_core.training.metrics import on_host
from tats_core.training.pretrain import JointTrainer, PretrainConfig, pretrain
from tats_core.training.world import World

TINY: dict[str, Any] = {
    "model": {"preset": "vit_micro", "width": 24, "depth": 2, "heads": 3},
    "clip": {"frames": 4, "size": 16, "tubelet": 2, "patch": 4},
    "batch_size": 8,
}
SAMPLER = {"kind": "tats", "mask_ratio": 0.8, "network": {"width": 12, "heads": 2}}
MAE = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
FINETUNE = {"mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.0, "drop_path": 0.0, "head_scale": 1.0}

RECIPES: dict[str, dict[str, Any]] = {
    "layer": {},
    "batch": {"head_norm": "batch"},
    "accumulate": {"accumulate": 4},
}


def _clips(world: World, step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    video_BCTHW = torch.randn(8, 3, 4, 16, 16, generator=generator)
    # The halves differ in contrast, so that rewards standardised by each worker alone would differ.
    video_BCTHW[4:] *= 3
    label_B = torch.arange(8) % 3
    # As the loader deals them out.
    return video_BCTHW[world.rank :: world.size], label_B[world.rank :: world.size]


def joint(world: World, steps: int) -> dict[str, Any]:
    # In double precision: Adam makes a step of full size out of a gradient that is nothing but rounding.
    torch.set_default_dtype(torch.float64)
    trainer = JointTrainer(PretrainConfig.model_validate({**TINY, "sampler": SAMPLER, "mae": MAE}), world)
    metrics = [on_host(trainer.step(_clips(world, step)[0].double(), lr=1e-3)) for step in range(steps)]
    torch.set_default_dtype(torch.float32)
    return {"metrics": metrics, "mae": trainer.mae.state_dict(), "sampler": trainer.sampler.state_dict()}


class Prepared(NamedTuple):
    """A batch of clips that are normalised already."""

    video_BCTHW: Tensor
    label_B: Tensor
    index_B: Tensor

    def normalised(self, device: torch.device) -> Tensor:
        return self.video_BCTHW.to(device)


class Loader:
    """Two batches an epoch."""

    steps = 2

    def __init__(self, world: World) -> None:
        self.world = world

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Prepared]:
        for step in range(first_step, self.steps):
            video_BCTHW, label_B = _clips(self.world, step)
            yield Prepared(video_BCTHW, label_B, torch.arange(len(label_B)))


def pretrain_metrics(world: World, folder: Path) -> dict[str, float]:
    """What a pre-training returns at its end."""
    recipe = PretrainConfig.model_validate({**TINY, "sampler": SAMPLER, "mae": MAE, "epochs": 1})
    store, events = CheckpointStore(folder, world), EventLog(None)
    return pretrain(JointTrainer(recipe, world), Loader(world), events=events, store=store, health=_health)


def _health(mae: VideoMAE, sampler: Sampler, step: int) -> dict[str, float]:
    return {}


def classifier(world: World, **changes: Any) -> dict[str, Tensor]:
    """Gradients and running statistics after a step."""
    recipe = FinetuneConfig.model_validate({**TINY, **FINETUNE, **changes})
    trainer = FinetuneTrainer(recipe, 3, world)
    trainer.start()
    trainer.step(*_clips(world, 0), step=0, lr=1e-3)
    gradients = {key: p.grad.clone() for key, p in trainer.model.named_parameters() if p.grad is not None}
    return gradients | {
        key: buffer.clone() for key, buffer in trainer.model.head_norm.named_buffers("head_norm")
    }


def exchanges(world: World) -> tuple[int, bool]:
    """How often gradients are averaged in a step of four parts, and whether buffers are sent around."""
    recipe = FinetuneConfig.model_validate({**TINY, **FINETUNE, "accumulate": 4})
    trainer = FinetuneTrainer(recipe, 3, world)
    trainer.start()
    buckets: list[Any] = []

    def counted(state, bucket):  # type: ignore[no-untyped-def]  # torch wants types or none, but no strings
        buckets.append(bucket.is_last())
        return allreduce_hook(None, bucket)

    assert isinstance(trainer.parallel, DistributedDataParallel)
    trainer.parallel.register_comm_hook(None, counted)
    trainer.step(*_clips(world, 0), step=0, lr=1e-3)
    return sum(buckets), trainer.parallel.will_sync_module_buffers()


_CLIPPED = {"accumulate": 2, "optimizer": {"clip_grad": 0.05}}  # gradients have norms of .4 to .9
_RECOMPUTED = {**TINY["model"], "gradient_checkpointing": True}
DIVIDED: dict[str, dict[str, Any]] = {
    "tats": _CLIPPED,
    "adaptive": {**_CLIPPED, "model": _RECOMPUTED, "sampler": {"kind": "adaptive", "mask_ratio": 0.8}},
    "bf16": {"precision": "bf16", "accumulate": 2},
    "averaged": {**_CLIPPED, "ema": {"decay": 0.9}},
    "batch norm": {"head_norm": "batch", "model": _RECOMPUTED, "optimizer": {"kind": "lion"}},
}


def _joint_trainer(world: World, **changes: Any) -> JointTrainer:
    recipe = {**TINY, "sampler": SAMPLER, "mae": MAE, **changes}
    return JointTrainer(PretrainConfig.model_validate(recipe), world)


def _weights(trainer: JointTrainer) -> dict[str, Tensor]:
    return {**trainer.whole_mae().state_dict(prefix="mae."), **trainer.sampler.state_dict(prefix="sampler.")}


def steps(world: World, name: str, *, shard: bool) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """Metrics and weights of three steps of a recipe in `DIVIDED`; in double precision where it says none."""
    changes = {**DIVIDED[name], "shard": shard}
    dtype = torch.float32 if "precision" in changes else torch.float64
    torch.set_default_dtype(dtype)
    batches = [_clips(world, step) for step in range(3)]
    if name in ("averaged", "batch norm"):
        tuned = FinetuneTrainer(FinetuneConfig.model_validate({**TINY, **FINETUNE, **changes}), 3, world)
        tuned.start()
        metrics = [tuned.step(x.to(dtype), label, step, 1e-3) for step, (x, label) in enumerate(batches)]
        weights = tuned.finished().state_dict()
    else:
        trainer = _joint_trainer(world, **changes)
        metrics = [trainer.step(video_BCTHW.to(dtype), 1e-3) for video_BCTHW, _ in batches]
        weights = _weights(trainer)
    torch.set_default_dtype(torch.float32)
    return [on_host(values) for values in metrics], weights


def resumed(world: World, folder: Path) -> dict[str, Any]:
    """A divided training of three steps, and two that resume it after the second, one of them not divided.

    Also how often gradients were sent in its first step, of four parts, and what this worker holds.
    """
    video_BCTHW = _clips(world, 0)[0]
    straight = _joint_trainer(world, shard=True, accumulate=4)
    calls, send = [], dist.reduce_scatter_single
    dist.reduce_scatter_single = lambda *args, **kwargs: (calls.append(1), send(*args, **kwargs))[1]
    straight.step(video_BCTHW, 1e-3)
    dist.reduce_scatter_single = send
    parts = [p.grad for p in straight.mae.parameters() if p.grad is not None]
    held = {"gradients": sum(part.to_local().numel() for part in parts)}
    straight.step(video_BCTHW, 1e-3)
    state = straight.state_dict()
    CheckpointStore(folder, world).save({"rank": state.pop("rank"), "trainer": state}, step=2, metrics={})
    straight.step(video_BCTHW, 1e-3)
    results = {"sent": len(calls), "straight": _weights(straight)}
    for shard in (True, False):
        trainer = _joint_trainer(world, shard=shard, accumulate=4)
        saved = CheckpointStore(folder, world).begin(CheckpointConfig())
        assert saved is not None
        restore(trainer, {**saved["trainer"], "rank": saved["rank"]})
        if shard:
            kept = {"weights": list(trainer.mae.parameters())}
            for moment in ("exp_avg", "exp_avg_sq"):
                kept[moment] = [s[moment] for s in trainer.mae_step.optimizer.state.values()]
            # Of the memory behind them: a view of a whole tensor would hold all of it.
            for name, tensors in kept.items():
                held[name] = sum(t.to_local().untyped_storage().nbytes() for t in tensors) // 4
        trainer.step(video_BCTHW, 1e-3)
        results["divided" if shard else "together"] = _weights(trainer)
    return {**results, "held": held, "parameters": sum(p.numel() for p in straight.mae.parameters())}


def states(world: World, folder: Path) -> dict[str, Any]:
    """What each of two ranks sees of a store that both use."""
    checkpoint._STOP_SECONDS = 0
    wishes = [False]
    # Only rank 1 sees the request to stop: both must do the same.
    config = CheckpointConfig(epochs=2, minutes=None)
    store = CheckpointStore(folder, world, stop=lambda: wishes[0] and world.rank == 1)
    results: dict[str, Any] = {"fresh": store.begin(config), "due": [store.due(1), store.due(2, epochs=2)]}
    store.save({"shared": world.rank, "rank": {"own": world.rank}}, step=2, metrics={})
    wishes[0] = True
    results["wanted"] = store.due(3)
    try:
        store.save({"shared": world.rank, "rank": {"own": 10 + world.rank}}, step=3, metrics={})
    except Stopped:
        results["stopped"] = True
    results["state"] = CheckpointStore(folder, world).begin(config)
    try:
        results["items"] = []
        for item in CheckpointStore(folder, world, stop=lambda: world.rank == 1).until_stopped(range(5)):
            results["items"].append(item)
    except Stopped:
        results["left"] = True
    return results


class _Dealt:
    """Three batches an epoch, as the loader deals them out; counts them."""

    steps = 3

    def __init__(self, world: World) -> None:
        self.world, self.dealt = world, 0

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Prepared]:
        for step in range(first_step, self.steps):
            self.dealt += 1
            video_BCTHW, label_B = _clips(self.world, epoch * self.steps + step)
            yield Prepared(video_BCTHW.double(), label_B, label_B)


def elastic(world: World, folder: Path, steps: int | None = None, **changes: Any) -> dict[int, float]:
    """Loss by step of a pre-training for two that is begun in `folder`, or gone on with; ends after `steps`.

    The sampler learns every fourth step: in between, each rank remembers its own clips.
    """
    checkpoint._STOP_SECONDS = 0
    torch.set_default_dtype(torch.float64)  # as in `joint`
    sampler = {**SAMPLER, "ppo": {"rollout_length": 4}}
    recipe = {**TINY, "sampler": sampler, "mae": MAE, "epochs": 4, "log_every": 1, **changes}
    trainer = JointTrainer(PretrainConfig.model_validate(recipe).among(world.size, 2), world)
    loader = _Dealt(world)
    events = folder.with_suffix(".jsonl")

    def health(mae: VideoMAE, sampler: Sampler, step: int) -> dict[str, float]:
        if world.is_first:  # alone, as pictures are drawn: a divided network would wait for the others
            mae.encoder(torch.zeros(1, mae.clip.tokens, mae.clip.pixels))
        return {}

    try:
        pretrain(
            trainer,
            loader,
            events=EventLog(events if world.is_first else None),
            store=CheckpointStore(folder, world, stop=lambda: loader.dealt == steps),
            health=health,
        )
    except Stopped:
        assert steps is not None
    torch.set_default_dtype(torch.float32)
    metrics = [event for _, event in read_events(events) if event["kind"] == "metrics"]
    return {event["step"]: event["values"]["loss"] for event in metrics if "loss" in event["values"]}


def main(rank: int, rendezvous: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    world = World(rank, 2)
    mean, deviation = world.moments(torch.tensor([[1e6 + 1.0, 1e6 + 3.0]]) + 4 * rank)
    rows = torch.arange(3 - rank) + 10 * rank
    results = {
        "moments": [mean.item(), deviation.item()],
        "sum": world.sum(torch.tensor([1.0, 10.0 * rank])).tolist(),
        "gather": world.gather(torch.tensor([[rank, 7]])).tolist(),
        "uneven": [tensor.tolist() for tensor in gather_uneven(world, rows, rows[:, None].float())],
        "union": world.union({"both": "one", f"{rank}": "own"}),
        "mean": world.mean({"loss": 1.0 + rank, "train_top1": 100.0 * rank}),
        "classifier": {name: classifier(world, **changes) for name, changes in RECIPES.items()},
        "exchanges": exchanges(world),
        "states": states(world, Path(out) / "states"),
        "metrics": pretrain_metrics(world, Path(out) / "pretrain"),
        "joint": joint(world, steps=20),
        "steps": {name: [steps(world, name, shard=shard) for shard in (True, False)] for name in DIVIDED},
        "resumed": resumed(world, Path(out) / "resumed"),
    }
    elastic(world, Path(out) / "divided", steps=6, shard=True)
    elastic(world, Path(out) / "shrunk", steps=6)
    elastic(world, Path(out) / "grown")
    torch.save(results, Path(out) / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])

"""What each of two gloo workers of `test_world.py` runs: `two_workers.py RANK RENDEZVOUS OUT`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tats_core.sampling.base import Rollout
from tats_core.sampling.tats import TATSSampler
from tats_core.training.finetune import FinetuneConfig, FinetuneTrainer
from tats_core.training.jobs.evaluate import gather_uneven
from tats_core.training.pretrain import JointTrainer, PretrainConfig
from tats_core.training.world import World

TINY: dict[str, Any] = {
    "model": {"preset": "vit_micro", "width": 24, "depth": 2, "heads": 3},
    "clip": {"frames": 4, "size": 16, "tubelet": 2, "patch": 4},
    "batch_size": 8,
}
SAMPLER = {"kind": "tats", "mask_ratio": 0.8, "network": {"width": 12, "heads": 2}}
MAE = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
FINETUNE = {"mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.0, "drop_path": 0.0, "head_scale": 1.0}


class Greedy(TATSSampler):
    """Shows the K likeliest tokens, so that workers together draw what one worker would."""

    def act(self, tokens_BND: Tensor, generator: torch.Generator | None = None) -> Rollout:
        with torch.no_grad():
            policy = self(tokens_BND)
        return self._rollout(policy.logits_BN.topk(self.visible, dim=1).indices, policy)


def _clips(world: World, step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    video_BCTHW = torch.randn(8, 3, 4, 16, 16, generator=generator)
    # The halves differ in contrast, so that rewards standardised by each worker alone would differ.
    video_BCTHW[4:] *= 3
    label_B = torch.arange(8) % 3
    share = slice(world.rank * 8 // world.size, (world.rank + 1) * 8 // world.size)
    return video_BCTHW[share], label_B[share]


def joint(world: World, steps: int) -> dict[str, Any]:
    trainer = JointTrainer(PretrainConfig.model_validate({**TINY, "sampler": SAMPLER, "mae": MAE}), world)
    with torch.no_grad():
        trainer.sampler.actor.weight.mul_(100)  # type: ignore[union-attr, operator]
    trainer.sampler.__class__ = Greedy
    found: dict[str, Any] = {"figures": []}
    for step in range(steps):
        found["figures"].append(trainer.step(_clips(world, step)[0], lr=1e-3))
        if step == 0:
            for name, module in (("mae", trainer.mae), ("sampler", trainer.sampler)):
                found[name] = {
                    key: p.grad.clone() for key, p in module.named_parameters() if p.grad is not None
                }
    found["weights"] = {**trainer.mae.state_dict(), **trainer.sampler.state_dict()}
    return found


def classifier(world: World) -> dict[str, Tensor]:
    trainer = FinetuneTrainer(FinetuneConfig.model_validate({**TINY, **FINETUNE}), 3, world)
    trainer.start()
    trainer.step(*_clips(world, 0), step=0, lr=1e-3)
    return {key: p.grad.clone() for key, p in trainer.model.named_parameters() if p.grad is not None}


def main(rank: int, rendezvous: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    world = World(rank, 2)
    mean, deviation = world.moments(torch.tensor([[1e6 + 1.0, 1e6 + 3.0]]) + 4 * rank)
    own = torch.arange(3 - rank) + 10 * rank
    found = {
        "moments": [mean.item(), deviation.item()],
        "sum": world.sum(torch.tensor([1.0, 10.0 * rank])).tolist(),
        "gather": world.gather(torch.tensor([[rank, 7]])).tolist(),
        "uneven": [tensor.tolist() for tensor in gather_uneven(world, own, own[:, None].float())],
        "classifier": classifier(world),
        "joint": joint(world, steps=3),
    }
    torch.save(found, Path(out) / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])

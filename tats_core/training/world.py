"""The data-parallel workers as seen from one of them. No launcher here: whoever starts it, says who it is."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class World:
    """This worker's place among `size` workers; `size > 1` needs an initialised process group."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def is_first(self) -> bool:
        """True on the one worker that writes files and events."""
        return self.rank == 0

    def parallel(self, module: nn.Module) -> nn.Module:
        """Return `module` with gradients averaged over workers in backward; itself where there is one."""
        if self.size == 1:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        # Gradients live in the reducer's buckets: no second copy of them.
        return DistributedDataParallel(module, device_ids=devices, gradient_as_bucket_view=True)

    def accumulating(self, module: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """Put forward and backward of one part of a batch in here: only the `last` one averages gradients."""
        if last or not isinstance(module, DistributedDataParallel):
            return nullcontext()
        paused: AbstractContextManager[None] = module.no_sync()
        return paused

    def autocast(self, precision: Precision) -> torch.autocast:
        """Forward passes in here run their matrix products in `precision`; weights stay float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16")

    def sum(self, values: Tensor) -> Tensor:
        """Return the element-wise sum of `values` over all workers (same shape on each)."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def gather(self, values_B: Tensor) -> Tensor:
        """Return `values_B` of all workers joined along axis 0, in rank order; equal shapes are required."""
        if self.size == 1:
            return values_B
        parts = [torch.empty_like(values_B) for _ in range(self.size)]
        dist.all_gather(parts, values_B.contiguous())
        return torch.cat(parts)

    def moments(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and (population) standard deviation of all elements over all workers, in float64."""
        flat = values.detach().double().flatten()
        total = self.sum(
            torch.stack([torch.tensor(float(flat.numel()), device=flat.device).double(), flat.sum()])
        )
        mean = total[1] / total[0]
        # Two passes: the one-pass formula cancels badly when the mean is far from zero.
        spread = self.sum((flat - mean).square().sum())
        return mean, (spread / total[0]).sqrt()

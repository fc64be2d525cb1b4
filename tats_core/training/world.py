"""The data-parallel workers, as one of them sees them; the launcher sets its rank.

Axes: B clips, D features.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
import torch.distributed as dist
from pydantic import Field, ValidationError, model_validator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tats_core.errors import SpecError
from tats_core.specs import StrictModel
from tats_core.training.metrics import on_host
from tats_core.training.sharding import Sharded

Precision = Literal["fp32", "bf16"]


class StepConfig(StrictModel):
    """How the batch of a step is dealt out to the workers, and in what they compute; part of a recipe."""

    batch_size: int = Field(256, ge=1, description="clips of one step, over all workers")
    accumulate: int = Field(
        1, ge=1, description="parts that a worker's share is cut into to save memory; the step stays the same"
    )
    precision: Precision = Field("fp32", description="bf16: matrix products in bfloat16 (autocast)")
    compile: bool = Field(
        False,
        description="torch.compile the networks: the first steps take minutes; rounding differs a little",
    )
    shard: bool = Field(
        False,
        description="divide weights, gradients and optimiser state of the model among the workers (FSDP), so "
        "that larger models fit: more is sent, the step stays the same but for rounding",
    )
    numerics: Literal["exact", "fast"] = Field(
        "fast",
        description="on GPUs: exact, kernels that give the same bits in each run, or the fastest; on CPUs "
        "both are exact",
    )

    @model_validator(mode="after")
    def _compiles_only_what_is_whole(self) -> Self:
        if self.shard and self.compile:
            raise ValueError("compile works on whole networks, which shard divides; leave one of the two out")
        return self

    def choose_kernels(self, device: torch.device) -> Literal["exact", "fast"]:
        """Let this process compute on `device` as `numerics` says; return how exact that is."""
        if device.type == "cpu":
            return "exact"
        exact = self.numerics == "exact"
        if exact:  # cuBLAS reads it at its first product
            os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        torch.use_deterministic_algorithms(exact)
        torch.backends.cudnn.benchmark = not exact
        # Its backward pass adds up in any order; flash attention has an order for deterministic algorithms.
        torch.backends.cuda.enable_mem_efficient_sdp(not exact)
        return self.numerics

    def compiled(self, *networks: nn.Module) -> None:
        """Compile the forward passes of `networks` if asked to; names in their states stay as they are."""
        if self.compile:
            for network in networks:
                network.compile()

    def per_worker(self, workers: int) -> int:
        """The share of the batch of one of `workers` workers.

        Raises:
            SpecError: shares or their parts would not be equal.
        """
        if self.batch_size % workers:
            raise SpecError(
                f"batch_size ({self.batch_size}) is over all workers and must be a multiple of "
                f"workers ({workers})"
            )
        share = self.batch_size // workers
        if share % self.accumulate:
            raise SpecError(
                f"a worker's share of batch_size ({share} of {self.batch_size}) must be a multiple of "
                f"accumulate ({self.accumulate})"
            )
        return share

    def among(self, workers: int, most: int) -> Self:
        """The same step for `workers` where it was written for `most`: each does more parts of the same size.

        Raises:
            SpecError: they cannot share the parts evenly.
        """
        if workers == most:
            return self
        if self.accumulate * most % workers:
            raise SpecError(
                f"{workers} workers cannot share evenly what {most} do in {self.accumulate} "
                f"part{'s' * (self.accumulate > 1)} each"
            )
        parts = {"accumulate": self.accumulate * most // workers}
        try:
            changed = type(self).model_validate(self.model_dump(exclude_unset=True) | parts)
        except ValidationError as error:
            raise SpecError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error
        changed.per_worker(workers)
        return changed


@dataclass(frozen=True)
class World:
    """This worker's rank among `size` workers; `size > 1` needs an initialised process group."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def is_first(self) -> bool:
        """True on the worker that writes files and events."""
        return self.rank == 0

    def parallel(self, module: nn.Module, recipe: StepConfig | None = None) -> nn.Module:
        """Return `module` with gradients averaged over workers in backward; unchanged for a single worker.

        Its batch norms, too, see the clips of all workers from now on.

        Args:
            recipe: divides the module among the workers if it says so; None: it stays whole.
        """
        if self.size == 1:
            return module
        for name, part in list(module.named_modules()):
            if type(part) is nn.BatchNorm1d:
                module.set_submodule(name, PooledBatchNorm.of(part).to(self.device))
        if recipe is not None and recipe.shard:
            return Sharded(module, self.device, self.size, half=recipe.precision == "bf16")
        devices = [self.device] if self.device.type == "cuda" else None
        # Gradients live in the reducer's buckets: no second copy of them. Buffers are the same on all workers
        # (positions, statistics of pooled batch norms); sending them would hold up each forward pass.
        return DistributedDataParallel(
            module, device_ids=devices, gradient_as_bucket_view=True, broadcast_buffers=False
        )

    def accumulating(self, module: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """Context for forward and backward of a part of a batch: only the `last` part averages gradients."""
        if last or not isinstance(module, DistributedDataParallel | Sharded):
            return nullcontext()
        paused: AbstractContextManager[None] = module.no_sync()
        return paused

    def autocast(self, precision: Precision) -> torch.autocast:
        """Context in which forward passes run matrix products in `precision`; weights stay float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16")

    def sum(self, values: Tensor) -> Tensor:
        """Return the element-wise sum of `values` over all workers (same shape on each)."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on any worker; the same answer on all of them."""
        return flag if self.size == 1 else self.sum(torch.tensor(float(flag), device=self.device)).item() > 0

    def from_first(self, value: int) -> int:
        """Return the `value` that rank 0 has."""
        term = value if self.is_first else 0
        return int(self.sum(torch.tensor(term, dtype=torch.int64, device=self.device)))

    def gather(self, values_B: Tensor) -> Tensor:
        """Return `values_B` of all workers joined along axis 0, in rank order; equal shapes are required."""
        return values_B if self.size == 1 else _joined(values_B)

    def mean(self, metrics: Mapping[str, float | Tensor]) -> dict[str, float]:
        """Return the mean of each metric over all workers, which have the same metrics in the same order."""
        numbers = on_host(metrics)
        if self.size == 1:
            return numbers
        values = torch.tensor(list(numbers.values()), dtype=torch.float64, device=self.device)
        return dict(zip(metrics, (self.sum(values) / self.size).tolist(), strict=True))

    def union(self, entries: Mapping[str, str]) -> dict[str, str]:
        """Return the entries of all workers; of a key that several have, the last worker's."""
        if self.size == 1:
            return dict(entries)
        parts: list[dict[str, str]] = [{} for _ in range(self.size)]
        dist.all_gather_object(parts, dict(entries))
        return {key: value for part in parts for key, value in part.items()}

    def moments(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and (population) standard deviation of all elements over all workers, in float64."""
        flat = values.detach().double().flatten()
        total = self.sum(torch.stack([flat.new_full((), flat.numel()), flat.sum()]))
        mean = total[1] / total[0]
        # Two passes: the one-pass formula cancels badly when the mean is far from zero.
        spread = self.sum((flat - mean).square().sum())
        return mean, (spread / total[0]).sqrt()


class PooledBatchNorm(nn.BatchNorm1d):
    """Batch norm whose statistics in training are those of the clips of all workers (as many on each).

    Every worker normalises the clips of all and returns its share; a vector a clip is little to gather.
    torch's SyncBatchNorm does the same, but not on CPUs.
    """

    @classmethod
    def of(cls, norm: nn.BatchNorm1d) -> Self:
        """A copy of `norm`, settings and state."""
        pooled = cls(norm.num_features, norm.eps, norm.momentum, norm.affine)
        pooled.load_state_dict(norm.state_dict())
        return pooled

    def forward(self, features_BD: Tensor) -> Tensor:
        if not self.training:
            return super().forward(features_BD)
        gathered_BD: Tensor = _Gather.apply(features_BD)
        return _share(super().forward(gathered_BD))


class _Gather(torch.autograd.Function):
    """All workers' rows in rank order; the gradient of a row is summed over all workers.

    torch.distributed.nn.all_gather does the same, but is deprecated, and its successor is private.
    """

    @staticmethod
    def forward(ctx: Any, share_BD: Tensor) -> Tensor:
        return _joined(share_BD)

    @staticmethod
    def backward(ctx: Any, gradient_BD: Tensor) -> Tensor:
        gradient_BD = gradient_BD.clone()
        dist.all_reduce(gradient_BD)
        return _share(gradient_BD)


def _joined(share_BX: Tensor) -> Tensor:
    parts = [torch.empty_like(share_BX) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, share_BX.contiguous())
    return torch.cat(parts)


def _share(values_BD: Tensor) -> Tensor:
    return values_BD.chunk(dist.get_world_size())[dist.get_rank()]

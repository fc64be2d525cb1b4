"""A network of which each worker holds a part: its weights, gradients and optimiser state (torch's FSDP2).

Of each tensor a worker has some rows (axis 0), in a DTensor. torch's modules for that take half a second to
import, so the functions that need them do it, and a DTensor is known by its `full_tensor`.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Sharded(nn.Module):
    """A divided network, as `DistributedDataParallel` is one that is whole on each worker.

    The matrices of a transformer block are gathered for its forward pass, and again for its backward pass.
    What else there is stays gathered between the two; it is small. A block's norms belong to that: where
    matrices are gathered in bfloat16, as autocast would make them, norms stay in float32, as it leaves them.
    """

    def __init__(self, network: nn.Module, device: torch.device, workers: int, *, half: bool) -> None:
        """Divide `network` in place; all workers have the same weights before.

        Args:
            half: gather matrices in bfloat16; gradients are added up in float32 all the same.
        """
        from timm.models.vision_transformer import Block
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import (
            FSDPModule,
            MixedPrecisionPolicy,
            fully_shard,
            register_fsdp_forward_method,
        )

        super().__init__()
        # A divided module cannot be copied: here is one without weights, for `whole`. In a list, since its
        # parameters are not this module's.
        memo: dict[int, Any] = {
            id(p): nn.Parameter(torch.empty_like(p, device="meta")) for p in network.parameters()
        }
        self._blank = [copy.deepcopy(network, memo)]
        if device.type == "cuda":
            torch.cuda.set_device(device)  # the mesh is of each process' current device
        mesh = init_device_mesh(device.type, (workers,))
        policy = MixedPrecisionPolicy()
        if half:
            policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        for block in [part for part in network.modules() if isinstance(part, Block)]:
            fully_shard([block.attn, block.mlp], mesh=mesh, mp_policy=policy)
        self._send = fully_shard(network, mesh=mesh).set_requires_gradient_sync
        self.module = network
        for part in network.modules():
            part.register_load_state_dict_pre_hook(_divide)  # type: ignore[no-untyped-call]
            if isinstance(part, FSDPModule) and device.type == "cpu":
                part.set_force_sum_reduction_for_comms(True)  # gloo adds up, but has no mean
        if hasattr(network, "tokenize"):  # a forward pass for the sampler, besides `forward`
            register_fsdp_forward_method(network, "tokenize")
        # torch warns of results that are views, which must not be changed in place. None is.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")

    def forward(self, *inputs: Tensor) -> Any:
        return self.module(*inputs)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Context for forward and backward of a part of a batch that is not the last: nothing is sent.

        Until the last part, each worker then holds the gradients of all weights.
        """
        self._send(False)
        try:
            yield
        finally:
            self._send(True)

    def whole(self) -> nn.Module:
        """Return a copy with all weights, on this worker's device; every worker must call it."""
        tensors = {name: whole(tensor) for name, tensor in self.module.state_dict().items()}
        network = copy.deepcopy(self._blank[0])
        network.load_state_dict(tensors, assign=True)
        return network


def whole(tensor: Tensor) -> Tensor:
    """Return all rows of a tensor; where it is divided, every worker must call it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def gathered(state: Any, *, receives: bool) -> Any:
    """Return a state with whole tensors on the CPU for divided ones; every worker must call it.

    Args:
        receives: whether this worker gets them; on others None stands in their place.
    """
    if isinstance(state, Mapping):
        return {key: gathered(value, receives=receives) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(gathered(value, receives=receives) for value in state)
    if not hasattr(state, "full_tensor"):
        return state
    tensor = whole(state)  # one at a time: together they have no room on a GPU
    return tensor.cpu() if receives else None


def part_of(tensor: Any, like: Tensor) -> Any:
    """Return this worker's part of a whole tensor where `like`, of the same shape, is divided."""
    if not hasattr(like, "full_tensor") or not isinstance(tensor, Tensor):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    if isinstance(tensor, DTensor) or tensor.shape != like.shape:
        return tensor
    device = like.device
    part = distribute_tensor(tensor.to(device), like.device_mesh, like.placements, src_data_rank=None)
    return part.clone()  # a view would keep the whole tensor in memory


def _divide(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Let a divided module load whole tensors."""
    for name, parameter in module.named_parameters(prefix.removesuffix("."), recurse=False):
        if name in state:
            state[name] = part_of(state[name], parameter)

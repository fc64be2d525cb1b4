"""Trajectory attention (Motionformer, arXiv 2106.05392, eq. 4-7), without its N*F projections.

Axes: B clips, F temporal slices, G the slices attended to (also F of them), S patches a slice, N=F*S
tokens, D width, H heads, E=D/H width of a head.

Literally, the second (temporal) step projects every token of every trajectory: k~ = W_k y~ and
v~ = W_v y~ over N*F tokens. Two exact rewrites take both away:

* ``q~ . (W_k y~) = (W_k^T q~) . y~``: the query absorbs the key projection, N*H rows instead of N*F;
* ``sum_t' a W_v y~ = W_v (sum_t' a y~)``: values are projected after they are averaged.

A key bias is constant over t' and drops out of the softmax; a value bias passes through, since the
weights sum to 1. The literal form lives in the tests as the reference.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


class TrajectoryAttention(nn.Module):
    """Each token follows its probable path through all slices, then attends along that path.

    `values="paper"` projects the values of the temporal step (eq. 7); `"shipped"` uses the trajectories
    themselves, as the code that Motionformer's authors released does.
    """

    def __init__(
        self, width: int, heads: int, slices: int, values: Literal["paper", "shipped"] = "paper"
    ) -> None:
        super().__init__()
        self.heads, self.slices, self.values = heads, slices, values
        self.qkv = nn.Linear(width, 3 * width)
        self.temporal_query = nn.Linear(width, width)
        self.temporal_key = nn.Linear(width, width, bias=False)
        self.temporal_value = nn.Linear(width, width) if values == "paper" else None
        self.out = nn.Linear(width, width)

    def trajectories(self, tokens_BND: Tensor) -> list[Tensor]:
        """Spatial step: for each slice t', `y~[:, t']`, what every token is most alike there: `[B, N, D]`."""
        b, n, d = tokens_BND.shape
        qkv_3BHNE = self.qkv(tokens_BND).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query_BHNE, key_BHNE, value_BHNE = qkv_3BHNE.unbind(0)
        # Plain attention of N queries on the S keys of one slice, slice by slice: no N x N matrix, and the
        # queries are not copied F times, which one call batched over slices would need.
        patches = n // self.slices
        return [
            functional.scaled_dot_product_attention(query_BHNE, key_BHSE, value_BHSE)
            .transpose(1, 2)
            .reshape(b, n, d)
            for key_BHSE, value_BHSE in zip(
                key_BHNE.split(patches, 2), value_BHNE.split(patches, 2), strict=True
            )
        ]

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """`[B, N, D]` to `[B, N, D]`; N must be slices times patches, slice-major."""
        mixed: Tensor = self.out(self.along(self.trajectories(tokens_BND)))
        return mixed

    def along(self, paths: list[Tensor]) -> Tensor:
        """Temporal step: each token attends along its own path, `[B, N, D]`.

        One slice at a time and from a checkpoint: what is absorbed and averaged has N*H*D values.
        """
        path_FBSFD = torch.stack(paths, 2).chunk(self.slices, 1)
        along = [
            checkpoint(self._along_slice, path_BSFD, t, use_reentrant=False)
            for t, path_BSFD in enumerate(path_FBSFD)
        ]
        return torch.cat(along, 1)

    def _along_slice(self, path_BSFD: Tensor, t: int) -> Tensor:
        query_BSHE = self.temporal_query(path_BSFD[:, :, t]).unflatten(-1, (self.heads, -1))
        key_HED = self.temporal_key.weight.unflatten(0, (self.heads, -1))  # type: ignore[no-untyped-call]
        absorbed_BSHD = torch.einsum("bshe,hed->bshd", query_BSHE / math.sqrt(key_HED.shape[1]), key_HED)
        weight_BSHF = (absorbed_BSHD @ path_BSFD.transpose(2, 3)).softmax(-1)
        if self.temporal_value is None:
            path_BSFHE = path_BSFD.unflatten(-1, (self.heads, -1))  # type: ignore[no-untyped-call]
            return torch.einsum("bshf,bsfhe->bshe", weight_BSHF, path_BSFHE).flatten(2)
        value_HED = self.temporal_value.weight.unflatten(0, (self.heads, -1))  # type: ignore[no-untyped-call]
        along_BSHE = torch.einsum("bshd,hed->bshe", weight_BSHF @ path_BSFD, value_HED)
        return along_BSHE.flatten(2) + self.temporal_value.bias

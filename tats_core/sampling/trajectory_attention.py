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


class TrajectoryAttention(nn.Module):
    """Each token follows its probable path through all slices, then attends along that path.

    `values="paper"` projects the values of the temporal step (eq. 7); `"shipped"` uses the trajectories
    themselves, as the code that Motionformer's authors released does.
    """

    def __init__(
        self, width: int, heads: int, slices: int, values: Literal["paper", "shipped"] = "paper"
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width ({width}) must be a multiple of heads ({heads})")
        self.heads, self.slices, self.values = heads, slices, values
        self.qkv = nn.Linear(width, 3 * width)
        self.temporal_query = nn.Linear(width, width)
        self.temporal_key = nn.Linear(width, width, bias=False)
        self.temporal_value = nn.Linear(width, width) if values == "paper" else nn.Identity()
        self.out = nn.Linear(width, width)

    def trajectories(self, tokens_BND: Tensor) -> Tensor:
        """Spatial step: `y~[st, t']`, what token st is most alike in slice t': `[B, N, F, D]`."""
        b, n, d = tokens_BND.shape
        h, f, s = self.heads, self.slices, n // self.slices
        qkv_3BHNE = self.qkv(tokens_BND).view(b, n, 3, h, d // h).permute(2, 0, 3, 1, 4)
        query_BHNE, key_BHNE, value_BHNE = qkv_3BHNE.unbind(0)
        # Plain attention of N queries on the S keys of one slice, slice by slice: no N x N matrix, and the
        # queries are not copied F times, which one call batched over slices would need.
        path_FBHNE = [
            functional.scaled_dot_product_attention(query_BHNE, key_BHSE, value_BHSE)
            for key_BHSE, value_BHSE in zip(key_BHNE.split(s, 2), value_BHNE.split(s, 2), strict=True)
        ]
        return torch.stack(path_FBHNE, 1).permute(0, 3, 1, 2, 4).reshape(b, n, f, d)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """`[B, N, D]` to `[B, N, D]`; N must be slices times patches, slice-major."""
        b, n, d = tokens_BND.shape
        h, f, e = self.heads, self.slices, d // self.heads
        path_BNFD = self.trajectories(tokens_BND)
        own_slice_N = torch.arange(n, device=tokens_BND.device) // (n // f)
        own_BND = path_BNFD[:, torch.arange(n, device=tokens_BND.device), own_slice_N]
        query_BNHE = self.temporal_query(own_BND).view(b, n, h, e)
        absorbed_BNHD = torch.einsum("bnhe,hed->bnhd", query_BNHE, self.temporal_key.weight.view(h, e, d))
        weight_BNHF = (absorbed_BNHD @ path_BNFD.transpose(2, 3) / math.sqrt(e)).softmax(-1)
        if isinstance(self.temporal_value, nn.Linear):
            mean_BNHD = weight_BNHF @ path_BNFD
            value_HED = self.temporal_value.weight.view(h, e, d)
            along_BND = torch.einsum("bnhd,hed->bnhe", mean_BNHD, value_HED).reshape(b, n, d)
            along_BND = along_BND + self.temporal_value.bias
        else:
            along_BND = torch.einsum("bnhf,bnfhe->bnhe", weight_BNHF, path_BNFD.view(b, n, f, h, e))
            along_BND = along_BND.reshape(b, n, d)
        mixed: Tensor = self.out(along_BND)
        return mixed

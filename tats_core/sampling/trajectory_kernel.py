"""The temporal step of trajectory attention with its backward written out; `TrajectoryAttention.along` is it
in plain PyTorch, and its test's reference.

Axes as in `trajectory_attention`; R rows: a part of the tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_PART_BYTES: Final = {"cpu": 4 << 20, "cuda": 256 << 20}
"""Of the tensors of one part: on a CPU they should fit its caches, on a GPU launches must be few.

Less than one slice of one clip would make the matrix products too small, and what they lose is more."""


class TemporalStep(torch.autograd.Function):
    """Attention of each token along its own path, part by part.

    Written out because autograd would keep, and pass over in memory several times, tensors of N*H*D and
    N*F*D values. Backward recomputes what is absorbed from the query. In a part of R tokens of slice t, with
    P = y~ ``[R, F, D]`` and, for each head,

        q = (W_q P[t] + b_q) / sqrt(E)         u = W_k^T q               a = softmax_t'(u . P)
        m = sum_t' a P                         z = W_v m + b_v

    the gradients of z, g, flow back as

        dm = W_v^T g     da = dm . P           ds = a (da - sum_t' a da) du = sum_t' ds P     dq = W_k du
        dP = a dm + ds u                       dP[t] += W_q^T dq / sqrt(E)
    """

    @staticmethod
    def forward(ctx: Any, heads: int, slices: int, *tensors: Tensor) -> Tensor:
        """`tensors`: W_q, b_q, W_k, and in the paper's form W_v, b_v; then F trajectories `[B, N, D]`."""
        weights, paths = tensors[:-slices], tensors[-slices:]
        step = _Weights(heads, weights)
        b, n, d = paths[0].shape
        along_BND = torch.empty_like(paths[0])
        attention_BNHF = paths[0].new_empty(b, n, heads, slices)
        with torch.autocast(paths[0].device.type, enabled=False):
            for index, t in _parts(paths[0], heads, slices):
                path_RFD = _rows(paths, index)
                query_HRE = step.query(path_RFD[:, t])
                absorbed_RHD = torch.bmm(query_HRE, step.key_HED).transpose(0, 1)
                score_RHF = absorbed_RHD @ path_RFD.transpose(1, 2)
                weight_RHF = score_RHF.softmax(-1, dtype=_wide(score_RHF)).to(score_RHF.dtype)
                attention_BNHF[index] = weight_RHF.view(-1, n // slices, heads, slices)
                along_BND[index] = step.along(weight_RHF, path_RFD).view(-1, n // slices, d)
        ctx.heads = heads
        ctx.save_for_backward(attention_BNHF, *tensors)
        return along_BND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, along_grad_BND: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of all weights and trajectories."""
        attention_BNHF, *tensors = ctx.saved_tensors
        heads, slices = ctx.heads, attention_BNHF.shape[-1]
        weights, paths = tensors[:-slices], tensors[-slices:]
        step = _Weights(heads, weights)
        n, d = paths[0].shape[1:]
        grads = _Weights(heads, [torch.zeros_like(weight, dtype=_wide(weight)) for weight in weights])
        path_grads = [torch.empty_like(path) for path in paths]
        for index, t in _parts(paths[0], heads, slices):
            path_RFD = _rows(paths, index)
            query_HRE = step.query(path_RFD[:, t])
            absorbed_RHD = torch.bmm(query_HRE, step.key_HED).transpose(0, 1)
            weight_RHF = attention_BNHF[index].flatten(0, 1)
            grad_HRE = along_grad_BND[index].reshape(-1, heads, d // heads).transpose(0, 1)
            if step.value_HED is not None:
                mean_grad_RHD = torch.bmm(grad_HRE, step.value_HED).transpose(0, 1)
            else:  # W_v is the identity: head h's gradient lies in head h's columns
                mean_grad_RHD = _by_head(grad_HRE, d)
            weight_grad_RHF = mean_grad_RHD @ path_RFD.transpose(1, 2)
            along = (weight_RHF * weight_grad_RHF).sum(-1, keepdim=True)
            score_grad_RHF = weight_RHF * (weight_grad_RHF - along)
            # Two sums over heads, and two over slices, each as one product.
            both_RXF = torch.cat([weight_RHF, score_grad_RHF], 1)
            path_grad_RFD = both_RXF.transpose(1, 2) @ torch.cat([mean_grad_RHD, absorbed_RHD], 1)
            mean_RHD, absorbed_grad_RHD = (both_RXF @ path_RFD).tensor_split(2, 1)
            absorbed_grad_HRD = absorbed_grad_RHD.transpose(0, 1)
            query_grad_HRE = torch.bmm(absorbed_grad_HRD, step.key_HED.transpose(1, 2))
            query_grad_RD = query_grad_HRE.transpose(0, 1).flatten(1) * step.scale
            path_grad_RFD[:, t] += query_grad_RD @ step.query_weight
            for path_grad, grad_RD in zip(path_grads, path_grad_RFD.unbind(1), strict=True):
                path_grad[index] = grad_RD.view(-1, n // slices, d)
            grads.query_weight += query_grad_RD.T @ path_RFD[:, t]
            grads.query_bias += query_grad_RD.sum(0)
            grads.key_HED += torch.bmm(query_HRE.transpose(1, 2), absorbed_grad_HRD)
            if grads.value_HED is not None and grads.value_bias is not None:
                grads.value_HED += torch.bmm(grad_HRE.transpose(1, 2), mean_RHD.transpose(0, 1))
                grads.value_bias += grad_HRE.sum(1).flatten()
        return (
            None,
            None,
            *(grad.to(weight.dtype) for grad, weight in zip(grads.all, weights, strict=True)),
            *path_grads,
        )


class _Weights:
    """The projections of the temporal step, cut into heads (views)."""

    def __init__(self, heads: int, weights: Sequence[Tensor]) -> None:
        self.all = tuple(weights)
        self.query_weight, self.query_bias, key, *value = weights
        d = key.shape[0]
        self.heads, self.scale = heads, 1 / math.sqrt(d // heads)
        self.key_HED = key.view(heads, -1, d)
        self.value_HED: Tensor | None = value[0].view(heads, -1, d) if value else None
        self.value_bias: Tensor | None = value[1] if value else None

    def query(self, path_RD: Tensor) -> Tensor:
        """Scaled queries of tokens, from their path in the slice where they are: `[H, R, E]`."""
        query_RD = torch.addmm(self.query_bias, path_RD, self.query_weight.T).mul_(self.scale)
        return query_RD.view(len(path_RD), self.heads, -1).transpose(0, 1)

    def along(self, weight_RHF: Tensor, path_RFD: Tensor) -> Tensor:
        """The weighted mean of each path, projected: `[R, D]`."""
        r, _, d = path_RFD.shape
        if self.value_HED is None or self.value_bias is None:
            path_RHFE = path_RFD.view(r, -1, self.heads, d // self.heads).transpose(1, 2)
            return (weight_RHF.unsqueeze(2) @ path_RHFE).reshape(r, d)
        mean_HRD = (weight_RHF @ path_RFD).transpose(0, 1)
        along_HRE = torch.bmm(mean_HRD, self.value_HED.transpose(1, 2))
        return along_HRE.transpose(0, 1).reshape(r, d) + self.value_bias


_Index = tuple[slice, slice]
"""Clips, and the tokens of one slice."""


def _parts(path_BND: Tensor, heads: int, slices: int) -> Iterator[tuple[_Index, int]]:
    """Cut all tokens into parts (index, slice) of about `_PART_BYTES`, at least one slice of a clip each."""
    b, n, d = path_BND.shape
    patches = n // slices
    token_bytes = path_BND.element_size() * d * (2 * heads + slices)
    part_bytes = _PART_BYTES.get(path_BND.device.type, _PART_BYTES["cuda"])
    clips = max(1, part_bytes // (token_bytes * patches))
    for clip in range(0, b, clips):
        for t in range(slices):
            yield (slice(clip, clip + clips), slice(t * patches, (t + 1) * patches)), t


def _rows(paths: Sequence[Tensor], index: _Index) -> Tensor:
    """The paths of a part's tokens, `[R, F, D]`."""
    return torch.stack([path_BND[index] for path_BND in paths], 2).flatten(0, 1)


def _by_head(grad_HRE: Tensor, width: int) -> Tensor:
    """Each head's vector in its own columns of the full width, zeros elsewhere: `[R, H, D]`."""
    h, r, e = grad_HRE.shape
    full_RHHE = grad_HRE.new_zeros(r, h, h, e)
    full_RHHE.diagonal(dim1=1, dim2=2).copy_(grad_HRE.permute(1, 2, 0))
    return full_RHHE.view(r, h, width)


def _wide(tensor: Tensor) -> torch.dtype:
    """The type for softmax and for sums over parts: at least float32."""
    return torch.promote_types(tensor.dtype, torch.float32)

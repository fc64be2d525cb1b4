from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional

from tats_core.sampling.tats import NetworkConfig
from tats_core.sampling.trajectory_attention import TrajectoryAttention

Values = Literal["paper", "shipped"]


def literal(attention: TrajectoryAttention, tokens_BND: Tensor, key_bias_D: Tensor | None = None) -> Tensor:
    """Motionformer's equations 4 to 7 as they are written: every trajectory token is projected."""
    n, d = tokens_BND.shape[1:]
    h, f = attention.heads, attention.slices
    e, s = d // h, n // f

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (h, e))

    query_BNHE, key_BNHE, value_BNHE = (heads(x) for x in attention.qkv(tokens_BND).chunk(3, -1))
    score_BHNN = torch.einsum("bnhe,bmhe->bhnm", query_BNHE, key_BNHE) / math.sqrt(e)
    alike_BHNFS = score_BHNN.unflatten(-1, (f, s)).softmax(-1)
    value_BFSHE = value_BNHE.unflatten(1, (f, s))
    path_BNFD = torch.einsum("bhnfs,bfshe->bnfhe", alike_BHNFS, value_BFSHE).flatten(-2)

    own_BND = torch.stack([path_BNFD[:, place, place // s] for place in range(n)], 1)
    query_BNHE = heads(attention.temporal_query(own_BND))
    key_BNFHE = heads(functional.linear(path_BNFD, attention.temporal_key.weight, key_bias_D))
    projected_BNFD = (
        attention.temporal_value(path_BNFD) if attention.temporal_value is not None else path_BNFD
    )
    value_BNFHE = heads(projected_BNFD)
    weight_BNHF = (torch.einsum("bnhe,bnfhe->bnhf", query_BNHE, key_BNFHE) / math.sqrt(e)).softmax(-1)
    return attention.out(torch.einsum("bnhf,bnfhe->bnhe", weight_BNHF, value_BNFHE).flatten(-2))


def _attention(values: Values, slices: int = 3, width: int = 24, heads: int = 4) -> TrajectoryAttention:
    torch.manual_seed(0)
    attention = TrajectoryAttention(width, heads, slices, values)
    for module in attention.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.5)
        if isinstance(module, nn.Linear):
            # Softmaxes far from flat: a flat one would hide a wrong scale.
            nn.init.normal_(module.weight, std=0.25)
    return attention


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("values", ["paper", "shipped"])
def test_the_absorbed_form_equals_the_literal_one_with_its_gradients(
    values: Values, dtype: torch.dtype, close: float
) -> None:
    attention = _attention(values).to(dtype)
    results = []
    for form in (TrajectoryAttention.__call__, literal):
        tokens_BND = torch.randn(2, 15, 24, dtype=dtype, generator=torch.Generator().manual_seed(1))
        tokens_BND.requires_grad_()
        attention.zero_grad()
        mixed_BND = form(attention, tokens_BND)
        (
            mixed_BND * torch.linspace(-1, 1, mixed_BND.numel(), dtype=dtype).view_as(mixed_BND)
        ).mean().backward()
        gradients = {name: p.grad.clone() for name, p in attention.named_parameters() if p.grad is not None}
        results.append({"output": mixed_BND.detach(), "tokens": tokens_BND.grad} | gradients)
    absorbed, written = results
    assert absorbed.keys() == written.keys()
    assert len(absorbed) == 2 + len(list(attention.parameters()))
    for name, expected in written.items():
        assert expected is not None
        difference = (absorbed[name] - expected).abs().max().item()
        assert difference < close, f"{name} differs by {difference}"


@pytest.mark.parametrize("values", ["paper", "shipped"])
def test_in_bfloat16_it_is_the_same_up_to_its_rounding(values: Values) -> None:
    attention = _attention(values)
    tokens_BND = torch.randn(2, 15, 24, requires_grad=True)
    found = []
    for enabled in (False, True):
        attention.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            mixed_BND = attention(tokens_BND)
        mixed_BND.float().square().mean().backward()
        found.append([mixed_BND.float(), *(p.grad for p in attention.parameters())])
    for exact, rounded in zip(*found, strict=True):
        assert (exact - rounded).norm() < 0.05 * exact.norm()
        assert rounded.dtype == torch.float32


def test_a_key_bias_would_drop_out_of_the_temporal_softmax() -> None:
    attention = _attention("paper").double()
    tokens_BND = torch.randn(1, 15, 24, dtype=torch.float64)
    biased_BND = literal(attention, tokens_BND, torch.randn(24, dtype=torch.float64))
    torch.testing.assert_close(attention(tokens_BND), biased_BND, rtol=0, atol=1e-10)


def test_with_one_slice_it_is_plain_attention_and_a_projection_of_the_values() -> None:
    attention = _attention("paper", slices=1).double()
    tokens_BND = torch.randn(2, 7, 24, dtype=torch.float64)
    query, key, value = (
        x.unflatten(-1, (4, 6)).transpose(1, 2) for x in attention.qkv(tokens_BND).chunk(3, -1)
    )
    plain_BND = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(-2)
    assert attention.temporal_value is not None
    expected_BND = attention.out(attention.temporal_value(plain_BND))
    torch.testing.assert_close(attention(tokens_BND), expected_BND, rtol=0, atol=1e-10)


def test_a_trajectory_of_slices_with_one_place_each_is_that_place() -> None:
    # One key a slice: its softmax is 1, so the path through slice t' is the value of its only token.
    attention = _attention("paper", slices=5)
    tokens_BND = torch.randn(2, 5, 24)
    value_BND = attention.qkv(tokens_BND).chunk(3, -1)[2]
    path_BNFD = torch.stack(attention.trajectories(tokens_BND), 2)
    torch.testing.assert_close(path_BNFD, value_BND[:, None].expand(-1, 5, -1, -1))


def test_the_order_of_places_within_a_slice_does_not_matter() -> None:
    attention = _attention("paper").double()
    tokens_BND = torch.randn(1, 15, 24, dtype=torch.float64)
    order_N = torch.cat(
        [5 * t + torch.randperm(5, generator=torch.Generator().manual_seed(t)) for t in range(3)]
    )
    shuffled_BND = attention(tokens_BND[:, order_N])
    torch.testing.assert_close(shuffled_BND, attention(tokens_BND)[:, order_N], rtol=0, atol=1e-10)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValidationError, match=r"width \(10\) must be a multiple of heads \(3\)"):
        NetworkConfig(width=10, heads=3)

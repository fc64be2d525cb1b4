"""Mean and standard deviation of ImageNet's colours in [0, 1], which normalise the input of most models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

MEAN: Final = (0.485, 0.456, 0.406)
STD: Final = (0.229, 0.224, 0.225)


def vector(values: Sequence[float], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return `values` as a tensor that is made on `device`.

    A copy from the host, as `torch.tensor` makes it, waits for all that the device has still to do.
    """
    return torch.stack([torch.full((), value, device=device, dtype=dtype) for value in values])

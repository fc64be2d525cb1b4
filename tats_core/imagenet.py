"""Mean and standard deviation of ImageNet's colours in [0, 1], which normalise the input of most models."""

from __future__ import annotations

from typing import Final

MEAN: Final = (0.485, 0.456, 0.406)
STD: Final = (0.229, 0.224, 0.225)

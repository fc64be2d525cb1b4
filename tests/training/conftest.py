"""Models and clips of a size at which a step takes a few milliseconds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

TINY: dict[str, Any] = {
    "model": {"preset": "vit_micro", "width": 24, "depth": 2, "heads": 3},
    "clip": {"frames": 4, "size": 16, "tubelet": 2, "patch": 4},
}


class Prepared(NamedTuple):
    """A batch of clips that are normalised already."""

    video_BCTHW: Tensor
    label_B: Tensor
    index_B: Tensor

    def normalised(self, device: torch.device) -> Tensor:
        return self.video_BCTHW.to(device)


class Clips:
    """A loader of clips drawn from the epoch's number, as `TrainLoader` is a function of it."""

    def __init__(
        self,
        steps: int = 3,
        batch: int = 4,
        classes: int = 3,
        fail_at: int | None = None,
        fail_at_step: int | None = None,
    ) -> None:
        self.steps, self.batch, self.classes, self.fail_at = steps, batch, classes, fail_at
        self.fail_at_step = fail_at_step
        self.epochs_read: list[int] = []

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Prepared]:
        self.epochs_read.append(epoch)
        if epoch == self.fail_at:
            raise KeyboardInterrupt
        for step in range(first_step, self.steps):
            if epoch * self.steps + step == self.fail_at_step:
                raise KeyboardInterrupt
            generator = torch.Generator().manual_seed(1000 * epoch + step)
            video_BCTHW = torch.randn(self.batch, 3, 4, 16, 16, generator=generator)
            label_B = torch.randint(self.classes, (self.batch,), generator=generator)
            yield Prepared(video_BCTHW, label_B, torch.arange(self.batch))


@pytest.fixture
def tiny() -> dict[str, Any]:
    """Model and clip of a recipe."""
    return {key: dict(value) for key, value in TINY.items()}


@pytest.fixture
def clips() -> type[Clips]:
    """The fake loader."""
    return Clips


class _Operations(TorchDispatchMode):
    """Calls `seen` with the name of each operation, those of backward and of torch's own Python too."""

    def __init__(self, seen: Any) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


class Waits(TorchFunctionMode):
    """Names, in their order, the calls inside it for which the host would wait for a GPU.

    Reading a number, sizes that depend on values, and tensors made of numbers of the host, whose copy waits.
    """

    OF_OPERATIONS = frozenset({"_local_scalar_dense", "nonzero", "equal", "lift_fresh"})
    OF_METHODS = frozenset({"tolist", "cpu", "numpy"})  # on a CPU these reach no operation

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._operations = _Operations(lambda name: name in self.OF_OPERATIONS and self.found.append(name))

    def __enter__(self) -> Waits:
        self._operations.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._operations.__exit__(*error)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if name in self.OF_METHODS:
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@pytest.fixture
def waits() -> type[Waits]:
    """What a step waits for."""
    return Waits

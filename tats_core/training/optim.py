"""Parameter groups, averaged weights and the guarded step of every training loop."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from tats_core.errors import TrainingError
from tats_core.specs import StrictModel
from tats_core.training.sharding import part_of, whole


def parameter_groups(
    model: nn.Module, weight_decay: float, layer_decay: float = 1.0, depth: int = 0
) -> list[dict[str, Any]]:
    """Group parameters by weight decay (none on vectors) and by depth (for layer decay).

    Each group carries `scale`, the factor on its learning rate: `layer_decay ** (depth + 1 - layer)` with
    layer 0 for the embedding, 1..depth for the encoder's blocks, depth + 1 for what comes after (BEiT).
    Not timm's groups: they decay a mask token, and in another order the gradient's norm rounds otherwise.
    """
    groups: dict[tuple[float, int], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_vector = sum(rows > 1 for rows in parameter.shape) <= 1
            layer, decay = layer_of(name, depth), 0.0 if is_vector else weight_decay
            scale = layer_decay ** (depth + 1 - layer)
            empty: dict[str, Any] = {"params": [], "weight_decay": decay, "scale": scale}
            groups.setdefault((decay, layer), empty)["params"].append(parameter)
    return list(groups.values())


def layer_of(name: str, depth: int) -> int:
    """Depth of a parameter by its name: 0 embedding, k+1 block k of the encoder, depth+1 the rest."""
    parts = name.split(".")
    if parts[:2] == ["encoder", "blocks"]:
        return int(parts[2]) + 1
    return 0 if parts[0] == "encoder" and parts[1] == "embedding" else depth + 1


class GuardedStep:
    """Backward, clip, step; a step whose gradient is not finite is skipped and counted.

    The gradient is already averaged over workers when its norm is taken, so all of them decide alike.
    After `limit` skipped steps in a row training stops.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, clip_grad: float | None, name: str, limit: int = 20
    ) -> None:
        self.optimizer, self.clip_grad, self.name, self.limit = optimizer, clip_grad, name, limit
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.skipped = 0
        self.in_a_row = 0
        self.last_norm = 0.0

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the next step; each group scales it by its own factor."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("scale", 1.0)

    def clear(self) -> None:
        """Forget gradients and free their memory; call it before the forward pass, which can use it."""
        self.optimizer.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss` (one part of a batch that is accumulated, or all of it)."""
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, stop: Tensor | None = None) -> bool | None:
        """Take one step with the gradients added since `clear`; return False if it was skipped.

        The norm, which decides that, is the only number for which a step waits for the device; `stop` comes
        with it. Where that is true, no step is taken, and None is returned.

        Raises:
            TrainingError: `limit` steps in a row were not finite.
        """
        norm = self._clipped_norm()
        read = [norm] if stop is None else [norm, stop.to(norm)]
        self.last_norm, *stops = torch.stack(read).tolist()
        if any(stops):
            return None
        if math.isfinite(self.last_norm):
            self.optimizer.step()
            self.in_a_row = 0
            return True
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row >= self.limit:
            raise TrainingError(
                f"{self.name}: {self.in_a_row} steps in a row had a non-finite gradient "
                f"({self.skipped} in all); lower the learning rate or set clip_grad"
            )
        return False

    def __call__(self, loss: Tensor) -> bool | None:
        """Clear, backward and step in one."""
        self.clear()
        self.backward(loss)
        return self.step()

    def _clipped_norm(self) -> Tensor:
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = whole(nn.utils.get_total_norm(gradients))
        if self.clip_grad is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.clip_grad, norm)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's state and the counters."""
        return {"optimizer": self.optimizer.state_dict(), "skipped": self.skipped, "row": self.in_a_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo `state_dict`; weight decay and betas stay this optimiser's: a fork may change them.

        Not from or to a weight decay of 0, with which matrices and vectors are one group.
        """
        settings_of_groups = [
            {key: value for key, value in group.items() if key not in ("params", "lr")}
            for group in self.optimizer.param_groups
        ]
        parts = {
            number: {name: part_of(value, self.parameters[number]) for name, value in values.items()}
            for number, values in state["optimizer"]["state"].items()
        }
        self.optimizer.load_state_dict({**state["optimizer"], "state": parts})
        for group, settings in zip(self.optimizer.param_groups, settings_of_groups, strict=True):
            group.update(settings)
        self.skipped, self.in_a_row = state["skipped"], state["row"]


_BUILDING = threading.Lock()


@contextmanager
def fresh_weights(seed: int) -> Iterator[None]:
    """Build models in this context: their initial weights depend on `seed` alone.

    Layers draw from torch's global generator, which stages that run side by side in one process share,
    so only one thread at a time is in this context.
    """
    with _BUILDING:
        torch.manual_seed(seed)
        yield


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Put modules into evaluation mode for a while, without gradients."""
    modes = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.train(mode)


class AverageConfig(StrictModel):
    """Exponential moving average of the weights over the optimiser's steps."""

    decay: float = Field(0.9999, gt=0, lt=1, description="weight of the old average in a step")
    warmup: bool = Field(
        True,
        description="step n weighs the old average by at most (1 + n) / (10 + n): it soon forgets the start",
    )

    def build(self, model: nn.Module) -> AveragedModel:
        """The average of a model's weights and floating-point buffers; it starts as a copy of them."""

        @torch.no_grad()
        def mean(averages: Iterable[Tensor], latest: Iterable[Tensor], step: Tensor | int) -> None:
            step = int(averaged.n_averaged)  # on the CPU; `step` is a copy of it on the weights' device
            share = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
            for average, value in zip(averages, latest, strict=True):
                if average.is_floating_point():
                    average.lerp_(value, 1 - share)
                else:
                    average.copy_(value)

        averaged = AveragedModel(model, multi_avg_fn=mean, use_buffers=True).eval()
        averaged.n_averaged += 1  # the copy counts: torch would replace it in the first step
        return averaged


def parameter_count(modules: Iterable[nn.Module]) -> int:
    """Trainable parameters."""
    return sum(p.numel() for module in modules for p in module.parameters() if p.requires_grad)

"""What a training that went non-finite leaves, and the replay of its last step, which names the culprit.

A dump is a folder: `dump.json` (recipe, step, error), `state.pt` (what is the same on all workers, before the
step) and a `worker-<rank>.pt` of each (its batch, and the rest of its state).
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.module_tracker import ModuleTracker

import tats_core
from tats_core.data.clips import Batch, Erased
from tats_core.errors import StoreError, TrainingError
from tats_core.files import read_json, write_json
from tats_core.training.checkpoint import on_cpu
from tats_core.training.finetune import FinetuneConfig, FinetuneTrainer
from tats_core.training.loop import LastStep
from tats_core.training.pretrain import JointTrainer, PretrainConfig
from tats_core.training.world import StepConfig, World

Kind = Literal["pretrain", "finetune"]
Trainer = JointTrainer | FinetuneTrainer

_ABOUT, _STATE = "dump.json", "state.pt"

# What these return is not computed: uninitialised memory, and infinities that are meant.
_MAKERS = ("empty", "new_empty", "fill", "masked_fill", "full", "scalar_tensor")


@dataclass(frozen=True)
class Dump:
    """The `dump.json` of a dump."""

    kind: Kind
    recipe: dict[str, Any]
    classes: int
    workers: int
    step: int
    epoch: int = 0
    """Finished epochs: a schedule may have changed how the sampler learns."""


@dataclass(frozen=True)
class Culprit:
    """The first non-finite value of a step, as a sentence, and the worker that computed it."""

    worker: int
    text: str


def dump(trainer: Trainer, videos: Sequence[str], folder: Path, world: World) -> int:
    """Write this worker's part of a dump of the trainer's last step; return its size in bytes.

    Args:
        videos: the paths of the clips of its batch.
    """
    last = trainer.last
    assert last is not None, "no step was taken"
    folder.mkdir(parents=True, exist_ok=True)
    # A training that fails at its first non-finite step has only the state after it.
    state = last.before or on_cpu(trainer.state_dict())
    files = {f"worker-{world.rank}.pt": _packed(last, videos) | {"rank": state.pop("rank", {})}}
    if world.is_first:
        files[_STATE] = state
        kind: Kind = "pretrain"
        classes = 0
        if isinstance(trainer, FinetuneTrainer):
            kind, classes = "finetune", trainer.classes
        recipe = trainer.config.model_dump(mode="json", exclude_unset=True)
        write_json(folder / _ABOUT, asdict(Dump(kind, recipe, classes, world.size, last.number, last.epoch)))
    for name, content in files.items():
        torch.save(content, folder / name)
    return sum((folder / name).stat().st_size for name in files)


def _packed(last: LastStep, videos: Sequence[str]) -> dict[str, Any]:
    erased = [
        (e.clip, e.rows.start, e.rows.stop, e.columns.start, e.columns.stop, e.noise_CTHW)
        for e in last.batch.erased
    ]
    batch = {**last.batch._asdict(), "erased": erased}
    content = {"batch": batch, "arguments": dict(last.arguments), "videos": list(videos)}
    packed: dict[str, Any] = on_cpu(content)
    return packed


def _unpacked(batch: Mapping[str, Any]) -> Batch:
    erased = [
        Erased(clip, slice(top, bottom), slice(left, right), noise_CTHW)
        for clip, top, bottom, left, right, noise_CTHW in batch["erased"]
    ]
    return Batch(**{**batch, "erased": erased})


def read(folder: Path) -> Dump:
    """Read what a dump says of itself.

    Raises:
        StoreError: the folder holds no dump.
    """
    return read_json(folder / _ABOUT, Dump, "the description of a dump")


def replay(folder: Path, about: Dump, device: torch.device) -> Culprit | None:
    """Repeat the step in a dump, one worker after the other; return what went non-finite first, if anything.

    Raises:
        StoreError: the dump cannot be read.
    """
    for rank in range(about.workers):
        text = _replay(folder, about, _Alone(rank, about.workers, device))
        if text is not None:
            return Culprit(rank, text)
    return None


def _replay(folder: Path, about: Dump, world: World) -> str | None:
    try:
        state, part = (
            torch.load(folder / name, map_location="cpu", weights_only=True)
            for name in (_STATE, f"worker-{world.rank}.pt")
        )
    # torch raises whatever it meets where a file is torn.
    except (OSError, RuntimeError, ValueError, LookupError, EOFError, pickle.UnpicklingError) as error:
        raise StoreError(f"{folder}: is not a whole dump ({type(error).__name__})") from error
    trainer, networks = _built(about, world)
    trainer.load_state_dict({**state, "rank": part["rank"]})
    for name, network in networks.items():
        for parameter, tensor in network.state_dict().items():
            if not _is_finite(tensor):
                return f"{_value(tensor)} in the weights: {name}.{parameter}"
    video_BCTHW = _unpacked(part["batch"]).normalised(world.device)
    finite_B = video_BCTHW.isfinite().flatten(1).all(1)
    if not finite_B.all():
        clip = int(finite_B.logical_not().nonzero()[0])
        return f"{_value(video_BCTHW)} in the batch, first in clip {clip} ({part['videos'][clip]})"
    arguments: dict[str, Any] = {
        key: value.to(world.device) if isinstance(value, Tensor) else value
        for key, value in part["arguments"].items()
    }
    # Already the first step of a replay may be the last that the training allows.
    with suppress(TrainingError), _FirstNonFinite(part["videos"]) as watch:
        trainer.step(video_BCTHW, **arguments)
    return watch.sentence


class _Alone(World):
    """A worker whose peers are gone: it takes them to have what it has."""

    def parallel(self, module: nn.Module, recipe: StepConfig | None = None) -> nn.Module:
        return module

    def sum(self, values: Tensor) -> Tensor:
        return values * self.size

    def gather(self, values_B: Tensor) -> Tensor:
        return torch.cat([values_B] * self.size)


def _built(about: Dump, world: World) -> tuple[Trainer, dict[str, nn.Module]]:
    """Return the trainer of a dump with fresh weights, and its networks."""
    recipe = {**about.recipe, "compile": False}
    if about.kind == "pretrain":
        joint = JointTrainer(PretrainConfig.model_validate(recipe), world)
        joint.begin_epoch(about.epoch)
        return joint, {"mae": joint.mae, "sampler": joint.sampler}
    trainer = FinetuneTrainer(FinetuneConfig.model_validate(recipe), about.classes, world)
    trainer.start()
    trainer.model.train()
    return trainer, {"model": trainer.model}


class _FirstNonFinite(TorchDispatchMode):
    """Finds the first operation whose inputs are finite and whose result is not, forward or backward."""

    def __init__(self, videos: Sequence[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.videos = videos
        self.sentence: str | None = None
        self.modules = ModuleTracker()

    def __enter__(self) -> _FirstNonFinite:
        self.modules.__enter__()  # type: ignore[no-untyped-call]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self.modules.__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__.rstrip("_")
        watched = self.sentence is None and name not in _MAKERS
        finite = watched and all(map(_is_finite, _tensors((args, kwargs))))
        result = function(*args, **kwargs)
        if finite and (broken := [tensor for tensor in _tensors(result) if not _is_finite(tensor)]):
            self.sentence = self._described(name, broken[0])
        return result

    def _described(self, operation: str, tensor: Tensor) -> str:
        module = max(self.modules.parents - {"Global"}, key=len, default="no module")
        direction = "backward" if self.modules.is_bw else "forward"
        clip = ""
        if tensor.ndim and len(tensor) == len(self.videos):
            row = int((~tensor.isfinite()).flatten(1).any(1).nonzero()[0]) if tensor.ndim > 1 else 0
            clip = f", first in clip {row} ({self.videos[row]})"
        return f"{_value(tensor)} from {operation} in {module} ({direction}{_line()}){clip}"


def _line() -> str:
    """Return where in this package the operation was called, outside this module."""
    package = Path(tats_core.__file__).parent
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(package) and path != Path(__file__):
            return f", {path.relative_to(package.parent)}:{frame.lineno}"
    return ""


def _tensors(values: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _value(tensor: Tensor) -> str:
    count = int((~tensor.isfinite()).sum())
    what = "NaN" if bool(tensor.isnan().any()) else "infinity"
    return f"{what} ({count:,} of {tensor.numel():,} values)"

"""The rehearsal of a pipeline: the same graph, code and launchers in minutes, with a tiny model on few clips.

The rule, applied to the configuration of every stage, whatever its kind:

* **model**: a third of the heads (two or more) with 16 channels each; decoder and sampler shrink by the
  same factor; at most two blocks. Every option stays: initialisation, reward, precision, augmentation.
* **clip**: frames and tubelet stay; at most 6 × 6 patches of at most 8 pixels, of the same proportions.
* **training**: three epochs. Warm-up, health checks, checkpoints, `until` and the changes of a schedule stay
  where they are in proportion to the epochs. A worker computes four clips at a time, in at most two parts.
* **workers**: the first stage of each kind has as many as there are CPUs (GPUs), at most those of the recipe;
  the others of its kind have one each, beside each other. Of decoding processes the first stage keeps one.
* **data**: the first clips of each class in turn, of the real data set where it is; a data set that is not
  there is generated in its layout. Folds, views, crops and strides stay; labels a class are not limited.
* What needs a file of weights from outside starts from fresh weights: they do not fit a tiny model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, Final, TypeVar

from tats_core import specs
from tats_core.data import benchmarks
from tats_core.errors import DataError
from tats_core.report.units import is_number
from tats_core.specs import Raw, StrictModel
from tats_core.stages.data import DataConfig

C = TypeVar("C", bound=StrictModel)

_PART: Final = 4  # clips that a worker computes at a time
_HEAD: Final = 16  # channels of an attention head
_AT_MOST: Final = {
    "depth": 2, "decoder_depth": 2, "clips_per_class": 4, "test_clips_per_class": 2,
    "health_clips": 16, "health_pictures": 1, "log_every": 1, "batch": 8,
}  # fmt: skip
_OF_EPOCHS: Final = ("health_every", "until")
_WARMUPS: Final = ("warmup_epochs", "sampler_warmup_epochs")


@dataclass(frozen=True)
class Rehearsal:
    """What a rehearsal may use, and how long it trains."""

    cpus: int
    gpus: int = 0
    epochs: int = 3
    clips: int = 32
    """Training clips of each data set, where there are no more than two workers."""

    def scaled(self, config: C, *, first: bool) -> C:
        """Return the configuration of a stage, scaled down.

        Args:
            first: it is the first stage of its kind.
        """
        full = config.model_dump(by_alias=True)
        model = full.get("model")
        # The encoder's heads decide about all widths.
        shrink = min(1.0, _HEAD * _heads(model["heads"]) / model["width"]) if model else 1.0
        changes = self._changes(full, shrink, self.epochs / max(self.epochs, full.get("epochs", 1)))
        changes = specs.merge(changes, self._hardware(full, first=first))
        if full.get("encoder"):
            changes |= {"encoder": None, "init": "scratch"}
        for key in ("start", "fork", "labels_per_class", "max_workers"):
            if full.get(key) is not None:
                changes[key] = None
        given = config.model_dump(by_alias=True, exclude_unset=True)
        if "clip" in changes:  # the loader's clip, where it is given, is the model's
            data = {key: changes["clip"][key] for key in ("frames", "size") if key in given.get("data", {})}
            changes["data"] = changes.get("data", {}) | data
        return specs.validate(type(config), specs.merge(given, changes), "the rehearsal")

    def with_data(self, config: StrictModel) -> StrictModel:
        """Let a data stage generate the data sets that are not on disk; other stages stay as they are."""
        if not isinstance(config, DataConfig):
            return config
        missing = [name for name in config.read if not _is_here(name, config)]
        # At least two steps an epoch for as many workers as there are.
        clips = max(self.clips, 4 * _PART * (self.gpus or self.cpus))
        given = config.model_dump(by_alias=True, exclude_unset=True) | {"first": clips}
        if missing:
            made = given.get("generate") or {"clips_per_class": ceil(clips / 8), "test_clips_per_class": 2}
            here = [name for name in config.read if name not in missing]
            given |= {"generate": {**made, "benchmarks": [*config.generated, *missing]}, "benchmarks": here}
            given |= {} if here else {"root": None}
        return specs.validate(DataConfig, given, "the rehearsal")

    def _changes(self, full: Mapping[str, Any], shrink: float, share: float) -> Raw:
        """Return what is smaller in a mapping of keys, at every depth.

        Args:
            shrink: of widths.
            share: of the epochs that remain.
        """
        changes: Raw = {}
        for key, value in full.items():
            if isinstance(value, Mapping):
                below = self._changes(value, shrink, share)
                if below and "kind" in value:
                    below["kind"] = value["kind"]
                changes |= {key: below} if below else {}
            elif not is_number(value):
                continue
            elif key in _AT_MOST:
                changes[key] = min(value, _AT_MOST[key])
            elif key == "epochs" and full.keys() & {"batch_size", "batch"}:
                changes[key] = min(value, self.epochs)
            elif key in _OF_EPOCHS or (key == "epochs" and "keep" in full):  # of a checkpoint
                changes[key] = max(1, round(value * share))
            elif key in _WARMUPS:
                changes[key] = value * share
        schedule = full.get("schedule")
        if schedule and not isinstance(schedule, Mapping):  # of the sampler, not of a learning rate
            # Of changes in one epoch, the last is in force.
            later = {int(change["epoch"] * share + 1e-9): change for change in schedule}
            last: int = changes.get("until") or changes["epochs"]
            changes["schedule"] = [{**change, "epoch": at} for at, change in later.items() if at < last]
        for width, heads in (("width", "heads"), ("decoder_width", "decoder_heads")):
            if width in full and heads in full:
                changes[heads] = _heads(full[heads])
                changes[width] = changes[heads] * max(4, 2 * round(shrink * full[width] / changes[heads] / 2))
        if {"frames", "size", "tubelet", "patch"} <= full.keys():
            patch = min(full["patch"], 8)
            grid = [side // full["patch"] for side in specs.sides(full["size"])]
            changes["size"] = [patch * max(1, round(n * min(1, 6 / max(grid)))) for n in grid]
            changes["patch"] = patch
            changes["frames"] = full["tubelet"] * min(full["frames"] // full["tubelet"], 8)
        return changes

    def _hardware(self, full: Mapping[str, Any], *, first: bool) -> Raw:
        """Return the changes of workers, batch and decoding processes."""
        total = {"cpus": self.cpus, "gpus": self.gpus}
        changes: Raw = {key: min(full[key], total[key]) for key in total if key in full}
        gpu = bool(full.get("gpu")) and self.gpus > 0
        most = (self.gpus if gpu else self.cpus) if first else 1
        if "gpu" in full:
            changes["gpu"] = gpu
        if "test_workers" in full:
            changes["test_workers"] = min(full["test_workers"], most)
        if "workers" in full:
            workers = min(full["workers"], most)
            parts = min(full["accumulate"], 2)
            share = max(1, full["batch_size"] // full["workers"] // full["accumulate"])
            fewest = full["min_workers"] and (workers // 2 if workers % 2 == 0 else workers)
            changes |= {"workers": workers, "min_workers": fewest, "accumulate": parts}
            changes["batch_size"] = workers * parts * min(share, _PART)
        elif "batch_size" in full:
            changes["batch_size"] = min(full["batch_size"], 2 * _PART)
        if full.get("data", {}).get("decode_workers"):
            changes["data"] = {"decode_workers": int(first and most > 1), "decode_on": "worker"}
        return changes


def _heads(heads: int) -> int:
    return min(heads, max(2, heads // 3))


def _is_here(name: str, config: DataConfig) -> bool:
    if name not in benchmarks.PAPERS:
        return True  # nothing can stand in for it; preflight reports it where it is missing
    try:
        benchmarks.locate(name, config.root)
    except DataError:
        return False
    return True

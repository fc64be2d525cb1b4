"""The data sets of a pipeline, generated or on disk. Writes a manifest for each split.

The videos of real data sets stay where they are; generated ones lie in the stage's folder.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from tats_core.data import benchmarks, decoded, index, shards
from tats_core.data.benchmarks import BENCHMARKS
from tats_core.data.benchmarks.base import (
    LIST_SUFFIXES,
    VIDEO_SUFFIXES,
    Missing,
    NoListError,
    Split,
    entries_below,
    overlap,
)
from tats_core.data.generate import GenerateConfig, generate
from tats_core.data.manifest import Manifest
from tats_core.errors import DataError
from tats_core.machine import available_cpus
from tats_core.specs import NotIdentity, StrictModel
from tats_core.stages.base import Preflight, StageContext, StageKind


class DataConfig(StrictModel):
    """Where the videos come from."""

    generate: GenerateConfig | None = Field(
        None, description="generate small benchmarks; real ones are read only if 'benchmarks' names them too"
    )
    root: Annotated[str | None, NotIdentity] = Field(
        None, description="folder that holds one folder for each data set"
    )
    benchmarks: Annotated[tuple[str, ...], BENCHMARKS] = Field(
        (), description="which; by default those that the pipeline uses"
    )
    videos: Annotated[str | None, NotIdentity] = Field(
        None, description="folder of your own videos (benchmark: own); class folders are labels"
    )
    fold: int = Field(
        1,
        ge=1,
        description="official split, where a data set has several; of a folder of videos without lists the "
        "seed by which one is drawn",
    )
    splits: Annotated[tuple[Split, ...] | None, NotIdentity] = Field(
        None, description="lists that a copy must have; null: those that the pipeline's stages use"
    )
    first: int | None = Field(
        None,
        ge=2,
        description="use only so many training videos of each data set, the first of each class in turn, and "
        "half as many test videos; null: all",
    )
    missing: Missing | None = Field(
        None,
        description="listed videos that are not on disk: refuse them, or allow them, which marks every "
        "table; null: refuse, for kinetics400 allow",
    )
    decoded: bool = Field(
        False, description="store all frames decoded too: for a small data set that many runs read"
    )
    decoded_size: int | None = Field(
        None,
        ge=8,
        description="shorter side, in pixels, to which stored frames are reduced; null: as they are",
    )
    damaged: Literal["refuse", "leave_out", "ignore"] = Field(
        "refuse",
        description="test videos that do not decode completely, for which all are decoded once: refuse "
        "them; leave them out, which marks every table; or do not look for them",
    )

    @model_validator(mode="after")
    def _consistent(self) -> DataConfig:
        if self.generate is not None and self.root is not None and not self.benchmarks:
            raise ValueError("root is where 'benchmarks' are read; with 'generate' alone leave it out")
        if twice := {*self.benchmarks} & {*self.generated}:
            raise ValueError(f"{', '.join(twice)} is both generated and read; take it out of one of the two")
        others = self.generate or self.root is not None or self.benchmarks not in ((), ("own",))
        if self.videos is not None and others:
            raise ValueError(
                "'videos' is the folder of the data set 'own'; other data sets need a stage of their own"
            )
        if self.decoded_size is not None and not self.decoded:
            raise ValueError("decoded_size is the size of stored frames, so it needs decoded: true")
        return self

    @property
    def chosen(self) -> bool:
        """Whether the configuration says which data sets the stage provides."""
        return bool(self.generate or self.benchmarks or self.videos is not None)

    @property
    def generated(self) -> tuple[str, ...]:
        """The data sets that the stage generates."""
        return self.generate.benchmarks if self.generate else ()

    @property
    def read(self) -> tuple[str, ...]:
        """The data sets that it reads."""
        if self.videos is not None:
            return ("own",)
        return self.benchmarks or (() if self.generate else benchmarks.PAPERS)

    @property
    def names(self) -> tuple[str, ...]:
        """The data sets that it provides."""
        return self.generated + self.read


class Data(StageKind[DataConfig]):
    """Output: `<benchmark>.train.json` and `<benchmark>.test.json`, to be read with `Manifest.load`."""

    name = "data"
    Config = DataConfig

    def serves(self, config: DataConfig, reader: StrictModel) -> bool:
        """Without a choice of data sets, the stage provides any."""
        return not config.chosen or getattr(reader, "benchmark", None) in (None, *config.names)

    def narrowed(self, config: DataConfig, readers: Sequence[StrictModel]) -> DataConfig:
        """Without a choice, provide the data sets and demand the lists that the pipeline uses."""
        needed = {split for reader in readers for split in getattr(reader, "splits", ())}
        wanted = {getattr(reader, "benchmark", None) for reader in readers}
        splits = tuple(split for split in get_args(Split) if split in needed)
        names = tuple(name for name in BENCHMARKS if name in wanted)
        changes: dict[str, object] = {}
        if config.splits is None and splits:
            changes["splits"] = splits
        if not config.generate:  # by name, so that their code is part of the key
            changes["benchmarks"] = config.names if config.chosen or not names else names
        return config.model_copy(update=changes)

    def summary(self, config: DataConfig) -> str:
        """Name the data sets that must be on disk, and say which are not."""
        missing = _missing(config)
        names = [f"{name} (not found)" if name in missing else name for name in config.read]
        return "reads " + ", ".join(names) if names else ""

    def spare(self, config: DataConfig) -> int:
        """Generating and verifying use all CPUs of this machine."""
        return available_cpus() - 1 if config.generate or config.damaged != "ignore" else 0

    def preflight(self, config: DataConfig, ctx: Preflight) -> list[str]:
        """Read the lists; return one sentence for each data set that is missing or not as expected."""
        faults: list[str] = []
        for name in config.read:
            try:
                list(_manifests_of(name, _folder(config, name), config))
            except DataError as error:
                faults.append(str(error))
        return faults

    def external(self, config: DataConfig) -> Mapping[str, str]:
        """Return for each data set a digest of its path, and of its files' sizes and times of change."""
        missing = _missing(config)
        return {name: "" if name in missing else _fingerprint(_folder(config, name)) for name in config.read}

    def identities(self, folder: Path) -> Mapping[str, str]:
        """Return the manifests' own digests, which do not move with the data set."""
        paths = [path for split in get_args(Split) for path in sorted(folder.glob(f"*.{split}.json"))]
        return {path.name: Manifest.load(path).digest() for path in paths}

    def run(self, config: DataConfig, ctx: StageContext) -> None:
        """Generate if need be, read the lists of each data set and write the manifests."""
        folders = {name: _folder(config, name) for name in config.read}
        if config.generate is not None:
            folders |= generate(ctx.out, config.generate, lambda *progress: _show(ctx, *progress))
        for name, folder in folders.items():
            manifests = list(_manifests_of(name, folder, config))
            files = _indexed(name, folder, manifests, config, ctx)
            for manifest in manifests:
                ctx.check_stop()
                for note in manifest.notes:
                    ctx.events.note(note)
                if manifest.split == "test" and config.damaged != "ignore":
                    manifest = _verified(manifest, files.faults(manifest), config, ctx)
                manifest = replace(manifest, content=files.content(manifest))
                if config.decoded:
                    frames = ctx.out / f"{name}.{manifest.split}.frames.bin"
                    manifest = decoded.write(manifest, frames, ctx.check_stop, config.decoded_size)
                manifest.save(ctx.out / f"{name}.{manifest.split}.json")
                counts = f"{len(manifest)} videos, {len(manifest.classes)} classes"
                text = f"{manifest.benchmark} {manifest.split}: {counts}"
                if manifest.absent:
                    text += f"; {manifest.absent} listed videos are not on disk or left out"
                ctx.events.note(text)
            if manifests[1:] and (shared := overlap(*manifests)):
                ctx.events.note(shared)
        _manifest.cache_clear()


def _show(ctx: StageContext, done: int, total: int, text: str) -> None:
    ctx.check_stop()
    ctx.events.progress(step=done, steps=total, epoch=1, epochs=1, shown={})


def _indexed(
    name: str, folder: Path, manifests: Sequence[Manifest], config: DataConfig, ctx: StageContext
) -> index.Index:
    """Return the index of what the stage provides, its test videos decoded where damage matters."""
    sound = name in config.generated  # what is just generated is known to be
    if sound or ctx.home is None:
        store, listed = None, [(manifest.split, manifest) for manifest in manifests]
    else:
        # All that is listed, so that a stage of the first few videos leaves the index as complete as it was.
        known = manifests if config.first is None else ()
        store, listed = index.path_of(ctx.home, name, folder), index.listed(name, folder, known, config.fold)
    verified = config.damaged != "ignore" and not sound
    tests = [manifest for manifest in manifests if manifest.split == "test" and verified]
    return index.update(
        store,
        listed,
        decode={video.path for manifest in tests for video in manifest.videos},
        progress=partial(_show, ctx, text=f"verifying {name}"),
    )


def _verified(
    manifest: Manifest, faults: Mapping[str, str], config: DataConfig, ctx: StageContext
) -> Manifest:
    """Return the manifest of the sound videos, those left out counted as absent.

    Raises:
        DataError: some are damaged, and none may be left out, or all are damaged.
    """
    name = f"{manifest.benchmark} ({manifest.split})"
    if not faults:
        return manifest
    some = f"{name}: {len(faults)} of {len(manifest)} videos are damaged"
    refused = config.damaged == "refuse" or len(faults) == len(manifest)
    for text in faults.values():
        ctx.events.note(text if refused else f"left out of the test: {text}")
    if refused:
        first = "; ".join([*faults.values()][:3])
        raise DataError(
            f"{some}: {first}{'; …' if len(faults) > 3 else ''}: replace them, or set damaged: leave_out in "
            "the data stage, which marks every table"
        )
    return replace(
        manifest,
        videos=tuple(video for video in manifest.videos if video.id not in faults),
        absent=manifest.absent + len(faults),
    )


def _folder(config: DataConfig, name: str) -> Path:
    if config.videos is None:
        try:
            return benchmarks.locate(name, config.root)
        except DataError as error:
            hint = "; or name the folder by the key 'videos' of the data stage" if name == "own" else ""
            raise DataError(f"{error}{hint}") from error
    folder = Path(config.videos).expanduser().absolute()
    if not folder.is_dir():
        raise DataError(f"'videos': {folder} is not a folder")
    return folder


def _manifests_of(name: str, folder: Path, config: DataConfig) -> Iterator[Manifest]:
    """Yield the manifest of each split; a list that the copy lacks and nobody needs is passed over."""
    fingerprint = _fingerprint(folder)
    for split in get_args(Split):
        try:
            manifest = _manifest(name, folder, split, config.fold, config.missing, fingerprint)
        except NoListError:
            if split in (config.splits or get_args(Split)):
                raise
            continue
        count = len(manifest) if config.first is None else config.first // (1 if split == "train" else 2)
        yield manifest.first(count)


@lru_cache(maxsize=16)
def _manifest(
    name: str, folder: Path, split: Split, fold: int, missing: Missing | None, fingerprint: str
) -> Manifest:
    """Read lists, once for the check before a run and the run: on a network disk it may take minutes."""
    return BENCHMARKS[name].read(folder, split, fold, missing)


def _missing(config: DataConfig) -> set[str]:
    """Return the data sets that are read and are not on disk."""
    missing = set()
    for name in config.read:
        try:
            _folder(config, name)
        except DataError:
            missing.add(name)
    return missing


def _fingerprint(folder: Path) -> str:
    """Return a digest that changes when a list or a video comes, goes or is written anew.

    Nothing is opened: a size or a time of change shows it.
    """
    combined = hashlib.sha256(os.fsencode(folder))
    for entry in entries_below(folder, (*VIDEO_SUFFIXES, *LIST_SUFFIXES)):
        combined.update(os.fsencode(entry.path) + f"\0{shards.stamp(entry)}\n".encode())
    return combined.hexdigest()


KIND = Data()

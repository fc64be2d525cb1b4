"""The samples of an epoch: the same bytes whatever decodes them, where, and from which copy's shape."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tats_core.data.benchmarks import BENCHMARKS
from tats_core.data.clips import Batch
from tats_core.data.loaders import ClipOptions, TrainLoader
from tats_core.data.manifest import Manifest
from tats_core.data.pack import pack
from tats_core.data.shrink import Smaller, shrink

OPTIONS = ClipOptions(
    frames=4, size=16, rand_augment="rand-m7-n2-mstd0.5", colour_jitter=0.3, erase=0.5, flip=True
)
EPOCH = 1


@pytest.fixture(scope="module")
def manifests(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Manifest]:
    """The training videos of HMDB51's tiny copy, and of a smaller and a packed copy of it."""
    plain, folder = tiny_root / "hmdb51", tmp_path_factory.mktemp("copies")
    shrink(plain, folder / "shrunk", Smaller(24, 5), lambda done, total: None, workers=1)
    pack("hmdb51", plain, folder / "packed", lambda done, total: None, workers=1)
    roots = {"plain": plain, "shrunk": folder / "shrunk", "packed": folder / "packed"}
    return {name: BENCHMARKS["hmdb51"].read(root, "train") for name, root in roots.items()}


def samples(batches: list[Batch]) -> list[tuple[int, bytes]]:
    """Return the video and the bytes of each sample of an epoch, as the model gets them."""
    return [
        (index, clip_CTHW.numpy().tobytes())
        for batch in batches
        for index, clip_CTHW in zip(
            batch.index_B.tolist(), batch.normalised(torch.device("cpu")), strict=True
        )
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")  # on two cores
@pytest.mark.parametrize("copy", ["plain", "shrunk", "packed"])
def test_samples_depend_on_no_process_no_worker_and_no_interruption(
    manifests: dict[str, Manifest], copy: str
) -> None:
    manifest = manifests[copy]
    wanted = samples([*TrainLoader(manifest, OPTIONS, batch_size=2, seed=5).epoch(EPOCH)])
    assert len({content for _, content in wanted}) == len(wanted)
    for processes in (0, 1, 2, 4):
        options = OPTIONS.model_copy(update={"decode_workers": processes})
        loader = TrainLoader(manifest, options, batch_size=2, seed=5)
        assert samples([*loader.epoch(EPOCH)]) == wanted, processes
        loader.close()
    for processes in (0, 2):
        options = OPTIONS.model_copy(update={"decode_workers": processes})
        # Interrupted after two steps, the epoch goes on in a loader that has seen nothing of it.
        resumed = TrainLoader(manifest, options, batch_size=2, seed=5)
        assert samples([*resumed.epoch(EPOCH, first_step=2)]) == wanted[4:], processes
        resumed.close()
    shares = [
        samples([*TrainLoader(manifest, OPTIONS, batch_size=1, seed=5, rank=rank, world_size=2).epoch(EPOCH)])
        for rank in range(2)
    ]
    assert [sample for step in zip(*shares, strict=True) for sample in step] == wanted

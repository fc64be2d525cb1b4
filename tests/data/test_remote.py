"""Decoding by actors of a real Ray, which takes seconds to start; one serves all tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import ray
import torch

from tats_core.data.loaders import ClipOptions, TrainLoader, eval_views
from tats_core.data.manifest import Manifest
from tats_core.data.remote import RemoteDecoders
from tats_core.errors import DataError, SpecError, VideoError
from tats_core.launch import ray_train
from tats_core.specs import validate
from tests.data.test_loaders import SMALL, broken, indices, loader, same

pytestmark = [
    pytest.mark.slow,
    # Ray's own use of its libraries, and of os.fork in a process with threads.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.shutdown()
    ray_train.connect()
    yield
    ray.shutdown()


def remote(decoders: int, **changes: Any) -> ClipOptions:
    return SMALL.model_copy(update={"decode_workers": decoders, "decode_on": "cluster", **changes})


@pytest.mark.parametrize("decoders", [1, 2])
def test_decoders_on_the_cluster_give_the_same_samples_from_any_step_on(
    tiny: dict[str, Manifest], decoders: int
) -> None:
    manifest = tiny["hmdb51"]
    plain, decoding = loader(manifest), loader(manifest, remote(decoders))
    next(decoding.epoch(3))  # left early, with answers that nobody takes
    for epoch, first_step in ((0, 0), (1, 2), (1, 0)):
        expected = list(plain.epoch(epoch, first_step))
        assert same(list(decoding.epoch(epoch, first_step)), expected)
    decoding.close()


def test_test_views_are_the_same_and_can_be_changed_in_place(tiny: dict[str, Manifest]) -> None:
    here = eval_views(tiny["ucf101"], SMALL, clips=2, crops=1, batch_size=4)
    there = list(eval_views(tiny["ucf101"], remote(2), clips=2, crops=1, batch_size=4))
    assert same(there, list(here))
    there[0].video_BCTHW.zero_()
    assert not there[0].video_BCTHW.any()


def test_a_decoder_that_is_lost_starts_again_and_no_sample_is(tiny: dict[str, Manifest]) -> None:
    plain, decoding = loader(tiny["hmdb51"]), loader(tiny["hmdb51"], remote(2))
    expected, found = list(plain.epoch(0)), []
    for step, batch in enumerate(decoding.epoch(0)):
        found.append(batch)
        if not step:
            assert isinstance(decoding._processes, RemoteDecoders)
            ray.kill(decoding._processes._decoders[0], no_restart=False)
    assert same(found, expected)
    decoding.close()


def test_a_trainer_in_another_process_has_decoders_of_its_own(tiny: dict[str, Manifest]) -> None:
    @ray.remote(num_cpus=0)  # the decoders take all that a small machine has
    def first_video(manifest: Manifest) -> torch.Tensor:
        train = TrainLoader(manifest, remote(2), batch_size=3, seed=5)
        return next(train.epoch(0)).video_BCTHW

    expected = next(loader(tiny["hmdb51"]).epoch(0)).video_BCTHW
    assert torch.equal(ray.get(first_video.remote(tiny["hmdb51"])), expected)


def test_unreadable_videos_of_all_decoders_are_counted(tiny: dict[str, Manifest], tmp_path: Any) -> None:
    manifest = broken(tiny["ucf101"], tmp_path, 2, 15)
    train = loader(manifest, remote(2, max_unreadable=0.2))
    assert 2 not in indices(list(train.epoch(0)))
    train.close()
    with pytest.raises(DataError, match="2 of 16 videos cannot be read, more than max_unreadable"):
        list(loader(manifest, remote(2, max_unreadable=0.1)).epoch(0))
    with pytest.raises(VideoError, match=r"broken2\.avi: cannot be read"):
        list(eval_views(manifest, remote(2), clips=1, crops=1))


def test_no_decoders_on_the_cluster_are_refused() -> None:
    with pytest.raises(SpecError, match="decode_on: cluster needs decode_workers"):
        validate(ClipOptions, {"decode_on": "cluster"}, "demo.yaml")

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tats_core.data import augment, clips, readers, transforms
from tats_core.data.benchmarks import BENCHMARKS
from tats_core.data.clips import Purpose
from tats_core.data.loaders import (
    Batch,
    ClipOptions,
    ClipRules,
    TrainLoader,
    Uncut,
    clip_rules,
    eval_views,
)
from tats_core.data.manifest import Manifest, VideoRecord
from tats_core.data.video import Choose, Frames
from tats_core.errors import DataError, SpecError, VideoError
from tats_core.specs import validate

SMALL = ClipOptions(
    frames=4,
    size=16,
    rand_augment="rand-m7-n2-mstd0.5",
    colour_jitter=0.3,
    hue_jitter=0.1,
    erase=0.5,
    flip=True,
)


def loader(manifest: Manifest, options: ClipOptions = SMALL, **changes: int) -> TrainLoader:
    settings = {"batch_size": 3, "seed": 5, **changes}
    return TrainLoader(manifest, options, **settings)  # type: ignore[arg-type]


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b)
        for batch, other in zip(first, second, strict=True)
        for a, b in zip(everything(batch), everything(other), strict=True)
    )


def everything(batch: Batch) -> list[torch.Tensor]:
    return [*batch[:3], batch.normalised(torch.device("cpu"))]


def indices(batches: list[Batch]) -> list[int]:
    return [index for _, _, index_B, _ in batches for index in index_B.tolist()]


def broken(manifest: Manifest, folder: Path, *which: int) -> Manifest:
    """Return `manifest` with the videos at `which` replaced by files that hold no video."""
    videos = list(manifest.videos)
    for index in which:
        path = folder / f"broken{index}.avi"
        path.write_bytes(b"no video")
        videos[index] = replace(videos[index], path=str(path))
    return replace(manifest, videos=tuple(videos))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Path and number of frames of each read."""
    reads: list[tuple[str, int]] = []
    read = readers.read_clip

    def noted(path: str, choose: Choose, *rest: object) -> Frames:
        frames_THWC = read(path, choose, *rest)  # type: ignore[arg-type]
        reads.append((path, len(frames_THWC)))
        return frames_THWC

    monkeypatch.setattr(readers, "read_clip", noted)
    return reads


# ------------------------------------------------------------------------------------------- training


def test_a_batch_has_the_shapes_and_the_labels_of_its_videos(tiny: dict[str, Manifest]) -> None:
    for video_BCTHW, label_B, index_B, _ in loader(tiny["kinetics400"]).epoch(0):
        assert video_BCTHW.shape == (3, 3, 4, 16, 16)
        assert (video_BCTHW.dtype, label_B.dtype, index_B.dtype) == (torch.uint8, torch.int64, torch.int64)
        expected = [tiny["kinetics400"].videos[index].label for index in index_B.tolist()]
        assert label_B.tolist() == expected


def test_an_epoch_is_the_same_for_the_same_seed_and_another_for_another(tiny: dict[str, Manifest]) -> None:
    first = list(loader(tiny["ucf101"]).epoch(2))
    assert same(first, list(loader(tiny["ucf101"]).epoch(2)))
    assert indices(first) != indices(list(loader(tiny["ucf101"]).epoch(3)))
    assert indices(first) != indices(list(loader(tiny["ucf101"], seed=6).epoch(2)))


def test_the_augmentation_of_a_video_changes_from_epoch_to_epoch(tiny: dict[str, Manifest]) -> None:
    train = loader(tiny["ucf101"], batch_size=16)
    ((first_BCTHW, _, first_B, _),) = train.epoch(0)
    ((second_BCTHW, _, second_B, _),) = train.epoch(1)
    clip = {index: first_BCTHW[row] for row, index in enumerate(first_B.tolist())}
    for row, index in enumerate(second_B.tolist()):
        assert not torch.equal(clip[index], second_BCTHW[row])


def test_an_epoch_can_be_entered_in_the_middle(tiny: dict[str, Manifest]) -> None:
    whole = list(loader(tiny["ucf101"]).epoch(4))
    assert len(whole) == 5
    assert same(whole[3:], list(loader(tiny["ucf101"]).epoch(4, first_step=3)))


def test_workers_share_an_epoch_in_equal_parts_without_overlap(tiny: dict[str, Manifest]) -> None:
    # 16 videos, batches of 3 on 2 workers: 2 steps each, 12 videos seen, 4 left out.
    shares = [indices(list(loader(tiny["ucf101"], rank=rank, world_size=2).epoch(1))) for rank in range(2)]
    assert [len(share) for share in shares] == [6, 6]
    assert len(set(shares[0]) | set(shares[1])) == 12


def test_cache_and_decoding_processes_change_nothing_but_the_speed(tiny: dict[str, Manifest]) -> None:
    manifest = tiny["hmdb51"]
    plain = loader(manifest)
    cached = loader(manifest, SMALL.model_copy(update={"cache": True}))
    full = loader(manifest, SMALL.model_copy(update={"cache": True, "cache_mb": 0}))
    processes = loader(manifest, SMALL.model_copy(update={"decode_workers": 1}))
    for epoch in range(2):
        expected = list(plain.epoch(epoch))
        for other in (cached, full, processes):
            assert same(list(other.epoch(epoch)), expected)
    processes.close()


def test_each_decoding_process_holds_one_batch_ahead(
    tiny: dict[str, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = loader(tiny["ucf101"], SMALL.model_copy(update={"decode_workers": 1}), batch_size=2)
    asked = [0]

    class Counted(list[object]):
        def __iter__(self) -> Iterator[object]:
            for request in super().__iter__():
                asked[0] += 1
                yield request

    monkeypatch.setattr(train, "_requests", Counted())
    batches = train.epoch(0)
    next(batches)
    # One for the process, and one in place of the batch that was taken: a batch may be a gigabyte.
    assert asked == [2]
    batches.close()  # type: ignore[attr-defined]
    train.close()


def test_a_cached_video_is_read_once(tiny: dict[str, Manifest], reads: list[tuple[str, int]]) -> None:
    train = loader(tiny["ssv2"], SMALL.model_copy(update={"cache": True}), batch_size=20)
    for epoch in range(3):
        list(train.epoch(epoch))
    assert len(reads) == len(set(reads)) == 20


def test_several_samples_of_a_clip_are_different_cuts_of_the_same_frames(
    tiny: dict[str, Manifest], reads: list[tuple[str, int]]
) -> None:
    video_BCTHW, label_B, index_B, _ = next(loader(tiny["ucf101"], samples_per_clip=3).epoch(0))
    assert len(video_BCTHW) == len(label_B) == 9
    assert index_B.view(3, 3).tolist() == [[index] * 3 for index in index_B[::3].tolist()]
    assert all(not torch.equal(video_BCTHW[clip], video_BCTHW[clip + 1]) for clip in range(8))

    reads.clear()
    plain = ClipOptions(frames=4, size=16, crop="centre", flip=False)
    video_BCTHW, *_ = next(loader(tiny["ucf101"], plain, samples_per_clip=3).epoch(0))
    assert all(torch.equal(video_BCTHW[clip], video_BCTHW[clip // 3 * 3]) for clip in range(9))
    assert len(reads) == len(set(reads)) == 3


def test_the_first_sample_is_the_clip_that_a_single_one_would_be(tiny: dict[str, Manifest]) -> None:
    single_BCTHW, *_ = next(loader(tiny["ucf101"]).epoch(1))
    several_BCTHW, *_ = next(loader(tiny["ucf101"], samples_per_clip=2).epoch(1))
    assert torch.equal(several_BCTHW[::2], single_BCTHW)


def test_rand_augment_sees_the_whole_frame_before_it_is_cut(
    tiny: dict[str, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    def top_half_white(frames_THWC: torch.Tensor, *rest: object) -> torch.Tensor:
        assert frames_THWC.shape == (4, 32, 32, 3)
        white_THWC = torch.zeros_like(frames_THWC)
        white_THWC[:, :16] = 255
        return white_THWC

    monkeypatch.setattr(augment, "on_cpu", top_half_white)
    options = ClipOptions(frames=4, size=16, crop="centre", rand_augment="rand-m7-n4-mstd0.5-inc1")
    video_BCTHW, *_ = next(loader(tiny["ucf101"], options).epoch(0))
    # The complete frame, halved: 8 white rows, 8 black ones, the two at the edge apart.
    assert video_BCTHW[..., :7, :].min() == 255
    assert video_BCTHW[..., 9:, :].max() == 0


@pytest.mark.parametrize("decode_workers", [0, 2])
def test_clips_that_are_cut_on_the_device_are_those_that_the_worker_cuts(
    tiny: dict[str, Manifest], decode_workers: int
) -> None:
    there = SMALL.model_copy(update={"augment_on": "device", "decode_workers": decode_workers})
    loaders = [loader(tiny["ucf101"], options, samples_per_clip=2) for options in (SMALL, there)]
    here, on_device = ([*loader.epoch(1)] for loader in loaders)
    assert same(here, on_device)  # the device is the CPU; where a GPU differs, by at most a grey level
    loaders[1].close()


def test_frames_go_to_the_device_once_however_many_samples_they_have(tiny: dict[str, Manifest]) -> None:
    there = SMALL.model_copy(update={"augment_on": "device"})
    uncut = loader(tiny["ucf101"], there, samples_per_clip=2)._clips.batch(0, (0, 4, 1))
    assert isinstance(uncut, Uncut)
    assert len(uncut.frames) == 3
    assert [len(cuts) for cuts in uncut.cuts] == [2, 2, 2]
    assert uncut.label_B.shape == (6,)


def test_pixels_are_those_of_the_frames_that_were_drawn(tiny: dict[str, Manifest]) -> None:
    options = ClipOptions(frames=4, size=32, crop="centre", flip=False, sampling="uniform")
    manifest = tiny["ucf101"]
    video_BCTHW, _, index_B, _ = next(loader(manifest, options).epoch(0))
    for clip_THWC, index in zip(video_BCTHW.permute(0, 2, 3, 4, 1).numpy(), index_B.tolist(), strict=True):
        whole_THWC = readers.read_all(manifest.videos[index].path)
        # 20 frames in 4 segments of 5: each frame of the clip is one of its segment.
        for segment, frame_HWC in enumerate(clip_THWC):
            segment_frames = whole_THWC[5 * segment : 5 * segment + 5]
            assert any(np.array_equal(frame_HWC, candidate) for candidate in segment_frames)


def test_fewer_videos_than_one_batch_on_each_worker_is_an_error(tiny: dict[str, Manifest]) -> None:
    assert loader(tiny["ucf101"], batch_size=3, world_size=2).steps == 2
    with pytest.raises(DataError, match="16 videos do not fill one batch of 9 on each of 2 workers"):
        loader(tiny["ucf101"], batch_size=9, world_size=2)


def test_a_share_of_the_clips_is_erased_with_noise_of_its_own_in_each_frame(
    tiny: dict[str, Manifest],
) -> None:
    options = ClipOptions(frames=4, size=16, erase=1.0)
    batch = next(loader(tiny["ucf101"], options, batch_size=16).epoch(0))
    assert [box.clip for box in batch.erased] == list(range(16))
    noise = torch.cat([box.noise_CTHW.flatten() for box in batch.erased])
    assert (noise.mean().item(), noise.std().item()) == (pytest.approx(0, abs=0.1), pytest.approx(1, abs=0.1))
    for box in batch.erased:
        assert len({frame.numpy().tobytes() for frame in box.noise_CTHW.unbind(1)}) == 4
    some = next(loader(tiny["ucf101"], options.model_copy(update={"erase": 0.5}), batch_size=16).epoch(0))
    assert 0 < len(some.erased) < 16


# ------------------------------------------------------------------------------------------ bad files


@pytest.mark.parametrize("workers", [0, 1])
def test_a_video_that_cannot_be_read_is_named_and_the_next_one_stands_in(
    tiny: dict[str, Manifest], tmp_path: Path, workers: int
) -> None:
    manifest = broken(tiny["ucf101"], tmp_path, 7, 8)
    options = SMALL.model_copy(update={"max_unreadable": 0.2, "decode_workers": workers})
    train = loader(manifest, options, batch_size=16)
    ((video_BCTHW, label_B, index_B, _),) = train.epoch(0)
    assert len(video_BCTHW) == 16
    assert Counter(index_B.tolist()) == {**dict.fromkeys({*range(16)} - {7, 8}, 1), 9: 3}
    assert label_B.tolist() == [manifest.videos[index].label for index in index_B.tolist()]
    assert set(train.unreadable) == {str(tmp_path / "broken7.avi"), str(tmp_path / "broken8.avi")}
    assert "Invalid data" in train.unreadable[str(tmp_path / "broken7.avi")]
    # Each replacement is another clip, not the same clip three times.
    standing_in = video_BCTHW[index_B == 9]
    assert not torch.equal(standing_in[0], standing_in[1])
    train.close()


def test_a_resumed_epoch_is_the_same_whether_a_failure_is_remembered_or_met_again(
    tiny: dict[str, Manifest], tmp_path: Path
) -> None:
    manifest = broken(tiny["ucf101"], tmp_path, 3)
    options = SMALL.model_copy(update={"max_unreadable": 0.2})
    running = loader(manifest, options)
    for epoch in range(2):
        list(running.epoch(epoch))
    assert same(list(running.epoch(2)), list(loader(manifest, options).epoch(2)))


@pytest.mark.parametrize("workers", [0, 1])
def test_more_unreadable_videos_than_the_limit_stop_the_training_with_one_sentence(
    tiny: dict[str, Manifest], tmp_path: Path, workers: int
) -> None:
    manifest = broken(tiny["ucf101"], tmp_path, 1, 2, 3)
    options = SMALL.model_copy(update={"max_unreadable": 0.15, "decode_workers": workers})
    with pytest.raises(DataError) as caught:
        list(loader(manifest, options, batch_size=16).epoch(0))
    assert str(caught.value).startswith("3 of 16 videos cannot be read, more than max_unreadable = 0.15")
    assert "\n" not in str(caught.value)


# -------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("benchmark", "purpose", "expected"),
    [
        ("ssv2", "pretrain", ClipRules("dense", 2, "multi_scale", False)),
        ("ssv2", "finetune", ClipRules("uniform", 2, "random_resized", False)),
        ("kinetics400", "pretrain", ClipRules("dense", 4, "multi_scale", False)),
        ("kinetics400", "finetune", ClipRules("dense", 4, "random_resized", True)),
        ("hmdb51", "finetune", ClipRules("dense", 2, "random_resized", True)),
    ],
)
def test_open_fields_follow_the_benchmark_and_the_purpose(
    benchmark: str, purpose: Purpose, expected: ClipRules
) -> None:
    assert clip_rules(ClipOptions(), BENCHMARKS[benchmark], purpose) == expected


def test_what_is_set_wins_over_the_benchmark() -> None:
    options = ClipOptions(sampling="dense", stride=3, crop="centre", flip=True)
    assert clip_rules(options, BENCHMARKS["ssv2"], "pretrain") == ClipRules("dense", 3, "centre", True)


def test_the_published_protocol_antialiases_in_pre_training_alone() -> None:
    published = ClipOptions(protocol="published")
    for name in BENCHMARKS:
        benchmark = BENCHMARKS[name]
        for purpose, antialias in (("pretrain", True), ("finetune", False)):
            rules = clip_rules(published, benchmark, purpose)
            assert (rules.published, rules.antialias) == (purpose, antialias)
            assert replace(rules, published=None) == clip_rules(ClipOptions(), benchmark, purpose)
            assert clip_rules(ClipOptions(), benchmark, purpose).antialias


def test_published_views_have_published_frames_and_are_not_antialiased(tiny_root: Path) -> None:
    manifest = BENCHMARKS["ucf101"].read(tiny_root / "ucf101", "test")
    options = ClipOptions(frames=4, size=16, stride=3, protocol="published")
    views_VCTHW = next(eval_views(manifest, options, clips=2, crops=1))[0][0]
    whole_THWC = torch.from_numpy(readers.read_all(manifest.videos[0].path))
    for view, first in zip(views_VCTHW, (0, 9), strict=True):  # of 20 frames, 0, 3, … 18 are taken
        (crop_THWC,) = transforms.crops_of_test(whole_THWC[first : first + 12 : 3], 16, 1, antialias=False)
        assert torch.equal(view, crop_THWC.permute(3, 0, 1, 2))


def test_published_training_clips_have_published_frames_and_are_not_antialiased(
    tiny: dict[str, Manifest],
) -> None:
    options = ClipOptions(frames=4, size=16, crop="centre", flip=False, protocol="published")
    batch = next(loader(tiny["ucf101"], options, batch_size=1).epoch(0))
    whole_THWC = torch.from_numpy(readers.read_all(tiny["ucf101"].videos[int(batch.index_B[0])].path))
    (crop_THWC,) = transforms.crops_of_test(whole_THWC, options.size, 1, antialias=False)
    possible = {crop_THWC[start : start + 1].numpy().tobytes() for start in range(len(whole_THWC))}
    assert {frame.permute(1, 2, 0).numpy().tobytes() for frame in batch.video_BCTHW[0].unbind(1)} <= possible


def test_options_that_contradict_each_other_are_refused_with_a_sentence() -> None:
    with pytest.raises(SpecError, match="cache holds videos in the training process"):
        validate(ClipOptions, {"cache": True, "decode_workers": 2}, "demo.yaml")
    with pytest.raises(SpecError, match="crop_area must be two positive numbers, the smaller first"):
        validate(ClipOptions, {"crop_area": [1.0, 0.5]}, "demo.yaml")


# -------------------------------------------------------------------------------------------- testing


def test_views_are_clips_times_crops_with_the_crops_side_by_side(tmp_path: Path, tiny_root: Path) -> None:
    manifest = BENCHMARKS["ucf101"].read(tiny_root / "ucf101", "test")
    options = ClipOptions(frames=4, size=16, stride=3)
    batches = list(eval_views(manifest, options, clips=2, crops=3, batch_size=3))
    assert [len(label_B) for _, label_B, *_ in batches] == [3, 3, 2]
    assert indices(batches) == list(range(8))
    views_VCTHW = batches[0][0][1]
    assert views_VCTHW.shape == (6, 3, 4, 16, 16)
    whole_THWC = torch.from_numpy(readers.read_all(manifest.videos[1].path))
    for view, (indices_T, box) in enumerate(
        (indices_T, box)
        for indices_T in clips.view_indices(20, 4, "dense", 3, 2)
        for box in transforms.view_boxes(32, 32, 16, 3)
    ):
        clip_THWC = transforms.crop_resize(whole_THWC[torch.from_numpy(indices_T)], box, 16)
        assert torch.equal(views_VCTHW[view], clip_THWC.permute(3, 0, 1, 2))


def test_a_video_is_read_once_for_all_its_views(
    tiny: dict[str, Manifest], reads: list[tuple[str, int]]
) -> None:
    # Views of 4 frames at stride 5 over 20 frames start at 0, 2 and 4: 12 different frames.
    list(eval_views(tiny["ucf101"], ClipOptions(frames=4, size=16, stride=5), clips=3, crops=3))
    assert [frames for _, frames in reads] == [12] * 16


def test_without_numbers_the_views_are_the_benchmarks(tiny: dict[str, Manifest]) -> None:
    options = ClipOptions(frames=2, size=16)
    for name, views in (("ssv2", 6), ("kinetics400", 15), ("ucf101", 15), ("hmdb51", 30)):
        assert next(eval_views(tiny[name], options))[0].shape == (1, views, 3, 2, 16, 16)


def test_views_are_shared_by_ranks_and_made_in_processes_all_the_same(tiny: dict[str, Manifest]) -> None:
    options = ClipOptions(frames=2, size=16)
    whole = list(eval_views(tiny["ucf101"], options, clips=1, crops=1, batch_size=4))
    beside = options.model_copy(update={"decode_workers": 1})
    assert same(whole, list(eval_views(tiny["ucf101"], beside, clips=1, crops=1, batch_size=4)))
    odd = list(eval_views(tiny["ucf101"], options, clips=1, crops=1, rank=1, world_size=2))
    assert indices(odd) == list(range(1, 16, 2))


def test_testing_refuses_a_video_that_cannot_be_read(tiny: dict[str, Manifest], tmp_path: Path) -> None:
    manifest = broken(tiny["ucf101"], tmp_path, 2)
    with pytest.raises(VideoError, match=r"broken2\.avi: cannot be read"):
        list(eval_views(manifest, ClipOptions(frames=2, size=16), clips=1, crops=1))


@pytest.mark.parametrize("workers", [0, 1])
def test_for_what_is_no_score_the_next_video_stands_in_and_the_broken_one_is_named(
    tiny: dict[str, Manifest], tmp_path: Path, workers: int
) -> None:
    manifest = broken(tiny["ucf101"], tmp_path, 2, 15)
    options = ClipOptions(frames=2, size=16, max_unreadable=0.2, decode_workers=workers)
    unreadable: dict[str, str] = {}
    batches = list(eval_views(manifest, options, clips=1, crops=1, batch_size=4, unreadable=unreadable))
    assert indices(batches) == [0, 1, 3, *range(3, 15), 0]
    labels = [label for _, label_B, *_ in batches for label in label_B.tolist()]
    assert labels == [manifest.videos[index].label for index in indices(batches)]
    assert torch.equal(batches[0][0][2], batches[0][0][3])
    assert set(unreadable) == {str(tmp_path / "broken2.avi"), str(tmp_path / "broken15.avi")}
    few = options.model_copy(update={"max_unreadable": 0.1, "decode_workers": 0})
    with pytest.raises(DataError, match="2 of 16 videos cannot be read, more than max_unreadable"):
        list(eval_views(manifest, few, clips=1, crops=1, batch_size=4, unreadable={}))


def test_fewer_videos_than_workers_are_refused_on_each_of_them(tiny: dict[str, Manifest]) -> None:
    few = tiny["ucf101"].spread(2)
    for rank in range(3):
        with pytest.raises(DataError, match=r"2 videos are too few for 3 workers; use fewer workers"):
            list(eval_views(few, ClipOptions(frames=2, size=16), rank=rank, world_size=3))


def test_a_manifest_without_labels_feeds_pre_training(tiny: dict[str, Manifest]) -> None:
    videos = tuple(VideoRecord(video.id, video.path, -1) for video in tiny["ucf101"].videos)
    _, label_B, *_ = next(loader(replace(tiny["ucf101"], videos=videos)).epoch(0))
    assert label_B.tolist() == [-1, -1, -1]

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tats_core.data.clips import (
    Batch,
    Erased,
    dense_indices,
    normalise,
    train_indices,
    uniform_indices,
    view_indices,
)


def test_a_dense_clip_lies_where_it_is_asked_to() -> None:
    # 20 frames, 4 of them at stride 3 span 10: starts 0 to 10.
    assert dense_indices(20, 4, 3, position=0.0).tolist() == [0, 3, 6, 9]
    assert dense_indices(20, 4, 3).tolist() == [5, 8, 11, 14]
    assert dense_indices(20, 4, 3, position=1.0).tolist() == [10, 13, 16, 19]


def test_a_dense_clip_of_a_short_video_repeats_its_last_frame() -> None:
    assert dense_indices(5, 4, 2, position=1.0).tolist() == [0, 2, 4, 4]
    assert dense_indices(1, 3, 4).tolist() == [0, 0, 0]


def test_random_dense_clips_start_at_every_possible_frame() -> None:
    rng = np.random.default_rng(0)
    starts = {int(dense_indices(9, 3, 2, rng)[0]) for _ in range(200)}
    assert starts == {0, 1, 2, 3, 4}


def test_a_uniform_clip_takes_the_middle_of_each_segment() -> None:
    # 12 frames in 4 segments of 3: 0 1 2 | 3 4 5 | 6 7 8 | 9 10 11.
    assert uniform_indices(12, 4).tolist() == [1, 4, 7, 10]
    # 10 frames in 4 segments of 2.5: the middles are 1.25, 3.75, 6.25 and 8.75.
    assert uniform_indices(10, 4).tolist() == [1, 3, 6, 8]
    assert uniform_indices(2, 4).tolist() == [0, 0, 1, 1]


def test_a_random_uniform_clip_takes_one_frame_of_each_segment() -> None:
    rng = np.random.default_rng(0)
    drawn = np.stack([uniform_indices(12, 4, rng) for _ in range(200)])
    for segment in range(4):
        assert set(drawn[:, segment]) == {3 * segment, 3 * segment + 1, 3 * segment + 2}


def test_dense_views_go_from_the_first_start_to_the_last() -> None:
    views_VT = view_indices(20, 4, "dense", 3, clips=3)
    assert views_VT.tolist() == [[0, 3, 6, 9], [5, 8, 11, 14], [10, 13, 16, 19]]
    assert view_indices(20, 4, "dense", 3, clips=1).tolist() == [[5, 8, 11, 14]]


def test_uniform_views_share_no_frame_and_a_single_one_is_central() -> None:
    # 16 frames in 4 segments of 4, each view at a quarter and three quarters of them.
    assert view_indices(16, 4, "uniform", 9, clips=2).tolist() == [[1, 5, 9, 13], [3, 7, 11, 15]]
    assert view_indices(12, 4, "uniform", 9, clips=1).tolist() == [uniform_indices(12, 4).tolist()]


class _Draws:
    """Stands for a generator: draws the least or the greatest that is asked for."""

    def __init__(self, greatest: bool) -> None:
        self.greatest = greatest

    def integers(self, low: int, high: int | None = None, size: int | None = None) -> object:
        low, high = (0, low) if high is None else (low, high)
        drawn = high - 1 if self.greatest else low
        return drawn if size is None else np.full(size, drawn)


def _published(n_frames: int, frames: int, sampling: str, stride: int, purpose: str) -> list[list[int]]:
    """The clips of VideoMAE's code for the least and the greatest draw."""
    return [
        train_indices(n_frames, frames, sampling, stride, _Draws(greatest), purpose).tolist()  # type: ignore[arg-type]
        for greatest in (False, True)
    ]


def test_published_pre_training_starts_while_t_strides_are_left_and_never_takes_the_last_frame() -> None:
    # kinetics.py, VideoMAE: offset = randint(20 - 4 * 3 + 1); ours could start at 10, two later.
    assert _published(20, 4, "dense", 3, "pretrain") == [[0, 3, 6, 9], [8, 11, 14, 17]]
    # Too short: the next frame is taken while it lies before the last one.
    assert _published(9, 4, "dense", 3, "pretrain") == [[0, 3, 6, 6]] * 2
    assert _published(8, 4, "dense", 3, "pretrain") == [[0, 3, 6, 6]] * 2
    assert _published(7, 4, "dense", 3, "pretrain") == [[0, 3, 3, 3]] * 2
    assert _published(1, 4, "dense", 3, "pretrain") == [[0, 0, 0, 0]] * 2


def test_published_dense_fine_tuning_spreads_its_frames_over_t_strides() -> None:
    # kinetics.py, VideoClsDataset: linspace(end - 64, end, 16), end from 64 to 99: a stride of 64 / 15.
    first, last = _published(100, 16, "dense", 4, "finetune")
    assert first == [0, 4, 8, 12, 17, 21, 25, 29, 34, 38, 42, 46, 51, 55, 59, 63]
    assert last == [35 + index for index in first]
    # Too short: linspace(0, 10, 10 // 3) and the last frame; its own last value, 10, is no frame.
    assert _published(10, 4, "dense", 3, "finetune") == [[0, 5, 9, 9]] * 2
    assert _published(2, 4, "dense", 3, "finetune") == [[1, 1, 1, 1]] * 2


def test_published_uniform_training_has_segments_of_whole_frames() -> None:
    # ssv2.py: 11 // 4 = 2 frames a segment, so frames 8 to 10 are never seen.
    assert _published(11, 4, "uniform", 9, "finetune") == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert _published(3, 4, "uniform", 9, "finetune") == [[0, 0, 0, 0]] * 2


def test_published_uniform_views_begin_and_halve_their_segments() -> None:
    # ssv2.py: int(tick * x) and int(tick / 2 + tick * x) with a tick of 10 / 4.
    views_VT = view_indices(10, 4, "uniform", 9, clips=2, published=True)
    assert views_VT.tolist() == [[0, 2, 5, 7], [1, 3, 6, 8]]


def test_published_dense_views_start_at_multiples_of_the_stride() -> None:
    # kinetics.py: of 100 frames every fourth, 25; views of 16 begin at int(2.25 * view) of them.
    views_VT = view_indices(100, 16, "dense", 4, clips=5, published=True)
    assert [view_T[0] for view_T in views_VT] == [0, 8, 16, 24, 36]
    assert all(np.diff(view_T).tolist() == [4] * 15 for view_T in views_VT)
    # Too short: 0, 3, 6 and 9 of 11, and the last of these again.
    assert view_indices(11, 6, "dense", 3, 2, published=True).tolist() == [[0, 3, 6, 9, 9, 9]] * 2


def test_a_single_view_is_central_in_both_protocols() -> None:
    for sampling in ("uniform", "dense"):
        ours, published = (view_indices(50, 4, sampling, 3, 1, published=p) for p in (False, True))  # type: ignore[arg-type]
        assert ours.tolist() == published.tolist()


@given(
    st.integers(1, 400),
    st.integers(1, 32),
    st.integers(1, 8),
    st.sampled_from(["uniform", "dense"]),
    st.sampled_from([None, "pretrain", "finetune"]),
    st.integers(),
)
def test_indices_lie_in_the_video_and_never_go_back(
    n_frames: int, frames: int, stride: int, sampling: str, published: str | None, seed: int
) -> None:
    rng = np.random.default_rng(abs(seed))
    clip_T = train_indices(n_frames, frames, sampling, stride, rng, published)  # type: ignore[arg-type]
    views_VT = view_indices(n_frames, frames, sampling, stride, 3, published is not None)  # type: ignore[arg-type]
    for indices_T in (clip_T, *views_VT):
        assert indices_T.shape == (frames,)
        assert indices_T.min() >= 0
        assert indices_T.max() < n_frames
        assert (np.diff(indices_T) >= 0).all()


@pytest.mark.parametrize("sampling", ["uniform", "dense"])
def test_the_same_generator_state_draws_the_same_clip(sampling: str) -> None:
    first, second = (
        train_indices(100, 8, sampling, 4, np.random.default_rng(7))  # type: ignore[arg-type]
        for _ in range(2)
    )
    assert first.tolist() == second.tolist()


def test_the_model_sees_bytes_with_imagenets_mean_and_deviation_taken_out() -> None:
    views_BVCTHW = torch.randint(0, 256, (2, 2, 3, 4, 5, 6), dtype=torch.uint8)
    normalised_BVCTHW = normalise(views_BVCTHW)
    assert normalised_BVCTHW.dtype == torch.float32
    for channel, (mean, deviation) in enumerate(((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))):
        value = views_BVCTHW[1, 0, channel, 2, 3, 4].item()
        expected = (value / 255 - mean) / deviation
        assert normalised_BVCTHW[1, 0, channel, 2, 3, 4].item() == pytest.approx(expected, abs=1e-5)


def test_normalising_changes_no_clip_in_place() -> None:
    video_CTHW = torch.full((3, 1, 2, 2), 9.0)
    normalise(video_CTHW)
    assert (video_CTHW == 9).all()


def test_erasing_fills_the_box_in_every_frame_and_nothing_else() -> None:
    video_BCTHW = torch.full((2, 3, 4, 10, 10), 9, dtype=torch.uint8)
    noise_CTHW = torch.randn(3, 4, 4, 5)
    batch = Batch(
        video_BCTHW, torch.zeros(2), torch.arange(2), (Erased(1, slice(2, 6), slice(3, 8), noise_CTHW),)
    )
    normalised_BCTHW = batch.normalised(torch.device("cpu"))
    plain_BCTHW = normalise(video_BCTHW)
    assert torch.equal(normalised_BCTHW[1, :, :, 2:6, 3:8], noise_CTHW)
    normalised_BCTHW[1, :, :, 2:6, 3:8] = plain_BCTHW[1, :, :, 2:6, 3:8]
    assert torch.equal(normalised_BCTHW, plain_BCTHW)

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


@given(
    st.integers(1, 400),
    st.integers(1, 32),
    st.integers(1, 8),
    st.sampled_from(["uniform", "dense"]),
    st.integers(),
)
def test_indices_lie_in_the_video_and_never_go_back(
    n_frames: int, frames: int, stride: int, sampling: str, seed: int
) -> None:
    rng = np.random.default_rng(abs(seed))
    clip_T = train_indices(n_frames, frames, sampling, stride, rng)  # type: ignore[arg-type]
    views_VT = view_indices(n_frames, frames, sampling, stride, 3)  # type: ignore[arg-type]
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

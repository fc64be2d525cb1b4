"""The pictures: the right pixels in the right places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from tats_core.report import figures

T, H, W = 4, 16, 16
RNG = np.random.default_rng(0)
FRAMES = RNG.integers(60, 256, (T, H, W, 3), dtype=np.uint8)
VISIBLE = np.zeros((2, 2, 2), bool)  # tokens of 2 × 8 × 8
VISIBLE[0, 0, 1] = True
POLICY = np.full((2, 2, 2), 0.1)
POLICY[1, 1, 0] = 0.3
ERROR = np.ones((2, 2, 2))
ERROR[0, 0, 1] = np.nan
SCALE = 7  # 16 pixels become 112

LEFT, TOP, STEP = 124, 44, 112 + 4


def grid() -> np.ndarray[Any, Any]:
    """Draw the clip above."""
    picture = figures.mask_grid(FRAMES, VISIBLE, POLICY, FRAMES, ERROR, title="a clip")
    return np.asarray(picture)


def tile(picture: np.ndarray[Any, Any], row: int, column: int) -> np.ndarray[Any, Any]:
    """Return the frame at `row`, `column` at its own size."""
    y, x = TOP + row * STEP, LEFT + column * STEP
    return picture[y : y + 112 : SCALE, x : x + 112 : SCALE]


def test_the_first_row_is_the_video_enlarged_by_whole_pixels() -> None:
    picture = grid()
    for frame in range(T):
        np.testing.assert_array_equal(tile(picture, 0, frame), FRAMES[frame])
    enlarged = picture[TOP : TOP + SCALE, LEFT : LEFT + SCALE]
    assert (enlarged == FRAMES[0, 0, 0]).all()


def test_the_second_row_shows_the_visible_token_and_hides_all_others() -> None:
    picture = grid()
    for frame in (0, 1):
        shown = tile(picture, 1, frame)
        np.testing.assert_array_equal(shown[:8, 8:], FRAMES[frame, :8, 8:])
        assert (shown[8:] == 58).all()
        assert (shown[:, :8] == 58).all()
    assert (tile(picture, 1, 2) == 58).all()


def test_the_policy_is_brightest_at_its_largest_value_with_one_scale_for_all_frames() -> None:
    colours = mpl.colormaps["viridis"]
    picture = grid()
    low, high = (np.round(np.array(colours(share)[:3]) * 255) for share in (0.1 / 0.3, 1.0))
    assert (tile(picture, 2, 0) == low).all()
    assert (tile(picture, 2, 3)[8:, :8] == high).all()
    assert (tile(picture, 2, 3)[:8] == low).all()


def test_where_there_is_no_error_the_map_is_grey() -> None:
    picture = grid()
    assert (tile(picture, 4, 0)[:8, 8:] == 128).all()
    assert not (tile(picture, 4, 0)[8:] == 128).all(-1).any()


def test_a_prediction_between_0_and_1_is_shown_like_the_same_bytes() -> None:
    bytes_drawn = figures.mask_grid(FRAMES, VISIBLE, POLICY, FRAMES, ERROR, title="x")
    floats_drawn = figures.mask_grid(FRAMES, VISIBLE, POLICY, FRAMES / 255, ERROR, title="x")
    assert bytes_drawn.tobytes() == floats_drawn.tobytes()


def test_of_a_long_clip_eight_frames_are_shown_from_first_to_last() -> None:
    frames = np.repeat(np.arange(30, dtype=np.uint8)[:, None, None, None], 16, 1).repeat(16, 2).repeat(3, 3)
    whole = np.ones((30, 1, 1))
    picture = np.asarray(figures.mask_grid(frames, whole, whole, frames, whole, title=""))
    assert picture.shape[1] == LEFT + 8 * STEP
    assert tile(picture, 0, 0)[0, 0, 0] == 0
    assert tile(picture, 0, 7)[0, 0, 0] == 29


def test_a_map_that_does_not_divide_the_video_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"policy_THW has shape \(3, 2, 2\), which does not divide \(4, 16, 16\)"
    ):
        figures.mask_grid(FRAMES, VISIBLE, np.ones((3, 2, 2)), FRAMES, ERROR, title="")


def test_a_policy_of_zeros_is_drawn_without_a_warning() -> None:
    figures.mask_grid(FRAMES, VISIBLE, np.zeros((2, 2, 2)), FRAMES, np.full((2, 2, 2), np.nan), title="")


def test_the_gif_has_a_picture_for_every_frame_of_the_clip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "clip.gif"
    figures.mask_gif(FRAMES, VISIBLE, POLICY, FRAMES, ERROR, path, title="a clip")
    with Image.open(path) as gif:
        assert (gif.n_frames, gif.info["loop"]) == (T, 0)  # type: ignore[attr-defined]
        assert gif.size == (5 * STEP - 4, 112 + 44)


ROWS = [
    {"benchmark": "ssv2", "init": "pretrained", "top1": 50.0, "low": 40.0, "high": 61.0, "chance": 10.0},
    {"benchmark": "ssv2", "init": "scratch", "top1": 30.0, "low": 22.0, "high": 40.0, "chance": 10.0},
    {"benchmark": "ucf101", "init": "scratch", "top1": 20.0, "chance": 12.5, "linear_top1": 15.0},
]


def test_the_chart_has_a_bar_of_the_right_height_for_every_row() -> None:
    (axes,) = figures.results_chart(ROWS).axes
    assert sorted(bar.get_height() for bar in axes.patches) == [20.0, 30.0, 50.0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["ssv2", "ucf101"]


def test_the_chart_has_an_interval_only_where_one_was_measured() -> None:
    (axes,) = figures.results_chart(ROWS).axes
    ends = sorted(
        tuple(segment[:, 1])
        for bars in axes.collections
        for segment in bars.get_segments()  # type: ignore[attr-defined]
    )
    assert ends == [(22.0, 40.0), (40.0, 61.0)]


def test_the_chart_explains_only_what_it_shows() -> None:
    (axes,) = figures.results_chart(ROWS[:2]).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "pre-trained",
        "from scratch",
        "chance",
    ]


def test_curves_keep_their_points_and_name_the_reference_line(tmp_path: Path) -> None:
    figure = figures.curves(
        {"TATS": ([1, 2, 3], [1.0, 2.0, 2.5]), "random": ([1, 2, 3], [1.0, 1.1, 0.9])},
        title="Motion lift", y_label="motion lift", references={"blind to motion": 1.0},
    )  # fmt: skip
    (axes,) = figure.axes
    tats, random, reference = axes.lines
    np.testing.assert_array_equal(tats.get_ydata(), [1.0, 2.0, 2.5])
    assert tats.get_linestyle() != random.get_linestyle()
    assert list(reference.get_ydata()) == [1.0, 1.0]
    assert [text.get_text() for text in axes.texts] == ["blind to motion"]
    figure.savefig(tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (980, 532)

"""The mask pictures: the right pixels in the right places."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from tats_core.report import masks
from tats_core.report.masks import Picture

T, H, W = 4, 16, 16
RNG = np.random.default_rng(0)
FRAMES = RNG.integers(60, 256, (T, H, W, 3), dtype=np.uint8)
VISIBLE = np.zeros((2, 2, 2), bool)  # tokens of 2 × 8 × 8
VISIBLE[0, 0, 1] = True
POLICY = np.full((2, 2, 2), 0.1)
POLICY[1, 1, 0] = 0.3
VALUE = np.zeros((2, 2, 2))
VALUE[0, 0, 0], VALUE[1, 1, 1] = -0.5, 2.0
ERROR = np.ones((2, 2, 2))
ERROR[0, 0, 1] = np.nan
SCALE = 7  # 16 pixels become 112

LEFT, TOP, STEP = 156, 64, 112 + 4
ROWS = ("video", "visible", "policy", "value", "prediction", "error")
CLIP = Picture(FRAMES, VISIBLE, FRAMES, ERROR, policy_THW=POLICY, value_THW=VALUE)


def grid() -> np.ndarray[Any, Any]:
    """Draw the clip above."""
    return np.asarray(masks.mask_grid(CLIP, title="a clip"))


def tile(picture: np.ndarray[Any, Any], row: str, column: int) -> np.ndarray[Any, Any]:
    """Return the frame at `row`, `column` at its own size."""
    y, x = TOP + ROWS.index(row) * STEP, LEFT + column * STEP
    return picture[y : y + 112 : SCALE, x : x + 112 : SCALE]


def test_the_first_row_is_the_video_enlarged_by_whole_pixels() -> None:
    picture = grid()
    for frame in range(T):
        np.testing.assert_array_equal(tile(picture, "video", frame), FRAMES[frame])
    enlarged = picture[TOP : TOP + SCALE, LEFT : LEFT + SCALE]
    assert (enlarged == FRAMES[0, 0, 0]).all()


def test_the_second_row_shows_the_visible_token_and_hides_all_others() -> None:
    picture = grid()
    for frame in (0, 1):
        visible = tile(picture, "visible", frame)
        np.testing.assert_array_equal(visible[:8, 8:], FRAMES[frame, :8, 8:])
        assert (visible[8:] == 58).all()
        assert (visible[:, :8] == 58).all()
    assert (tile(picture, "visible", 2) == 58).all()


def test_the_policy_is_brightest_at_its_largest_value_with_one_scale_for_all_frames() -> None:
    colours = mpl.colormaps["viridis"]
    picture = grid()
    low, high = (np.round(np.array(colours(share)[:3]) * 255) for share in (0.1 / 0.3, 1.0))
    assert (tile(picture, "policy", 0) == low).all()
    assert (tile(picture, "policy", 3)[8:, :8] == high).all()
    assert (tile(picture, "policy", 3)[:8] == low).all()


def test_motion_has_a_row_below_the_video_where_it_was_measured() -> None:
    motion = np.zeros((T, H, W))
    motion[0, :8] = 3.0
    with_motion = replace(CLIP, motion_THW=motion, motion_remarks=("optical flow, pixels",))
    picture = np.asarray(masks.mask_grid(with_motion, title="").convert("RGB"))
    top = picture[TOP + STEP : TOP + 2 * STEP - 4, LEFT : LEFT + 112]
    brightest, darkest = (np.array(mpl.colormaps["cividis"](end)[:3]) * 255 for end in (1.0, 0.0))
    assert np.abs(top[:56].mean((0, 1)) - brightest).max() < 1
    assert np.abs(top[56:].mean((0, 1)) - darkest).max() < 1


def test_values_are_coloured_from_purple_to_orange_with_zero_in_the_middle() -> None:
    colours = mpl.colormaps["PuOr_r"]
    picture = grid()
    low, zero, high = (np.round(np.array(colours(share)[:3]) * 255) for share in (0.375, 0.5, 1.0))
    assert (tile(picture, "value", 0)[:8, :8] == low).all()
    assert (tile(picture, "value", 0)[8:] == zero).all()
    assert (tile(picture, "value", 3)[8:, 8:] == high).all()


def test_a_row_that_a_sampler_does_not_have_is_absent() -> None:
    whole, blind = (masks.mask_grid(picture, title="") for picture in (CLIP, replace(CLIP, policy_THW=None)))
    assert whole.height - blind.height == STEP
    fixed = masks.mask_grid(replace(CLIP, policy_THW=None, value_THW=None), title="")
    assert fixed.height == TOP + 4 * STEP
    # What stood below has moved up.
    np.testing.assert_array_equal(np.asarray(fixed)[TOP + 3 * STEP :, LEFT:], grid()[TOP + 5 * STEP :, LEFT:])


def test_a_heading_wider_than_the_picture_is_not_cut() -> None:
    assert masks.mask_grid(CLIP, title="long " * 50).width > masks.mask_grid(CLIP, title="").width


def test_where_there_is_no_error_the_map_is_grey() -> None:
    picture = grid()
    assert (tile(picture, "error", 0)[:8, 8:] == 128).all()
    assert not (tile(picture, "error", 0)[8:] == 128).all(-1).any()


def test_a_prediction_between_0_and_1_is_shown_like_the_same_bytes() -> None:
    floats = replace(CLIP, prediction_THWC=FRAMES / 255)
    assert masks.mask_grid(CLIP, title="x").tobytes() == masks.mask_grid(floats, title="x").tobytes()


def test_of_a_long_clip_eight_frames_are_shown_from_first_to_last() -> None:
    frames = np.repeat(np.arange(30, dtype=np.uint8)[:, None, None, None], 16, 1).repeat(16, 2).repeat(3, 3)
    whole = np.ones((30, 1, 1))
    clip = Picture(frames, whole, frames, whole)
    picture = np.asarray(masks.mask_grid(clip, title=""))
    assert picture.shape[1] == LEFT + 8 * STEP
    assert tile(picture, "video", 0)[0, 0, 0] == 0
    assert tile(picture, "video", 7)[0, 0, 0] == 29


def test_a_map_that_does_not_divide_the_video_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"policy_THW has shape \(3, 2, 2\), which does not divide \(4, 16, 16\)"
    ):
        masks.mask_grid(replace(CLIP, policy_THW=np.ones((3, 2, 2))), title="")


def test_maps_of_zeros_or_without_a_value_are_drawn_without_a_warning() -> None:
    nothing, none = np.zeros((2, 2, 2)), np.full((2, 2, 2), np.nan)
    masks.mask_grid(Picture(FRAMES, VISIBLE, FRAMES, none, nothing, nothing), title="")


def test_the_gif_has_a_picture_for_every_frame_of_the_clip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "clip.gif"
    masks.mask_gif(CLIP, path, title="a clip")
    with Image.open(path) as gif:
        assert (gif.n_frames, gif.info["loop"]) == (T, 0)  # type: ignore[attr-defined]
        assert gif.size == (6 * STEP - 4, TOP + 112 + 34)


def test_the_gif_keeps_the_colour_scales_and_they_stay_as_they_are(tmp_path: Path) -> None:
    # Bright noise wants all of a GIF's colours for itself, and other ones in every frame.
    masks.mask_gif(CLIP, tmp_path / "clip.gif", title="a clip")
    with Image.open(tmp_path / "clip.gif") as gif:
        frames = []
        for frame in range(T):
            gif.seek(frame)
            frames.append(np.asarray(gif.convert("RGB")).astype(int))
    assert all((frame[TOP + 112 :] == frames[0][TOP + 112 :]).all() for frame in frames)
    for row, colours, middle in (("policy", "viridis", 0.1 / 0.3), ("value", "PuOr_r", 0.5)):
        x = ROWS.index(row) * STEP
        bar_XC = frames[0][TOP + 112 + 10, x + 2 : x + 2 + 112]
        exact_XC = mpl.colormaps[colours](np.linspace(0, 1, 112))[:, :3] * 255
        assert np.abs(bar_XC - exact_XC).max() < 16
        expected_C = np.array(mpl.colormaps[colours](middle)[:3]) * 255
        assert np.abs(frames[2][TOP, x] - expected_C).max() < 16

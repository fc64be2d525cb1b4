from __future__ import annotations

import colorsys
import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from tats_core.data import transforms
from tats_core.data.transforms import Box, Colour

PLAIN = Colour(np.eye(3), 1.0)


def frames(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def recoloured(rgb: list[float], colour: Colour) -> list[float]:
    """Return what becomes of one colour (values 0 to 255) in a clip of that colour alone."""
    clip_BCTHW = torch.tensor(rgb).to(torch.uint8).view(1, 3, 1, 1, 1).expand(1, 3, 2, 4, 4)
    recoloured_BCTHW = transforms.recolour(clip_BCTHW, [colour])
    assert len(recoloured_BCTHW.flatten(2).unique(dim=2).squeeze()) == 3
    return recoloured_BCTHW[0, :, 0, 0, 0].tolist()


# ---------------------------------------------------------------------------------------------- boxes


def test_test_crops_are_squares_from_one_end_of_the_longer_side_to_the_other() -> None:
    assert transforms.view_boxes(4, 10, 1, 3) == [Box(0, 0, 4, 4), Box(0, 3, 4, 4), Box(0, 6, 4, 4)]
    assert transforms.view_boxes(9, 5, 1, 3) == [Box(0, 0, 5, 5), Box(2, 0, 5, 5), Box(4, 0, 5, 5)]
    assert transforms.view_boxes(4, 11, 1, 3)[1] == transforms.central_box(4, 11) == Box(0, 3, 4, 4)
    assert transforms.view_boxes(4, 10, 1, 1) == [transforms.central_box(4, 10)] == [Box(0, 3, 4, 4)]


def test_crops_of_a_clip_that_is_not_square_have_its_proportions() -> None:
    # 2 : 1 in 12 × 30: the whole height and 6 columns left over; in 12 × 18 the whole width.
    assert transforms.view_boxes(12, 30, (1, 2), 3) == [Box(0, left, 12, 24) for left in (0, 3, 6)]
    assert transforms.central_box(12, 18, (1, 2)) == Box(1, 0, 9, 18)
    rng = np.random.default_rng(0)
    boxes = [transforms.multi_scale_box(80, 120, (20, 10), (1.0, 0.5), rng) for _ in range(300)]
    assert {(box.height, box.width) for box in boxes} == {(80, 40), (40, 20), (80, 20), (40, 40)}
    ratio = [
        box.width / box.height
        for box in (
            transforms.random_resized_box(100, 140, (0.2, 0.3), (0.75, 4 / 3), rng, (20, 10))
            for _ in range(300)
        )
    ]
    assert 0.36 < min(ratio) < 0.4
    assert 0.62 < max(ratio) < 0.69
    frames_THWC = frames(2, 12, 30, 3)
    cut_THWC = transforms.crop_resize(frames_THWC, Box(0, 0, 12, 24), (12, 24))
    assert torch.equal(cut_THWC, frames_THWC[:, :, :24])
    # 24 × 30 just covers 12 × 10 as 12 × 15, and 10 × 4 as 10 × 12.
    for size, lefts in (((12, 10), (0, 5)), ((10, 4), (0, 8))):
        crops = transforms.crops_of_test(frames(2, 24, 30, 3), size, 2)
        resized_THWC = transforms._resized(frames(2, 24, 30, 3), size[0], size[1] + lefts[1])
        assert [crop.shape[1:3] for crop in crops] == [size, size]
        for crop_THWC, left in zip(crops, lefts, strict=True):
            assert torch.equal(crop_THWC, resized_THWC[:, :, left : left + size[1]])


def test_crops_of_the_test_are_cut_from_the_resized_frame() -> None:
    # 6 × 9 to 4 × 6: columns 0, 1 and 2 are the crops' left ends; a ramp over the columns stays one.
    columns_W = torch.arange(0, 180, 20, dtype=torch.uint8)
    frames_THWC = columns_W.view(1, 1, 9, 1).expand(2, 6, 9, 3)
    crops = transforms.crops_of_test(frames_THWC, 4, 3)
    assert [tuple(crop.shape) for crop in crops] == [(2, 4, 4, 3)] * 3
    assert torch.equal(crops[0][..., 1:, :], crops[1][..., :3, :])
    assert torch.equal(crops[1][..., 1:, :], crops[2][..., :3, :])
    # Of one size, nothing is resized; of a square, the only crop is all of it.
    assert torch.equal(transforms.crops_of_test(frames_THWC, 6, 1)[0], frames_THWC[:, :, 1:7])
    square_THWC = frames_THWC[:, :, :6]
    (whole_THWC,) = transforms.crops_of_test(square_THWC, 4, 1)
    assert torch.equal(whole_THWC, transforms.crop_resize(square_THWC, Box(0, 0, 6, 6), 4))


def test_multi_scale_crops_have_near_sides_and_lie_at_the_thirteen_places() -> None:
    rng = np.random.default_rng(0)
    boxes = [transforms.multi_scale_box(80, 120, 16, (1.0, 0.75, 0.5), rng) for _ in range(3000)]
    assert {(box.height, box.width) for box in boxes} == {
        *((80, 80), (60, 60), (40, 40)),
        *((80, 60), (60, 80), (60, 40), (40, 60)),
    }
    places = {(box.top, box.left) for box in boxes if (box.height, box.width) == (40, 40)}
    quarters = {(down, across) for down in (0, 10, 20, 30, 40) for across in (0, 20, 40, 60, 80)}
    assert len(places) == 13
    assert places < quarters
    assert {(0, 0), (40, 80), (20, 40), (10, 20), (30, 60)} < places


def test_the_ten_pairs_of_videomaes_four_sides_are_equally_likely() -> None:
    rng = np.random.default_rng(0)
    boxes = [transforms.multi_scale_box(320, 426, 112, transforms.MULTI_SCALES, rng) for _ in range(20_000)]
    counted = Counter((box.height, box.width) for box in boxes)
    # 320 times 1, .875, .75 and .66, rounded down: 211.2 is 211.
    sides = [320, 280, 240, 211]
    assert counted.keys() == {(a, b) for i, a in enumerate(sides) for b in sides[max(0, i - 1) : i + 2]}
    # .1 of 20,000 each, five deviations of a binomial: 5 * sqrt(20,000 * .1 * .9) = 212.
    assert all(abs(times - 2000) < 212 for times in counted.values())


def test_a_crop_side_within_two_pixels_of_the_clip_becomes_its_size_so_that_nothing_is_resized() -> None:
    rng = np.random.default_rng(0)

    def sides(shorter: int, size: int) -> set[int]:
        boxes = (transforms.multi_scale_box(shorter, 900, size, (1.0, 0.875), rng) for _ in range(99))
        return {side for box in boxes for side in (box.height, box.width)}

    # 256 * .875 = 224; 258 * .875 = 225.75, 225 rounded down; 259 * .875 = 226; 260 * .875 = 227, too far.
    assert [sides(shorter, 224) for shorter in (256, 258, 259, 260)] == [
        {256, 224},
        {258, 224},
        {259, 224},
        {260, 227},
    ]
    assert sides(225, 224) == {224, 196}
    assert sides(223, 224) == {223, 195}  # a crop never leaves the frame; VideoMAE's has a black border then


def test_a_crops_place_is_a_whole_number_of_quarters_rounded_down() -> None:
    rng = np.random.default_rng(0)
    boxes = [transforms.multi_scale_box(40, 51, 9, (1.0,), rng) for _ in range(300)]
    assert {(box.top, box.left) for box in boxes} == {(0, left) for left in (0, 2, 4, 6, 8)}  # 11 // 4 = 2


def test_random_resized_crops_keep_to_area_and_ratio() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        box = transforms.random_resized_box(100, 140, (0.2, 0.5), (0.75, 4 / 3), rng)
        assert 0 <= box.top <= 100 - box.height
        assert 0 <= box.left <= 140 - box.width
        assert 0.19 < box.height * box.width / 14_000 < 0.52
        assert 0.73 < box.width / box.height < 1.37


def test_a_random_resized_crop_that_cannot_fit_is_the_central_square() -> None:
    rng = np.random.default_rng(0)
    assert transforms.random_resized_box(10, 100, (1.0, 1.0), (1.0, 1.0), rng) == Box(0, 45, 10, 10)


def test_a_share_of_the_clips_is_erased_in_a_box_that_fits() -> None:
    rng = np.random.default_rng(0)
    boxes = [transforms.draw_erased(50, 0.25, rng) for _ in range(2000)]
    drawn = [box for box in boxes if box is not None]
    assert 0.2 < len(drawn) / len(boxes) < 0.3
    assert all(box.top + box.height <= 50 and box.left + box.width <= 50 for box in drawn)
    areas = [box.height * box.width / 2500 for box in drawn]
    ratios = [box.width / box.height for box in drawn]
    # 2% to a third of the frame and 0.3 to 3.3 before the sides are rounded to whole pixels.
    assert 0.015 < min(areas) < 0.04
    assert 0.3 < max(areas) < 0.36
    assert 0.25 < min(ratios) < 0.4
    assert 2.5 < max(ratios) < 4
    assert {transforms.draw_erased(50, 0.0, rng) for _ in range(99)} == {None}
    assert None not in {transforms.draw_erased(50, 1.0, rng) for _ in range(99)}


# --------------------------------------------------------------------------------------------- pixels


def test_a_crop_of_the_right_size_is_a_copy_of_the_pixels_and_a_flip_mirrors_them() -> None:
    clip_THWC = frames(2, 8, 9, 3)
    cut_THWC = transforms.crop_resize(clip_THWC, Box(1, 3, 4, 4), 4)
    assert torch.equal(cut_THWC, clip_THWC[:, 1:5, 3:7])
    flipped_THWC = transforms.crop_resize(clip_THWC, Box(1, 3, 4, 4), 4, flip=True)
    assert torch.equal(flipped_THWC, clip_THWC[:, 1:5, 3:7].flip(2))


def test_halving_a_checkerboard_gives_grey_not_stripes() -> None:
    board_HW = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 255
    clip_THWC = board_HW.to(torch.uint8)[None, :, :, None].expand(1, 16, 16, 3)
    half_THWC = transforms.crop_resize(clip_THWC, Box(0, 0, 16, 16), 8)
    assert half_THWC.float().mean().item() == pytest.approx(127.5, abs=1)
    assert half_THWC[:, 1:-1, 1:-1].float().std().item() < 1


def test_resizing_in_uint8_equals_resizing_in_float_up_to_rounding() -> None:
    clip_THWC = frames(3, 40, 60, 3)
    box = Box(5, 7, 30, 41)
    small_THWC = transforms.crop_resize(clip_THWC, box, 24)
    cut_TCHW = clip_THWC[:, 5:35, 7:48].permute(0, 3, 1, 2).float()
    reference_TCHW = interpolate(cut_TCHW, (24, 24), mode="bilinear", antialias=True)
    assert (small_THWC.permute(0, 3, 1, 2) - reference_TCHW).abs().max().item() <= 1.01


def test_without_antialiasing_a_reduced_pixel_is_a_mean_of_its_four_neighbours_alone() -> None:
    # 8 columns to 2: centres at 1.5 and 5.5, so the means of columns 1 and 2 and of 5 and 6, as OpenCV's.
    columns_W = torch.tensor([0, 10, 50, 200, 0, 40, 80, 0], dtype=torch.uint8)
    frames_THWC = columns_W.view(1, 1, 8, 1).expand(1, 8, 8, 3)
    plain_THWC = transforms.crop_resize(frames_THWC, Box(0, 0, 8, 8), 2, antialias=False)
    assert plain_THWC[0, :, :, 0].tolist() == [[30, 60]] * 2
    (test_THWC,) = transforms.crops_of_test(frames_THWC, 2, 1, antialias=False)
    assert torch.equal(test_THWC, plain_THWC)
    assert not torch.equal(transforms.crop_resize(frames_THWC, Box(0, 0, 8, 8), 2), plain_THWC)


def test_a_clip_is_channels_first() -> None:
    clip_BTHWC = frames(2, 3, 4, 5, 3)
    video_BCTHW = transforms.channels_first(clip_BTHWC)
    assert (video_BCTHW.shape, video_BCTHW.dtype) == ((2, 3, 3, 4, 5), torch.uint8)
    assert video_BCTHW.is_contiguous()
    assert video_BCTHW[1, 1, 2, 3, 4] == clip_BTHWC[1, 2, 3, 4, 1]


def test_no_change_of_colour_changes_nothing() -> None:
    clip_BCTHW = frames(2, 3, 4, 5, 6)
    assert torch.equal(transforms.recolour(clip_BCTHW, [PLAIN, PLAIN]), clip_BCTHW)
    none = transforms.draw_colour(0.0, 0.0, np.random.default_rng(0))
    assert np.allclose(none.matrix, np.eye(3))
    assert none.contrast == 1


def test_each_clip_gets_its_own_colours() -> None:
    clip_BCTHW = torch.full((2, 3, 1, 2, 2), 100, dtype=torch.uint8)
    dark = Colour(0.5 * np.eye(3), 1.0)
    assert transforms.recolour(clip_BCTHW, [dark, PLAIN])[:, 0, 0, 0, 0].tolist() == [50, 100]


def test_contrast_works_around_the_mean_grey_of_the_whole_clip() -> None:
    # Half of the clip is 40, half 120: the mean is 80, and half the contrast gives 60 and 100.
    clip_BCTHW = torch.full((1, 3, 2, 2, 2), 40, dtype=torch.uint8)
    clip_BCTHW[:, :, 1] = 120
    recoloured_BCTHW = transforms.recolour(clip_BCTHW, [Colour(np.eye(3), 0.5)])
    assert recoloured_BCTHW[0, :, 0, 0, 0].tolist() == [60] * 3
    assert recoloured_BCTHW[0, :, 1, 0, 0].tolist() == [100] * 3


def test_colours_end_at_black_and_white() -> None:
    assert recoloured([200, 100, 0], Colour(2 * np.eye(3), 1.0)) == pytest.approx([255, 200, 0], abs=1e-3)


def test_a_third_of_the_colour_circle_turns_red_into_green_and_leaves_grey() -> None:
    turn = transforms._turn(2 * math.pi / 3)
    assert recoloured([200, 40, 10], Colour(turn, 1.0)) == pytest.approx([10, 200, 40], abs=1e-3)
    for angle in (0.3, 1.0, 2.5):
        assert recoloured([90, 90, 90], Colour(transforms._turn(angle), 1.0)) == pytest.approx(
            [90] * 3, abs=1e-3
        )
        hue, *_ = colorsys.rgb_to_hsv(*(np.array([0.6, 0.5, 0.4]) @ transforms._turn(angle)))
        before, *_ = colorsys.rgb_to_hsv(0.6, 0.5, 0.4)
        # Not exactly HSV's hue, but the same direction and nearly the same way.
        assert (hue - before) % 1 == pytest.approx(angle / (2 * math.pi), abs=0.03)


def test_jitter_stays_within_its_factors() -> None:
    rng = np.random.default_rng(0)
    colours = [transforms.draw_colour(0.4, 0.0, rng) for _ in range(500)]
    # A grey stays grey, so a row sum of the transposed matrix is the brightness alone.
    brightness = np.array([np.ones(3) @ colour.matrix for colour in colours])
    assert np.allclose(brightness, brightness[:, :1])
    for factors in (brightness[:, 0], np.array([colour.contrast for colour in colours])):
        assert 0.6 <= factors.min() < 0.65
        assert 1.35 < factors.max() <= 1.4


@pytest.mark.parametrize("antialias", [True, False])
def test_resizing_in_floats_as_gpus_do_is_within_a_grey_level(antialias: bool) -> None:
    frames_THWC = frames(2, 24, 31, 3)
    for height, width in ((16, 16), (9, 31), (40, 50)):
        bytes_THWC = transforms._resized(frames_THWC, height, width, antialias)
        floats_TCHW = torch.nn.functional.interpolate(
            frames_THWC.permute(0, 3, 1, 2).float(), (height, width), mode="bilinear", antialias=antialias
        )
        difference = transforms.in_bytes(floats_TCHW).permute(0, 2, 3, 1).int() - bytes_THWC.int()
        assert difference.abs().max() <= 1


def test_shrinking_keeps_the_shape_and_never_enlarges() -> None:
    frames_THWC = torch.zeros(2, 60, 90, 3, dtype=torch.uint8)
    assert transforms.shrink(frames_THWC, 20).shape == (2, 20, 30, 3)
    assert transforms.shrink(frames_THWC.transpose(1, 2), 20).shape == (2, 30, 20, 3)
    for short_side in (60, 61, None):
        assert transforms.shrink(frames_THWC, short_side) is frames_THWC

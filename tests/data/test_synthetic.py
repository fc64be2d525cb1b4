"""Scenes whose class is decided by motion alone.

Axes: B clips, T frames, H W pixels, C colours.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from tats_core.data.generate import GenerateConfig
from tats_core.data.synthetic import MOTIONS, VOCABULARIES, SceneConfig, _light, render

_SMALL = SceneConfig(size=32, sprite_radius=(4.5, 6.5))


def _clips(benchmark: str, per_class: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    names = VOCABULARIES[benchmark]
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(names)), per_class)
    videos = [render(benchmark, names[label], _SMALL, 8, rng)[0] for label in labels]
    return np.stack(videos).astype(np.float64).mean(-1) / 255, labels


def _correlation(first_BHW: np.ndarray, second_BHW: np.ndarray) -> np.ndarray:
    """Circular cross-correlation near zero shift: where the second picture lies beside the first."""
    spectra = [np.fft.fft2(x - x.mean((1, 2), keepdims=True)) for x in (first_BHW, second_BHW)]
    shifts = np.fft.fftshift(np.fft.ifft2(spectra[0].conj() * spectra[1]).real, axes=(1, 2))
    centre = shifts.shape[1] // 2
    near = shifts[:, centre - 6 : centre + 7, centre - 6 : centre + 7].reshape(len(shifts), -1)
    return near / np.linalg.norm(near, axis=1, keepdims=True)


def _ridge_accuracy(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, labels: np.ndarray
) -> float:
    mean, deviation = train.mean(0), train.std(0) + 1e-6
    train, test = (train - mean) / deviation, (test - mean) / deviation
    target = np.eye(labels.max() + 1)[train_labels]
    weights = np.linalg.solve(
        train.T @ train + 0.3 * len(train) * np.eye(train.shape[1]), train.T @ (target - target.mean(0))
    )
    return float(((test @ weights).argmax(1) == labels).mean())


def _frame_features(videos_BTHW: np.ndarray, frame: int) -> np.ndarray:
    """All that the control below has, of one frame: its pixels and its correlation with itself."""
    one_BHW = videos_BTHW[:, frame]
    coarse = one_BHW.reshape(len(one_BHW), 8, 4, 8, 4).mean((2, 4)).reshape(len(one_BHW), -1)
    return np.concatenate([coarse, _correlation(one_BHW, one_BHW)], 1)


@pytest.mark.parametrize("benchmark", VOCABULARIES)
def test_a_classifier_on_one_frame_stays_at_chance_while_one_on_two_frames_does_not(benchmark):
    train, train_labels = _clips(benchmark, per_class=40, seed=1)
    test, labels = _clips(benchmark, per_class=40, seed=2)
    chance, clips = 1 / len(VOCABULARIES[benchmark]), len(labels)
    # Three standard deviations of guessing; four frames are tried on each of four benchmarks.
    bound = chance + 3 * math.sqrt(chance * (1 - chance) / clips)
    for frame in (0, 3, 4, 7):
        accuracy = _ridge_accuracy(
            _frame_features(train, frame), train_labels, _frame_features(test, frame), labels
        )
        assert accuracy < bound, f"frame {frame}: {accuracy:.3f}"
    pairs = ((0, 1), (3, 4), (6, 7))
    moving = [
        np.concatenate([_correlation(videos[:, a], videos[:, b]) for a, b in pairs], 1)
        for videos in (train, test)
    ]
    assert _ridge_accuracy(moving[0], train_labels, moving[1], labels) > 2.5 * chance


@pytest.mark.parametrize("benchmark", VOCABULARIES)
def test_every_class_travels_as_far_as_every_other_in_a_clip(benchmark):
    time = np.linspace(0, 1, 2001, dtype=np.float32)
    for motion, path in MOTIONS[benchmark].items():
        x, y = path(time, np.random.default_rng(0))
        way = np.hypot(np.diff(x), np.diff(y)).sum()
        assert way == pytest.approx(1, abs=0.01), motion


def test_the_same_generator_state_films_the_same_clip():
    first, second = (
        render("ssv2", VOCABULARIES["ssv2"][0], SceneConfig(), 8, np.random.default_rng(5)) for _ in range(2)
    )
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])


def test_the_ground_truth_marks_the_moving_sprite_and_nothing_that_stands_still():
    config = SceneConfig(still_sprites=2, background=0.0, texture=0.0)
    frames, motion = render("ucf101", "EastRun", config, 12, np.random.default_rng(3))
    changed = np.abs(np.diff(frames.astype(int), axis=0)).max(-1) > 8
    touched = motion[1:] | motion[:-1]
    # Edges are anti-aliased: a pixel beside the mask may change too, none farther away.
    for axis in (1, 2):
        touched = touched | np.roll(touched, 1, axis) | np.roll(touched, -1, axis)
    assert changed.any()
    assert not (changed & ~touched).any()


def test_a_sprite_that_leaves_on_one_side_enters_on_the_other():
    rng = np.random.default_rng(0)
    sizes = [render("ucf101", "EastRun", SceneConfig(), 16, rng)[1].sum((1, 2)) for _ in range(8)]
    for area_T in sizes:
        assert area_T.min() > 0.9 * area_T.max()


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        *(("noise", 0.2), ("background", 0.3), ("still_sprites", 3), ("camera_jitter", 2.0), ("colour", 1.0)),
        *(("camera_pan", 0.5), ("illumination", 0.4)),
    ],
)
def test_each_knob_changes_what_is_filmed(knob, value):
    plain, changed = (
        render("hmdb51", "up_then_left", config, 6, np.random.default_rng(1))[0].astype(int)
        for config in (SceneConfig(), SceneConfig(**{knob: value}))
    )
    assert np.abs(plain - changed).mean() > 0.5


def _of_tokens(pixels_THW: np.ndarray) -> np.ndarray:
    """Means over tokens of two frames and 8 x 8 pixels."""
    t, h, w = pixels_THW.shape
    return pixels_THW.reshape(t // 2, 2, h // 8, 8, w // 8, 8).mean((1, 3, 5)).ravel()


def _brightness_and_motion(preset: str, clips: int) -> float:
    """Mean over clips of the correlation, over a clip's tokens, of brightness and ground truth of motion."""
    config = GenerateConfig.model_validate({"preset": preset}).scene
    correlations = []
    for clip in range(clips):
        benchmark = list(VOCABULARIES)[clip % 4]
        motion = VOCABULARIES[benchmark][clip // 4 % 8]
        frames_THWC, motion_THW = render(benchmark, motion, config, 8, np.random.default_rng(clip))
        brightness_N = _of_tokens(frames_THWC.mean(-1))
        correlations.append(np.corrcoef(brightness_N, _of_tokens(motion_THW))[0, 1])
    return float(np.mean(correlations))


def test_brightness_is_motion_in_the_demo_and_has_nothing_to_do_with_it_in_hard():
    assert _brightness_and_motion("demo", clips=8) > 0.9
    # Of a single clip the deviation is .21: of the mean of 96, .021.
    assert abs(_brightness_and_motion("hard", clips=96)) < 0.06


def test_still_sprites_with_a_texture_of_their_own_are_bright():
    config = SceneConfig(colour=1.0, still_sprites=3, still_texture=0.3, background=0.0)
    frames, motion = render("ucf101", "EastRun", config, 4, np.random.default_rng(0))
    still = (frames[0] == frames[-1]).all(-1) & ~motion.any(0) & (frames[0] != frames[0, 0, 0]).any(-1)
    assert frames[0][still].mean() > 190
    assert frames[0][still].std() > 30


def test_a_camera_that_pans_moves_all_there_is_by_its_way():
    config = SceneConfig(still_sprites=2, camera_pan=0.5)
    panned = render("ucf101", "EastRun", config, 5, np.random.default_rng(2))[0].astype(int)
    # Half a width in 5 frames; the same background, moved to where it fits best.
    spectra = [np.fft.fft2(panned[frame].mean(-1) - panned[frame].mean()) for frame in (0, -1)]
    moved = np.fft.ifft2(spectra[0].conj() * spectra[1]).real
    down, across = np.unravel_index(moved.argmax(), moved.shape)
    way = np.hypot(*(min(shift, 64 - shift) for shift in (down, across)))
    assert way == pytest.approx(32, abs=1.5)


def test_the_light_is_one_on_average_has_no_seam_and_moves():
    time_T = np.linspace(0, 1, 6, dtype=np.float32)
    for seed in range(4):
        light_THW = _light(SceneConfig(illumination=0.4), time_T, np.random.default_rng(seed))[..., 0]
        assert light_THW.mean((1, 2)) == pytest.approx(np.ones(6), abs=1e-5)
        assert (light_THW.min(), light_THW.max()) == pytest.approx((0.6, 1.4), abs=0.01)
        # One wave a frame: neighbours differ by at most .4 * 2 pi / 64 (twice along a diagonal), edges too.
        for axis in (1, 2):
            assert np.abs(light_THW - np.roll(light_THW, 1, axis)).max() < 0.04
        assert np.abs(np.diff(light_THW, axis=0)).max() > 0.1

"""Scenes whose class is decided by motion alone: what the four generated benchmarks are filmed from.

One textured sprite performs the motion that is the class; others, drawn alike, stand still. Everything
a single frame shows is drawn from one distribution that is the same for every class:

* the sprite lives on a torus (it leaves on the right and enters on the left) and starts anywhere, so at
  any instant its position is uniform, whatever the motion;
* its orientation is uniform and its size is constant, so neither reveals anything;
* texture, colours and background are drawn afresh for each clip.

So a classifier that sees one frame is at chance by construction, and a test measures that it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tats_core.specs import StrictModel

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Path2D = Callable[[Floats, np.random.Generator], tuple[Floats, Floats]]


class SceneConfig(StrictModel):
    """What a scene looks like; lengths are in pixels of the rendered frame."""

    size: int = Field(64, ge=16, description="height and width of a frame")
    sprite_radius: tuple[float, float] = Field((9.0, 13.0), description="smallest and largest sprite radius")
    texture: float = Field(0.1, ge=0, le=1, description="contrast of a sprite's texture")
    colour: float = Field(
        0.1,
        ge=0,
        le=1,
        description="spread of the sprites' colours over clips; 1: any colour, and it is what an encoder "
        "learns first",
    )
    still_sprites: int = Field(0, ge=0, description="sprites that stand still, beside the one that moves")
    still_texture: float | None = Field(
        None,
        ge=0,
        le=1,
        description="contrast of the texture of these sprites, which then are bright; null: drawn alike",
    )
    travel: tuple[float, float] = Field(
        (0.6, 0.9), description="way of the moving sprite in one clip, as a share of the frame's width"
    )
    background: float = Field(
        0.03, ge=0, le=1, description="contrast of the background's texture (0: flat grey)"
    )
    background_colour: float = Field(
        0.0, ge=0, le=1, description="spread of the background's colour over clips"
    )
    camera_jitter: float = Field(0.0, ge=0, description="standard deviation of the camera's shake")
    camera_pan: float = Field(
        0.0, ge=0, description="way of the camera in one clip in a random direction, as a share of the width"
    )
    illumination: float = Field(
        0.0, ge=0, lt=1, description="strength of a band of light that crosses the scene (0: even light)"
    )
    noise: float = Field(0.0, ge=0, le=1, description="standard deviation of each pixel's noise (1: white)")


def _line(angle: float, time_T: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    heading = angle + rng.uniform(-0.12, 0.12)
    return time_T * math.cos(heading), time_T * math.sin(heading)


def _there_and_back(angle: float, time_T: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    return _line(angle, 0.5 - np.abs(time_T - 0.5), rng)


def _corner(first: float, second: float, time_T: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    tilt = rng.uniform(-0.12, 0.12)
    before_T, after_T = np.minimum(time_T, 0.5), np.maximum(time_T - 0.5, 0)
    x_T = before_T * math.cos(first + tilt) + after_T * math.cos(second + tilt)
    y_T = before_T * math.sin(first + tilt) + after_T * math.sin(second + tilt)
    return x_T, y_T


def _orbit(direction: int, turns: float, time_T: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    angle_T = rng.uniform(0, 2 * math.pi) + direction * 2 * math.pi * turns * time_T
    radius = 1 / (2 * math.pi * turns)  # a circle is as long as a line in the same time
    return radius * np.cos(angle_T), radius * np.sin(angle_T)


def _shake(angle: float, times: float, time_T: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    # A triangle wave: the speed is that of a line, only its sign changes.
    way_T = np.abs(((time_T * times + rng.uniform(0, 1)) % 1) - 0.5) / times
    return way_T * math.cos(angle), way_T * math.sin(angle)


# Image axes: x to the right, y down, so an angle that grows turns clockwise on the screen.
_RIGHT, _DOWN, _LEFT, _UP = 0.0, 0.5 * math.pi, math.pi, 1.5 * math.pi

MOTIONS: Final[dict[str, dict[str, Path2D]]] = {
    "ssv2": {
        "Moving [something] to the right": partial(_line, _RIGHT),
        "Moving [something] down": partial(_line, _DOWN),
        "Moving [something] to the left": partial(_line, _LEFT),
        "Moving [something] up": partial(_line, _UP),
        "Moving [something] right and back": partial(_there_and_back, _RIGHT),
        "Moving [something] down and back": partial(_there_and_back, _DOWN),
        "Moving [something] left and back": partial(_there_and_back, _LEFT),
        "Moving [something] up and back": partial(_there_and_back, _UP),
        "Circling [something] clockwise": partial(_orbit, 1, 0.75),
        "Circling [something] counterclockwise": partial(_orbit, -1, 0.75),
    },
    "kinetics400": {
        "drifting down left": partial(_line, 0.75 * math.pi),
        "drifting down right": partial(_line, 0.25 * math.pi),
        "drifting up left": partial(_line, 1.25 * math.pi),
        "drifting up right": partial(_line, 1.75 * math.pi),
        "circling clockwise": partial(_orbit, 1, 1.0),
        "circling counterclockwise": partial(_orbit, -1, 1.0),
        "shaking sideways": partial(_shake, _RIGHT, 1.5),
        "shaking up and down": partial(_shake, _DOWN, 1.5),
    },
    "ucf101": {
        "EastRun": partial(_line, _RIGHT),
        "SouthEastRun": partial(_line, 0.25 * math.pi),
        "SouthRun": partial(_line, _DOWN),
        "SouthWestRun": partial(_line, 0.75 * math.pi),
        "WestRun": partial(_line, _LEFT),
        "NorthWestRun": partial(_line, 1.25 * math.pi),
        "NorthRun": partial(_line, _UP),
        "NorthEastRun": partial(_line, 1.75 * math.pi),
    },
    "hmdb51": {
        "right_then_down": partial(_corner, _RIGHT, _DOWN),
        "right_then_up": partial(_corner, _RIGHT, _UP),
        "left_then_down": partial(_corner, _LEFT, _DOWN),
        "left_then_up": partial(_corner, _LEFT, _UP),
        "down_then_right": partial(_corner, _DOWN, _RIGHT),
        "down_then_left": partial(_corner, _DOWN, _LEFT),
        "up_then_right": partial(_corner, _UP, _RIGHT),
        "up_then_left": partial(_corner, _UP, _LEFT),
    },
}
"""Class names of each benchmark with the path `(x, y)` of its sprite for times in [0, 1]."""

VOCABULARIES: Final[dict[str, tuple[str, ...]]] = {name: tuple(paths) for name, paths in MOTIONS.items()}


def render(
    benchmark: str, motion: str, config: SceneConfig, frames: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Film one clip.

    Args:
        benchmark, motion: a class of `VOCABULARIES`.
        frames: length T of the clip; the whole motion takes all of it, whatever T is.
        rng: the only source of randomness.

    Returns:
        `frames_THWC` RGB and `motion_THW`, True where the moving sprite is (ground truth of motion).
    """
    size = config.size
    time_T = np.linspace(0, 1, frames, dtype=np.float32)
    shake_T2 = rng.normal(0, 1, (frames, 2)).astype(np.float32) * config.camera_jitter
    if config.camera_pan:
        angle = rng.uniform(0, 2 * math.pi)
        heading_2 = np.array([math.cos(angle), math.sin(angle)], np.float32)
        shake_T2 += config.camera_pan * size * time_T[:, None] * heading_2
    video_THWC = _background(config, frames, shake_T2, rng)
    bright = {"colour": 0.0, "texture": config.still_texture}
    still_config = config if config.still_texture is None else config.model_copy(update=bright)
    for _ in range(config.still_sprites):
        still = np.zeros(frames, np.float32)
        _draw(video_THWC, still_config, still, still, shake_T2, rng)
    x_T, y_T = MOTIONS[benchmark][motion](time_T, rng)
    travel = rng.uniform(*config.travel) * size
    motion_THW = _draw(video_THWC, config, x_T * travel, y_T * travel, shake_T2, rng)
    if config.illumination:
        video_THWC *= _light(config, time_T, rng)
    if config.noise:
        video_THWC += rng.normal(0, config.noise, video_THWC.shape).astype(np.float32)
    return (video_THWC.clip(0, 1) * 255).round().astype(np.uint8), motion_THW


def _texture(size: int, cells: int, rng: np.random.Generator) -> Floats:
    """Return smooth periodic noise `[size, size, 3]` of zero mean and unit deviation."""
    grid = rng.normal(0, 1, (cells, cells, 3)).astype(np.float32)
    position = np.arange(size) * cells / size
    low = position.astype(int)
    share = (position - low).astype(np.float32)
    share = share * share * (3 - 2 * share)
    high = (low + 1) % cells
    rows = grid[low] * (1 - share)[:, None, None] + grid[high] * share[:, None, None]
    noise = rows[:, low] * (1 - share)[None, :, None] + rows[:, high] * share[None, :, None]
    result: Floats = (noise - noise.mean()) / (noise.std() + 1e-6)
    return result


def _background(config: SceneConfig, frames: int, shake_T2: Floats, rng: np.random.Generator) -> Floats:
    size = config.size
    colour = 0.5 + config.background_colour * rng.uniform(-0.5, 0.5, 3).astype(np.float32)
    still_HWC = colour + config.background * _texture(size, 6, rng)
    moved = np.rint(shake_T2).astype(int)
    return np.stack([np.roll(still_HWC, (dy, dx), (0, 1)) for dx, dy in moved]).astype(np.float32)


def _light(config: SceneConfig, time_T: Floats, rng: np.random.Generator) -> Floats:
    """Return factors `[T, H, W, 1]` of mean 1: a wave of light, one long and seamless, that moves on."""
    across, down = ((0, 1), (1, 0), (1, 1), (1, -1))[rng.integers(4)]
    row_HW, column_HW = np.mgrid[: config.size, : config.size] / config.size
    way_T = rng.uniform() + rng.choice((-1, 1)) * rng.uniform(0.4, 0.8) * time_T
    wave_THW = np.cos(2 * math.pi * (across * column_HW + down * row_HW - way_T[:, None, None]))
    light_THW1: Floats = (1 + config.illumination * wave_THW[..., None]).astype(np.float32)
    return light_THW1


def _draw(
    video_THWC: Floats,
    config: SceneConfig,
    x_T: Floats,
    y_T: Floats,
    shake_T2: Floats,
    rng: np.random.Generator,
) -> NDArray[np.bool_]:
    """Draw one random sprite along `(x, y)` from a random start; return where it is."""
    size = config.size
    radius = rng.uniform(*config.sprite_radius)
    sprite = _sprite(config, rng)
    start = rng.uniform(0, size, 2)
    angle = rng.uniform(0, 2 * math.pi)
    cosine, sine = math.cos(angle), math.sin(angle)
    covered_THW = np.zeros(video_THWC.shape[:3], np.bool_)
    reach = math.ceil(radius) + 1
    steps = np.arange(-reach, reach + 1)
    for frame in range(len(x_T)):
        centre_x = start[0] + x_T[frame] + shake_T2[frame, 0]
        centre_y = start[1] + y_T[frame] + shake_T2[frame, 1]
        columns, rows = steps + math.floor(centre_x), steps + math.floor(centre_y)
        across, down = np.meshgrid((columns - centre_x) / radius, (rows - centre_y) / radius)
        colour_HWC, inside_HW = sprite(
            across * cosine + down * sine, down * cosine - across * sine, 1 / radius
        )
        wrapped = np.ix_(rows % size, columns % size)
        cover = inside_HW[..., None]
        video_THWC[frame][wrapped] = video_THWC[frame][wrapped] * (1 - cover) + colour_HWC * cover
        covered_THW[frame][wrapped] |= inside_HW > 0.5
    return covered_THW


def _sprite(
    config: SceneConfig, rng: np.random.Generator
) -> Callable[[Doubles, Doubles, float], tuple[Floats, Floats]]:
    """Return a function from sprite coordinates in [-1, 1] to colour and anti-aliased cover."""
    texels = 24
    # Away from the background's grey, so that every sprite can be seen; white where all are alike.
    towards = (1 - config.colour) * np.ones(3) + config.colour * rng.normal(0, 1, 3)
    colour = 0.5 + rng.uniform(0.3, 0.4) * towards / np.abs(towards).max()
    texels_HWC = (colour + config.texture * _texture(texels, 4, rng)).clip(0, 1).astype(np.float32)
    square = rng.uniform() < 0.5

    def sprite(u: Doubles, v: Doubles, edge: float) -> tuple[Floats, Floats]:
        distance = np.maximum(np.abs(u), np.abs(v)) * 1.15 if square else np.hypot(u, v)
        inside = ((1 - distance) / edge + 0.5).clip(0, 1).astype(np.float32)
        column = ((u + 1) / 2 * (texels - 1)).clip(0, texels - 1)
        row = ((v + 1) / 2 * (texels - 1)).clip(0, texels - 1)
        return texels_HWC[np.rint(row).astype(int), np.rint(column).astype(int)], inside

    return sprite

"""Colours, directions and shapes, with the values that the standards give."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from tats_core.data import readers
from tats_core.data.pixels import Converter, Geometry, is_plain
from tests.data.films import READERS

UNSTATED, BT601, BT709 = 2, 5, 1
LIMITED, FULL = 1, 2


def planes(y: int, u: int, v: int, name: str, size: int = 16) -> av.VideoFrame:
    """One colour, as the numbers of a codec."""
    kind, scale = (np.uint16, 4) if "10" in name else (np.uint8, 1)
    chroma = size * size // (4 if "420" in name else 1)
    values = [
        np.full(count, scale * level, kind) for count, level in ((size * size, y), (chroma, u), (chroma, v))
    ]
    array = np.concatenate(values)
    shape = (-1, size) if "420" in name else (3, size, size)
    return av.VideoFrame.from_ndarray(array.reshape(shape), format=name)


@pytest.mark.parametrize(
    ("matrix", "levels", "expected"),
    [
        # Of Y 100, Cb 96, Cr 176. BT.601: R = 255/219 (Y - 16) + 1.402 · 255/224 (Cr - 128), and so on;
        # BT.709 has 1.5748 instead of 1.402; at full range R = Y + 1.402 (Cr - 128).
        (UNSTATED, 0, [174.4, 71.3, 33.3]),
        (BT601, LIMITED, [174.4, 71.3, 33.3]),
        (BT709, LIMITED, [183.9, 79.1, 30.2]),
        (BT601, FULL, [167.3, 76.7, 43.3]),
    ],
)
@pytest.mark.parametrize("name", ["yuv420p", "yuv420p10le", "yuv444p"])
def test_colours_follow_the_matrix_and_the_range_that_a_frame_states(
    name: str, matrix: int, levels: int, expected: list[float]
) -> None:
    frame = planes(100, 96, 176, name)
    frame.colorspace, frame.color_range = matrix, levels
    rgb_HWC = Converter(Geometry.of(frame, None)).rgb(frame)
    assert rgb_HWC.shape == (16, 16, 3)
    assert (rgb_HWC == rgb_HWC[0, 0]).all()
    # The plain conversion, which is quick, is up to 2.5 levels off.
    assert rgb_HWC[0, 0].tolist() == pytest.approx(expected, abs=2.5 if name == "yuv420p" else 1)


def test_ten_bits_are_rounded_to_the_nearest_grey_level() -> None:
    # Y from 64 to 940 of 1024 is black to white: 255/876 levels a step.
    luma_HW = np.tile(np.linspace(64, 940, 64).round().astype(np.uint16), (16, 1))
    chroma = np.full((8, 64), 512, np.uint16)
    frame = av.VideoFrame.from_ndarray(np.concatenate([luma_HW, chroma]), format="yuv420p10le")
    rgb_HWC = Converter(Geometry.of(frame, None)).rgb(frame).astype(float)
    expected_HW = (luma_HW.astype(float) - 64) * 255 / 876
    assert np.abs(rgb_HWC - expected_HW[..., None]).max() <= 1


def test_chroma_between_its_samples_is_interpolated_unless_the_frame_is_plain() -> None:
    luma = np.full((16, 32), 128)
    # Red to blue across the picture: one sample for two pixels.
    ramp = np.tile(np.linspace(90, 166, 16).round(), (8, 1))
    array = np.concatenate([luma.ravel(), ramp.ravel(), (256 - ramp).ravel()]).reshape(-1, 32)
    plain = av.VideoFrame.from_ndarray(array.astype(np.uint8), format="yuv420p")
    deep = av.VideoFrame.from_ndarray((4 * array).astype(np.uint16), format="yuv420p10le")
    assert is_plain(plain)
    assert not is_plain(deep)
    blue = [Converter(Geometry.of(frame, None)).rgb(frame)[4, :, 2].astype(int) for frame in (plain, deep)]
    assert (blue[0][::2] == blue[0][1::2]).all()
    assert (np.diff(blue[1]) > 0).mean() > 0.9


# ---------------------------------------------------------------------------------- direction and shape


def written(path: Path, frame_HWC: NDArray[np.uint8], **settings: object) -> Path:
    """Encode two equal frames without loss of more than a few levels."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "0", "preset": "ultrafast"})
        stream.height, stream.width = frame_HWC.shape[:2]
        stream.pix_fmt = "yuv420p"
        if "matrix" in settings:
            stream.set_display_matrix(settings["matrix"])  # type: ignore[arg-type]
        if "aspect" in settings:
            stream.codec_context.sample_aspect_ratio = settings["aspect"]  # type: ignore[assignment]
        for _ in range(2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        container.mux(stream.encode(None))
    return path


QUADRANTS: NDArray[np.uint8] = (
    np.array([[0, 80], [160, 240]], np.uint8).repeat(16, 0).repeat(32, 1)[..., None].repeat(3, 2)
)
ONE, TURNED = 65536, [  # a, b, u, c, d, v, x, y, w of ISO/IEC 14496-12: 16.16, the third column 2.30
    ((1, 0, 0, 1), [[0, 80], [160, 240]]),
    ((0, 1, -1, 0), [[160, 0], [240, 80]]),  # clockwise, as a telephone held upright writes
    ((-1, 0, 0, -1), [[240, 160], [80, 0]]),
    ((0, -1, 1, 0), [[80, 240], [0, 160]]),
    ((-1, 0, 0, 1), [[80, 0], [240, 160]]),  # mirrored
    ((1, 0, 0, -1), [[160, 240], [0, 80]]),
    ((0, 1, 1, 0), [[0, 160], [80, 240]]),
    ((0, -1, -1, 0), [[240, 80], [160, 0]]),
]  # fmt: skip


@pytest.mark.parametrize(("matrix", "expected"), TURNED)
@pytest.mark.parametrize("reader", READERS)
def test_frames_are_upright(
    tmp_path: Path, reader: str, matrix: tuple[int, ...], expected: list[list[int]]
) -> None:
    a, b, c, d = (ONE * entry for entry in matrix)
    path = written(tmp_path / "turned.mp4", QUADRANTS, matrix=[a, b, 0, c, d, 0, 0, 0, 1 << 30])
    frame_HWC = readers.read_all(path, reader)[0]
    rows, columns = frame_HWC.shape[:2]
    assert (rows, columns) == ((64, 32) if a == 0 else (32, 64))
    corners = [[frame_HWC[row, column, 0] for column in (4, columns - 5)] for row in (4, rows - 5)]
    assert np.abs(np.array(corners, int) - expected).max() <= 4


def test_pixels_are_square(tmp_path: Path) -> None:
    # 64 pixels, each 4/3 as wide as high, are as wide as 85.
    path = written(tmp_path / "wide.mp4", QUADRANTS, aspect=Fraction(4, 3))
    frame_HWC = readers.read_all(path)[0]
    assert frame_HWC.shape == (32, 85, 3)
    assert abs(int(frame_HWC[4, 38, 0]) - 0) <= 4
    assert abs(int(frame_HWC[4, 47, 0]) - 80) <= 4
    turned = written(
        tmp_path / "both.mp4",
        QUADRANTS,
        aspect=Fraction(4, 3),
        matrix=[0, ONE, 0, -ONE, 0, 0, 0, 0, 1 << 30],
    )
    assert readers.read_all(turned)[0].shape == (85, 32, 3)


@pytest.mark.parametrize(
    ("aspect", "width"),
    [(None, 16), (Fraction(0), 16), (Fraction(1), 16), (Fraction(2), 32), (Fraction(9, 2), 16)],
)
def test_an_aspect_that_no_camera_has_is_not_believed(aspect: Fraction | None, width: int) -> None:
    geometry = Geometry.of(planes(100, 128, 128, "yuv420p"), aspect)
    assert geometry.shape == (16, width, 3)
    assert geometry.keeps_layout == (aspect in (None, 0, 1, Fraction(9, 2)))

"""Videos made at random, codec × container × size × rate × groups × direction × bit depth × damage.

Of each, all readers give the same frames; of a sound one, those of a plain decode from the start; and any few
frames are those that reading all gives. `make test` makes a few, `make test-videos` hundreds.
"""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from tats_core.data import readers
from tats_core.errors import VideoError
from tests.data.films import READERS, film

HOW_MANY = int(os.environ.get("TEST_VIDEOS", "24"))

DEEP = ("yuv420p", "yuv420p10le")
CODECS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # containers and pixel formats
    "libx264": (("mp4", "mov", "mkv", "avi", "mpegts", "flv"), (*DEEP, "yuv444p", "yuvj420p")),
    "libx265": (("mp4", "mkv"), ("yuv420p", "yuv420p10le")),
    "libvpx-vp9": (("webm", "mkv", "mp4"), ("yuv420p",)),  # PyAV's wheels encode no other
    "libvpx": (("webm",), ("yuv420p",)),
    "mpeg4": (("avi", "mp4", "mkv"), ("yuv420p",)),
    "mpeg2video": (("mpeg", "mpegts", "mkv"), ("yuv420p",)),
    "mjpeg": (("avi", "mov"), ("yuvj420p",)),
    "ffv1": (("mkv", "avi"), ("yuv420p", "yuv422p10le")),
}  # fmt: skip


def draw(rng: np.random.Generator, folder: Path) -> tuple[Path, str]:
    """Write one video; return it, and what was drawn."""
    codec = str(rng.choice(list(CODECS)))
    container, pixels = (str(rng.choice(choices)) for choices in CODECS[codec])
    frames, height, width = int(rng.integers(1, 50)), *(4 * int(n) for n in rng.integers(6, 20, 2))
    options = {"g": str(rng.integers(1, 30))}
    if codec in ("libx264", "libx265", "mpeg4", "mpeg2video"):
        options["bf"] = str(rng.integers(0, 4))
    if codec == "libx264":
        parameters = ["interlaced=1", "open-gop=1", "intra-refresh=1", "bframes=2:b-pyramid=2", "ref=4"]
        options |= {"preset": "veryfast", "x264-params": str(rng.choice(parameters))}
    if codec == "libx265":
        options |= {"preset": "ultrafast", "x265-params": "log-level=none:pools=none"}
        height, width = height + 64, width + 64  # it writes beyond its memory where they are smaller
    if codec in ("libvpx", "libvpx-vp9"):
        options |= {"deadline": "realtime", "cpu-used": "8", "b": "200k"}
        if rng.random() < 0.5:
            options |= {"deadline": "good", "cpu-used": "4", "auto-alt-ref": "1", "lag-in-frames": "12"}
    path = folder / f"video.{container}"
    rate = Fraction(*[(25, 1), (30000, 1001), (50, 1)][rng.integers(3)])
    turn = int(rng.choice([0, 0, 90, 180, 270])) if container in ("mp4", "mov") else 0
    with av.open(str(path), "w", format={"mkv": "matroska"}.get(container, container)) as output:
        stream = output.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        if turn:
            stream.set_display_rotation(turn)
        if rng.random() < 0.3:
            stream.codec_context.colorspace = 1  # BT.709
        for frame_HWC in film(frames, height, width, 4, rng):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        output.mux(stream.encode(None))
    return path, f"{codec} {pixels} {container} {frames} × {height} × {width} turned {turn} {options}"


def damage(rng: np.random.Generator, path: Path) -> str:
    content = bytearray(path.read_bytes())
    kind = str(rng.choice(["none", "none", "cut", "zeros", "flips"]))
    if kind == "cut":
        del content[int(rng.integers(len(content) // 3, len(content))) :]
    elif kind == "zeros":
        at, length = int(rng.integers(len(content) // 4, len(content))), len(content) // 20
        content[at : at + length] = bytes(len(content[at : at + length]))
    elif kind == "flips":
        for at in rng.integers(len(content) // 8, len(content), rng.integers(1, 20)).tolist():
            content[at] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)
    return kind


def sequential(path: Path) -> NDArray[np.uint8]:
    """Every frame of a plain decode from the start, turned by PyAV's own reading of the matrix."""
    accurate = "BICUBIC", "ACCURATE_RND", "FULL_CHR_H_INT"
    flags = sum(av.video.reformatter.Interpolation[name] for name in accurate)
    frames = []
    with av.open(str(path)) as container:
        container.streams.video[0].thread_count = 1
        for frame in container.decode(video=0):
            plain = frame.format.name in ("yuv420p", "yuvj420p") and not frame.interlaced_frame
            rgb = frame.reformat(format="rgb24", interpolation=None if plain else flags).to_ndarray()
            frames.append(np.rot90(rgb, frame.rotation // 90))
    return np.stack(frames)


@pytest.mark.parametrize("seed", range(HOW_MANY))
def test_all_readers_give_the_same_frames_of_a_video_made_at_random(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    path, drawn = draw(rng, tmp_path)
    harm = damage(rng, path)
    try:
        all_THWC = readers.read_all(path)
    except VideoError:
        assert harm != "none", drawn
        with pytest.raises(VideoError):
            readers.check(path)
        return
    if harm == "none":
        assert np.array_equal(all_THWC, sequential(path)), drawn
    condition = readers.check(path)
    assert condition.frames == len(all_THWC), (drawn, condition)
    # What decord makes of a damaged stream is not ours to say.
    for reader in {*READERS} - {"auto"} if harm == "none" else ("pyav",):
        for indices_T in (
            rng.integers(0, len(all_THWC), 1),
            rng.integers(0, len(all_THWC), 16),
            np.minimum(rng.integers(len(all_THWC)) + 3 * np.arange(8), len(all_THWC) - 1),
        ):
            frames_THWC = readers.read_clip(path, lambda _, indices_T=indices_T: indices_T, reader)
            assert np.array_equal(frames_THWC, all_THWC[indices_T]), (drawn, harm, reader, indices_T)

"""Which stream is read, and what is made of damage: every kind of file of issue 16, made here in small."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition

from tats_core.data import readers
from tats_core.data.clips import Segment
from tats_core.data.generate import ENCODINGS, Encoding, encode
from tats_core.data.video import Condition, Video, opened
from tats_core.errors import ResourceError, VideoError
from tests.data.films import READERS, film

FRAMES = 40


KINDS = {
    "mp4": ENCODINGS["kinetics400"],
    "mkv": replace(ENCODINGS["kinetics400"], container="matroska"),
    "webm": ENCODINGS["ssv2"],
    "avi": ENCODINGS["ucf101"],
}


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of one film in each container, in groups of ten."""
    folder = tmp_path_factory.mktemp("films")
    content = {}
    for name, encoding in KINDS.items():
        path = folder / f"film.{name}"
        options = {**encoding.options, "g": "10"}
        encode(path, film(FRAMES, 64, 96), 25, Encoding(encoding.container, encoding.codec, options))
        content[name] = path.read_bytes()
    first = folder / "first.mp4"
    with (
        av.open(str(folder / "film.mp4")) as source,
        av.open(str(first), "w", options={"movflags": "faststart"}) as target,
    ):
        copy = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = copy
                target.mux(packet)
    content["index first.mp4"] = first.read_bytes()
    return content


def cut(content: bytes) -> bytes:
    return content[: len(content) * 6 // 10]


def zeroed(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes(len(content) // 20) + content[middle + len(content) // 20 :]


def flipped(content: bytes) -> bytes:
    damaged = bytearray(content)
    for at in np.random.default_rng(3).integers(len(content) // 3, len(content) * 9 // 10, 12).tolist():
        damaged[at] ^= 0xFF
    return bytes(damaged)


def check_reads(path: Path) -> Condition:
    """Assert that any few frames are those that reading all gives, for every single frame and for clips."""
    condition = readers.check(path)
    all_THWC = readers.read_all(path)
    assert len(all_THWC) == condition.frames
    rng = np.random.default_rng(1)
    choices = [np.array([index]) for index in range(condition.frames)]
    choices += [rng.integers(0, condition.frames, 16) for _ in range(4)]
    for indices_T in choices:
        frames_THWC = readers.read_clip(path, lambda _, indices_T=indices_T: indices_T)
        assert np.array_equal(frames_THWC, all_THWC[indices_T])
    return condition


@pytest.mark.parametrize("kind", [*KINDS, "index first.mp4"])
def test_a_sound_file_has_the_frames_that_it_declares(
    films: dict[str, bytes], tmp_path: Path, kind: str
) -> None:
    path = tmp_path / f"sound.{kind[-4:].strip('.')}"
    path.write_bytes(films[kind])
    condition = check_reads(path)
    assert condition == Condition(FRAMES, FRAMES, missing=(), corrupt=(), refused=0)
    assert condition.is_sound


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_sound_file_no_more_is_decoded_than_the_clip_needs(
    films: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = tmp_path / f"sound.{kind}"
    path.write_bytes(films[kind])
    fed: list[int] = []
    feed = Video._fed_with

    def counted(video: Video, packet: av.Packet | None) -> list[av.VideoFrame]:
        fed.append(packet is not None)
        return feed(video, packet)

    monkeypatch.setattr(Video, "_fed_with", counted)
    # Groups of ten frames: the clip lies in the third and the last one.
    readers.read_clip(path, lambda _: np.array([24, 26, 39]))
    # To frame 26 and to 39, each from its key frame, and the few that a decoder waits for.
    assert sum(fed) <= 7 + 10 + 6


def test_a_video_cannot_be_used_after_its_file_is_closed(films: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "film.webm"
    path.write_bytes(films["webm"])
    with opened(path, 60) as video:
        within = video.within(Segment(0.48, 1.2, "second"), np.arange)
        assert within(FRAMES).tolist() == [*range(12, 30)]
    # Its stream's fields would be read from memory that is free: mostly right, sometimes not.
    with pytest.raises(AttributeError):
        within(FRAMES)


@pytest.mark.parametrize("reader", [name for name in READERS if name != "auto"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_segment_is_a_video_of_its_own_in_frames_and_in_seconds(
    films: dict[str, bytes], tmp_path: Path, kind: str, reader: str
) -> None:
    path = tmp_path / f"film.{kind}"
    path.write_bytes(films[kind])
    all_THWC = readers.read_all(path)
    # 25 frames a second: a frame that is shown at the very start is in, one at the very end is not.
    for segment, first, last in (
        (Segment(12, 30), 12, 30),
        (Segment(35), 35, FRAMES),
        (Segment(35, 1000), 35, FRAMES),
        (Segment(0.48, 1.2, "second"), 12, 30),
        (Segment(0.45, None, "second"), 12, FRAMES),
    ):
        frames_THWC = readers.read_clip(path, np.arange, reader, segment=segment)
        assert np.array_equal(frames_THWC, all_THWC[first:last])
        pieces = list(readers.pieces(path, segment=segment))
        assert np.array_equal(np.concatenate(pieces), all_THWC[first:last])
    for beyond in (Segment(FRAMES), Segment(2.0, 3.0, "second")):
        with pytest.raises(VideoError, match=r"has no frame from .*; the file has 40 frames"):
            readers.read_clip(path, np.arange, reader, segment=beyond)


@pytest.mark.parametrize("damage", [cut, zeroed, flipped])
@pytest.mark.parametrize("kind", ["index first.mp4", "mkv", "webm", "avi"])
def test_of_a_damaged_file_the_frames_that_decode_are_read_and_the_rest_is_counted(
    films: dict[str, bytes], tmp_path: Path, kind: str, damage: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"damaged.{kind[-4:].strip('.')}"
    path.write_bytes(damage(films[kind]))
    condition = check_reads(path)
    assert condition.declared == FRAMES
    assert 0 < condition.decodable <= FRAMES
    if damage is cut:
        assert condition.decodable < FRAMES * 3 // 4
    # VP9 has no redundancy: a decoder takes flipped bits for another picture.
    assert not condition.is_sound or (kind, damage) == ("webm", flipped)
    assert f"{FRAMES} frames declared, {condition.decodable} decodable" in str(condition)


@pytest.mark.parametrize("damage", [None, cut])
def test_an_avi_that_shows_frames_again_by_empty_chunks_is_sound_and_is_damaged_where_it_ends_early(
    films: dict[str, bytes], tmp_path: Path, damage: Callable[[bytes], bytes] | None
) -> None:
    whole, gaps = tmp_path / "whole.avi", tmp_path / "gaps.avi"
    whole.write_bytes(films["avi"])
    with av.open(str(whole)) as source, av.open(str(gaps), "w") as target:
        copy = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size:
                # The muxer fills the gaps of the numbering: every fifth chunk is empty, as in HMDB51's clips.
                packet.pts = packet.dts = number * 5 // 4
                packet.stream = copy
                target.mux(packet)
    if damage is not None:
        gaps.write_bytes(damage(gaps.read_bytes()))
    condition = check_reads(gaps)
    assert condition.is_sound == (damage is None)
    if damage is None:
        assert (condition.declared, condition.frames) == (FRAMES, FRAMES)


def test_an_mp4_that_is_cut_before_its_index_is_named_as_such(
    films: dict[str, bytes], tmp_path: Path
) -> None:
    path = tmp_path / "cut.mp4"
    path.write_bytes(cut(films["mp4"]))
    with pytest.raises(
        VideoError, match=r"cut\.mp4: cannot be read \(it is cut off: its index, .* is missing"
    ):
        readers.read_all(path)


def test_a_missing_frame_repeats_the_one_before_it(films: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "hole.webm"
    content = films["webm"]
    path.write_bytes(content)
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    at = content.index(packets[25])
    # A header that says "key frame" and then no more.
    path.write_bytes(content[:at] + b"\x82" + bytes(len(packets[25]) - 1) + content[at + len(packets[25]) :])
    condition = check_reads(path)
    assert (condition.frames, condition.decodable, condition.missing[0]) == (
        FRAMES,
        FRAMES - len(condition.missing),
        25,
    )
    frames_THWC = readers.read_all(path)
    assert np.array_equal(frames_THWC[25], frames_THWC[24])


def test_damage_is_told_in_numbers() -> None:
    assert (
        str(Condition(62, 100, (), (61,), 0)) == "100 frames declared, 62 decodable, 1 of them corrupt (61)"
    )
    assert str(Condition(9, None, (3, 4, 5, 8), (), 0)) == "5 decodable, 4 missing (3-5, 8)"
    assert str(Condition(59, 100, (), (), 1)).endswith("59 decodable, 1 packet unreadable")
    assert Condition(99, 100, (), (), 0).is_sound  # a header that counts the frame that a decoder never shows
    assert not Condition(95, 100, (), (), 0).is_sound


# ------------------------------------------------------------------------------------------ which stream


def streams(path: Path, *made: tuple[int, Disposition]) -> Path:
    """Write one stream of a colour for each grey level and disposition."""
    with av.open(str(path), "w") as container:
        opened = []
        for level, disposition in made:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 32 + 16 * len(opened), 32, "yuv420p"
            stream.disposition = disposition
            opened.append((stream, level))
        for stream, level in opened:
            for _ in range(3):
                frame = np.full((stream.height, stream.width, 3), level, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("second", "level"), [(Disposition.default, 200), (Disposition(0), 60), (Disposition.dub, 60)]
)
def test_of_several_streams_the_default_one_is_read_else_the_first(
    tmp_path: Path, reader: str, second: Disposition, level: int
) -> None:
    path = streams(tmp_path / "two.mkv", (60, Disposition(0)), (200, second))
    frames_THWC = readers.read_all(path, reader)
    assert abs(int(frames_THWC[1, 8, 8, 0]) - level) <= 2


def test_a_cover_picture_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        sound = container.add_stream("aac", rate=8000)
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        container.mux(
            cover.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24"))
        )
        container.mux(cover.encode(None))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 8000
        container.mux(sound.encode(silence))
        container.mux(sound.encode(None))
    with pytest.raises(VideoError, match=r"song\.m4a: holds no video stream"):
        readers.read_all(path)


def test_a_picture_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "picture.mp4"
    with av.open(str(path), "w", format="image2") as container:
        stream = container.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "rgb24"
        container.mux(
            stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24"))
        )
        container.mux(stream.encode(None))
    with pytest.raises(VideoError, match=r"picture\.mp4: holds no video stream"):
        readers.read_all(path)


@pytest.mark.parametrize("container", ["mkv", "mp4"])
@pytest.mark.parametrize(
    "times", [[t * t for t in range(20)], [100 + t for t in range(20)]], ids=["slower", "late"]
)
def test_a_variable_rate_or_a_late_start_is_no_damage(
    tmp_path: Path, container: str, times: list[int]
) -> None:
    path = tmp_path / f"film.{container}"
    with av.open(str(path), "w", format={"mkv": "matroska"}.get(container, container)) as output:
        stream = output.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for time in times:
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), time % 256, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    condition = readers.check(path)
    assert (condition.frames, condition.is_sound) == (20, True), condition


@pytest.mark.parametrize("length", [bytes(8), (8).to_bytes(8), (2**63).to_bytes(8)])
def test_a_damaged_length_of_a_box_does_not_hang(tmp_path: Path, length: bytes) -> None:
    path = tmp_path / "odd.mp4"
    # A box with its length in 8 bytes more, after which nothing is known.
    path.write_bytes((16).to_bytes(4) + b"ftypisom\0\0\2\0" + (1).to_bytes(4) + b"free" + length + bytes(100))
    with pytest.raises(VideoError, match=r"odd\.mp4: cannot be read"):
        readers.check(path)


def test_a_codec_that_is_not_known_is_said(films: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "odd.webm"
    path.write_bytes(films["webm"].replace(b"V_VP9", b"V_XX9"))
    with pytest.raises(VideoError, match=r"odd\.webm: its video is of a codec that is not known"):
        readers.read_all(path)


def test_a_lack_of_memory_is_no_damage(
    films: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.webm"
    path.write_bytes(films["webm"])

    def lacking(self: Video, packet: av.Packet | None) -> list[av.VideoFrame]:
        raise av.error.MemoryError(12, "Cannot allocate memory")

    monkeypatch.setattr(Video, "_fed_with", lacking)
    with pytest.raises(ResourceError, match=r"large\.webm: there is not enough memory to decode it"):
        readers.read_all(path)

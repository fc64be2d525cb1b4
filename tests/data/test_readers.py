"""Every reader against a plain sequential decode with PyAV, on every container that the generator writes."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from tats_core.data import readers
from tats_core.data.clips import dense_indices, uniform_indices
from tats_core.data.generate import ENCODINGS, Encoding, encode
from tats_core.data.manifest import Manifest
from tats_core.data.readers import decord
from tats_core.data.video import Choose, Frames
from tats_core.errors import DataError, VideoError
from tests.data.films import READERS, film

needs_decord = pytest.mark.skipif(not decord.is_installed(), reason="decord has no wheel for this platform")

OPEN_GROUPS = Encoding(
    "mp4", "libx264", {"preset": "veryfast", "bf": "2", "x264-params": "open-gop=1:scenecut=0"}
)


def sequential(path: str | Path) -> NDArray[np.uint8]:
    """The truth for upright 8-bit video: a decode from the start, by no code of ours."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A film of 120 frames in each container, long enough for several groups of pictures."""
    folder = tmp_path_factory.mktemp("films")
    encodings = {**{e.container: e for e in ENCODINGS.values()}, "open": OPEN_GROUPS}
    paths = {}
    for name, encoding in encodings.items():
        paths[name] = folder / f"{name}.{encoding.container}"
        encode(
            paths[name], film(120, 96, 128), 25, replace(encoding, options={**encoding.options, "g": "24"})
        )
    paths["cut"] = folder / "cut.mp4"
    cut_without_encoding(paths["mp4"], paths["cut"])
    return paths


def cut_without_encoding(source: Path, target: Path) -> None:
    """Copy a stream from its second group on, as tools do that cut without encoding again."""
    with av.open(str(source)) as given, av.open(str(target), "w") as cut:
        stream = given.streams.video[0]
        copy = cut.add_stream_from_template(stream)
        for packet in given.demux(stream):
            # Not at a key frame: what cannot be decoded until the next one stays in the file.
            if packet.pts is not None and packet.pts * packet.time_base > 0.5:
                packet.stream = copy
                cut.mux(packet)


def read_frames(
    path: str | Path,
    indices: Sequence[int] | NDArray[np.int64],
    reader: str = "auto",
    time_limit: float = readers.TIME_LIMIT,
) -> Frames:
    return readers.read_clip(path, lambda n_frames: np.asarray(indices), reader, time_limit)


KINDS = ("webm", "mp4", "avi", "open", "cut")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_reader_gives_exactly_the_frames_of_a_sequential_decode(
    films: dict[str, Path], kind: str, reader: str
) -> None:
    truth_THWC = sequential(films[kind])
    n_frames = len(truth_THWC)
    assert readers.check(films[kind]).frames == n_frames
    assert np.array_equal(readers.read_all(films[kind], reader), truth_THWC)
    rng = np.random.default_rng(1)
    for _ in range(8):
        for indices_T in (
            rng.integers(0, n_frames, 1),
            rng.integers(0, n_frames, 7),  # unsorted, with repeats
            dense_indices(n_frames, 8, 4, rng),
            uniform_indices(n_frames, 8, rng),
        ):
            assert np.array_equal(read_frames(films[kind], indices_T, reader), truth_THWC[indices_T])


@pytest.mark.parametrize("benchmark", list(ENCODINGS))
def test_the_generated_videos_are_read_exactly(tiny: dict[str, Manifest], benchmark: str) -> None:
    for video in tiny[benchmark].videos[:6]:
        truth_THWC = sequential(video.path)
        for reader in READERS:
            assert np.array_equal(read_frames(video.path, [17, 3, 3, 8], reader), truth_THWC[[17, 3, 3, 8]])


def test_the_generated_avi_holds_b_frames(tiny: dict[str, Manifest]) -> None:
    for benchmark in ("ucf101", "hmdb51"):
        with av.open(tiny[benchmark].videos[0].path) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "mpeg4"
            kinds = {av.video.frame.PictureType(frame.pict_type).name for frame in container.decode(stream)}
            assert kinds == {"I", "P", "B"}


@needs_decord
def test_decord_decodes_only_what_it_was_seen_to_decode_exactly(
    films: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    read = decord._read

    def noted(path: str, choose: Choose) -> Frames:
        decoded.append(Path(path).name)
        return read(path, choose)

    monkeypatch.setattr(decord, "_read", noted)
    for kind in KINDS:
        assert np.array_equal(readers.read_all(films[kind], "decord"), sequential(films[kind]))
    assert decoded == ["webm.webm", "mp4.mp4"]


@needs_decord
def test_decord_is_wrong_without_an_error_where_it_is_not_used(films: dict[str, Path]) -> None:
    # The reason for the rule above. If this fails, decord has been mended and may be trusted with more.
    truth_THWC = sequential(films["avi"])
    wrong_THWC = decord._read(str(films["avi"]), lambda n_frames: np.arange(5, 115, 10))
    assert not np.array_equal(wrong_THWC, truth_THWC[5:115:10])
    assert len(decord._read(str(films["cut"]), np.arange)) > len(sequential(films["cut"]))


@needs_decord
def test_a_file_on_which_decord_hangs_ends_the_work_and_is_not_read_by_another(
    films: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    monkeypatch.setattr(decord, "_read", lambda path, choose: released.wait(20))
    with pytest.raises(
        DataError, match=r"decord did not finish within 0\.2 s; use the reader 'auto'"
    ) as caught:
        read_frames(films["mp4"], [1], "decord", time_limit=0.2)
    released.set()
    # For a VideoError, training would take the next video: on a busy machine, another one.
    assert not isinstance(caught.value, VideoError)


@needs_decord
def test_what_decord_cannot_read_gives_the_same_frames_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "narrow.mp4"
    encode(path, film(20, 96, 72), 25, ENCODINGS["kinetics400"])
    with pytest.raises(VideoError, match="decord cannot read it"):
        decord._read(str(path), np.arange)
    rng, again = np.random.default_rng(0), np.random.default_rng(0)
    frames_THWC = readers.read_clip(path, lambda n_frames: rng.integers(0, n_frames, 5), "decord")
    assert np.array_equal(frames_THWC, sequential(path)[again.integers(0, 20, 5)])


def test_only_time_spent_computing_counts_against_the_limit(
    films: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = lambda n_frames: (time.sleep(1), np.array([3]))[1]  # noqa: E731
    assert len(readers.read_clip(films["mp4"], choose, time_limit=0.9)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["avi", "mp4", "webm"])
def test_reading_a_thousand_clips_leaks_no_memory(films: dict[str, Path], kind: str) -> None:
    process = psutil.Process()

    def read(times: int) -> int:
        for start in range(times):
            read_frames(films[kind], [start % 100, 100])
        return int(process.memory_info().rss)

    after_some = read(200)
    # One film decoded is 4 MB: if a thousandth of each read leaked, this would be the limit.
    assert read(1000) - after_some < 4 * 2**20


@pytest.mark.parametrize("name", ["#1 & (2)!.avi", "a:b.avi", "100%d.avi", "déjà vu.avi"])
def test_odd_characters_in_a_name_do_no_harm(films: dict[str, Path], tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(films["avi"].read_bytes())
    assert readers.check(tmp_path / name).frames == 120


def test_what_cannot_be_read_is_named_with_the_reason(films: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.webm").write_text("this is no video " * 100)
    (tmp_path / "half.mp4").write_bytes(films["mp4"].read_bytes()[:2000])
    for name in ("empty.mp4", "text.webm", "half.mp4", "none.avi"):
        for read in (readers.read_all, readers.check):
            with pytest.raises(VideoError, match=f"{name}: cannot be read"):
                read(tmp_path / name)


def test_a_file_that_takes_longer_than_its_limit_is_given_up(films: dict[str, Path]) -> None:
    with pytest.raises(VideoError, match="longer than its time limit"):
        readers.read_all(films["avi"], "pyav", time_limit=1e-6)

"""A packed copy: the videos in shards, and all that reads them sees no difference."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch

from tats_core.data import index, readers, shards
from tats_core.data.benchmarks import BENCHMARKS, PAPERS
from tats_core.data.benchmarks.base import walk
from tats_core.data.checks import check
from tats_core.data.clips import Batch
from tats_core.data.loaders import ClipOptions, TrainLoader, eval_views
from tats_core.data.manifest import Manifest
from tats_core.data.pack import pack
from tats_core.data.readers import decord
from tats_core.data.shrink import Smaller, shrink
from tats_core.errors import DataError, VideoError
from tats_core.training.predict import existing
from tests.data.test_loaders import same

SMALL = ClipOptions(frames=4, size=16, rand_augment="rand-m7-n2-mstd0.5", flip=True)


def packed(name: str, root: Path, out: Path, **options: object) -> tuple[int, list[int]]:
    done: list[int] = []
    settings = {"shard_bytes": 1 << 15, "workers": 1, **options}
    count = pack(name, root, out, lambda videos, total: done.append(videos), **settings)  # type: ignore[arg-type]
    return count, done


@pytest.fixture(scope="module")
def copies(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed")
    for name in PAPERS:
        assert packed(name, tiny_root / name, out / name)[0] > 2
    return out


def some_videos(tiny_root: Path, root: Path, *names: str) -> Path:
    """Write the same video under each name."""
    content = next((tiny_root / "ucf101").rglob("*.avi")).read_bytes()
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


@pytest.mark.parametrize("name", PAPERS)
def test_lists_give_the_same_manifest_and_readers_the_same_frames(
    tiny_root: Path, copies: Path, name: str
) -> None:
    for split in ("train", "test"):
        plain, copy = (BENCHMARKS[name].read(root / name, split) for root in (tiny_root, copies))
        assert copy.digest() == plain.digest()
        assert [copy.below(video) for video in copy.videos] == [plain.below(video) for video in plain.videos]
        assert not any(Path(video.path).exists() for video in copy.videos)
        for before, after in zip(plain.videos[:2], copy.videos[:2], strict=True):
            for reader in ("auto", "decord") if decord.is_installed() else ("auto",):
                frames_THWC = readers.read_all(after.path, reader)
                assert np.array_equal(frames_THWC, readers.read_all(before.path))
            assert str(readers.check(after.path)) == str(readers.check(before.path))


def test_tar_gives_the_videos_back_byte_for_byte(tiny_root: Path, copies: Path, tmp_path: Path) -> None:
    for shard in sorted((copies / "hmdb51" / "shards").iterdir()):
        assert shard.stat().st_size <= 1 << 15
        with tarfile.open(shard) as file:
            file.extractall(tmp_path, filter="data")
    videos = list(walk(tiny_root / "hmdb51"))
    assert [path.relative_to(tmp_path) for path in walk(tmp_path)] == [
        path.relative_to(tiny_root / "hmdb51") for path in videos
    ]
    for path in videos:
        unpacked = tmp_path / path.relative_to(tiny_root / "hmdb51")
        assert unpacked.read_bytes() == path.read_bytes()
        assert int(unpacked.stat().st_mtime) == int(path.stat().st_mtime)


_KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from tats_core.data.benchmarks import BENCHMARKS
from tats_core.data.loaders import ClipOptions, TrainLoader
if __name__ == "__main__":
    manifest = BENCHMARKS["hmdb51"].read(Path(sys.argv[1]), "train")
    options = ClipOptions(
        frames=4, size=16, rand_augment="rand-m7-n2-mstd0.5", flip=True, decode_workers=int(sys.argv[2])
    )
    batches = TrainLoader(manifest, options, batch_size=3, seed=5, samples_per_clip=2).epoch(1)
    torch.save([tuple(next(batches)[:3]) for _ in range(2)], "batches.pt")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", [0, 2])
def test_a_run_that_is_killed_in_mid_epoch_resumes_with_the_same_samples(
    tiny_root: Path, copies: Path, tmp_path: Path, processes: int
) -> None:
    plain, copy = (BENCHMARKS["hmdb51"].read(root / "hmdb51", "train") for root in (tiny_root, copies))
    options = SMALL.model_copy(update={"decode_workers": processes})

    def loader(manifest: Manifest, options: ClipOptions) -> TrainLoader:
        return TrainLoader(manifest, options, batch_size=3, seed=5, samples_per_clip=2)

    wanted = list(loader(plain, SMALL).epoch(1))
    (tmp_path / "script.py").write_text(_KILLED)
    command = [sys.executable, tmp_path / "script.py", str(copies / "hmdb51"), str(processes)]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    before = [Batch(*tensors, []) for tensors in torch.load(tmp_path / "batches.pt")]
    assert len(before) == 2
    resumed = loader(copy, options)
    assert same([*before, *resumed.epoch(1, first_step=2)], wanted)
    resumed.close()


@pytest.mark.parametrize("processes", [0, 1])
def test_test_views_are_the_same(tiny_root: Path, copies: Path, processes: int) -> None:
    plain, copy = (BENCHMARKS["ssv2"].read(root / "ssv2", "test") for root in (tiny_root, copies))
    options = SMALL.model_copy(update={"decode_workers": processes})
    assert same([*eval_views(plain, SMALL)], [*eval_views(copy, options)])


def test_the_index_and_the_check_of_a_copy_are_those_of_the_plain_one(
    tiny_root: Path, tmp_path: Path
) -> None:
    root = tmp_path / "ucf101"
    shutil.copytree(tiny_root / "ucf101", root)
    damaged = sorted(root.rglob("*_c01.avi"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-600])
    packed("ucf101", root, tmp_path / "copy")
    found = [
        check(BENCHMARKS["ucf101"], folder, None, 100, lambda done, total: None, workers=1)
        for folder in (root, tmp_path / "copy")
    ]
    assert found[0].findings == found[1].findings
    assert found[0].counts == found[1].counts
    assert "damaged" in {finding.kind for finding in found[1].findings}
    assert found[0].index.table.equals(found[1].index.table)
    assert found[0].index.digest() == found[1].index.digest()


def test_odd_names_keep_their_order_and_links_are_followed(tiny_root: Path, tmp_path: Path) -> None:
    long = "x" * 120
    names = ["b.avi", "a/2.AVI", "a/10.avi", "a-b/1.avi", "a::b/[1].avi", f"z/{long}.avi", "B/é\udcff.avi"]
    root = some_videos(tiny_root, tmp_path / "own", *names)
    (root / "q").symlink_to(root / "a")
    packed("own", root, tmp_path / "copy")
    plain, copy = (BENCHMARKS["own"].read(folder, "train") for folder in (root, tmp_path / "copy"))
    paths = [[path.relative_to(folder) for path in walk(folder)] for folder in (root, tmp_path / "copy")]
    assert paths[0] == paths[1]
    assert len(paths[0]) == 9
    assert [*walk(tmp_path / "copy" / "a")] == [tmp_path / "copy/a/10.avi", tmp_path / "copy/a/2.AVI"]
    assert copy.classes == plain.classes
    for path in walk(tmp_path / "copy"):
        assert len(readers.read_all(path)) == 20
    assert len(existing([str(tmp_path / "copy"), str(tmp_path / "copy" / "b.avi")])) == 10
    with pytest.raises(VideoError, match=r"no\.avi: cannot be read"):
        readers.read_all(tmp_path / "copy" / "no.avi")


def test_relative_lists_are_kept_and_a_list_that_leads_elsewhere_is_refused(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = some_videos(tiny_root, tmp_path / "own", "v/1.avi", "v/2.avi")
    (root / "train.txt").write_text("v/1.avi 0\n./v/../v/2.avi 1\n")
    monkeypatch.chdir(tmp_path)
    packed("own", Path("own"), Path("copy"))
    assert len(BENCHMARKS["own"].read(tmp_path / "copy", "train")) == 2
    (root / "train.txt").write_text(f"v/1.avi 0\n{root}/v/2.avi 1\n")
    with pytest.raises(DataError, match=r"lacks .*/own/v/2\.avi of the train list; a list must name"):
        packed("own", root, tmp_path / "second")


def test_a_copy_that_was_ended_resumes_and_is_not_read_before(tiny_root: Path, tmp_path: Path) -> None:
    root, out = tiny_root / "ucf101", tmp_path / "copy"

    class EndedError(Exception):
        pass

    def end(done: int, total: int) -> None:
        if done:
            raise EndedError

    with pytest.raises(EndedError):
        pack("ucf101", root, out, end, shard_bytes=1 << 15, workers=1)
    (shard,) = (out / "shards").iterdir()
    (out / "shards" / "00001.tar").write_bytes(b"the beginning of the next one")
    with pytest.raises(DataError, match=r"is not complete .* run the same `tats data pack` again"):
        BENCHMARKS["ucf101"].read(out, "train")
    changed = shard.stat().st_mtime_ns
    count, done = packed("ucf101", root, out)
    assert done[0] > 0
    assert done[-1] == len(list(walk(root)))
    assert shard.stat().st_mtime_ns == changed
    assert packed("ucf101", root, out) == (count, [done[-1]])
    with pytest.raises(DataError, match="is a packed copy of other videos, or of other settings"):
        packed("ucf101", root, out, shard_bytes=1 << 20)
    # A shard that was cut is made again.
    os.truncate(shard, 2000)
    assert packed("ucf101", root, out) == (count, [done[-1] - done[0], done[-1]])


def test_what_cannot_be_packed_is_refused_with_a_sentence(
    tiny_root: Path, copies: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="is a packed copy already"):
        packed("ucf101", copies / "ucf101", tmp_path / "again")
    with pytest.raises(DataError, match="is a packed copy; shrink the plain one"):
        shrink(copies / "ucf101", tmp_path / "small", Smaller(), lambda done, total: None)
    with pytest.raises(DataError, match="is in the data set itself"):
        packed("ucf101", tiny_root / "ucf101", tiny_root / "ucf101" / "copy")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="own: no video in"):
        packed("own", tmp_path / "empty", tmp_path / "copy")
    (tmp_path / "empty" / "gone.avi").symlink_to(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"gone\.avi cannot be packed: it leads to no file; remove it"):
        packed("own", tmp_path / "empty", tmp_path / "copy")
    with pytest.raises(DataError, match=r"nosuch://x/00000\.tar cannot be read \(Protocol not known: nosuch"):
        packed("ucf101", tiny_root / "ucf101", tmp_path / "copy", address="nosuch://x")


def _cut(shard: Path) -> None:
    os.truncate(shard, shard.stat().st_size - 2048)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_cut, r"00001\.tar is cut off: it has [\d,]+ of [\d,]+ bytes; copy it again"),
        (Path.unlink, r"00001\.tar, a shard of .*copy, is not there; copy it again"),
    ],
)
def test_a_cut_or_missing_shard_is_named_before_anything_is_read_and_while_it_is(
    tiny_root: Path, tmp_path: Path, damage: Callable[[Path], None], sentence: str
) -> None:
    root, out = tmp_path / "own", tmp_path / "copy"
    some_videos(tiny_root, root, *(f"{number}.avi" for number in range(9)))
    packed("own", root, out)
    videos = list(walk(out))
    shard = out / "shards" / "00001.tar"
    damage(shard)
    in_it = [place for place in map(shards.find, videos) if place is not None and place.shard == 1]
    last = max(in_it, key=lambda place: place.offset)
    # No VideoError, for which training takes another video.
    with pytest.raises(DataError, match=r"00001\.tar (is cut off|cannot be read)") as error:
        readers.read_all(last.path)
    assert not isinstance(error.value, VideoError)
    shards.above.cache_clear()
    with pytest.raises(DataError, match=sentence):
        BENCHMARKS["own"].read(out, "train")


def test_bytes_that_are_not_those_that_were_packed_are_named(tiny_root: Path, tmp_path: Path) -> None:
    some_videos(tiny_root, tmp_path / "own", "1.avi", "2.avi")
    packed("own", tmp_path / "own", tmp_path / "copy")
    place = shards.find(tmp_path / "copy" / "2.avi")
    assert place is not None
    with Path(place.packed.address(place.shard)).open("r+b") as file:
        file.seek(place.offset + 1000)
        file.write(b"\x00\xff")
    assert len(readers.read_all(tmp_path / "copy" / "1.avi")) == 20
    with pytest.raises(VideoError, match=r"copy/2\.avi: its bytes in .*00000\.tar are not those that were"):
        readers.read_all(place.path)
    manifest = BENCHMARKS["own"].read(tmp_path / "copy", "train")
    paths = {video.path for video in manifest.videos}
    files = index.update(None, [("train", manifest)], decode=paths, workers=1)
    faults = dict(zip(files.table["path"].to_pylist(), files.table["fault"].to_pylist(), strict=True))
    assert faults.pop("1.avi", "") == ""
    assert all("are not those that were packed" in fault for fault in faults.values())


@pytest.fixture
def memory() -> Iterator[str]:
    yield "memory://packed"
    fsspec.filesystem("memory").store.clear()


def test_shards_lie_at_any_address_and_can_be_moved(tiny_root: Path, tmp_path: Path, memory: str) -> None:
    root, out = tiny_root / "hmdb51", tmp_path / "copy"
    count, _ = packed("hmdb51", root, out, address=f"{memory}/hmdb51")
    assert not (out / "shards").exists()
    fs = fsspec.filesystem("memory")
    assert len(fs.ls("/packed/hmdb51")) == count
    plain, copy = (BENCHMARKS["hmdb51"].read(folder, "train") for folder in (root, out))
    wanted = list(TrainLoader(plain, SMALL, batch_size=3, seed=5).epoch(0))
    assert same(list(TrainLoader(copy, SMALL, batch_size=3, seed=5).epoch(0)), wanted)
    with pytest.raises(DataError, match=r"hmdb51/00000\.tar exists, and is no shard of this copy"):
        packed("hmdb51", root, tmp_path / "other", address=f"{memory}/hmdb51")
    fs.get("/packed/hmdb51/", str(tmp_path / "elsewhere"), recursive=True)
    fs.rm("/packed", recursive=True)
    settings = json.loads((out / "packed.json").read_text())
    (out / "packed.json").write_text(json.dumps(settings | {"shards": f"file://{tmp_path}/elsewhere"}))
    shards.above.cache_clear()
    copy = BENCHMARKS["hmdb51"].read(out, "train")
    assert same(list(TrainLoader(copy, SMALL, batch_size=3, seed=5).epoch(0)), wanted)

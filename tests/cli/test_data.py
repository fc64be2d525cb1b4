"""`tats data generate` and `tats data check` on a set of a few clips."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FEW = (
    "--clips-per-class", "1", "--test-clips-per-class", "1",
    "--set", "frames=4", "--set", "scene.size=16", "--set", "benchmarks=[ucf101]",
)  # fmt: skip


@pytest.fixture
def made(tats: Callable[..., Any], tmp_path: Path) -> Path:
    """Generate one data set of one clip a class and split."""
    ended = tats("data", "generate", "--out", "made", *FEW)
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert lines[-2:] == ["ucf101       made/ucf101", f"read them with: TATS_DATA={tmp_path / 'made'}"]
    assert lines[0].startswith("clips: 0 of ")
    return tmp_path / "made"


def test_check_reads_a_generated_set_completely(tats, made, monkeypatch):
    monkeypatch.setenv("TATS_DATA", str(made))
    ended = tats("data", "check", "--decode", "2")
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert lines[0] == f"ucf101 (UCF101) in {made / 'ucf101'}"
    assert "(official 9537)" in lines[-7]
    # Folds 2 and 3 are other divisions of the same videos: counted, not decoded again.
    folds = ["train 1", "test 1", "train 2", "test 2", "train 3", "test 3"]
    assert [line.split(":")[0].strip() for line in lines[-7:-1]] == folds
    assert lines[-1] == "  4 of 4 decoded completely"


def test_an_index_is_made_once_and_used_by_the_check(tats, made, monkeypatch):
    monkeypatch.setenv("TATS_DATA", str(made))
    first, second = tats("data", "index", "ucf101"), tats("data", "index")
    assert (first.code, second.code) == (0, 0), first.err
    lines = first.out.splitlines()
    assert lines[-2].startswith("ucf101: 16 videos in 16 files, 0 damaged: ")
    assert Path(lines[-2].rpartition(": ")[2]).suffix == ".parquet"
    # Nothing is left to examine.
    assert second.out.splitlines() == lines[-2:]
    ended = tats("data", "check", "--decode", "0", "--ledger", "ledger.csv")
    assert ended.out.splitlines()[-1] == "  16 of 16 decoded completely"
    assert {line.split(",")[1] for line in Path("ledger.csv").read_text().splitlines()} == {
        "finding",
        "short",
    }
    assert "16 videos have fewer than 16 frames (the first is UCF-101/" in ended.err
    for path in made.rglob("*_c01.avi"):
        path.write_bytes(path.read_bytes()[:-600])
        break
    ended = tats("data", "check", "--decode", "100", "--ledger", "ledger.csv")
    assert ended.code == 2
    assert ended.err.count(": cannot be read (") == 1
    assert (
        sum(line.startswith("ucf101,damaged,") for line in Path("ledger.csv").read_text().splitlines()) == 1
    )


def test_a_packed_copy_is_found_by_the_same_variable_and_has_the_same_index(tats, made, monkeypatch):
    monkeypatch.setenv("TATS_DATA", str(made))
    plain = tats("data", "index", "ucf101").out.splitlines()
    ended = tats("data", "pack", "ucf101", "--out", "copies", "--shard-mb", "1")
    assert ended.code == 0, ended.err
    assert ended.out.splitlines()[-2] == "ucf101       copies/ucf101 (1 shard)"
    assert not list(Path("copies").rglob("*.avi"))
    monkeypatch.setenv("TATS_DATA", str(Path("copies").absolute()))
    copy = tats("data", "index", "ucf101").out.splitlines()
    assert copy[-1] == plain[-1]
    assert copy[-2].startswith("ucf101: 16 videos in 16 files, 0 damaged: ")
    assert tats("data", "check").code == 0
    shard = Path("copies/ucf101/shards/00000.tar")
    shard.write_bytes(shard.read_bytes()[:-2000])
    from tats_core.data import shards

    shards.above.cache_clear()
    ended = tats("data", "check")
    assert ended.code == 2
    assert f"{shard.absolute()} is cut off: it has " in ended.err
    assert len(ended.err.splitlines()) == 1


def test_generating_again_reuses_everything(tats, made):
    ended = tats("data", "generate", "--out", "made", *FEW)
    assert ended.out.splitlines()[0].endswith("(reused)")


def test_another_setting_in_the_same_folder_is_refused(tats, made):
    ended = tats("data", "generate", "--out", "made", *FEW, "--seed", "7")
    assert ended.code == 2
    assert ended.err.startswith("tats: made holds a set of other settings")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--preset", "dmo"), "preset must be one of demo, colourful, crowded"),
        (("--set", "fsp=9"), "there is no key 'fsp'; did you mean 'fps'?"),
        (("--clips-per-class", "0"), "clips_per_class: input should be greater than or equal to 1 (it is 0)"),
    ],
)
def test_a_wrong_option_is_reported_by_its_name(tats, words, sentence):
    ended = tats("data", "generate", "--out", "made", *words)
    assert ended.code == 2
    assert ended.err.startswith(f"tats: data generate: {sentence}")


def test_a_video_that_cannot_be_decoded_fails_the_check_and_is_named(tats, made):
    for path in made.rglob("*.avi"):
        path.write_bytes(b"not a video")
    ended = tats("data", "check", "ucf101", "--root", str(made), "--decode", "1")
    assert ended.code == 2
    assert "0 of 2 decoded completely" in ended.out
    assert ".avi: cannot be read" in ended.err


def test_an_output_folder_that_is_a_file_is_refused(tats, tmp_path):
    (tmp_path / "taken").touch()
    ended = tats("data", "generate", "--out", "taken", "--clips-per-class", "1")
    assert ended.code == 2
    assert ended.err.startswith("tats: --out taken: cannot be written (")
    assert ended.err.count("\n") == 1


def test_a_wrong_setting_is_reported_with_the_nearest_name(tats):
    ended = tats("data", "generate", "--out", "x", "--set", "scene.nois=0.1")
    assert ended.code == 2
    assert ended.err == "tats: data generate: scene has no key 'nois'; did you mean 'noise'?\n"


def test_a_named_set_that_is_missing_fails_with_the_variable_that_locates_it(tats):
    ended = tats("data", "check", "ssv2")
    assert ended.code == 2
    assert "TATS_DATA_SSV2 is not set" in ended.err


def test_a_copy_with_one_split_passes_with_a_warning(tats, made):
    lists = made / "ucf101" / "ucfTrainTestlist"
    for listing in lists.glob("*list0[23].txt"):
        listing.unlink()
    words = ("data", "check", "ucf101", "--root", str(made), "--decode", "0")
    ended = tats(*words)
    assert ended.code == 0, ended.err
    warned = f"tats: warning: 4 of the 6 lists of ucf101 are missing: {lists}/trainlist02.txt cannot be read"
    assert ended.err.startswith(warned)
    assert tats(*words, "--strict").code == 1
    for listing in lists.glob("*list01.txt"):
        listing.unlink()
    ended = tats(*words)
    assert ended.code == 2
    assert ended.err.startswith(f"tats: {lists}/trainlist01.txt cannot be read")


def test_a_video_of_both_splits_is_a_warning(tats, made):
    lists = made / "ucf101" / "ucfTrainTestlist"
    with (lists / "testlist01.txt").open("a") as listing:
        listing.write((lists / "trainlist01.txt").read_text().splitlines()[0].split()[0] + "\n")
    ended = tats("data", "check", "ucf101", "--root", str(made), "--decode", "0")
    assert ended.code == 0, ended.err
    assert "tats: warning: fold 1: ucf101: the training list has 1 of the " in ended.err


def test_a_fault_of_both_splits_is_one_sentence(tats, made):
    (made / "ucf101" / "ucfTrainTestlist" / "classInd.txt").write_bytes(b"1 caf\xe9\n")
    ended = tats("data", "check", "ucf101", "--root", str(made))
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert "classInd.txt, line 1: is not UTF-8 (byte 0xe9)" in ended.err


def test_without_names_and_without_any_set_check_says_how_to_configure_a_set(tats):
    ended = tats("data", "check")
    assert ended.code == 2
    assert "TATS_DATA" in ended.err


def test_a_root_without_data_sets_is_named_and_the_one_above_where_that_is_meant(tats, made):
    ended = tats("data", "check", "--root", str(made / "ucf101"))
    assert ended.code == 2
    assert ended.err.startswith(f"tats: --root: {made / 'ucf101'} holds none of the folders ssv2, ")
    assert ended.err.endswith(f"; did you mean {made}?\n")


def test_an_unknown_data_set_is_refused_with_the_nearest(tats):
    ended = tats("data", "check", "ufc101")
    assert ended.code == 2
    assert ended.err == "tats: no data set 'ufc101'; did you mean 'ucf101'?\n"

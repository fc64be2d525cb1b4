"""Each reader against a layout written by hand, with the oddities of the copies that people have."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tats_core.data.benchmarks import BENCHMARKS, PAPERS, locate
from tats_core.data.benchmarks.base import NoListError, overlap, walk
from tats_core.data.clips import Segment
from tats_core.errors import DataError, SpecError


def touch(root: Path, *places: str) -> None:
    for path in places:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def write(root: Path, path: str, text: str) -> None:
    touch(root, path)
    (root / path).write_bytes(text.encode())


# ------------------------------------------------------------------------------- Something-Something


def ssv2(root: Path, prefix: str = "labels/") -> Path:
    write(root, f"{prefix}labels.json", json.dumps({"Dropping something": "1", "Moving something up": "0"}))
    rows = [
        {"id": "78687", "label": "moving a cup up", "template": "Moving [something] up"},
        {"id": "42326", "label": "dropping a pen", "template": "Dropping [something]"},
    ]
    write(root, f"{prefix}train.json", json.dumps(rows))
    write(root, f"{prefix}validation.json", json.dumps(rows[:1]))
    touch(root, "20bn-something-something-v2/78687.webm", "20bn-something-something-v2/42326.webm")
    return root


@pytest.mark.parametrize(
    "prefix", ["labels/", "", "something-something-v2-", "labels/something-something-v2-"]
)
def test_ssv2_takes_the_class_from_the_template_and_its_number_from_the_labels(
    tmp_path: Path, prefix: str
) -> None:
    manifest = BENCHMARKS["ssv2"].read(ssv2(tmp_path, prefix), "train")
    assert manifest.classes == ("Moving something up", "Dropping something")
    assert [(video.id, video.label) for video in manifest.videos] == [("78687", 0), ("42326", 1)]
    assert manifest.videos[0].path == str(tmp_path / "20bn-something-something-v2" / "78687.webm")


def test_ssv2_tests_on_the_validation_split(tmp_path: Path) -> None:
    assert [video.id for video in BENCHMARKS["ssv2"].read(ssv2(tmp_path), "test").videos] == ["78687"]


def test_ssv2_refuses_a_copy_that_lacks_a_video(tmp_path: Path) -> None:
    (ssv2(tmp_path) / "20bn-something-something-v2" / "42326.webm").unlink()
    with pytest.raises(DataError, match=r"ssv2 \(train\): 1 of the 2 listed videos .* '42326'"):
        BENCHMARKS["ssv2"].read(tmp_path, "train")


def test_ssv2_names_the_row_that_is_not_as_expected_and_the_file_that_is_no_json(tmp_path: Path) -> None:
    write(ssv2(tmp_path), "labels/train.json", json.dumps([{"id": "1", "label": "a"}]))
    with pytest.raises(DataError, match=r"train\.json: entry 1, 'template' is not as .*: field required"):
        BENCHMARKS["ssv2"].read(tmp_path, "train")
    write(tmp_path, "labels/train.json", "[{")
    with pytest.raises(DataError, match=r"train\.json is not JSON \(.*\); download it again"):
        BENCHMARKS["ssv2"].read(tmp_path, "train")


def test_ssv2_refuses_a_template_that_is_no_class_and_labels_that_leave_a_gap(tmp_path: Path) -> None:
    write(ssv2(tmp_path), "labels/labels.json", json.dumps({"Moving something up": "0"}))
    with pytest.raises(
        DataError, match=r"'42326' has the class 'Dropping something', which labels\.json lacks"
    ):
        BENCHMARKS["ssv2"].read(tmp_path, "train")
    write(tmp_path, "labels/labels.json", json.dumps({"Moving something up": "1"}))
    with pytest.raises(DataError, match="must number the classes 0 to 0"):
        BENCHMARKS["ssv2"].read(tmp_path, "train")


@pytest.mark.parametrize(
    ("labels", "key"),
    [
        ({"Moving something up": "zero", "Dropping something": "1"}, "'Moving something up'"),
        ({"Moving something up": None, "Dropping something": "1"}, "'Moving something up'"),
        (["Moving something up"], "its content"),
    ],
)
def test_ssv2_names_the_label_that_is_no_number(tmp_path: Path, labels: object, key: str) -> None:
    write(ssv2(tmp_path), "labels/labels.json", json.dumps(labels))
    with pytest.raises(DataError, match=rf"labels\.json: {key} is not as the data set has it: input should"):
        BENCHMARKS["ssv2"].read(tmp_path, "test")


def test_ssv2_names_the_entry_whose_template_is_null(tmp_path: Path) -> None:
    row = {"id": "78687", "template": "Moving [something] up"}
    write(ssv2(tmp_path), "labels/train.json", json.dumps([row, {"id": "42326", "template": None}]))
    with pytest.raises(DataError, match=r"train\.json: entry 2, 'template' is not as the data set has it"):
        BENCHMARKS["ssv2"].read(tmp_path, "train")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_every_list_may_begin_with_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    makers = {"ssv2": ssv2, "kinetics400": kinetics, "ucf101": ucf, "hmdb51": hmdb}
    for name, make in makers.items():
        root = make(tmp_path / name)
        before = BENCHMARKS[name].read(root, "train")
        for listing in root.rglob("*"):
            if listing.suffix in (".json", ".csv", ".txt"):
                listing.write_text(listing.read_text("utf-8"), encoding)
        assert BENCHMARKS[name].read(root, "train") == before


# --------------------------------------------------------------------------------------- Kinetics-400

HEADER = "label,youtube_id,time_start,time_end,split\n"


def kinetics(root: Path) -> Path:
    train = (
        "zumba,-abcdefghij,12,22,train\nabseiling,ABCDEFGHIJK,0,10,train\njuggling,gone_away_1,5,15,train\n"
    )
    write(root, "annotations/train.csv", HEADER + train)
    write(root, "annotations/val.csv", HEADER + "zumba,LMNOPQRSTUV,100,110,validate\n")
    touch(root, "train/-abcdefghij_000012_000022.mp4", "train/abseiling/ABCDEFGHIJK.mp4")
    touch(root, "val/LMNOPQRSTUV_000100_000110.mp4")
    return root


def test_kinetics_finds_files_flat_in_class_folders_and_by_bare_id(tmp_path: Path) -> None:
    manifest = BENCHMARKS["kinetics400"].read(kinetics(tmp_path), "train")
    assert manifest.classes == ("abseiling", "juggling", "zumba")
    assert [(Path(video.path).name, video.label) for video in manifest.videos] == [
        ("-abcdefghij_000012_000022.mp4", 2),
        ("ABCDEFGHIJK.mp4", 0),
    ]


def test_kinetics_counts_what_a_copy_lacks(tmp_path: Path) -> None:
    assert BENCHMARKS["kinetics400"].read(kinetics(tmp_path), "train").absent == 1


def test_kinetics_numbers_the_classes_of_both_splits_by_the_training_list(tmp_path: Path) -> None:
    manifest = BENCHMARKS["kinetics400"].read(kinetics(tmp_path), "test")
    assert manifest.classes == ("abseiling", "juggling", "zumba")
    assert manifest.labels() == [2]


def test_kinetics_refuses_a_list_without_a_column_and_a_copy_without_any_video(tmp_path: Path) -> None:
    (kinetics(tmp_path) / "val" / "LMNOPQRSTUV_000100_000110.mp4").unlink()
    with pytest.raises(DataError, match="none of the 1 listed videos"):
        BENCHMARKS["kinetics400"].read(tmp_path, "test")
    write(tmp_path, "annotations/train.csv", "label,youtube_id,time_start\n")
    with pytest.raises(DataError, match="it lacks time_end"):
        BENCHMARKS["kinetics400"].read(tmp_path, "train")


def test_kinetics_names_the_line_that_lacks_a_second_and_the_one_that_is_not_utf_8(tmp_path: Path) -> None:
    for second in ("", "²", "10.5", "9" * 5000):
        write(kinetics(tmp_path), "annotations/val.csv", f"{HEADER}zumba,LMNOPQRSTUV,100,{second},validate\n")
        with pytest.raises(
            DataError, match=r"val\.csv, line 2: needs a label, a YouTube id and two whole sec"
        ):
            BENCHMARKS["kinetics400"].read(tmp_path, "test")
    latin = f"{HEADER}zumba,a,1,2,train\ncafé,b,1,2,train\n".encode("latin-1")
    (tmp_path / "annotations" / "train.csv").write_bytes(latin)
    with pytest.raises(DataError, match=r"train\.csv, line 3: is not UTF-8 \(byte 0xe9\); save the file as"):
        BENCHMARKS["kinetics400"].read(tmp_path, "train")


def test_kinetics_gives_a_file_with_a_bare_id_to_one_row_at_most(tmp_path: Path) -> None:
    train = "zumba,-abcdefghij,12,22,train\nzumba,ABCDEFGHIJK,0,10,train\njuggling,ABCDEFGHIJK,30,40,train\n"
    write(kinetics(tmp_path), "annotations/train.csv", HEADER + train)
    manifest = BENCHMARKS["kinetics400"].read(tmp_path, "train")
    assert ([video.id for video in manifest.videos], manifest.absent) == (["-abcdefghij_000012_000022"], 2)
    assert "2 clips are segments of videos with several" in manifest.notes[0]
    # With a file of the first segment, the other file can only be the second.
    touch(tmp_path, "train/ABCDEFGHIJK_000000_000010.mp4")
    manifest = BENCHMARKS["kinetics400"].read(tmp_path, "train")
    assert [Path(video.path).stem for video in manifest.videos[1:]] == [
        "ABCDEFGHIJK_000000_000010",
        "ABCDEFGHIJK",
    ]


def test_kinetics_does_not_give_a_file_with_a_bare_id_to_both_splits(tmp_path: Path) -> None:
    write(tmp_path, "train.csv", HEADER + "zumba,ABCDEFGHIJK,0,10,train\nzumba,b,0,10,train\n")
    write(tmp_path, "val.csv", HEADER + "zumba,ABCDEFGHIJK,30,40,validate\nzumba,c,0,10,validate\n")
    touch(tmp_path, "videos/ABCDEFGHIJK.mp4", "videos/b.mp4", "videos/c.mp4")
    for split, only in (("train", "b"), ("test", "c")):
        videos = BENCHMARKS["kinetics400"].read(tmp_path, split).videos  # type: ignore[arg-type]
        assert [Path(video.path).stem for video in videos] == [only]


def test_kinetics_reads_activitynets_names_and_lists_with_tabs(tmp_path: Path) -> None:
    before = BENCHMARKS["kinetics400"].read(kinetics(tmp_path), "test")
    for name, split in (("train", "train"), ("val", "val")):
        listing = tmp_path / "annotations" / f"{name}.csv"
        write(tmp_path, f"kinetics-400_{split}.csv", listing.read_text().replace(",", "\t"))
        listing.unlink()
    assert BENCHMARKS["kinetics400"].read(tmp_path, "test") == before


def test_kinetics_tests_without_a_training_list(tmp_path: Path) -> None:
    (kinetics(tmp_path) / "annotations" / "train.csv").unlink()
    manifest = BENCHMARKS["kinetics400"].read(tmp_path, "test")
    assert (manifest.classes, manifest.labels()) == (("zumba",), [0])
    assert "there is no training list; the classes are numbered as in this list" in manifest.notes[0]
    with pytest.raises(NoListError, match="no train list"):
        BENCHMARKS["kinetics400"].read(tmp_path, "train")


# --------------------------------------------------------------------------------------------- UCF101


def ucf(root: Path) -> Path:
    write(root, "ucfTrainTestlist/classInd.txt", "1 HandstandPushups\r\n2 Archery\r\n")
    train = "HandstandPushups/v_HandStandPushups_g01_c01.avi 1\r\nArchery/v_Archery_g01_c01.avi 2\r\n"
    write(root, "ucfTrainTestlist/trainlist01.txt", train)
    write(root, "ucfTrainTestlist/testlist01.txt", "Archery/v_Archery_g02_c01.avi\n")
    write(root, "ucfTrainTestlist/testlist02.txt", "Archery/v_Archery_g01_c01.avi\n")
    touch(root, "UCF-101/HandStandPushups/v_HandstandPushups_g01_c01.avi")
    touch(root, "UCF-101/Archery/v_Archery_g01_c01.avi", "UCF-101/Archery/v_Archery_g02_c01.avi")
    return root


def test_ucf101_ignores_case_and_line_ends_and_counts_labels_from_zero(tmp_path: Path) -> None:
    manifest = BENCHMARKS["ucf101"].read(ucf(tmp_path), "train")
    assert manifest.classes == ("HandstandPushups", "Archery")
    assert [(Path(video.path).name, video.label) for video in manifest.videos] == [
        ("v_HandstandPushups_g01_c01.avi", 0),
        ("v_Archery_g01_c01.avi", 1),
    ]


def test_ucf101_takes_the_test_label_from_the_folder_in_every_fold(tmp_path: Path) -> None:
    root = ucf(tmp_path)
    for fold, name in ((1, "v_Archery_g02_c01"), (2, "v_Archery_g01_c01")):
        manifest = BENCHMARKS["ucf101"].read(root, "test", fold)
        assert [(video.id, video.label) for video in manifest.videos] == [(name, 1)]


def test_ucf101_refuses_a_label_that_contradicts_the_class_list(tmp_path: Path) -> None:
    write(ucf(tmp_path), "ucfTrainTestlist/trainlist01.txt", "Archery/v_Archery_g01_c01.avi 1\n")
    with pytest.raises(DataError, match=r"trainlist01\.txt, line 1: label 1, but classInd\.txt says 2"):
        BENCHMARKS["ucf101"].read(tmp_path, "train")


def test_ucf101_names_the_list_of_a_fold_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"trainlist03.txt cannot be read"):
        BENCHMARKS["ucf101"].read(ucf(tmp_path), "train", 3)


def test_ucf101_reads_lists_with_tabs_and_backslashes(tmp_path: Path) -> None:
    before = [BENCHMARKS["ucf101"].read(ucf(tmp_path), split) for split in ("train", "test")]
    for listing in (tmp_path / "ucfTrainTestlist").iterdir():
        listing.write_text(listing.read_text().replace(" ", "\t").replace("/", "\\"))
    assert [BENCHMARKS["ucf101"].read(tmp_path, split) for split in ("train", "test")] == before


def test_a_video_of_both_lists_is_counted_and_named(tmp_path: Path) -> None:
    write(ucf(tmp_path), "ucfTrainTestlist/testlist01.txt", "Archery/v_Archery_g01_c01.avi\n")
    train, test = (BENCHMARKS["ucf101"].read(tmp_path, split) for split in ("train", "test"))
    assert overlap(train, test) == (
        "ucf101: the training list has 1 of the 1 test videos too (the first is 'v_Archery_g01_c01'), "
        "so a test flatters the model"
    )
    write(tmp_path, "ucfTrainTestlist/testlist01.txt", "Archery/v_Archery_g02_c01.avi\n")
    assert overlap(train, BENCHMARKS["ucf101"].read(tmp_path, "test")) is None


def test_a_clip_in_the_folders_of_both_splits_is_of_both(tmp_path: Path) -> None:
    folder = kinetics(tmp_path)
    rows = (folder / "annotations" / "train.csv").read_text().splitlines()
    write(folder, "annotations/val.csv", "\n".join(rows[:2]) + "\n")
    train = BENCHMARKS["kinetics400"].read(folder, "train")
    clip = train.videos[0]
    touch(folder, f"val/{clip.id}.mp4")
    test = BENCHMARKS["kinetics400"].read(folder, "test")
    assert test.videos[0].path != clip.path
    assert "has 1 of the 1 test videos too" in (overlap(train, test) or "")


def test_a_partial_copy_is_read_where_that_is_allowed(tmp_path: Path) -> None:
    (ucf(tmp_path) / "UCF-101" / "Archery" / "v_Archery_g01_c01.avi").unlink()
    with pytest.raises(DataError, match=r"ucf101 \(train, fold 1\): 1 of the 2 .* set 'missing: allow'"):
        BENCHMARKS["ucf101"].read(tmp_path, "train")
    manifest = BENCHMARKS["ucf101"].read(tmp_path, "train", missing="allow")
    assert ([video.label for video in manifest.videos], manifest.absent) == ([0], 1)
    assert manifest.classes == ("HandstandPushups", "Archery")
    assert "(the first is 'Archery/v_Archery_g01_c01.avi')" in manifest.notes[0]


def test_kinetics_may_lack_videos_unless_that_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"kinetics400 \(train\): 1 of the 3 listed videos are not in"):
        BENCHMARKS["kinetics400"].read(kinetics(tmp_path), "train", missing="refuse")


# --------------------------------------------------------------------------------------------- HMDB51


def hmdb(root: Path) -> Path:
    names = [
        "#20_Rhythm_clap_u_nm_np1_fr_goo_0.avi",
        "A & B (1)_clap!_u_cm_np1_ba_med_1.avi",
        "unused_clap.avi",
    ]
    rows = "".join(f"{name} {flag} \n" for name, flag in zip(names, (1, 2, 0), strict=True))
    write(root, "testTrainMulti_7030_splits/clap_test_split1.txt", rows)
    write(root, "testTrainMulti_7030_splits/brush_hair_test_split1.txt", "hair.avi 1 \n")
    touch(root, "hmdb51_org/brush_hair/brush_hair/hair.avi", *(f"hmdb51_org/clap/{name}" for name in names))
    return root


def test_hmdb51_reads_flags_and_names_with_odd_characters(tmp_path: Path) -> None:
    root = hmdb(tmp_path)
    train, test = (BENCHMARKS["hmdb51"].read(root, split) for split in ("train", "test"))
    assert train.classes == test.classes == ("brush_hair", "clap")
    assert [(video.id, video.label) for video in train.videos] == [
        ("hair", 0),
        ("#20_Rhythm_clap_u_nm_np1_fr_goo_0", 1),
    ]
    assert [(video.id, video.label) for video in test.videos] == [("A & B (1)_clap!_u_cm_np1_ba_med_1", 1)]


def test_hmdb51_refuses_a_row_without_a_flag_and_a_fold_without_lists(tmp_path: Path) -> None:
    write(hmdb(tmp_path), "testTrainMulti_7030_splits/clap_test_split1.txt", "name.avi\n")
    with pytest.raises(DataError, match=r"clap_test_split1\.txt, line 1: must be 'name\.avi flag'"):
        BENCHMARKS["hmdb51"].read(tmp_path, "train")
    with pytest.raises(DataError, match=r"no '\*_test_split2.txt'"):
        BENCHMARKS["hmdb51"].read(tmp_path, "train", 2)


def test_hmdb51_names_the_class_that_has_no_list(tmp_path: Path) -> None:
    write(hmdb(tmp_path), "testTrainMulti_7030_splits/brush_hair_test_split2.txt", "hair.avi 1\n")
    with pytest.raises(DataError, match=r"has no list 'clap_test_split2\.txt', though there are videos or"):
        BENCHMARKS["hmdb51"].read(tmp_path, "train", 2)
    # A class that has a folder of videos and no list at all.
    touch(tmp_path, "hmdb51_org/wave/wave.avi")
    with pytest.raises(DataError, match=r"has no list 'wave_test_split1\.txt'"):
        BENCHMARKS["hmdb51"].read(tmp_path, "train")


def test_hmdb51_numbers_the_classes_in_the_order_of_the_lists_names(tmp_path: Path) -> None:
    for name in ("kick", "kick_ball", "push", "pushup"):
        write(tmp_path, f"splits/{name}_test_split1.txt", f"{name}.avi\t1\n")
        touch(tmp_path, f"videos/{name}/{name}.avi")
    manifest = BENCHMARKS["hmdb51"].read(tmp_path, "train")
    assert manifest.classes == ("kick_ball", "kick", "push", "pushup")
    assert [(video.id, video.label) for video in manifest.videos] == [
        ("kick_ball", 0),
        ("kick", 1),
        ("push", 2),
        ("pushup", 3),
    ]


# ---------------------------------------------------------------------------------------------- J-HMDB


def test_jhmdb_is_read_as_its_archives_unpack_with_what_macos_left_in_them(tmp_path: Path) -> None:
    for fold, flags in enumerate(((1, 2), (2, 1), (1, 2)), start=1):
        rows = "".join(f"{name}.avi {flag}\n" for name, flag in zip("ab", flags, strict=True))
        write(tmp_path, f"splits/catch_test_split{fold}.txt", rows)
        write(tmp_path, f"splits/brush_hair_test_split{fold}.txt", "c.avi 1\n")
    videos = tmp_path / "ReCompress_Videos"
    touch(videos, "catch/a.avi", "catch/b.avi", "brush_hair/c.avi")
    touch(videos, "catch/.AppleDouble/a.avi", "catch/._b.avi", ".AppleDouble/catch.avi")
    train, test = (BENCHMARKS["jhmdb"].read(tmp_path, split) for split in ("train", "test"))
    assert train.classes == test.classes == ("brush_hair", "catch")
    assert [(video.path, video.label) for video in train.videos] == [
        (str(videos / "brush_hair/c.avi"), 0),
        (str(videos / "catch/a.avi"), 1),
    ]
    assert [video.id for video in test.videos] == ["b"]
    assert [video.id for video in BENCHMARKS["jhmdb"].read(tmp_path, "test", 2).videos] == ["a"]


# -------------------------------------------------------------------------------------------- Diving48


def diving(root: Path, rows: list[dict[str, object]], folder: str = "") -> Path:
    for split in ("train", "test"):
        write(root, f"{folder}Diving48_V2_{split}.json", json.dumps(rows))
    touch(root, "rgb/-mmq0_00155.mp4", "rgb/_8Vy3_00000.mp4")
    return root


DIVE = {"vid_name": "-mmq0_00155", "label": 0, "start_frame": 0, "end_frame": 48}


@pytest.mark.parametrize("folder", ["", "annotations/"])
def test_diving48_is_segments_of_files_whose_last_frame_is_included(tmp_path: Path, folder: str) -> None:
    second = {"vid_name": "_8Vy3_00000", "label": 47, "start_frame": 10, "end_frame": 79}
    third = {**second, "label": 3, "start_frame": 80, "end_frame": 99}
    manifest = BENCHMARKS["diving48"].read(diving(tmp_path, [DIVE, second, third], folder), "train")
    assert len(manifest.classes) == 48
    assert [(video.id, video.label, video.segment) for video in manifest.videos] == [
        ("-mmq0_00155", 0, Segment(0, 49)),
        ("_8Vy3_00000_000010", 47, Segment(10, 80)),
        ("_8Vy3_00000_000080", 3, Segment(80, 100)),
    ]
    assert manifest.videos[1].path == manifest.videos[2].path == str(tmp_path / "rgb/_8Vy3_00000.mp4")


def test_diving48_names_its_classes_by_the_vocabulary_and_the_entry_that_is_wrong(tmp_path: Path) -> None:
    names = [["Back", "15som", "05Twis", "FREE"], *(["Inward", str(number)] for number in range(47))]
    write(diving(tmp_path, [DIVE]), "Diving48_vocab.json", json.dumps(names))
    assert BENCHMARKS["diving48"].read(tmp_path, "test").classes[:2] == ("Back-15som-05Twis-FREE", "Inward-0")
    write(tmp_path, "Diving48_vocab.json", json.dumps(names[:40]))
    with pytest.raises(DataError, match=r"Diving48_vocab\.json: names 40 classes, and there are 48"):
        BENCHMARKS["diving48"].read(tmp_path, "test")
    for wrong, sentence in (
        ({"label": 48}, r"entry 1, 'label' is not as the data set has it: input should be less than 48"),
        ({"end_frame": -1}, r"entry 1: '-mmq0_00155' ends \(-1\) before it starts \(0\)"),
    ):
        diving(tmp_path, [{**DIVE, **wrong}])
        with pytest.raises(DataError, match=sentence):
            BENCHMARKS["diving48"].read(tmp_path, "test")


# ---------------------------------------------------------------------------------- own, without lists


def test_of_ones_own_videos_the_class_folders_are_the_labels_and_a_fifth_of_each_is_for_the_test(
    tmp_path: Path,
) -> None:
    names = {f"{label}/{number}.mp4" for label in ("run", "jump") for number in range(10)} | {"sit/a/b.avi"}
    touch(tmp_path / "videos", *names)
    touch(tmp_path, "README.md")
    folds = []
    for seed in (1, 2):
        train, test = (BENCHMARKS["own"].read(tmp_path, split, seed) for split in ("train", "test"))
        assert train.classes == test.classes == ("jump", "run", "sit")
        # The class with one video has it in the training.
        assert [train.labels().count(label) for label in range(3)] == [8, 8, 1]
        assert [test.labels().count(label) for label in range(3)] == [2, 2, 0]
        assert {video.id for video in (*train.videos, *test.videos)} == {f"videos/{name}" for name in names}
        assert overlap(train, test) is None
        folds.append({video.id for video in test.videos})
    assert folds[0] != folds[1]
    # A further video may join either split, and moves no other one of its class.
    touch(tmp_path / "videos", "sit/c.avi")
    assert {video.id for video in BENCHMARKS["own"].read(tmp_path, "test").videos} > folds[0]


def test_ones_own_videos_without_class_folders_have_no_labels(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{number}.mov" for number in range(5)))
    train, test = (BENCHMARKS["own"].read(tmp_path, split) for split in ("train", "test"))
    assert (train.classes, train.labels(), test.labels()) == ((), [-1] * 4, [-1])
    assert train.notes == ()
    touch(tmp_path, "more/x.mp4")
    train = BENCHMARKS["own"].read(tmp_path, "train")
    assert set(train.labels()) == {-1}
    assert "some videos lie beside the folders, so the folders are taken for no classes" in train.notes[0]


def test_ones_own_folders_of_splits_are_the_splits(tmp_path: Path) -> None:
    touch(tmp_path, "train/run/a.mp4", "train/sit/b.mp4", "val/run/c.mp4")
    train, test = (BENCHMARKS["own"].read(tmp_path, split) for split in ("train", "test"))
    assert train.classes == test.classes == ("run", "sit")
    assert [(video.id, video.label) for video in test.videos] == [("val/run/c.mp4", 0)]
    assert [video.id for video in train.videos] == ["train/run/a.mp4", "train/sit/b.mp4"]
    touch(tmp_path, "test/run/d.mp4")
    with pytest.raises(DataError, match=r"has both 'test' and 'val'; remove one"):
        BENCHMARKS["own"].read(tmp_path, "test")


# ------------------------------------------------------------------------------------ own, with lists


def test_lists_are_used_where_the_videos_are_and_file_list_demands_them(tmp_path: Path) -> None:
    touch(tmp_path, "clips/v/a.mp4", "clips/v/b.mp4")
    with pytest.raises(NoListError, match="file_list: no train list in "):
        BENCHMARKS["file_list"].read(tmp_path / "clips", "train")
    write(tmp_path, "clips/train.txt", "v/a.mp4 1\n")
    for name, root in (("own", tmp_path), ("own", tmp_path / "clips"), ("file_list", tmp_path / "clips")):
        manifest = BENCHMARKS[name].read(root, "train")
        assert (manifest.classes, manifest.labels()) == (("0", "1"), [1])


def test_a_file_list_may_be_blank_separated_tabbed_or_without_labels(tmp_path: Path) -> None:
    touch(tmp_path, "a b.mp4", "c.mp4", "d.mp4", "e.mp4")
    text = f"# path label\na b.mp4 1\n{tmp_path}/c.mp4\t0\nd.mp4 0 -1\ne.mp4\n"
    write(tmp_path, "train.txt", text)
    manifest = BENCHMARKS["own"].read(tmp_path, "train")
    assert manifest.classes == ("0", "1")
    assert [Path(video.path).name for video in manifest.videos] == ["a b.mp4", "c.mp4", "d.mp4", "e.mp4"]
    assert manifest.labels() == [1, 0, -1, -1]


def test_a_file_list_names_the_row_that_is_wrong(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    write(tmp_path, "train.txt", "a.mp4 jumping\n")
    with pytest.raises(DataError, match=r"train\.txt, line 1: must be 'path label'"):
        BENCHMARKS["own"].read(tmp_path, "train")
    write(tmp_path, "train.txt", "b.mp4 0\n")
    with pytest.raises(DataError, match=r"none of the 1 listed videos is in .* \(the first is 'b\.mp4'\)"):
        BENCHMARKS["own"].read(tmp_path, "train")
    write(tmp_path, "train.txt", "a.mp4 0\na.mp4 2\n")
    write(tmp_path, "classes.txt", "x\ny\n")
    with pytest.raises(
        DataError, match=r"train\.txt, line 2: 'a\.mp4' has label 2, but .* names the 2 classes 0 to 1; .* 0$"
    ):
        BENCHMARKS["own"].read(tmp_path, "train")


@pytest.mark.parametrize("label", ["²", "99999999", "9" * 5000, "1.0", "-2"])
def test_a_file_list_refuses_a_label_that_cannot_be_one_at_once(tmp_path: Path, label: str) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    write(tmp_path, "train.txt", f"a.mp4 0\nb.mp4 {label}\n")
    with pytest.raises(
        DataError, match=r"train\.txt, line 2: must be 'path label', the label a whole number"
    ):
        BENCHMARKS["own"].read(tmp_path, "train")


def test_a_name_that_begins_with_a_hash_is_no_comment(tmp_path: Path) -> None:
    touch(tmp_path, "#20_clap.avi", "# 3.avi", "b.avi")
    write(tmp_path, "train.txt", "# made by hand\n#\n#20_clap.avi 0\n# 3.avi 1\n# 4.avi 1\nb.avi 1\n")
    manifest = BENCHMARKS["own"].read(tmp_path, "train")
    assert [(video.id, video.label) for video in manifest.videos] == [
        ("#20_clap.avi", 0),
        ("# 3.avi", 1),
        ("b.avi", 1),
    ]
    write(tmp_path, "train.txt", "#path label\nb.avi 1\n")
    with pytest.raises(DataError, match=r"line 1: .* is '#path label'; a comment begins with '# '"):
        BENCHMARKS["own"].read(tmp_path, "train")


def test_two_spellings_of_a_path_are_one_video(tmp_path: Path) -> None:
    touch(tmp_path, "v/a.mp4", "b.mp4")
    (tmp_path / "w").symlink_to("v")
    spellings = ("v/a.mp4", "./v/a.mp4", "v/../v//a.mp4", f"{tmp_path}/v/a.mp4", "w/a.mp4")
    write(tmp_path, "train.txt", "".join(f"{path} 0\n" for path in spellings) + "b.mp4 1\n")
    manifest = BENCHMARKS["own"].read(tmp_path, "train")
    assert [video.id for video in manifest.videos] == ["v/a.mp4", "b.mp4"]
    assert "4 rows name a file again, which counts as one video" in manifest.notes[0]
    for spelling in spellings[1:]:
        write(tmp_path, "train.txt", f"v/a.mp4 0\n{spelling} 1\n")
        with pytest.raises(DataError, match=r"line 2: .* is the file of line 1 \('v/a\.mp4'\), with another"):
            BENCHMARKS["own"].read(tmp_path, "train")


def test_a_row_that_no_file_can_have_as_its_name_is_a_missing_file(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    (tmp_path / "train.txt").write_bytes(b"a.mp4 0\n" + b"x" * 5000 + b" 0\nzero\0byte.mp4 0\n")
    assert BENCHMARKS["own"].read(tmp_path, "train", missing="allow").absent == 2


def test_a_test_list_is_read_without_a_training_list(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    write(tmp_path, "val.txt", "a.mp4 0\nb.mp4 1\n")
    assert BENCHMARKS["own"].read(tmp_path, "test").labels() == [0, 1]
    with pytest.raises(NoListError, match="own: no train list"):
        BENCHMARKS["own"].read(tmp_path, "train")


def test_labels_that_count_from_one_are_noted(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    write(tmp_path, "train.txt", "a.mp4 1\nb.mp4 2\n")
    write(tmp_path, "test.txt", "b.mp4 2\n")
    for split in ("train", "test"):
        manifest = BENCHMARKS["own"].read(tmp_path, split)  # type: ignore[arg-type]
        assert manifest.classes == ("0", "1", "2")  # of both lists, so that they agree
        assert "the labels are 1 to 2, none is 0; they seem to count from 1" in manifest.notes[0]
    write(tmp_path, "test.txt", "b.mp4 0\n")
    assert BENCHMARKS["own"].read(tmp_path, "train").notes == ()
    write(tmp_path, "test.txt", "b.mp4 7\n")
    assert (
        "5 of the classes 0 to 7 have no video (the first is 0)"
        in BENCHMARKS["own"].read(tmp_path, "test").notes[0]
    )


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("1 run\n2 jump up\n", 1),
        ("0 run\n1 jump up\n", 0),
        ('"run" 1\n"jump up" 2\n', 1),
        ("1. run\n2. jump up", 1),
    ],
)
def test_a_numbered_class_file_says_how_labels_count(tmp_path: Path, text: str, first: int) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    write(tmp_path, "classes.txt", text)
    write(tmp_path, "train.txt", f"a.mp4 {first}\nb.mp4 {first + 1}\n")
    manifest = BENCHMARKS["own"].read(tmp_path, "train")
    assert (manifest.classes, manifest.labels()) == (("run", "jump up"), [0, 1])
    assert f"label {first} is read as 'run'" in manifest.notes[0]
    write(tmp_path, "train.txt", f"a.mp4 {first + 2}\n")
    hint = "; labels count from 0" if first == 0 else ""
    with pytest.raises(
        DataError, match=rf"label {first + 2}, but .* the 2 classes {first} to {first + 1}{hint}$"
    ):
        BENCHMARKS["own"].read(tmp_path, "train")


def test_a_class_file_without_names_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    write(tmp_path, "classes.txt", "\n")
    write(tmp_path, "train.txt", "a.mp4 0\n")
    with pytest.raises(DataError, match=r"classes\.txt is empty; write one name a line"):
        BENCHMARKS["own"].read(tmp_path, "train")


def test_a_number_that_is_a_part_of_a_class_name_is_no_numbering(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    write(tmp_path, "classes.txt", "gesture 1\ngesture 2\n")
    write(tmp_path, "train.txt", "a.mp4 0\nb.mp4 1\n")
    manifest = BENCHMARKS["own"].read(tmp_path, "train")
    assert (manifest.classes, manifest.labels()) == (("gesture 1", "gesture 2"), [0, 1])


def test_a_file_list_may_have_commas_and_a_name_that_is_not_text(tmp_path: Path) -> None:
    touch(tmp_path, "a, b.mp4", "d.mp4")
    (tmp_path / os.fsdecode(b"caf\xe9.mp4")).touch()
    (tmp_path / "train.csv").write_bytes(b"a, b.mp4,0\nd.mp4, 1\rcaf\xe9.mp4,1\r\n")
    manifest = BENCHMARKS["own"].read(tmp_path, "train")
    assert [(Path(video.path).name, video.label) for video in manifest.videos] == [
        ("a, b.mp4", 0),
        ("d.mp4", 1),
        ("caf\udce9.mp4", 1),
    ]


# -------------------------------------------------------------------------------------------- looking


def test_folders_that_link_to_each_other_end(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        touch(tmp_path, f"{name}/{name}.avi")
    for folder, target in (("a", "b"), ("b", "a"), ("a", "c"), ("c", "b"), ("b", "b"), ("c", ".")):
        (tmp_path / folder / f"to_{target}").symlink_to(Path("..") / target)
    paths = [path.relative_to(tmp_path).as_posix() for path in walk(tmp_path, (".avi",))]
    assert paths[:3] == ["a/a.avi", "a/to_b/b.avi", "a/to_c/c.avi"]
    assert len(paths) == len(set(paths)) < 30
    # Many folders that all link to each other would be 8! paths.
    for folder in "klmnopqr":
        touch(tmp_path, f"many/{folder}/{folder}.avi")
        for target in "klmnopqr":
            (tmp_path / "many" / folder / f"to_{target}").symlink_to(Path("..") / target)
    assert 8 < sum(1 for _ in walk(tmp_path / "many", (".avi",))) < 8 * 7 * 6 * 5 * 2


def test_a_link_to_itself_is_no_folder(tmp_path: Path) -> None:
    touch(tmp_path, "a.avi")
    (tmp_path / "loop").symlink_to("loop")
    assert [path.name for path in walk(tmp_path, (".avi",))] == ["a.avi"]


def test_a_file_in_place_of_a_folder_is_one_sentence(tmp_path: Path) -> None:
    touch(tmp_path, "hmdb51_org/clap/a.avi", "testTrainMulti_7030_splits")
    with pytest.raises(DataError, match=r"hmdb51 \(train, fold 1\): .*_splits cannot be read \(Not a dir"):
        BENCHMARKS["hmdb51"].read(tmp_path, "train")


def test_a_link_to_a_folder_of_videos_is_followed(tmp_path: Path) -> None:
    touch(tmp_path, "disk/Archery/v_Archery_g01_c01.avi")
    (tmp_path / "UCF-101").mkdir()
    (tmp_path / "UCF-101" / "Archery").symlink_to(tmp_path / "disk" / "Archery")
    assert [path.name for path in walk(tmp_path / "UCF-101")] == ["v_Archery_g01_c01.avi"]


def test_a_nested_a_renamed_and_an_outer_folder_are_hinted_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ucf(tmp_path / "ucf101" / "inner" / "data")
    meant = tmp_path / "ucf101" / "inner" / "data"
    with pytest.raises(DataError, match=f"; {meant} holds 'UCF-101': did you mean that folder"):
        BENCHMARKS["ucf101"].read(tmp_path / "ucf101", "train")
    with pytest.raises(DataError, match=f"; {meant} holds 'UCF-101': did you mean that folder"):
        BENCHMARKS["ucf101"].read(meant / "UCF-101", "train")
    (meant / "UCF-101").rename(meant / "ucf_101")
    with pytest.raises(DataError, match="; there is 'ucf_101': did you mean to call it 'UCF-101'"):
        BENCHMARKS["ucf101"].read(meant, "train")
    monkeypatch.setenv("TATS_DATA", str(tmp_path / "ucf101"))
    with pytest.raises(DataError, match=rf"\(did you mean {tmp_path}\?\)"):
        locate("ucf101")
    (tmp_path / "ucf101").rename(tmp_path / "UCF-101")
    monkeypatch.setenv("TATS_DATA", str(tmp_path))
    with pytest.raises(DataError, match=rf"\(did you mean {tmp_path}/UCF-101\?\)"):
        locate("ucf101")


def test_a_video_in_another_folder_than_listed_is_named(tmp_path: Path) -> None:
    folder = ucf(tmp_path) / "UCF-101"
    (folder / "inner").mkdir()
    for name in ("Archery", "HandStandPushups"):
        (folder / name).rename(folder / "inner" / name)
    with pytest.raises(
        DataError, match=r"none of the 1 listed .* but there is 'inner/Archery/v_Archery_g02_c01\.avi'\)"
    ):
        BENCHMARKS["ucf101"].read(tmp_path, "test")


def test_a_data_set_is_looked_up_by_key_then_own_variable_then_common_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("key/ssv2", "own", "common/ssv2"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setenv("TATS_DATA", str(tmp_path / "common"))
    assert locate("ssv2") == tmp_path / "common" / "ssv2"
    monkeypatch.setenv("TATS_DATA_SSV2", str(tmp_path / "own"))
    assert locate("ssv2") == tmp_path / "own"
    assert locate("ssv2", tmp_path / "key") == tmp_path / "key" / "ssv2"


def test_a_data_set_that_is_nowhere_gets_one_sentence_with_places_variables_and_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("TATS_DATA", "TATS_DATA_HMDB51"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(DataError) as caught:
        locate("hmdb51")
    sentence = str(caught.value)
    for part in (
        "the key 'root' is not set",
        "TATS_DATA_HMDB51 is not set",
        "TATS_DATA is not set",
        "testTrainMulti_7030_splits",
    ):
        assert part in sentence
    assert "\n" not in sentence


def test_a_place_that_is_set_and_wrong_is_named_and_no_other_copy_is_taken_in_its_stead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "common" / "hmdb51").mkdir(parents=True)
    monkeypatch.setenv("TATS_DATA", str(tmp_path / "common"))
    monkeypatch.setenv("TATS_DATA_HMDB51", str(tmp_path / "wrong"))
    with pytest.raises(DataError, match=rf"by TATS_DATA_HMDB51 it would be {tmp_path}/wrong, which is not"):
        locate("hmdb51")
    monkeypatch.setenv("TATS_DATA_HMDB51", str(tmp_path / "common" / "hmdb51"))
    with pytest.raises(
        DataError, match=rf"by the key 'root' it would be {tmp_path}/hmdb51, which is not"
    ) as caught:
        locate("hmdb51", tmp_path)
    assert "; mend the key 'root', or leave it out and set TATS_DATA_HMDB51 to its folder" in str(
        caught.value
    )


def test_an_unknown_data_set_gets_the_nearest_name() -> None:
    with pytest.raises(SpecError, match="did you mean 'kinetics400'"):
        BENCHMARKS["kinetics40"]


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_an_empty_folder_is_refused_with_the_expected_layout(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=f"{name}: no .* in .*expected layout: "):
        BENCHMARKS[name].read(tmp_path, "train")


def test_the_benchmarks_carry_the_published_protocol() -> None:
    facts = {
        name: (b.classes, b.flip, b.sampling, b.stride, b.test_clips, b.test_crops)
        for name, b in ((name, BENCHMARKS[name]) for name in PAPERS)
    }
    assert facts == {
        "ssv2": (174, False, "uniform", 2, 2, 3),
        "kinetics400": (400, True, "dense", 4, 5, 3),
        "ucf101": (101, True, "dense", 4, 5, 3),
        "hmdb51": (51, True, "dense", 2, 10, 3),
    }
    for fold in range(3):
        ucf101 = BENCHMARKS["ucf101"].expected
        assert ucf101["train"][fold] + ucf101["test"][fold] == 13_320

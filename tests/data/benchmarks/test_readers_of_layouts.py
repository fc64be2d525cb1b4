"""Each reader against a layout written by hand, with the oddities of the copies that people have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tats_core.data.benchmarks import BENCHMARKS, find, locate
from tats_core.data.benchmarks.file_list import FILE_LIST, read_list
from tats_core.errors import DataError


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
    with pytest.raises(DataError, match=r"train\.json: 0\.template is not as .*: field required"):
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


# ------------------------------------------------------------------------------------------ file list


def test_a_file_list_may_be_blank_separated_tabbed_or_without_labels(tmp_path: Path) -> None:
    touch(tmp_path, "a b.mp4", "c.mp4", "d.mp4", "e.mp4")
    text = f"# path label\na b.mp4 1\n{tmp_path}/c.mp4\t0\nd.mp4 0 -1\ne.mp4\n"
    write(tmp_path, "train.txt", text)
    manifest = FILE_LIST.read(tmp_path, "train")
    assert manifest.classes == ("0", "1")
    assert [Path(video.path).name for video in manifest.videos] == ["a b.mp4", "c.mp4", "d.mp4", "e.mp4"]
    assert manifest.labels() == [1, 0, -1, -1]


def test_a_file_list_names_the_row_that_is_wrong(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    write(tmp_path, "list.txt", "a.mp4 jumping\n")
    with pytest.raises(DataError, match=r"list\.txt, line 1: must be 'path label'"):
        read_list(tmp_path / "list.txt", "train")
    write(tmp_path, "list.txt", "b.mp4 0\n")
    with pytest.raises(DataError, match=r"'b\.mp4' is not a file"):
        read_list(tmp_path / "list.txt", "train")
    write(tmp_path, "list.txt", "a.mp4 2\n")
    with pytest.raises(DataError, match=r"label 2, but classes\.txt names 2"):
        read_list(tmp_path / "list.txt", "train", ("x", "y"))


# -------------------------------------------------------------------------------------------- looking


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
    monkeypatch.delenv("TATS_DATA", raising=False)
    monkeypatch.setenv("TATS_DATA_HMDB51", str(tmp_path / "wrong"))
    with pytest.raises(DataError) as caught:
        locate("hmdb51", tmp_path)
    sentence = str(caught.value)
    for part in (
        f"by the key 'root' it would be {tmp_path}/hmdb51, which is not a folder",
        f"by TATS_DATA_HMDB51 it would be {tmp_path}/wrong, which is not a folder",
        "TATS_DATA is not set",
        "testTrainMulti_7030_splits",
    ):
        assert part in sentence
    assert "\n" not in sentence


def test_an_unknown_data_set_gets_the_nearest_name() -> None:
    with pytest.raises(DataError, match="did you mean 'kinetics400'"):
        find("kinetics40")


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_an_empty_folder_is_refused_with_the_expected_layout(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=f"{name}: no .* in .*expected layout: "):
        BENCHMARKS[name].read(tmp_path, "train")


def test_the_benchmarks_carry_the_published_protocol() -> None:
    facts = {
        name: (b.classes, b.flip, b.sampling, b.stride, b.test_clips, b.test_crops)
        for name, b in BENCHMARKS.items()
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

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tats_core.data import readers
from tats_core.data.benchmarks import BENCHMARKS, PAPERS
from tats_core.data.generate import ENCODINGS, PRESETS, GenerateConfig, encode, generate
from tats_core.data.ground_truth import has_motion, load_motion, motion_clips
from tats_core.data.loaders import ClipOptions, eval_views
from tats_core.data.manifest import Manifest
from tats_core.data.synthetic import VOCABULARIES, SceneConfig, render
from tats_core.errors import DataError, SpecError
from tats_core.specs import validate

SMALL = GenerateConfig(
    benchmarks=("ssv2", "hmdb51"),
    clips_per_class=1,
    test_clips_per_class=1,
    frames=4,
    scene=SceneConfig(size=32, sprite_radius=(5.0, 6.0)),
)


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("name", PAPERS)
def test_a_generated_set_is_read_like_the_real_one(tiny_root: Path, name: str) -> None:
    benchmark, root = BENCHMARKS[name], tiny_root / name
    train, test = benchmark.read(root, "train"), benchmark.read(root, "test")
    n_classes = len(VOCABULARIES[name])
    assert np.bincount(train.labels()).tolist() == [2] * n_classes
    assert np.bincount(test.labels()).tolist() == [1] * n_classes
    assert train.classes == test.classes
    assert not {video.id for video in train.videos} & {video.id for video in test.videos}
    assert train.absent == 0


@pytest.mark.parametrize("name", ["ucf101", "hmdb51"])
def test_every_fold_tests_on_other_clips(tiny_root: Path, name: str) -> None:
    folds = [
        {video.id for video in BENCHMARKS[name].read(tiny_root / name, "test", fold).videos}
        for fold in (1, 2, 3)
    ]
    assert not folds[0] & folds[1]
    assert not folds[1] & folds[2]
    for fold, tested in enumerate(folds, start=1):
        trained = {video.id for video in BENCHMARKS[name].read(tiny_root / name, "train", fold).videos}
        assert not trained & tested


def test_files_are_what_the_real_sets_hold(tiny: dict[str, Manifest]) -> None:
    layouts = {}
    for name, manifest in tiny.items():
        with av.open(manifest.videos[0].path) as container:
            stream = container.streams.video[0]
            layouts[name] = (
                Path(manifest.videos[0].path).suffix,
                stream.codec_context.name,
                stream.average_rate,
            )
    assert layouts == {
        "ssv2": (".webm", "vp9", 12),
        "kinetics400": (".mp4", "h264", 12),
        "ucf101": (".avi", "mpeg4", 12),
        "hmdb51": (".avi", "mpeg4", 12),
    }


def test_the_lists_have_the_form_of_the_real_ones(tiny_root: Path) -> None:
    def text(path: str) -> str:
        return (tiny_root / path).read_bytes().decode()

    header, row, *_ = text("kinetics400/annotations/val.csv").splitlines()
    assert header == "label,youtube_id,time_start,time_end,split"
    assert re.fullmatch(r"circling clockwise,[\w-]{11},\d+,\d+,validate", row)
    assert text("ucf101/ucfTrainTestlist/classInd.txt").startswith("1 EastRun\r\n2 NorthEastRun\r\n")
    assert "EastRun/v_EastRun_g01_c01.avi 1\n" in text("ucf101/ucfTrainTestlist/trainlist01.txt")
    assert "EastRun/v_EastRun_g01_c03.avi\n" in text("ucf101/ucfTrainTestlist/testlist01.txt")
    hmdb = text("hmdb51/testTrainMulti_7030_splits/up_then_left_test_split1.txt").splitlines()
    assert [line.split()[-1] for line in hmdb] == ["1", "1", "2", "0"]
    assert re.search(r"^\d+;Moving something up$", text("ssv2/labels/test-answers.csv"), re.MULTILINE)


def test_the_number_of_a_file_does_not_tell_its_class(tiny: dict[str, Manifest]) -> None:
    labels = [video.label for video in sorted(tiny["ssv2"].videos, key=lambda video: int(video.id))]
    assert labels != sorted(labels)


def test_the_same_settings_give_the_same_bytes_with_any_number_of_processes(tmp_path: Path) -> None:
    generate(tmp_path / "one", SMALL, workers=1)
    generate(tmp_path / "two", SMALL, workers=2)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_another_seed_gives_other_videos(tmp_path: Path) -> None:
    config = SMALL.model_copy(update={"benchmarks": ("hmdb51",)})
    generate(tmp_path / "a", config, workers=1)
    generate(tmp_path / "b", config.model_copy(update={"seed": 1}), workers=1)
    videos = [{d for p, d in digests(tmp_path / name).items() if p.endswith(".avi")} for name in ("a", "b")]
    assert not videos[0] & videos[1]


def test_a_finished_set_is_reused_and_a_broken_off_one_completed(tmp_path: Path) -> None:
    generate(tmp_path, SMALL, workers=1)
    before = digests(tmp_path)
    calls: list[tuple[int, int, str]] = []
    generate(tmp_path, SMALL, lambda *call: calls.append(call), workers=1)
    assert calls == [(54, 54, "reused")]

    class StoppedError(Exception):
        pass

    def stop(done: int, total: int, text: str) -> None:
        if done >= 16:
            raise StoppedError

    with pytest.raises(StoppedError):
        generate(tmp_path / "again", SMALL, stop, workers=1)
    assert 0 < len(list((tmp_path / "again").rglob("*.webm"))) < 30
    generate(tmp_path / "again", SMALL, workers=1)
    assert digests(tmp_path / "again") == before


def test_a_folder_of_other_settings_is_left_alone(tmp_path: Path) -> None:
    generate(tmp_path, SMALL, workers=1)
    before = digests(tmp_path)
    with pytest.raises(DataError, match="holds a set of other settings"):
        generate(tmp_path, SMALL.model_copy(update={"seed": 1}), workers=1)
    assert digests(tmp_path) == before


def test_a_preset_lies_under_what_is_given() -> None:
    config = validate(GenerateConfig, {"preset": "hard", "scene": {"noise": 0.5}}, "here")
    assert config.scene.noise == 0.5
    assert config.scene.still_sprites == PRESETS["hard"]["still_sprites"]
    assert GenerateConfig().scene == SceneConfig()
    # Read back from its own dump, as a stage does, nothing changes.
    assert GenerateConfig.model_validate(config.model_dump()) == config
    with pytest.raises(SpecError, match="preset must be one of demo"):
        validate(GenerateConfig, {"preset": "hrad"}, "here")


def test_the_digest_depends_on_the_scene_and_not_on_the_name_of_its_preset() -> None:
    named = GenerateConfig(preset="crowded")
    spelled = GenerateConfig(scene=SceneConfig(**PRESETS["crowded"]))
    assert named.digest() == spelled.digest() != GenerateConfig().digest()


# --------------------------------------------------------------------------------------- ground truth


def test_the_ground_truth_marks_where_the_video_moves(tiny: dict[str, Manifest]) -> None:
    for name in ("ssv2", "kinetics400", "ucf101", "hmdb51"):
        manifest = tiny[name]
        assert has_motion(manifest)
        inside, outside = [], []
        for video in manifest.videos:
            frames_THW = readers.read_all(video.path).astype(float).mean(-1)
            motion_THW = load_motion(manifest, video.id)
            assert motion_THW.shape == frames_THW.shape
            change_THW = np.abs(np.diff(frames_THW, axis=0))
            moving_THW = motion_THW[1:] | motion_THW[:-1]
            inside.append(change_THW[moving_THW].mean())
            outside.append(change_THW[~moving_THW].mean())
        assert np.mean(inside) > 4 * np.mean(outside)


def test_the_motion_of_a_view_fits_the_view_pixel_for_pixel(tiny: dict[str, Manifest]) -> None:
    manifest = tiny["ucf101"]
    same_size = ClipOptions(frames=4, size=32, stride=3)
    # 20 frames, a clip that spans 10 of them in the middle: frames 5, 8, 11 and 14.
    whole_THW = load_motion(manifest, manifest.videos[2].id)
    motion_BTHW = motion_clips(manifest, same_size, [7, 2])
    assert np.array_equal(motion_BTHW[1].numpy(), whole_THW[[5, 8, 11, 14]])
    halved = ClipOptions(frames=4, size=16, stride=3)
    half_BTHW = motion_clips(manifest, halved, range(len(manifest)))
    assert half_BTHW[2].mean().item() == pytest.approx(whole_THW[[5, 8, 11, 14]].mean(), abs=0.01)
    views_BVCTHW, _, index_B, _ = next(eval_views(manifest, halved, clips=1, crops=1, batch_size=16))
    assert index_B.tolist() == list(range(16))
    assert views_BVCTHW[:, 0, 0].shape == half_BTHW.shape
    # The view changes more from frame to frame where the mask says that something moves.
    change_BTHW = views_BVCTHW[:, 0].float().diff(dim=2).abs().mean(1)
    moving_BTHW = torch.maximum(half_BTHW[:, 1:], half_BTHW[:, :-1]) > 0.5
    assert change_BTHW[moving_BTHW].mean() > 4 * change_BTHW[~moving_BTHW].mean()


def test_a_set_without_ground_truth_is_refused(tiny: dict[str, Manifest]) -> None:
    with pytest.raises(DataError, match="no ground truth of motion for video 'nobody'"):
        load_motion(tiny["ssv2"], "nobody")


@pytest.mark.parametrize("name", ENCODINGS)
def test_the_bytes_of_a_clip_do_not_depend_on_what_was_encoded_before_it(name, tmp_path):
    motions = VOCABULARIES[name]
    clips = [
        render(name, motions[number % len(motions)], SceneConfig(), 12, np.random.default_rng(number))[0]
        for number in range(24)
    ]

    def bytes_of(numbers):
        path = tmp_path / f"clip.{ENCODINGS[name].container}"
        contents = {}
        for number in numbers:
            path.unlink(missing_ok=True)
            encode(path, clips[number], 12, ENCODINGS[name])
            contents[number] = path.read_bytes()
        return contents

    assert bytes_of(range(24)) == bytes_of(reversed(range(24)))

"""Classes of single files, against the test of a complete data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from tats_core.data import benchmarks
from tats_core.data.benchmarks.base import Split
from tats_core.data.generate import GenerateConfig, generate
from tats_core.data.manifest import Manifest
from tats_core.errors import DataError, SpecError, VideoError, WeightsError
from tats_core.models.classifier import VideoClassifier
from tats_core.models.tokens import ClipConfig
from tats_core.models.vit import ViTConfig
from tats_core.stages import evaluate, finetune
from tats_core.training import weights
from tats_core.training.checkpoint import CheckpointStore
from tats_core.training.events import EventLog
from tats_core.training.predict import Predictor, existing
from tats_core.training.views import Views
from tats_core.training.world import World

MODEL: dict[str, Any] = {"preset": "vit_micro", "width": 24, "depth": 1, "heads": 2}
CLIP: dict[str, Any] = {"frames": 4, "size": 16, "tubelet": 2, "patch": 8}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    config = GenerateConfig.model_validate(
        {
            "benchmarks": ["ssv2"],
            "clips_per_class": 1,
            "test_clips_per_class": 1,
            "frames": 8,
            "scene": {"size": 32, "sprite_radius": [4, 6]},
        }
    )
    for name, root in generate(folder, config, workers=1).items():
        for split in get_args(Split):
            benchmarks.BENCHMARKS[name].read(root, split, 1).save(folder / f"{name}.{split}.json")
    return folder


@pytest.fixture(scope="module")
def tuned(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a fine-tuning leaves behind."""
    out = tmp_path_factory.mktemp("tuned")
    recipe = {"model": MODEL, "clip": CLIP, "epochs": 1, "batch_size": 10, "mixup": 0, "cutmix": 0}
    config = {"benchmark": "ssv2", "init": "scratch", **recipe}
    job = {"config": config, "inputs": {"data": str(data)}, "out": str(out)}
    finetune.train(job, World(), EventLog(None), CheckpointStore(out / "checkpoints"))
    return out


def test_a_file_gets_the_class_that_the_benchmarks_test_gives_it(
    data: Path, tuned: Path, tmp_path: Path
) -> None:
    config, inputs = {"benchmark": "ssv2", "init": "scratch"}, {"data": str(data), "model": str(tuned)}
    job = {"config": config, "inputs": inputs, "out": str(tmp_path)}
    evaluate.score_videos(job, World(), EventLog(None), CheckpointStore(tmp_path / "c"))
    expected = json.loads((tmp_path / "predictions.json").read_text())
    listed = Manifest.load(data / "ssv2.test.json")
    predictions = Predictor.load(tuned).predict([Path(video.path) for video in listed.videos])
    assert [guesses[0].label for guesses in predictions] == [row["predicted"] for row in expected]


def test_the_best_classes_come_first_with_probabilities_of_at_most_one(data: Path, tuned: Path) -> None:
    predictor = Predictor.load(tuned)
    video = Path(Manifest.load(data / "ssv2.test.json").videos[0].path)
    (five,), (every,) = predictor.predict([video]), predictor.predict([video], top=1000)
    assert five == every[:5]
    assert [guess.name for guess in every] == [predictor.classes[guess.label] for guess in every]
    chances = [guess.probability for guess in every]
    assert chances == sorted(chances, reverse=True)
    assert sum(chances) == pytest.approx(1, abs=1e-5)


def test_a_model_remembers_how_its_clips_were_taken(tuned: Path) -> None:
    assert Predictor.load(tuned).views == Views(benchmark="ssv2", sampling="uniform", stride=2)
    named = Predictor.load(tuned, "kinetics400").views
    assert (named.benchmark, named.sampling) == ("kinetics400", "dense")


def test_the_same_file_may_be_asked_about_twice_and_none_is_no_error(data: Path, tuned: Path) -> None:
    video = Path(Manifest.load(data / "ssv2.test.json").videos[0].path)
    predictor = Predictor.load(tuned)
    first, second = predictor.predict([video, video])
    assert first == second
    assert predictor.predict([]) == []


def test_a_model_that_does_not_say_how_clips_are_taken_needs_a_benchmark(tmp_path: Path) -> None:
    vit, clip = ViTConfig.model_validate(MODEL), ClipConfig.model_validate(CLIP)
    model = VideoClassifier(vit, clip, 2)
    described = {"model": vit, "clip": clip, "head_norm": "layer", "classes": ["a", "b"]}
    weights.save(tmp_path, model, described)
    with pytest.raises(WeightsError, match=r"does not say how clips are taken .* \(--benchmark\)"):
        Predictor.load(tmp_path)
    assert torch.equal(Predictor.load(tmp_path, "ucf101").model.head.weight, model.head.weight)
    with pytest.raises(SpecError, match="no data set 'ucf100'; did you mean 'ucf101'"):
        Predictor.load(tmp_path, "ucf100")
    weights.save(tmp_path, model, {**described, "views": {"benchmark": "ucf101", "sampling": "all"}})
    with pytest.raises(WeightsError, match="its views are not valid"):
        Predictor.load(tmp_path)


def test_a_folder_stands_for_its_videos(tmp_path: Path) -> None:
    for name in ("b/2.mp4", "b/1.webm", "a.AVI", "b/notes.txt"):
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / name).touch()
    (tmp_path / "empty").mkdir()
    paths = existing([str(tmp_path / "videos"), str(tmp_path / "videos" / "b" / "2.mp4")])
    names = [path.relative_to(tmp_path / "videos").as_posix() for path in paths]
    assert names == ["a.AVI", "b/1.webm", "b/2.mp4", "b/2.mp4"]
    with pytest.raises(DataError, match=r"empty: holds no video \(a file that ends in \.mp4, "):
        existing([str(tmp_path / "empty")])


def test_a_video_that_is_missing_or_broken_is_named(tuned: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.mp4: there is no such file"):
        existing([str(tmp_path / "none.mp4")])
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    with pytest.raises(VideoError, match=r"broken\.mp4"):
        Predictor.load(tuned).predict(existing([str(broken)]))

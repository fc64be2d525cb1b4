"""What stages share: configurations that are checked before anything starts, clips, labels, results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tats_core.data.loaders import ClipOptions
from tats_core.data.manifest import Manifest, VideoRecord
from tats_core.errors import DataError, SpecError
from tats_core.models.tokens import ClipConfig
from tats_core.specs import validate
from tats_core.stages import evaluate, finetune, pretrain
from tats_core.stages.base import Preflight
from tats_core.stages.configs import Trained
from tats_core.stages.finetune import FinetuneStage
from tats_core.stages.jobs import clip_options, labelled, write_result
from tats_core.stages.pretrain import PretrainStage

CLIP = ClipConfig(frames=8, size=48, patch=8)


@pytest.mark.parametrize("stage", [PretrainStage, FinetuneStage])
@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            {"batch_size": 30, "workers": 4},
            "demo.yaml: it: batch_size (30) is over all workers and must be a multiple of workers (4)",
        ),
        (
            {"batch_size": 32, "workers": 4, "accumulate": 3},
            "demo.yaml: it: a worker's share of batch_size (8 of 32) must be a multiple of accumulate (3)",
        ),
    ],
)
def test_a_batch_that_cannot_be_dealt_out_evenly_is_refused_with_its_numbers(
    stage: type[Trained], config: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(SpecError) as caught:
        validate(stage, {"benchmark": "ssv2", **config}, "demo.yaml", prefix="it")
    assert str(caught.value) == sentence


def test_clips_that_would_not_pair_up_are_refused_before_anything_starts() -> None:
    with pytest.raises(SpecError, match=r"mixup and cutmix pair the clips .* is odd \(1\)"):
        validate(FinetuneStage, {"benchmark": "ssv2", "batch_size": 4, "workers": 4}, "demo.yaml")


def test_a_batch_that_is_dealt_out_evenly_is_taken() -> None:
    config = {"benchmark": "ssv2", "batch_size": 32, "workers": 4, "accumulate": 2, "precision": "bf16"}
    for stage in (PretrainStage, FinetuneStage):
        assert validate(stage, config, "demo.yaml").recipe.per_worker(4) == 8


def test_compiling_without_a_compiler_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")
    before = Preflight("it", {}, Path("home"))
    for stage, kind in ((PretrainStage, pretrain.KIND), (FinetuneStage, finetune.KIND)):
        asked, gpu, plain = (
            validate(stage, {"benchmark": "ssv2", **more}, "demo.yaml")
            for more in ({"compile": True}, {"compile": True, "gpu": True}, {})
        )
        sentence = "it.compile: torch.compile needs a C++ compiler, and there is none; leave it out"
        assert kind.preflight(asked, before) == [sentence]
        assert kind.preflight(gpu, before) == kind.preflight(plain, before) == []


def test_the_numbers_of_workers_between_least_and_most_are_those_that_share_the_step_evenly() -> None:
    config = {"benchmark": "ssv2", "batch_size": 48, "workers": 4, "accumulate": 3, "min_workers": 2}
    for stage, kind in ((PretrainStage, pretrain.KIND), (FinetuneStage, finetune.KIND)):
        asked = validate(stage, config, "demo.yaml")
        # Twelve parts in a step: 6, 4 or 3 a worker.
        assert asked.fewer == (2, 3)
        assert (kind.cpus(asked), kind.spare(asked)) == (2, 2)
        always = validate(stage, {**config, "min_workers": None}, "demo.yaml")
        assert (always.fewer, kind.cpus(always), kind.spare(always)) == ((), 4, 0)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"min_workers": 5}, r"min_workers \(5\) is more than workers \(4\)"),
        ({"min_workers": 3}, "min_workers: 3 workers cannot share evenly what 4 do in 1 part each"),
        ({"min_workers": 2, "head_norm": "batch"}, "min_workers: head_norm: batch takes its statistics over"),
    ],
)
def test_too_few_or_too_many_workers_at_least_are_refused(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        validate(FinetuneStage, {"benchmark": "ssv2", "batch_size": 48, "workers": 4, **config}, "demo.yaml")


def test_the_loader_reads_the_clip_that_the_model_sees() -> None:
    options = clip_options(CLIP, ClipOptions.model_validate({"stride": 3}))
    assert (options.frames, options.size, options.stride) == (8, 48, 3)


def test_a_loader_with_another_clip_is_refused() -> None:
    assert clip_options(CLIP, ClipOptions.model_validate({"frames": 8})).frames == 8
    with pytest.raises(SpecError, match=r"data.size contradicts clip.size"):
        clip_options(CLIP, ClipOptions.model_validate({"size": 224}))


def test_a_result_appears_whole(tmp_path: Path) -> None:
    write_result(tmp_path, {"top1": 12.5, "benchmark": "ssv2"})
    assert json.loads((tmp_path / "result.json").read_text()) == {"top1": 12.5, "benchmark": "ssv2"}
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_a_video_without_a_label_is_named_where_labels_are_needed() -> None:
    videos = tuple(VideoRecord(name, f"/{name}", label) for name, label in (("a", 0), ("b", -1), ("c", -1)))
    whole = Manifest("own", "test", ("x",), Path("/"), videos[:1])
    assert labelled(whole) is whole
    with pytest.raises(DataError, match=r"own \(test\): 2 of 3 have no label .*'b'"):
        labelled(Manifest("own", "test", ("x",), Path("/"), videos))


def test_with_fewer_workers_each_does_more_parts_of_the_same_size() -> None:
    config = {"benchmark": "ssv2", "batch_size": 512, "workers": 32, "max_workers": 8, "gpu": True}
    for stage, kind in ((PretrainStage, pretrain.KIND), (FinetuneStage, finetune.KIND)):
        asked = validate(stage, config, "demo.yaml")
        assert (asked.started, kind.gpus(asked), kind.spare(asked), asked.fewer) == (8, 8, 0, ())
        # 16 clips a worker, 4 times as many in 4 parts of 16.
        recipe = asked.recipe.among(asked.started, asked.workers)
        assert (recipe.batch_size, recipe.accumulate, recipe.per_worker(8)) == (512, 4, 64)
        assert validate(stage, config | {"max_workers": 64}, "demo.yaml").started == 32
        with pytest.raises(SpecError, match="max_workers: 5 workers cannot share evenly what 32 do"):
            validate(stage, config | {"max_workers": 5}, "demo.yaml")
    test = {"benchmark": "ssv2", "gpu": True, "test_workers": 8}
    for most, beside in ((None, 8), (1, 1), (16, 8)):
        assert evaluate.EvaluateStage.model_validate(test | {"max_workers": most}).started == beside

"""Which model a name, a run or a folder means."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tats_core.errors import SpecError, StoreError, WeightsError
from tats_core.models.classifier import VideoClassifier
from tats_core.models.mae import MAEConfig, VideoMAE
from tats_core.models.tokens import ClipConfig
from tats_core.models.vit import ViTConfig
from tats_core.store.history import find_finished
from tats_core.store.models import find_model, find_model_of
from tats_core.store.run import RunRecord, StageRecord
from tats_core.training import weights

VIT = ViTConfig.model_validate({"preset": "vit_micro", "width": 12, "depth": 1, "heads": 2})
CLIP = ClipConfig(frames=2, size=4, tubelet=2, patch=4)
MAE = MAEConfig(decoder_width=8, decoder_depth=1, decoder_heads=1)


def _model(folder: Path, kind: str) -> Path:
    folder.mkdir(parents=True)
    shape = {"model": VIT, "clip": CLIP}
    if kind == "pretrain":
        weights.save(folder, VideoMAE(VIT, MAE, CLIP), {**shape, "mae": MAE})
    else:
        model = VideoClassifier(VIT, CLIP, 2)
        weights.save(folder, model, {**shape, "head_norm": "layer", "classes": ["a", "b"]})
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def run(home: Path) -> Callable[..., RunRecord]:
    """Return a function that leaves a run of one pre-training and the named fine-tunings."""

    def made(time: str, *tuned: str, status: Any = "finished", **changed: Any) -> RunRecord:
        stages = {}
        for name in ("pretrain", *tuned):
            kind = name.split("[", maxsplit=1)[0]
            folder = _model(home / "stages" / f"{kind}-{time}-{len(stages)}", kind)
            stages[name] = StageRecord(name, kind, kind, {}, [], status="finished", folder=str(folder))
        stages["data"] = StageRecord("data", "data", "data", {}, [], status="finished")
        for name, value in changed.items():
            stages[name].status = value
        record = RunRecord(
            f"mine-20260101-{time}000-ab",
            "mine",
            "",
            "mine.yaml",
            str(home),
            status,
            0.0,
            stages,
            finished=1.0,
        )
        record.save()
        return record

    return made


def test_a_pipelines_name_means_its_newest_finished_run(home: Path, run: Callable[..., RunRecord]) -> None:
    run("110000", "finetune")
    newest = run("120000", "finetune")
    run("130000", "finetune", status="failed", finetune="failed")
    assert find_model("mine", home, "finetune") == Path(newest.stages["finetune"].folder or "")
    assert find_model("mine", home, "pretrain") == Path(newest.stages["pretrain"].folder or "")
    assert find_model("pipelines/mine.yaml", home, "pretrain") == find_model("mine", home, "pretrain")


def test_a_runs_id_or_folder_means_that_run_even_where_it_failed_later(
    home: Path, run: Callable[..., RunRecord]
) -> None:
    failed = run("110000", "finetune", status="failed", finetune="failed")
    run("120000", "finetune")
    expected = Path(failed.stages["pretrain"].folder or "")
    assert find_model(failed.id, home, "pretrain") == expected
    assert find_model(str(failed.folder), home, "pretrain") == expected
    with pytest.raises(
        StoreError, match=r"finetune of the run mine-.* has not finished: there is no model yet"
    ):
        find_model(failed.id, home, "finetune")


def test_several_models_are_listed_with_how_to_choose(home: Path, run: Callable[..., RunRecord]) -> None:
    record = run("110000", "finetune[a,scratch]", "finetune[b,scratch]")
    with pytest.raises(SpecError) as caught:
        find_model("mine", home, "finetune")
    assert str(caught.value) == (
        f"the run {record.id} has 2 fine-tuned models: finetune[a,scratch], finetune[b,scratch]; "
        "choose one with --stage 'finetune[a,scratch]'"
    )
    with pytest.raises(SpecError, match="has 2 fine-tuned models"):
        find_model("mine", home, "finetune", "finetune")
    chosen = find_model("mine", home, "finetune", "finetune[b,scratch]")
    assert chosen == Path(record.stages["finetune[b,scratch]"].folder or "")
    with pytest.raises(SpecError, match=r"trains no stage of this name; did you mean 'finetune\[b,s"):
        find_model("mine", home, "finetune", "finetune[b,scrtch]")


def test_two_stages_that_share_one_output_are_one_model(home: Path, run: Callable[..., RunRecord]) -> None:
    record = run("110000", "finetune[a]", "finetune[b]")
    record.stages["finetune[b]"].folder = record.stages["finetune[a]"].folder
    record.save()
    assert find_model("mine", home, "finetune") == Path(record.stages["finetune[a]"].folder or "")


def test_of_any_kind_the_stage_tells_which(home: Path, run: Callable[..., RunRecord]) -> None:
    run("110000", "finetune")
    with pytest.raises(SpecError, match="has 2 fine-tuned or pre-trained models: pretrain, finetune; "):
        find_model_of("mine", home, ("finetune", "pretrain"))
    assert find_model_of("mine", home, ("finetune", "pretrain"), "pretrain")[1] == "pretrain"
    assert find_model_of("mine", home, ("finetune", "pretrain"), "finetune")[1] == "finetune"


def test_a_folder_is_the_model_in_it(home: Path, tmp_path: Path) -> None:
    tuned, pre = _model(tmp_path / "tuned", "finetune"), _model(tmp_path / "pre", "pretrain")
    assert find_model(str(tuned), home, "finetune") == tuned
    assert find_model("pre", home, "pretrain") == pre  # from the working directory
    assert find_model_of(str(pre), home, ("finetune", "pretrain")) == (pre, "pretrain")
    with pytest.raises(WeightsError, match="its model is pre-trained, but a fine-tuned model is needed here"):
        find_model(str(pre), home, "finetune")
    with pytest.raises(WeightsError, match="its model is fine-tuned, but a pre-trained model is needed here"):
        find_model(str(tuned), home, "pretrain")
    with pytest.raises(SpecError, match="is the folder of a single model; leave out --stage"):
        find_model(str(tuned), home, "finetune", "finetune")
    with pytest.raises(WeightsError, match="holds no model of TATS"):
        find_model(str(tmp_path), home, "finetune")


def test_a_name_that_means_nothing_is_said_with_the_nearest(
    home: Path, run: Callable[..., RunRecord]
) -> None:
    record = run("110000", "finetune")
    with pytest.raises(SpecError, match=r"'dmo' is no run in .* and no pipeline; did you mean 'demo'"):
        find_model("dmo", home, "finetune")
    with pytest.raises(SpecError, match=f"did you mean '{record.id}'"):
        find_model(record.id.replace("2026", "2027"), home, "finetune")
    with pytest.raises(StoreError, match=r"no finished run of 'demo' in .*: tats run pipeline demo"):
        find_model("demo", home, "finetune")


def test_the_beginning_of_an_id_and_the_latest_run_are_found_as_elsewhere(
    home: Path, run: Callable[..., RunRecord]
) -> None:
    first = run("110000", "finetune")
    latest = run("120000", "finetune", status="failed", finetune="failed")
    assert find_finished(first.id[:-4], home).id == first.id
    assert find_finished("latest", home).id == latest.id
    with pytest.raises(SpecError, match=r"the ids of 2 runs begin with 'mine-2026'"):
        find_finished("mine-2026", home)


def test_a_pipeline_of_which_no_run_has_finished_is_known_all_the_same(
    home: Path, run: Callable[..., RunRecord]
) -> None:
    run("110000", "finetune", status="failed", finetune="failed")
    with pytest.raises(StoreError, match=r"no finished run of 'mine' in .*: tats show mine$"):
        find_finished("mine", home)


def test_a_run_without_such_a_model_says_so(home: Path, run: Callable[..., RunRecord]) -> None:
    run("110000")
    with pytest.raises(SpecError, match="has no fine-tuned model: none of its stages is of kind finetune"):
        find_model("mine", home, "finetune")


def test_a_model_that_was_deleted_is_said_to_be_gone(home: Path, run: Callable[..., RunRecord]) -> None:
    record = run("110000", "finetune")
    (Path(record.stages["finetune"].folder or "") / "model.safetensors").unlink()
    with pytest.raises(StoreError, match="the model of finetune is gone; run the pipeline mine again"):
        find_model("mine", home, "finetune")

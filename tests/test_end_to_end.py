"""One real run, smaller than the demo: video files through two Ray workers into MLflow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tats_core import specs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def _tats(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    settings = {**os.environ, "TATS_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "tats_core", *words],
        cwd=folder,
        env=settings,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demo cut short, on clips that are not square, run once."""
    folder = tmp_path_factory.mktemp("end-to-end")
    cut = specs.read(specs.find("pipelines", "demo"))
    stages = cut["stages"]
    cut["name"] = "tiny"
    cut["defaults"]["clip"]["size"] = [32, 48]
    stages["data"]["generate"] |= {"clips_per_class": 8, "test_clips_per_class": 4}
    stages["data"]["generate"]["benchmarks"] = ["ssv2", "ucf101"]
    stages["pretrain"] |= {"epochs": 3, "batch_size": 16, "health_every": 1, "health_clips": 16}
    stages["pretrain"] |= {"log_every": 1, "checkpoint": {"epochs": 1}}
    for name in ("finetune", "probe"):
        stages[name]["matrix"]["benchmark"] = ["ucf101"]
    stages["finetune"] |= {"epochs": 2, "workers": 1}
    (folder / "pipelines").mkdir()
    (folder / "pipelines" / "tiny.yaml").write_text(yaml.safe_dump(cut, sort_keys=False))
    done = _tats(folder, "run", "pipeline", "tiny")
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    assert "What each number means" in done.stdout
    return folder


def test_the_results_hold_a_row_for_each_start_and_what_the_policy_became(tiny):
    done = _tats(tiny, "results", "tiny", "--json")
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert {(row["benchmark"], row["init"]) for row in results["rows"]} == {
        ("ucf101", "pretrained"),
        ("ucf101", "scratch"),
    }
    for row in results["rows"]:
        assert row["clips"] == 32
        assert row["chance"] == 12.5
        assert 0 <= row["low"] <= row["top1"] <= row["high"] <= 100
        assert row["top5"] >= row["top1"]
        assert 0 <= row["linear_top1"] <= 100
        assert row["parameters"] > 100_000
        assert row["seconds"] > 0
        assert row["peak_memory_mb"] > 0
    policy = results["policy"]
    assert policy["mask_ratio"] == 0.9
    assert policy["random_lift"] == pytest.approx(1, abs=0.3)
    assert 0 < policy["entropy_share"] <= 1
    assert policy["visible"] == 10
    assert policy["tokens"] == 4 * 4 * 6


def test_a_second_run_reuses_every_stage(tiny):
    done = _tats(tiny, "run", "pipeline", "tiny")
    assert done.returncode == 0, done.stderr
    assert "0 to run, 9 reused" in done.stdout


def test_mlflow_holds_parent_and_stages_with_curves_pictures_parameters_and_the_table(tiny):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tiny / 'home' / 'mlflow.db'}")
    (experiment,) = [one for one in client.search_experiments() if one.name == "tiny"]
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    parent = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    children = {
        run.info.run_name: run
        for run in runs
        if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id
    }
    assert len(children) == 9
    assert all(run.info.status == "FINISHED" for run in children.values())

    pretrain = children["pretrain"].info.run_id
    curve = client.get_metric_history(pretrain, "loss")
    assert [point.step for point in curve] == list(range(1, 16))
    for name in ("entropy_share", "kl", "clip_fraction", "ratio_q99", "reward_std"):
        assert client.get_metric_history(pretrain, name), name
    lifts = client.get_metric_history(pretrain, "motion_lift")
    assert [point.step for point in lifts] == [0, 5, 10, 15]
    assert client.get_metric_history(pretrain, "effective_rank")
    assert children["pretrain"].data.params["effective.visible_tokens"] == "10"

    files = _files(client, pretrain)
    assert any(path.endswith(".png") and "masks" in path for path in files)
    assert any(path.endswith(".gif") for path in files)
    assert not any(path.endswith((".pt", ".safetensors")) for path in files), "checkpoints go by reference"
    assert any(path.endswith("results.json") for path in _files(client, parent.info.run_id))


def _files(client, run_id: str, path: str = "") -> list[str]:
    found = []
    for entry in client.list_artifacts(run_id, path):
        found += _files(client, run_id, entry.path) if entry.is_dir else [entry.path]
    return found

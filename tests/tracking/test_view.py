"""What the address that `tats ui` prints makes MLflow's page show."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from mlflow import MlflowClient

from tats_core.files import write_json
from tats_core.pipeline import runner
from tats_core.stages.base import StageContext
from tats_core.store.run import RunRecord
from tats_core.tracking import sender, view
from tests.toys import Grow

pytestmark = [
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow.*"),
]

PAGE = "http://127.0.0.1:5000"
GROW = "stages: {grow: {kind: grow, init: scratch}}"


def shown(client: MlflowClient, address: str) -> tuple[dict[str, Any], list[str], dict[str, list[str]]]:
    """Return the state that an address names, the ids of the runs in it, and the rest of the query."""
    path, _, query = urlsplit(address).fragment.partition("?")
    _, experiments, experiment, tab = path.split("/")
    assert (experiments, tab) == ("experiments", "runs")
    more = parse_qs(query)
    (key,) = more.pop("viewStateShareKey")
    assert more.pop("workflowType") == ["machine_learning"]
    state = json.loads(client.get_experiment(experiment).tags[f"mlflow.sharedViewState.{key}"])
    runs = client.search_runs([experiment], state["searchFilter"])
    return state, [run.info.run_id for run in runs], more


def test_the_runs_of_a_pipeline_have_their_scores_as_columns_and_none_that_only_reused_others(
    load, home, client, monkeypatch
):
    row = {"benchmark": "ssv2", "init": "pretrained", "top1": 40.0, "loss": 1.0}

    def hook(ctx: StageContext) -> None:
        write_json(ctx.out / "results.json", {"rows": [row], "policy": {"motion_lift": 2.5}})

    monkeypatch.setattr(Grow, "hook", staticmethod(hook))
    first = runner.run(load(GROW), home)
    repeated = runner.run(load(GROW), home)
    assert {stage.status for stage in repeated.stages.values()} == {"cached"}
    other = runner.run(load(GROW, "grow.add=2"), home)
    state, runs, more = shown(client, view.address(client, PAGE, repeated))
    assert set(runs) == {first.tracking_run, other.tracking_run}
    assert state["selectedColumns"] == [
        "attributes.`Duration`",
        "metrics.`policy/motion_lift`",
        "metrics.`ssv2/pretrained/top1`",
        "params.`sampler`",
        "params.`mask_ratio`",
    ]
    assert more == {}


def test_the_trials_of_a_sweep_are_grouped_by_their_point_and_charted(home, client):
    experiment = client.create_experiment("ratios", tags={})
    parent = client.create_run(experiment).info.run_id
    trials = [client.create_run(experiment, tags={"mlflow.parentRunId": parent}) for _ in range(2)]
    for trial, value in zip(trials, (1.5, 2.5), strict=True):
        client.log_metric(trial.info.run_id, "result/pretrain.motion_lift", value)
        client.log_metric(trial.info.run_id, "pretrain.loss", 0.1)
    record = RunRecord("ratios-1", "ratios", "", "", str(home), "finished", 1.0, {}, tracking_run=parent)
    lift = {"name": "pretrain.motion_lift", "mode": "min", "objective": False}
    metrics = [{"name": "pretrain.loss", "mode": None, "objective": False}, lift]
    sweep = {"space": {"pretrain.sampler.mask_ratio": [0.5, 0.9]}, "metrics": metrics}
    write_json(record.folder / "sweep.json", sweep)
    state, runs, more = shown(client, view.address(client, PAGE, record))
    assert set(runs) == {trial.info.run_id for trial in trials}
    assert more == {"compareRunsMode": ["CHART"]}
    assert state["orderByKey"] == "metrics.`result/pretrain.motion_lift`"
    assert state["orderByAsc"], "the best is the least"
    assert state["selectedColumns"][1:] == [
        "params.`pretrain.sampler.mask_ratio`", "metrics.`result/pretrain.motion_lift`",
    ]  # fmt: skip
    keys = [{"mode": "param", "groupByData": "pretrain.sampler.mask_ratio"}]
    assert state["groupBy"] == {"aggregateFunction": "average", "groupByKeys": keys}


def test_a_run_that_mlflow_does_not_have_leads_to_all_experiments(home, client):
    record = RunRecord("toy-1", "toy", "", "toy.yaml", str(home), "finished", 1.0, {})
    assert view.address(client, PAGE, record) == f"{PAGE}/#/experiments"


def test_the_samplers_of_a_pipeline_are_one_parameter_each():
    stages = {
        "data": {"kind": "data"},
        "first": {"sampler": {"kind": "tats", "mask_ratio": 0.9}},
        "second": {"sampler": {"kind": "random", "mask_ratio": 0.9}},
    }
    assert sender._sampling({"stages": stages}) == {"sampler": "tats, random", "mask_ratio": "0.9"}
    assert sender._sampling({"space": {}}) == {}

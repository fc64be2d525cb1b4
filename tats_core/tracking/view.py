"""Addresses of MLflow's page that show the runs of one pipeline, or the trials of one sweep.

MLflow opens on a page for language models, and its table of runs shows no metric. What the page shows can be
stored in a tag of the experiment, as its button "share" does; the address then names the tag.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from typing_extensions import TypedDict

from tats_core.files import read_json_if_there
from tats_core.store.run import RunRecord
from tats_core.tracking import server

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_TAG = "mlflow.sharedViewState."
_RUNS = 200  # so many runs, the newest first, tell which metrics there are
# All runs of a pipeline, but none that only reused what others had made.
_NEW = "tags.stage_instance = '(pipeline)' and tags.reused = 'false'"
_SCORES = ("/top1", "policy/motion_lift")


class _Metric(TypedDict):
    name: str
    mode: str | None
    objective: bool


class _Sweep(TypedDict):
    space: dict[str, Any]
    metrics: list[_Metric]


def address(client: MlflowClient, page: str, record: RunRecord) -> str:
    """Return the address below `page` that shows the runs of a run's pipeline, or the trials of a sweep.

    Where MLflow has nothing of the run yet, it is that of all experiments.

    Raises:
        StoreError: the file of a sweep is damaged.
    """
    experiment = client.get_experiment_by_name(record.pipeline)
    if experiment is None or record.tracking_run is None:
        return f"{page}/#/experiments"
    sweep = read_json_if_there(record.folder / "sweep.json", _Sweep, "the identity of a sweep")
    if sweep is None:
        key, query = "tats", {}
        runs = client.search_runs([experiment.experiment_id], _NEW, max_results=_RUNS)
        state = _runs(runs)
    else:
        key, query = record.tracking_run, {"compareRunsMode": "CHART"}
        trials = f"tags.mlflow.parentRunId = {server.quoted(record.tracking_run)}"
        runs = client.search_runs([experiment.experiment_id], trials, max_results=_RUNS)
        state = _trials(runs, trials, sweep)
    client.set_experiment_tag(experiment.experiment_id, f"{_TAG}{key}", json.dumps(state))
    # Else the menu beside the runs is that of language models.
    query = {"workflowType": "machine_learning", "viewStateShareKey": key, **query}
    return f"{page}/#/experiments/{experiment.experiment_id}/runs?{urlencode(query)}"


def on_server(home: Path, uri: str, page: str, find: Callable[[], str]) -> tuple[str, str]:
    """Return what `find` returns, an address, and ""; or `page`, and why the server keeps no such view.

    Raises:
        AwayError: the server does not answer.
        RefusedError: it is no MLflow server, or refuses this user.
    """
    from mlflow.exceptions import MlflowException

    try:
        return server.asked(find, uri), ""
    except MlflowException as error:
        server.check(server.connect(home, uri), uri)
        return page, server.first_line(error)


def _runs(runs: Iterable[Run]) -> dict[str, object]:
    scores = [name for name in _metrics(runs) if name.endswith(_SCORES)]
    columns = [*_columns("metrics", scores), *_columns("params", ("sampler", "mask_ratio"))]
    return _state(_NEW, columns, "attributes.start_time")


def _trials(runs: Iterable[Run], trials: str, sweep: _Sweep) -> dict[str, object]:
    values, results = list(sweep["space"]), [name for name in _metrics(runs) if name.startswith("result/")]
    columns = [*_columns("params", values), *_columns("metrics", results)]
    ranked = [metric for metric in sweep["metrics"] if metric["mode"]]
    best = next((metric for metric in ranked if metric["objective"]), ranked[0])
    # The seeds of a point are one line, with their mean.
    keys = [{"mode": "param", "groupByData": value} for value in values]
    return {
        **_state(trials, columns, f"metrics.`result/{best['name']}`"),
        "orderByAsc": best["mode"] == "min",
        "groupBy": {"aggregateFunction": "average", "groupByKeys": keys},
    }


def _metrics(runs: Iterable[Run]) -> list[str]:
    return sorted({name for run in runs for name in run.data.metrics})


def _columns(kind: str, names: Iterable[str]) -> list[str]:
    return [f"{kind}.`{name}`" for name in names]


def _state(filters: str, columns: list[str], order: str) -> dict[str, object]:
    return {
        "searchFilter": filters,
        "orderByKey": order,
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": [*_columns("attributes", ("Duration",)), *columns],
    }

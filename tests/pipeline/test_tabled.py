"""A stage kind whose number shows in the table of results: the kind says so, and no other file."""

from __future__ import annotations

import json

import pytest

from tats_core.files import write_json
from tats_core.pipeline import graph as graphs
from tats_core.pipeline import runner
from tats_core.report import results as tables
from tats_core.report.metrics import Metric
from tats_core.specs import StrictModel
from tats_core.stages import report
from tats_core.stages.base import StageContext, StageKind
from tats_core.store import compare
from tats_core.store.run import Run
from tests.toys import Grow, Make

pytestmark = pytest.mark.usefixtures("no_tracker")


class WeighConfig(StrictModel):
    init: str = "pretrained"


class Weigh(StageKind[WeighConfig]):
    name = "weigh"
    Config = WeighConfig

    def tabled(self, config: WeighConfig) -> tuple[Metric, ...]:
        return (Metric("weight", "weight", 2, "kg", "less", meaning="what it weighs."),)

    def reads(self, config: WeighConfig) -> tuple[str, ...]:
        return ("grow",)

    def run(self, config: WeighConfig, ctx: StageContext) -> None:
        weight = int((ctx.input("grow").path / "value.txt").read_text())
        write_json(ctx.out / "result.json", {"weight": weight, "seconds": 1.0})


PIPELINE = """
stages:
  make:   {kind: make, value: 3}
  grow:   {kind: grow, needs: make, matrix: {benchmark: [a, b], init: [pretrained, scratch]}, add: 4}
  weigh:  {kind: weigh, needs: grow}
  report: {kind: report, needs: weigh}
"""


def test_its_number_has_a_column_a_meaning_and_a_source(load, tmp_path, ui, monkeypatch):
    kinds = {kind.name: kind for kind in (Make(), Grow(), Weigh(), report.KIND)}
    monkeypatch.setattr(graphs, "KINDS", kinds)
    record = runner.run(load(PIPELINE), tmp_path / "home", ui=ui)
    assert record.status == "finished"
    results = json.loads((record.outputs("report")[0] / "results.json").read_text())
    assert [(row["benchmark"], row["init"], row["weight"]) for row in results["rows"]] == [
        ("a", "pretrained", 7),
        ("a", "scratch", 4),
        ("b", "pretrained", 7),
        ("b", "scratch", 4),
    ]
    assert "weight" in tables.text(results)
    assert tables.meanings(results)["weight"] == "what it weighs."
    run = Run(record)
    measured = compare.results([run, run])
    assert [result.name for result in measured] == [
        f"{benchmark}/{init}/weight" for benchmark in "ab" for init in ("pretrained", "scratch")
    ]
    again = runner.run(load(PIPELINE), tmp_path / "home", ui=ui)
    assert {stage.status for stage in again.stages.values()} == {"cached"}


def test_a_report_waits_for_it_although_it_names_no_such_kind(load, monkeypatch):
    monkeypatch.setattr(graphs, "KINDS", {kind.name: kind for kind in (Make(), Grow(), Weigh(), report.KIND)})
    graph = graphs.build(load(PIPELINE))
    assert [need.split("[")[0] for need in graph.instances["report"].needs] == ["weigh"] * 4

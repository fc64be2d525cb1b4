"""Gathers the results of a pipeline into one table: JSON, Markdown, CSV, LaTeX, HTML, and a chart."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import Field, JsonValue

from tats_core.files import read_json_if_there, write_json, write_text
from tats_core.report import charts
from tats_core.report import results as tables
from tats_core.report.metrics import Metric, described
from tats_core.report.units import is_number
from tats_core.specs import StrictModel
from tats_core.stages.base import Input, StageContext, StageKind, read_result
from tats_core.store.layout import METRICS, RESULT, RESULTS

Row = dict[str, JsonValue]
Sources = dict[str, dict[str, str]]
"""Metric → `{"stage": full name of the stage, "file": file in its folder}`."""

_FORMS = {"md": tables.markdown, "csv": tables.csv, "tex": tables.latex, "html": tables.html}

# In this order: seconds and memory of a row are those of the fine-tuning. After them, what declares columns.
_ROW_KINDS = ("finetune", "evaluate", "probe")


class ReportConfig(StrictModel):
    """What the report holds beside the table."""

    chart: bool = Field(True, description="draw top-1 of each benchmark, if any was measured")


class Report(StageKind[ReportConfig]):
    """Output: `results.json` (`pipeline`, `rows`, `policy`), and the same as Markdown, CSV, LaTeX, HTML, PNG.

    A row is one benchmark and one start (pre-trained or from scratch), and one value of each further axis
    of the pipeline's matrices. `policy` is what the pre-training left behind; where there were several, it
    is the first one's, and `policies` holds all. `sources` is parallel to the rows and `policy_sources` to
    the pre-trainings: for each number, the stage and the file in its folder that it comes from. `metrics`
    describes the columns that stages declare (`StageKind.tabled`), if any do.
    """

    name = "report"
    version = 3
    Config = ReportConfig
    gathers = True
    code = tuple(f"tats_core.report.{name}" for name in ("results", "metrics", "units", "table", "charts"))

    def reads(self, config: ReportConfig) -> tuple[str, ...]:
        return ("finetune", "evaluate", "probe", "pretrain")

    def run(self, config: ReportConfig, ctx: StageContext) -> None:
        known = [stage for kind in _ROW_KINDS for stage in ctx.inputs(kind)]
        others = [stage for stage in ctx.read if stage not in known and (stage.path / METRICS).exists()]
        rows, sources = join([*known, *others])
        declared = {metric["key"]: metric for stage in (*known, *others) for metric in _declared(stage)}
        trained = [(stage, read_result(stage.path)) for stage in ctx.inputs("pretrain")]
        policies = [{**stage.axes, **result} for stage, result in trained]
        results: dict[str, Any] = {
            "pipeline": ctx.pipeline,
            "rows": rows,
            "policy": policies[0] if policies else {},
            **({"policies": policies} if len(policies) > 1 else {}),
            **({"metrics": list(declared.values())} if declared else {}),
            "sources": sources,
            "policy_sources": [_sources(stage, result) for stage, result in trained],
        }
        write_json(ctx.out / RESULTS, results)
        for suffix, written in _FORMS.items():
            write_text(ctx.out / f"results.{suffix}", written(results))
        charted = [row for row in rows if row.get("top1") is not None]
        if config.chart and charted:
            chart = charts.results(charted)
            for suffix in ("png", "svg"):
                charts.save(chart, ctx.out / f"results.{suffix}")
            ctx.events.file(0, "results", "results.png")


def join(inputs: Iterable[Input]) -> tuple[list[Row], list[Sources]]:
    """Return one row for each combination of axes, with the results of all stages that have it.

    Where two stages report the same metric (`seconds`, `labels`), the first counts. A stage that has no
    benchmark or no start is part of all rows before it that agree with what it has. The second list holds the
    sources of each row's numbers.
    """
    rows: dict[frozenset[tuple[str, str]], tuple[Row, Sources]] = {}
    for stage in inputs:
        result = read_result(stage.path)
        # A stage with a single benchmark has no such axis; its result names the benchmark.
        labels = dict(stage.axes)
        labels |= {key: str(result[key]) for key in ("benchmark", "init") if key in result}
        whole = {"benchmark": "all", "init": "", **labels}
        agreeing = (
            [entry for known, entry in rows.items() if labels.items() <= known] if whole != labels else []
        )
        for row, sources in agreeing or [rows.setdefault(frozenset(whole.items()), ({**whole}, {}))]:
            new = {key: value for key, value in result.items() if key not in row}
            row |= new
            sources |= _sources(stage, new)
    return [row for row, _ in rows.values()], [sources for _, sources in rows.values()]


def _declared(stage: Input) -> list[dict[str, Any]]:
    """Return the metrics that a stage declares, but for those that every table knows."""
    declared = read_json_if_there(stage.path / METRICS, list[Metric], "the declared metrics of a stage")
    return described(declared or ())


def _sources(stage: Input, result: Row) -> Sources:
    return {key: {"stage": stage.name, "file": RESULT} for key, value in result.items() if is_number(value)}


KIND = Report()

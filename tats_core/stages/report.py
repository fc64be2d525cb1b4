"""Gathers the results of a pipeline into one table: JSON, Markdown, CSV, LaTeX, HTML, and a chart."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import Field

from tats_core.files import write_json
from tats_core.report import figures, paper, tables
from tats_core.specs import StrictModel
from tats_core.stages.base import Input, StageContext, StageKind, read_result

Row = dict[str, Any]
Sources = dict[str, dict[str, str]]
"""Metric → `{"stage": full name of the stage, "file": file in its folder}`."""

RESULT = "result.json"

_PICTURE_TYPES = ("png", "svg")


# In this order: what the fine-tuning took (seconds, memory) stands for the row.
_ROW_KINDS = ("finetune", "evaluate", "probe")


class ReportConfig(StrictModel):
    """What the report holds beside the table."""

    chart: bool = Field(True, description="draw top-1 of each benchmark, if any was measured")


class Report(StageKind[ReportConfig]):
    """Output: `results.json` (`pipeline`, `rows`, `policy`), and the same as Markdown, CSV, LaTeX, HTML, PNG.

    A row is one benchmark and one start (pre-trained or from scratch), and one value of each further axis
    of the pipeline's matrices. `policy` is what the pre-training left behind; where there were several, it
    is the first one's, and `policies` holds all. `sources` is parallel to the rows and `policy_sources` to
    the pre-trainings: for each number, the stage and the file in its folder that it comes from.
    """

    name = "report"
    version = 3
    Config = ReportConfig
    gathers = True
    code = ("tats_core.report.tables", "tats_core.report.paper", "tats_core.report.figures")

    def reads(self, config: ReportConfig) -> tuple[str, ...]:
        """Return the kinds that leave a result."""
        return ("finetune", "evaluate", "probe", "pretrain")

    def run(self, config: ReportConfig, ctx: StageContext) -> None:
        """Join the results and write them."""
        rows, sources = join([stage for kind in _ROW_KINDS for stage in ctx.inputs(kind)])
        policies, policy_sources = [], []
        for stage in ctx.inputs("pretrain"):
            result = read_result(stage.path)
            policies.append({**stage.axes, **result})
            policy_sources.append({key: _source(stage) for key, value in result.items() if _is_number(value)})
        results: dict[str, Any] = {
            "pipeline": ctx.pipeline,
            "rows": rows,
            "policy": policies[0] if policies else {},
        }
        if len(policies) > 1:
            results["policies"] = policies
        results |= {"sources": sources, "policy_sources": policy_sources}
        write_json(ctx.out / "results.json", results)
        for suffix, written in (
            ("md", tables.markdown),
            ("csv", tables.comma_separated),
            ("tex", paper.as_latex),
            ("html", paper.as_html),
        ):
            (ctx.out / f"results.{suffix}").write_text(written(results), encoding="utf-8")
        charted = [row for row in results["rows"] if row.get("top1") is not None]
        if config.chart and charted:
            chart = figures.results_chart(charted)
            for kind in _PICTURE_TYPES:
                chart.savefig(ctx.out / f"results.{kind}")
            ctx.events.file(0, "results", "results.png")


def join(inputs: Iterable[Input]) -> tuple[list[Row], list[Sources]]:
    """Return one row for each combination of axes, with the results of all stages that have it.

    The first wins where two stages name a number alike (`seconds`, `labels`). Beside the rows stand their
    numbers' sources: metric → stage and file.
    """
    rows: dict[tuple[tuple[str, str], ...], Row] = {}
    sources: dict[tuple[tuple[str, str], ...], Sources] = {}
    for stage in inputs:
        result = read_result(stage.path)
        # A stage with one benchmark only has no such axis, but says so in its result.
        named: dict[str, str] = {key: str(result[key]) for key in ("benchmark", "init") if key in result}
        labels = {**stage.axes, **named}
        key = tuple(sorted(labels.items()))
        row, source = rows.setdefault(key, {}), sources.setdefault(key, {})
        for metric, value in {**labels, **result}.items():
            if metric in row:
                continue
            row[metric] = value
            if metric not in labels and _is_number(value):
                source[metric] = _source(stage)
    return list(rows.values()), list(sources.values())


def _source(stage: Input) -> dict[str, str]:
    return {"stage": stage.name, "file": RESULT}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


KIND = Report()

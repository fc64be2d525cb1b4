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
    is the first one's, and `policies` holds all.
    """

    name = "report"
    version = 2
    Config = ReportConfig
    gathers = True
    code = ("tats_core.report.tables", "tats_core.report.paper", "tats_core.report.figures")

    def reads(self, config: ReportConfig) -> tuple[str, ...]:
        """Return the kinds that leave a result."""
        return ("finetune", "evaluate", "probe", "pretrain")

    def run(self, config: ReportConfig, ctx: StageContext) -> None:
        """Join the results and write them."""
        policies = [{**output.axes, **read_result(output.path)} for output in ctx.inputs("pretrain")]
        results: dict[str, Any] = {
            "pipeline": ctx.pipeline,
            "rows": join([one for kind in _ROW_KINDS for one in ctx.inputs(kind)]),
            "policy": policies[0] if policies else {},
        }
        if len(policies) > 1:
            results["policies"] = policies
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


def join(inputs: Iterable[Input]) -> list[Row]:
    """Return one row for each combination of axes, with the results of all stages that have it.

    The first wins where two stages name a number alike (`seconds`, `labels`).
    """
    rows: dict[tuple[tuple[str, str], ...], Row] = {}
    for one in inputs:
        result = read_result(one.path)
        # A stage with one benchmark only has no such axis, but says so in its result.
        named: dict[str, str] = {key: str(result[key]) for key in ("benchmark", "init") if key in result}
        place = {**one.axes, **named}
        row = rows.setdefault(tuple(sorted(place.items())), {})
        row |= {key: value for key, value in {**place, **result}.items() if key not in row}
    return list(rows.values())


KIND = Report()

"""The table of a sweep: each point's mean over its seeds with a 95% interval, and its gain on the baseline.

Plain values in, text out. A trial is a mapping with `point`, `seed`, `status` and `metrics`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, stdev
from typing import Any

from tats_core.report.metrics import Metric
from tats_core.report.table import Table, latex_text
from tats_core.report.units import short_keys, value_text

Trial = Mapping[str, Any]


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds; `half` is half the width of its 95% interval (t-distribution), None for one seed."""

    mean: float
    half: float | None
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Return the estimate of one or more values."""
        if len(values) == 1:
            return cls(values[0], None, 1)
        half = _quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))
        return cls(fmean(values), half, len(values))

    def text(self, digits: int, sign: str = "") -> str:
        """Return `42.0 ± 1.3`."""
        mean = f"{self.mean:{sign}.{digits}f}"
        return mean if self.half is None else f"{mean} ± {self.half:.{digits}f}"


@cache
def _quantile(freedom: int) -> float:
    from scipy.stats import t  # takes half a second to import

    return float(t.ppf(0.975, freedom))


@dataclass(frozen=True)
class Row:
    """One point: its estimates by metric, and the paired differences to the baseline's point."""

    point: Mapping[str, Any]
    values: Mapping[str, Estimate]
    gains: Mapping[str, Estimate]
    trials: int

    @property
    def seeds(self) -> int:
        """How many finished trials its means are of."""
        return max((value.seeds for value in self.values.values()), default=0)


def rows(trials: Sequence[Trial], metrics: Sequence[str], baseline: Mapping[str, Any]) -> list[Row]:
    """Return one row a point, in the order of the trials; only finished trials count.

    A difference is taken seed by seed between a point and the one with the baseline's values instead.
    """
    points: dict[str, list[Trial]] = {}
    for trial in trials:
        points.setdefault(name_of(trial["point"]), []).append(trial)
    table = []
    bases = [
        members[0]["point"] for members in points.values() if baseline.items() <= members[0]["point"].items()
    ]
    for name, members in points.items():
        point = members[0]["point"]
        wanted = {**point, **baseline}
        if name_of(wanted) not in points:
            # A key that does not apply beside the baseline's values is not in the baseline's point.
            fitting = [other for other in bases if all(wanted.get(key) == other[key] for key in other)]
            wanted = max(fitting, key=len, default=wanted)
        base = name_of(wanted)
        rivals = points.get(base, []) if baseline and name != base else []
        values, gains = {}, {}
        for key in metrics:
            measured, others = _by_seed(members, key), _by_seed(rivals, key)
            if measured:
                values[key] = Estimate.of(list(measured.values()))
            if differences := [measured[seed] - others[seed] for seed in measured if seed in others]:
                gains[key] = Estimate.of(differences)
        table.append(Row(point, values, gains, len(members)))
    return table


def name_of(point: Mapping[str, Any]) -> str:
    """Return what is the same for equal points alone."""
    return json.dumps(point, sort_keys=True)


def _by_seed(trials: Sequence[Trial], key: str) -> dict[Any, float]:
    return {
        trial["seed"]: trial["metrics"][key]
        for trial in trials
        if trial["status"] == "finished" and key in trial["metrics"]
    }


def ranked(rows: Sequence[Row], metric: Metric) -> list[Row]:
    """Return the rows by their mean of `metric`, the best first, those without one last."""
    key, sign = metric.key, 1 if metric.better == "less" else -1
    return sorted(rows, key=lambda row: sign * row.values[key].mean if key in row.values else math.inf)


def best(rows: Sequence[Row], metric: Metric) -> list[Row]:
    """Return the rows with the best mean of `metric`: several where they are printed alike.

    The first is the best unrounded, and of equals the first in `rows`.
    """
    order = [row for row in ranked(rows, metric) if metric.key in row.values]
    means = [round(row.values[metric.key].mean, metric.digits) for row in order]
    return [row for row, mean in zip(order, means, strict=True) if mean == means[0]]


def keys_of(rows: Sequence[Row]) -> list[str]:
    """Return the keys that any of the points has."""
    return list(dict.fromkeys(key for row in rows for key in row.point))


def table(
    rows: Sequence[Row],
    metrics: Sequence[Metric],
    compared: Metric | None = None,
    best: Sequence[Row] = (),
    sign: str = "",
) -> Table:
    """Return keys, seeds, metrics and, where any row has one, the gain of `compared`; `best` are bold."""
    keys = keys_of(rows)
    gaining = [compared] if compared and any(compared.key in row.gains for row in rows) else []
    lines = [
        [
            *(value_text(row.point.get(key)) for key in keys),
            str(row.seeds),
            *(_text(row.values, metric, sign) for metric in metrics),
            *(_text(row.gains, metric, "+") for metric in gaining),
        ]
        for row in rows
    ]
    headings = [*short_keys(keys).values(), "seeds", *(metric.title for metric in metrics)]
    headings += [f"{metric.title} − baseline" for metric in gaining]
    bold = {(i, j) for i, row in enumerate(rows) if row in best for j in range(len(headings))}
    return Table.of(headings, lines, labels=len(keys), bold=frozenset(bold))


def _text(estimates: Mapping[str, Estimate], metric: Metric, sign: str) -> str | None:
    return estimates[metric.key].text(metric.digits, sign) if metric.key in estimates else None


def gains(rows: Sequence[Row], metrics: Sequence[Metric]) -> Table:
    """Return the differences to the baseline in all metrics, of the rows that have any."""
    differences = [Row(row.point, row.gains, {}, row.trials) for row in rows if row.gains]
    return table(differences, metrics, sign="+")


def csv(rows: Sequence[Row], metrics: Sequence[Metric], marks: Mapping[str, object] | None = None) -> str:
    """Return the table as CSV, unrounded; what was not measured is an empty field.

    Of each metric: its mean, half its interval, and the same of its gain on the baseline. The last columns
    hold `marks`, the same in every row.
    """
    marks = marks or {}
    keys = keys_of(rows)
    lines = []
    for row in rows:
        line = [*(row.point.get(key) for key in keys), row.seeds]
        for metric in metrics:
            for estimate in (row.values.get(metric.key), row.gains.get(metric.key)):
                line += [None, None] if estimate is None else [estimate.mean, estimate.half]
        lines.append([*line, *marks.values()])
    parts = ("", ".half", ".gain", ".gain_half")
    headings = [*keys, "seeds", *(metric.key + part for metric in metrics for part in parts), *marks]
    return Table.of(headings, lines).csv()


def latex(
    rows: Sequence[Row], metrics: Sequence[Metric], compared: Metric | None, *, name: str, caption: str
) -> str:
    r"""Return a floating table for a paper; it needs `\usepackage{booktabs}` and nothing else."""
    caption = f"{latex_text(caption)} Means over seeds, $\\pm$ half their 95\\% interval."
    return "% needs \\usepackage{booktabs}\n" + table(rows, metrics, compared).latex(caption, name)

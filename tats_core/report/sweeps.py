"""The table of a sweep: each point's mean over its seeds with a 95% interval, and its gain on the baseline.

Plain values in, text out. A trial is a mapping with `point`, `seed`, `status` and `metrics`.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from tats_core.report.paper import escaped
from tats_core.report.tables import DASH

Trial = Mapping[str, Any]
Column = tuple[str, str, int]
"""Metric, heading, digits."""

# 97.5% quantiles of Student's t by degrees of freedom; beyond 30 the next lower one is on the safe side.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds; `half` is half the width of its 95% interval (t-distribution), None for one seed."""

    mean: float
    half: float | None
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate | None:
        """Return the estimate of one or more values, None of none."""
        if not values:
            return None
        if len(values) == 1:
            return cls(values[0], None, 1)
        freedom = min(len(values) - 1, len(_T))
        return cls(fmean(values), _T[freedom - 1] * stdev(values) / math.sqrt(len(values)), len(values))

    def text(self, digits: int, sign: str = "") -> str:
        """Return `42.0 ± 1.3`."""
        shown = f"{self.mean:{sign}.{digits}f}"
        return shown if self.half is None else f"{shown} ± {self.half:.{digits}f}"


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
        return max((one.seeds for one in self.values.values()), default=0)


def rows(trials: Sequence[Trial], metrics: Sequence[str], baseline: Mapping[str, Any]) -> list[Row]:
    """Return one row a point, in the order of the trials; only finished trials count.

    A difference is taken seed by seed between a point and the one with the baseline's values instead.
    """
    points: dict[str, list[Trial]] = {}
    for one in trials:
        points.setdefault(_name(one["point"]), []).append(one)
    table = []
    for mine in points.values():
        point = mine[0]["point"]
        other = points.get(_name(_beside(point, baseline, points)), []) if baseline else []
        values = {key: Estimate.of(list(_by_seed(mine, key).values())) for key in metrics}
        gains = {}
        for key in metrics:
            left, right = _by_seed(mine, key), _by_seed(other, key)
            gains[key] = Estimate.of([left[seed] - right[seed] for seed in left if seed in right])
        if _name(point) == _name(_beside(point, baseline, points)):
            gains = {}
        known = {key: one for key, one in values.items() if one is not None}
        gained = {key: one for key, one in gains.items() if one is not None}
        table.append(Row(point, known, gained, len(mine)))
    return table


def _beside(
    point: Mapping[str, Any], baseline: Mapping[str, Any], points: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return the point that has the baseline's values; keys that do not apply there are not in it."""
    wanted = {**point, **baseline}
    if _name(wanted) in points:
        return wanted
    fewer = [json.loads(name) for name in points]
    fitting = [
        one
        for one in fewer
        if all(wanted.get(k) == v for k, v in one.items()) and baseline.items() <= one.items()
    ]
    return max(fitting, key=len, default=wanted)


def _name(point: Mapping[str, Any]) -> str:
    return json.dumps(point, sort_keys=True)


def _by_seed(trials: Sequence[Trial], key: str) -> dict[Any, float]:
    return {
        one["seed"]: one["metrics"][key]
        for one in trials
        if one["status"] == "finished" and key in one["metrics"]
    }


def ranked(table: Sequence[Row], metric: str, mode: str) -> list[Row]:
    """Return the rows by their mean of `metric`, the best first, those without one last."""
    sign = -1 if mode == "max" else 1
    known = sorted(
        (row for row in table if metric in row.values), key=lambda row: sign * row.values[metric].mean
    )
    return known + [row for row in table if metric not in row.values]


def best(table: Sequence[Row], metric: str, mode: str) -> Row | None:
    """Return the row with the best mean of `metric`."""
    known = [row for row in table if metric in row.values]
    sign = 1 if mode == "max" else -1
    return max(known, key=lambda row: sign * row.values[metric].mean, default=None)


def short(keys: Sequence[str]) -> dict[str, str]:
    """Return key → as few of its last words as tell it from the others."""
    names = {}
    for key in keys:
        parts = key.split(".")
        for count in range(1, len(parts) + 1):
            name = ".".join(parts[-count:])
            if sum(other.endswith("." + name) or other == name for other in keys) == 1:
                break
        names[key] = name
    return names


def text(table: Sequence[Row], columns: Sequence[Column], compared: str | None) -> str:
    """Return the table for a terminal.

    Args:
        columns: metric, heading, digits.
        compared: the metric whose gain on the baseline is shown.
    """
    lines = cells(table, columns, compared)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join([shown[0], "  ".join("─" * width for width in widths), *shown[1:]])


def cells(table: Sequence[Row], columns: Sequence[Column], compared: str | None) -> list[list[str]]:
    """Return the table as lines of words, the headings first: keys, seeds, metrics, gain."""
    keys = keys_of(table)
    names = short(keys)
    gaining = compared is not None and any(compared in row.gains for row in table)
    head = [*(names[key] for key in keys), "seeds", *(title for _, title, _ in columns)]
    lines = [head + ([f"{_title(columns, compared)} − baseline"] if gaining else [])]
    for row in table:
        line = [value_text(row.point.get(key)) for key in keys]
        line.append(str(row.seeds))
        line += [row.values[key].text(digits) if key in row.values else DASH for key, _, digits in columns]
        if gaining and compared is not None:
            digits = next(digits for key, _, digits in columns if key == compared)
            line.append(row.gains[compared].text(digits, "+") if compared in row.gains else DASH)
        lines.append(line)
    return lines


def keys_of(table: Sequence[Row]) -> list[str]:
    """Return the keys that any of the points has."""
    return list(dict.fromkeys(key for row in table for key in row.point))


def markdown(table: Sequence[Row], columns: Sequence[Column], compared: str | None) -> str:
    """Return the table as GitHub Markdown."""
    head, *lines = cells(table, columns, compared)
    words = len(keys_of(table))
    rule = "|" + "---|" * words + "---:|" * (len(head) - words)
    return "\n".join([_piped(head), rule, *map(_piped, lines)]) + "\n"


def _piped(line: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"


def comma_separated(table: Sequence[Row], columns: Sequence[Column]) -> str:
    """Return the table as CSV, unrounded; what was not measured is an empty field.

    Of each metric: its mean, half its interval, and the same of its gain on the baseline.
    """
    keys = keys_of(table)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    parts = ("", ".half", ".gain", ".gain_half")
    writer.writerow([*keys, "seeds", *(name + part for name, _, _ in columns for part in parts)])
    for row in table:
        line = [*(row.point.get(key, "") for key in keys), row.seeds]
        for name, _, _ in columns:
            for one in (row.values.get(name), row.gains.get(name)):
                line += ["", ""] if one is None else [one.mean, "" if one.half is None else one.half]
        writer.writerow(line)
    return out.getvalue()


def latex(
    table: Sequence[Row], columns: Sequence[Column], compared: str | None, *, name: str, caption: str
) -> str:
    r"""Return a floating table for a paper; it needs `\usepackage{booktabs}` and nothing else."""
    head, *lines = cells(table, columns, compared)
    form = "l" * len(keys_of(table)) + "r" * (len(head) - len(keys_of(table)))
    body = "\n".join("    " + " & ".join(map(_latex_cell, line)) + " \\\\" for line in lines)
    return (
        "% needs \\usepackage{booktabs}\n"
        "\\begin{table}[t]\n"
        "  \\centering\n"
        f"  \\caption{{{escaped(caption)} Means over seeds, $\\pm$ half their 95\\% interval.}}\n"
        f"  \\label{{tab:{''.join(letter if letter.isalnum() else '-' for letter in name)}}}\n"
        "  \\small\n"
        f"  \\begin{{tabular}}{{{form}}}\n"
        "    \\toprule\n"
        f"    {' & '.join(map(_latex_cell, head))} \\\\\n"
        "    \\midrule\n"
        f"{body}\n"
        "    \\bottomrule\n"
        "  \\end{tabular}\n"
        "\\end{table}\n"
    )


def _latex_cell(words: str) -> str:
    return escaped(words).replace("±", "$\\pm$").replace("−", "$-$")


def _title(columns: Sequence[Column], key: str | None) -> str:
    return next(title for name, title, _ in columns if name == key)


def value_text(value: Any) -> str:
    """Return a value of a key as the table shows it."""
    if value is None:
        return DASH
    return f"{value:.4g}" if isinstance(value, float) else str(value)

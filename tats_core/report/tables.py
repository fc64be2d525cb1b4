"""The results of a pipeline as Markdown, CSV and terminal text, and what each number means.

`results` is what the report stage keeps as `results.json`::

    {"pipeline": "demo",
     "rows":   [{"benchmark": "ssv2", "init": "pretrained", "top1": 45.0, "low": 35.6, "high": 54.8, ...}],
     "policy": {"motion_lift": 2.8, "random_lift": 1.0, "entropy_share": 0.42, "mask_ratio": 0.9}}

and `policies`, a list of such, where there were several pre-trainings.

Accuracies, interval ends and chance are percentages. A number that was not measured is absent or None
and is shown as a dash, never as a zero.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

Row = Mapping[str, Any]
Results = Mapping[str, Any]

INITS = ("pretrained", "scratch")
DASH = "–"

COLUMNS = (
    "benchmark",
    "init",
    "top1",
    "low",
    "high",
    "top5",
    "mean_class_accuracy",
    "ece",
    "chance",
    "clips",
    "linear_top1",
    "knn_top1",
    "attentive_top1",
    "parameters",
    "seconds",
    "peak_memory_mb",
)

_TUNED = {"top1": "top-1", "top5": "top-5", "mean_class_accuracy": "class", "ece": "ECE"}
_FROZEN = {"linear_top1": "linear", "knn_top1": "kNN", "attentive_top1": "attentive"}
METRICS = _TUNED | _FROZEN
"""What the tables show of a row beside labels, interval, chance and clips: key and title."""

MEANINGS = {
    "top-1": "share of test clips whose most likely class is the right one, after fine-tuning, in percent.",
    "95%": "the interval in which the true top-1 lies with 95% confidence (Wilson), given this many clips.",
    "top-5": "share of test clips whose right class is among the five most likely.",
    "class": "mean over the classes of the share of their clips that are found: each class counts alike.",
    "ECE": "expected calibration error: how far the model's confidence lies from how often it is right,"
    " in points; 0 is best.",
    "chance": "what guessing would reach: 100 / number of classes.",
    "clips": "how many test clips were scored.",
    "linear": "top-1 of a linear classifier on frozen features: what the encoder knows before fine-tuning.",
    "kNN": "top-1 of a nearest-neighbour vote on the same frozen features: no training at all.",
    "attentive": "top-1 of one trained attention layer over all frozen tokens, with a linear classifier.",
    "pretrained": "the encoder starts from the joint pre-training; scratch: from random weights,"
    " with the same labels and the same budget.",
    "motion lift": "how much more motion the visible tokens hold than an average token; random sampling: 1.",
    "entropy": "how open the policy still is: 1 picks evenly, 0 always picks the same tokens.",
    "mask ratio": "share of tokens that the encoder does not see while it is pre-trained.",
}
"""What each title of the tables means, in a sentence."""

_POLICY = {
    "mask_ratio": ("mask ratio", 2),
    "motion_lift": ("motion lift", 2),
    "random_lift": ("random", 2),
    "entropy_share": ("entropy", 2),
    "linear_top1": ("linear", 1),
    "knn_top1": ("kNN", 1),
    "seconds": ("s", 0),
    "peak_memory_mb": ("MiB", 0),
}
"""What is shown of several pre-trainings: key, title, digits."""


def text(results: Results) -> str:
    """Return the tables for a terminal: at most 79 columns, one line for each benchmark and start.

    The fine-tuned models' first, then what the frozen encoders' probes found; a table or a column of which
    nothing was measured is left out.
    """
    rows = results["rows"]
    tuned = [("top-1", "top1"), ("95%", "interval"), *((_TUNED[key], key) for key in list(_TUNED)[1:])]
    parts = []
    for title, columns, metrics in (
        ("Fine-tuned", [*tuned, ("chance", "chance"), ("clips", "clips")], _TUNED),
        ("Frozen encoder", [(name, key) for key, name in _FROZEN.items()], _FROZEN),
    ):
        if any(row.get(key) is not None for row in rows for key in metrics):
            parts += [title, *_table(rows, columns), ""]
    return "\n".join([*parts, *_policy_text(results)]).rstrip()


def _policy_text(results: Results) -> list[str]:
    several = policies(results)
    if several is None:
        return _policy_lines(results.get("policy") or {})
    labels, numbers, lines = several
    return ["Pre-trainings", *_aligned([[*labels, *numbers], *map(list, lines)], left=len(labels))]


def policies(results: Results) -> tuple[list[str], list[str], list[list[str]]] | None:
    """Return what is shown of several pre-trainings: titles of labels, titles of numbers, and the lines.

    A label is the sampler, or an axis in which they differ. None where there were fewer than two.
    """
    found: Sequence[Mapping[str, Any]] = results.get("policies") or []
    if len(found) < 2:
        return None
    axes = {key: None for one in found for key, value in one.items() if isinstance(value, str)}
    axes = {key: None for key in axes if len({one.get(key) for one in found}) > 1}
    # The sampler and the ratio have columns of their own.
    labels = [
        "sampler",
        *(key for key in axes if key not in ("sampler", "sampler.kind", "sampler.mask_ratio")),
    ]
    known = {key: shown for key, shown in _POLICY.items() if any(one.get(key) is not None for one in found)}
    lines = [
        [
            *(str(one.get(key, DASH)) for key in labels),
            *(number(one.get(key), digits) for key, (_, digits) in known.items()),
        ]
        for one in found
    ]
    return labels, [title for title, _ in known.values()], lines


def _table(rows: Sequence[Row], columns: Sequence[tuple[str, str]]) -> list[str]:
    shown = [(name, key) for name, key in columns if any(_number(row, key) != DASH for row in rows)]
    lines: list[Sequence[str]] = [("benchmark", "start", *(name for name, _ in shown))]
    for benchmark, pair in by_benchmark(rows).items():
        for position, (init, row) in enumerate(pair.items()):
            label = benchmark if position == 0 else ""
            lines.append((label, init, *(_number(row, key) for _, key in shown)))
    for position, (init, means) in enumerate(mean_of_benchmarks(rows).items()):
        cells = [_number(means, key) if key in METRICS else "" for _, key in shown]
        if any(key in means for _, key in shown):
            lines.append(("mean" if position == 0 else "", init, *cells))
    return _aligned(lines, left=2)


def _number(row: Row, key: str) -> str:
    if key == "interval":
        return interval(row)
    return number(row.get(key), digits=0 if key == "clips" else 1)


def markdown(results: Results) -> str:
    """Return the tables as GitHub Markdown: one line a benchmark, pre-trained and scratch side by side, and
    one line a pre-training where there were several.

    A number that was measured nowhere has no columns.
    """
    lines = [f"## {results['pipeline']}", *(_markdown_rows(results["rows"]) if results["rows"] else [])]
    several = policies(results)
    if several is None:
        lines += ["", *(f"{line}  " for line in _policy_lines(results.get("policy") or {}))]
    else:
        labels, numbers, cells = several
        lines += ["", "| " + " | ".join([*labels, *numbers]) + " |"]
        lines += ["|" + "---|" * len(labels) + "---:|" * len(numbers)]
        lines += ["| " + " | ".join(line) + " |" for line in cells]
    lines += ["", *(f"- **{name}**: {meaning}" for name, meaning in MEANINGS.items())]
    return "\n".join(lines) + "\n"


def _markdown_rows(rows: Sequence[Row]) -> list[str]:
    metrics = {key: title for key, title in METRICS.items() if any(row.get(key) is not None for row in rows)}
    titles = [f"{title} {init}" for title in metrics.values() for init in INITS]
    lines = [
        "",
        "| " + " | ".join(["benchmark", *titles, "chance", "clips"]) + " |",
        "|---|" + "---:|" * (len(titles) + 2),
    ]
    for benchmark, pair in by_benchmark(rows).items():
        cells = [_cell(pair.get(init, {}), key) for key in metrics for init in INITS]
        first: Row = next(iter(pair.values()))
        cells += [number(first.get("chance")), number(first.get("clips"), digits=0)]
        lines.append("| " + " | ".join([benchmark, *cells]) + " |")
    means = mean_of_benchmarks(rows)
    if means:
        cells = [number(means.get(init, {}).get(key)) for key in metrics for init in INITS]
        lines.append("| " + " | ".join(["**mean**", *cells, "", ""]) + " |")
    return lines


def comma_separated(results: Results) -> str:
    """Return the rows as CSV with the columns `COLUMNS`; what was not measured is an empty field.

    Of a pipeline that measured no benchmark, the pre-trainings, if there were several.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    several = None if results["rows"] else policies(results)
    if several is not None:
        labels, numbers, lines = several
        writer.writerows(
            [[*labels, *numbers], *(["" if cell == DASH else cell for cell in line] for line in lines)]
        )
        return out.getvalue()
    writer.writerow(COLUMNS)
    for pair in by_benchmark(results["rows"]).values():
        for row in pair.values():
            writer.writerow(["" if row.get(key) is None else row[key] for key in COLUMNS])
    return out.getvalue()


def legend() -> str:
    """Return what each number of the table means, for a terminal."""
    width = max(map(len, MEANINGS))
    lines = []
    for name, meaning in MEANINGS.items():
        start = f"  {name:<{width}}  "
        lines += _wrapped(meaning, start, 79)
    return "\n".join(lines)


def by_benchmark(rows: Iterable[Row]) -> dict[str, dict[str, Row]]:
    """Return benchmark → start → row, benchmarks in the order of `rows`, the pre-trained start first.

    Where a pipeline has further axes (a seed), a benchmark and start come more than once: the second time
    they stand under `ssv2 #2`, and so on, so that no row is lost.
    """
    grouped: dict[str, dict[str, Row]] = {}
    seen: Counter[tuple[str, str]] = Counter()
    for row in rows:
        place = (row["benchmark"], row["init"])
        seen[place] += 1
        name = place[0] if seen[place] == 1 else f"{place[0]} #{seen[place]}"
        grouped.setdefault(name, {})[place[1]] = row
    order = {init: place for place, init in enumerate(INITS)}
    return {
        benchmark: dict(sorted(pair.items(), key=lambda item: order.get(item[0], len(order))))
        for benchmark, pair in grouped.items()
    }


def mean_of_benchmarks(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Return start → metric → unweighted mean over the benchmarks.

    A mean is given only over benchmarks that *all* starts were measured on, so that two means are never
    compared over different sets; with fewer than two such benchmarks there is nothing to average.
    """
    grouped = by_benchmark(rows)
    inits = list(dict.fromkeys(init for pair in grouped.values() for init in pair))
    means: dict[str, dict[str, float]] = {}
    for key in METRICS:
        whole = [
            pair
            for pair in grouped.values()
            if all(pair.get(init, {}).get(key) is not None for init in inits)
        ]
        if len(whole) < 2:
            continue
        for init in inits:
            means.setdefault(init, {})[key] = fmean(pair[init][key] for pair in whole)
    return means


def number(value: float | None, digits: int = 1) -> str:
    """Return `value` with `digits` decimals, or a dash where nothing was measured."""
    return DASH if value is None else f"{value:.{digits}f}"


def interval(row: Row) -> str:
    """Return the ends of the row's 95% interval as `35.6–54.8`."""
    if row.get("low") is None or row.get("high") is None:
        return DASH
    return f"{row['low']:.1f}–{row['high']:.1f}"


def _cell(row: Row, key: str) -> str:
    shown = number(row.get(key))
    return f"{shown} ({interval(row)})" if key == "top1" and row.get("low") is not None else shown


def _policy_lines(policy: Mapping[str, Any]) -> list[str]:
    if not policy:
        return []
    return [
        f"Sampler '{policy.get('sampler', 'tats')}': motion lift {number(policy.get('motion_lift'), 2)}"
        f" (random sampling {number(policy.get('random_lift'), 2)}),",
        f"entropy {number(policy.get('entropy_share'), 2)} of log N,"
        f" at mask ratio {number(policy.get('mask_ratio'), 2)}",
    ]


def _aligned(lines: Sequence[Sequence[str]], left: int) -> list[str]:
    """Pad cells to columns; the first `left` columns are text and lean left, the others are numbers."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    aligned = []
    for place, line in enumerate(lines):
        cells = [
            f"{cell:<{width}}" if column < left else f"{cell:>{width}}"
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        aligned.append("  ".join(cells).rstrip())
        if place == 0:
            aligned.append("  ".join("─" * width for width in widths))
    return aligned


def _wrapped(sentence: str, start: str, width: int) -> list[str]:
    lines, current = [], start
    for word in sentence.split():
        if len(current) + len(word) > width and current.strip():
            lines.append(current.rstrip())
            current = " " * len(start)
        current += word + " "
    return [*lines, current.rstrip()]

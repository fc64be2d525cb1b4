"""The results of a pipeline as terminal text, Markdown, CSV, LaTeX and HTML.

`results` is what the report stage writes as `results.json`::

    {"pipeline": "demo",
     "rows":   [{"benchmark": "ssv2", "init": "pretrained", "top1": 45.0, "low": 35.6, "high": 54.8, ...}],
     "policy": {"motion_lift": 2.8, "random_lift": 1.0, "entropy_share": 0.42, "mask_ratio": 0.9}}

`policies`, a list of such, where there were several pre-trainings, and `metrics`, which describes the numbers
that `report.metrics` does not know (see `metrics.declared`). Accuracies, interval ends and chance
are percentages. A metric that was not measured is absent or None and shows as a dash, never as a zero.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from html import escape
from statistics import fmean
from typing import Any, Final

from tats_core.report.metrics import (
    EXPORTED,
    FROZEN,
    METRICS,
    PRETRAINED,
    RESULTS,
    TUNED,
    Metric,
    declared,
)
from tats_core.report.sweeps import Estimate
from tats_core.report.table import Table, latex_text, markdown_text
from tats_core.report.units import DASH, number
from tats_core.specs import NO_RESULT, REHEARSAL

Row = Mapping[str, Any]
Results = Mapping[str, Any]

STARTS: Final = {"pretrained": "pre-trained", "scratch": "from scratch"}
"""What a start of a fine-tuning is called, in the order of tables."""

_BESIDE: Final = ("chance", "clips")
ABSENT: Final = {"absent_train": "training videos", "absent_test": "test videos"}
"""How many listed videos the copy of a data set lacked; in a row only where it did."""


def text(results: Results) -> str:
    """Return the tables for a terminal, at most 79 columns wide without further axes.

    The fine-tuned models' first, then the frozen encoders' probes, then what other stages declare; a table
    or a column of which nothing was measured is left out.
    """
    parts = []
    tables: dict[str, list[str]] = {"Fine-tuned": [*TUNED], "Frozen encoder": [*FROZEN]}
    for metric in declared(results).values():
        tables.setdefault(metric.table or "Further measurements", []).append(metric.key)
    for title, keys in tables.items():
        if _measured(results["rows"], [metrics_of(results)[key] for key in keys]):
            beside = _BESIDE if title == "Fine-tuned" else ()
            parts += [title, table(results, keys, beside).text(), ""]
    several = pre_trainings(results)
    policy = ["Pre-trainings", several.text()] if several else _policy_lines(results)
    return "\n".join([*parts, *policy, *footnotes(results)]).rstrip()


def markdown(results: Results) -> str:
    """Return the tables as GitHub Markdown."""
    parts = [f"## {markdown_text(results['pipeline'])}\n"]
    if results["rows"]:
        parts.append(table(results).markdown())
    several = pre_trainings(results)
    policy = "".join(f"{markdown_text(line)}  \n" for line in _policy_lines(results))
    parts.append(several.markdown() if several else policy)
    parts += [f"{markdown_text(footnote)}\n" for footnote in footnotes(results)]
    listed = ((markdown_text(title), markdown_text(meaning)) for title, meaning in meanings(results).items())
    parts.append("".join(f"- **{title}**: {meaning}\n" for title, meaning in listed))
    return "\n".join(parts)


def csv(results: Results) -> str:
    """Return the rows as CSV, unrounded; of a pipeline without benchmarks its pre-trainings, if several."""
    several = None if results["rows"] else pre_trainings(results)
    if several is not None:
        return several.csv()
    rows = [row for pair in by_benchmark(results["rows"]).values() for row in pair.values()]
    columns = [*EXPORTED, *declared(results), *(key for key in ABSENT if any(row.get(key) for row in rows))]
    if results["pipeline"].endswith(REHEARSAL):
        rows, columns = [{**row, "rehearsal": True} for row in rows], [*columns, "rehearsal"]
    return Table.of(columns, [[row.get(key) for key in columns] for row in rows]).csv()


def html(results: Results) -> str:
    """Return a `<table>` of the results, and one of the pre-trainings where there were several.

    It is pure ASCII, so that it can be pasted into any page.
    """
    text = "\n".join(part.html() for part in _tables(results, _BESIDE))
    text += "".join(f"\n<p>{escape(footnote)}</p>" for footnote in footnotes(results))
    return text.encode("ascii", "xmlcharrefreplace").decode()


def latex(results: Results) -> str:
    r"""Return floating tables for a paper; they need `\usepackage{booktabs}` and nothing else.

    How many clips were tested, and chance, stand in the caption: the columns have to fit on a page.
    """
    name = results["pipeline"]
    partial = "".join(f" {latex_text(footnote)}." for footnote in footnotes(results))
    captions = {
        "benchmark": f"Results of {latex_text(name)}, in percent; 95\\%: Wilson interval of top-1. "
        f"The best of each benchmark is bold.{_tested(results['rows'])}{partial}",
        "sampler": f"Pre-trainings of {latex_text(name)}: motion lift (random: of blind drawing), entropy of "
        "the policy as a share of $\\log N$, probes of the frozen encoder in percent, time and memory.",
    }
    parts = []
    for index, part in enumerate(_tables(results, ())):
        titled = part.frame.rename(columns=lambda title: title.capitalize() if title.islower() else title)
        label = f"{name}-pre-trainings" if index else name
        setup = ("\\small", "\\setlength{\\tabcolsep}{4pt}")
        parts.append(replace(part, frame=titled).latex(captions[part.headings[0]], label, setup))
    return "% needs \\usepackage{booktabs}\n" + "\n".join(parts)


def metrics_of(results: Results) -> dict[str, Metric]:
    """Return every metric that the tables of `results` may show, by key."""
    return METRICS | declared(results)


def meanings(results: Results) -> dict[str, str]:
    """Return heading → meaning of the metrics that have one."""
    return {metric.title: metric.meaning for metric in metrics_of(results).values() if metric.meaning}


def legend(results: Results) -> str:
    """Return what each metric of the tables means, for a terminal."""
    listed = meanings(results)
    width = max(map(len, listed))
    wrapper = textwrap.TextWrapper(79, subsequent_indent=" " * (width + 4), break_on_hyphens=False)
    lines = []
    for title, meaning in listed.items():
        wrapper.initial_indent = f"  {title:<{width}}  "
        lines.append(wrapper.fill(meaning))
    return "\n".join(lines)


def table(results: Results, keys: Sequence[str] | None = None, beside: Sequence[str] = _BESIDE) -> Table:
    """Return a row for each benchmark, start and value of each further axis; the best of each is bold.

    Args:
        keys: metrics, of which those that were not measured are left out; None: all.
        beside: further metrics, which are no result.
    """
    rows: Sequence[Row] = results["rows"]
    known = metrics_of(results)
    axes = further_axes(rows)
    keys = (*TUNED, *FROZEN, *declared(results)) if keys is None else keys
    metrics = _measured(rows, [known[key] for key in (*keys, *beside)])
    averaged = (*RESULTS, *declared(results))
    benchmarks = list(dict.fromkeys(str(row["benchmark"]) for row in rows))
    ordered = sorted(
        [*rows, *_over_folds(rows, [known[key] for key in averaged])],
        key=lambda row: (benchmarks.index(str(row["benchmark"])), _start_order(row["init"])),
    )
    # With a further axis, a mean over benchmarks would mix its values.
    means: list[Row] = [
        {"benchmark": "mean", "init": init, **values}
        for init, values in ({} if axes else mean_of_benchmarks(rows, averaged)).items()
        if any(metric.key in values for metric in metrics)
    ]
    lines, bold = [], set()
    for index, row in enumerate([*ordered, *means]):
        peers = ordered if index < len(ordered) else means
        rivals = [peer for peer in peers if peer["benchmark"] == row["benchmark"]]
        start = STARTS.get(row["init"], row["init"])
        labels = [marked(row), start, *(str(row.get(axis, DASH)) for axis in axes)]
        cells = [_cell(row, metric) for metric in metrics]
        lines.append([*labels, *("" if cell == DASH and peers is means else cell for cell in cells)])
        best = (column for column, metric in enumerate(metrics, len(labels)) if _is_best(row, rivals, metric))
        bold |= {(index, column) for column in best}
    return Table.of(
        ("benchmark", "start", *axes, *(metric.title for metric in metrics)), lines,
        labels=2 + len(axes), grouped=True, bold=frozenset(bold), means=len(means),
    )  # fmt: skip


def _over_folds(rows: Sequence[Row], metrics: Sequence[Metric]) -> list[Row]:
    """Return a row with mean and 95% interval for each benchmark and start with several official splits."""
    grouped: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if "fold" in row:
            grouped.setdefault((row["benchmark"], row["init"]), []).append(row)
    means: list[Row] = []
    for (benchmark, init), folds in grouped.items():
        if len({row["fold"] for row in folds}) < max(2, len(folds)):
            continue  # one split, or a further axis besides
        texts = {}
        for metric in metrics:
            values = [row[metric.key] for row in folds if row.get(metric.key) is not None]
            if values:
                texts[metric.key] = Estimate.of(values).text(metric.digits)
        means.append({"benchmark": benchmark, "init": init, "fold": f"mean of {len(folds)}", "texts": texts})
    return means


def pre_trainings(results: Results) -> Table | None:
    """Return a row for each pre-training, with the axes in which they differ; None of fewer than two."""
    policies: Sequence[Row] = results.get("policies") or []
    if len(policies) < 2:
        return None
    # The sampler and the mask ratio have columns already.
    axes = _varied(policies, ("sampler", "sampler.kind", "sampler.mask_ratio"))
    return policy_table(policies, ["sampler", *axes], PRETRAINED)


def policy_table(policies: Sequence[Row], labels: Sequence[str], keys: Sequence[str]) -> Table:
    """Return a row for each pre-training: labels, then those of the metrics `keys` that were measured."""
    metrics = _measured(policies, [METRICS[key] for key in keys])
    lines = [
        [*(str(policy.get(label, DASH)) for label in labels), *(_cell(policy, metric) for metric in metrics)]
        for policy in policies
    ]
    return Table.of([*labels, *(metric.title for metric in metrics)], lines, labels=len(labels))


def further_axes(rows: Sequence[Row]) -> list[str]:
    """Return the labels, beside benchmark and start, in which rows differ."""
    return _varied(rows, ("benchmark", "init"))


def _varied(rows: Sequence[Row], known: Sequence[str]) -> list[str]:
    """Return the labels in which rows differ, but for those that are `known`."""
    labels = dict.fromkeys(key for row in rows for key, value in row.items() if isinstance(value, str))
    return [key for key in labels if key not in known and len({str(row.get(key)) for row in rows}) > 1]


def by_benchmark(rows: Iterable[Row]) -> dict[str, dict[str, Row]]:
    """Return benchmark → start → row, benchmarks in the order of `rows`, the pre-trained start first.

    With further axes (a seed), a benchmark and start occur more than once: the second row is under `ssv2 #2`,
    and so on.
    """
    grouped: dict[str, dict[str, Row]] = {}
    seen: Counter[tuple[str, str]] = Counter()
    for row in rows:
        pair = (row["benchmark"], row["init"])
        seen[pair] += 1
        name = marked(row) if seen[pair] == 1 else f"{marked(row)} #{seen[pair]}"
        grouped.setdefault(name, {})[pair[1]] = row
    return {
        benchmark: dict(sorted(starts.items(), key=lambda start: _start_order(start[0])))
        for benchmark, starts in grouped.items()
    }


def marked(row: Row) -> str:
    """Return the name of a row's benchmark, with an asterisk where its copy lacked listed videos."""
    return f"{row['benchmark']}*" if any(row.get(key) for key in ABSENT) else str(row["benchmark"])


def footnotes(results: Results) -> list[str]:
    """Return what the asterisk of each benchmark means, what pre-trainings lacked, that it is a rehearsal."""
    rehearsal = [NO_RESULT] if results.get("pipeline", "").endswith(REHEARSAL) else []
    policies = results.get("policies") or [results.get("policy") or {}]
    copies = [(str(row["benchmark"]), row) for row in results["rows"]]
    copies += [("pre-training", policy) for policy in policies]
    lacking: dict[str, dict[str, None]] = {}
    for name, row in copies:
        for key, what in ABSENT.items():
            if row.get(key):
                # Once, though a benchmark has a row for each start.
                lacking.setdefault(name, {})[f"{row[key]:,} of the listed {what}"] = None
    partial = [f"* {name}: a partial copy, without {' and '.join(parts)}" for name, parts in lacking.items()]
    return rehearsal + partial


def mean_of_benchmarks(rows: Sequence[Row], keys: Sequence[str] = RESULTS) -> dict[str, dict[str, float]]:
    """Return start → metric → unweighted mean over the benchmarks, of the metrics `keys`.

    A mean is given only over benchmarks that *all* starts were measured on, so that two means are never
    compared over different sets; with fewer than two such benchmarks there is nothing to average.
    """
    grouped = by_benchmark(rows)
    inits = list(dict.fromkeys(init for starts in grouped.values() for init in starts))
    means: dict[str, dict[str, float]] = {}
    for key in keys:
        complete = [
            starts
            for starts in grouped.values()
            if all(starts.get(init, {}).get(key) is not None for init in inits)
        ]
        if len(complete) > 1:
            for init in inits:
                means.setdefault(init, {})[key] = fmean(starts[init][key] for starts in complete)
    return means


def _tables(results: Results, beside: Sequence[str]) -> list[Table]:
    several = pre_trainings(results)
    rows = [table(results, beside=beside)] if results["rows"] or several is None else []
    if several is None:
        return rows
    first = several.frame.columns[0]
    samplers = list(dict.fromkeys(several.frame[first]))
    frame = several.frame.sort_values(first, key=lambda names: names.map(samplers.index), kind="stable")
    return [*rows, Table(frame, several.labels, grouped=True)]


def _measured(rows: Sequence[Row], metrics: Iterable[Metric]) -> list[Metric]:
    return [metric for metric in metrics if any(_cell(row, metric) != DASH for row in rows)]


def _cell(row: Row, metric: Metric) -> str:
    if metric.key in row.get("texts", {}):
        return str(row["texts"][metric.key])
    if metric.key == "interval":
        low, high = row.get("low"), row.get("high")
        return DASH if low is None or high is None else f"{low:.1f}–{high:.1f}"
    return number(row.get(metric.key), metric.digits)


def _start_order(init: str) -> int:
    return [*STARTS, init].index(init)


def _is_best(row: Row, rivals: Sequence[Row], metric: Metric) -> bool:
    # Rounded as printed: of two numbers that are printed alike, neither is better.
    key, digits = metric.key, metric.digits
    values: list[float] = [round(rival[key], digits) for rival in rivals if rival.get(key) is not None]
    if not metric.better or row.get(key) is None or len(values) < 2:
        return False
    return bool(round(row[key], digits) == (min if metric.better == "less" else max)(values))


def _policy_lines(results: Results) -> list[str]:
    policy: Row | None = results.get("policy")
    if not policy:
        return []
    cells = {key: _cell(policy, METRICS[key]) for key in PRETRAINED}
    flow = f"flow lift {cells['flow_lift']} ({cells['flow_share']} of the best choice's gain),"
    return [
        f"Sampler '{policy.get('sampler', '?')}': motion lift {cells['motion_lift']}"
        f" (random sampling {cells['random_lift']}),",
        *([flow] if policy.get("flow_lift") is not None else []),
        f"entropy {cells['entropy_share']} of log N, at mask ratio {cells['mask_ratio']}",
    ]


def _tested(rows: Sequence[Row]) -> str:
    tested: dict[str, str] = {}
    for row in rows:
        if row.get("clips") is not None:
            chance = "" if row.get("chance") is None else f" (chance {row['chance']:.1f})"
            tested.setdefault(latex_text(str(row["benchmark"])), f"{row['clips']}{chance}")
    return f" Test clips: {', '.join(f'{name} {clips}' for name, clips in tested.items())}." if tested else ""

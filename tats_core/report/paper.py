"""The table as a paper prints it: LaTeX (booktabs) and HTML. The best of each benchmark is in bold.

`results` as in `tats_core.report.tables`. A line is one benchmark, one start, and one value of each further
axis that the pipeline has (a sampler, a seed); columns of which nothing was measured are left out.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from tats_core.report.tables import (
    DASH,
    METRICS,
    Results,
    Row,
    interval,
    mean_of_benchmarks,
    number,
    policies,
)

STARTS: Final = {"pretrained": "pre-trained", "scratch": "from scratch"}
"""What a start is called."""

_LOWER_IS_BETTER: Final = frozenset({"ece"})
_START_ORDER: Final = {init: place for place, init in enumerate(STARTS)}
_LABELS: Final = ("benchmark", "init")


class Line(NamedTuple):
    """One line: the benchmark, labels beside it, and the cells; `best` are the places of cells in bold."""

    benchmark: str
    labels: tuple[str, ...]
    cells: tuple[str, ...]
    best: frozenset[int]


class Table(NamedTuple):
    """Columns of labels and of numbers, and the lines of each benchmark; the means come last."""

    labels: tuple[str, ...]
    numbers: tuple[str, ...]
    groups: tuple[tuple[Line, ...], ...]
    means: tuple[Line, ...]


def table(results: Results, beside: Sequence[str] = ("chance", "clips")) -> Table:
    """Return what both forms show; `beside` are the columns that hold no result."""
    rows: Sequence[Row] = results["rows"]
    axes = further_axes(rows)
    columns = _columns(rows, beside)
    grouped: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: _START_ORDER.get(row["init"], len(_START_ORDER))):
        grouped.setdefault(str(row["benchmark"]), []).append(row)
    names = dict.fromkeys(str(row["benchmark"]) for row in rows)  # in the order of the rows
    # With a further axis, a mean over benchmarks would mix its values.
    means = {} if axes else mean_of_benchmarks(rows)
    averaged: list[Row] = [{"init": init, **values} for init, values in means.items()]
    return Table(
        ("benchmark", "start", *axes),
        tuple(columns.values()),
        tuple(_lines(name, grouped[name], axes, list(columns)) for name in names),
        _lines("mean", averaged, (), list(columns)),
    )


def _columns(rows: Sequence[Row], beside: Sequence[str]) -> dict[str, str]:
    titles: dict[str, str] = {}
    for key, title in (*METRICS.items(), *((key, key) for key in beside)):
        if any(row.get(key) is not None for row in rows):
            titles[key] = title
            if key == "top1" and any(row.get("low") is not None for row in rows):
                titles["interval"] = "95%"
    return titles


def _lines(name: str, rows: Sequence[Row], axes: Sequence[str], keys: Sequence[str]) -> tuple[Line, ...]:
    lines = []
    for row in rows:
        labels = (str(STARTS.get(row["init"], row["init"])), *(str(row.get(axis, DASH)) for axis in axes))
        cells = tuple(_cell(row, key, empty="" if name == "mean" else DASH) for key in keys)
        best = frozenset(
            place for place, key in enumerate(keys) if key in METRICS and _is_best(row, rows, key)
        )
        lines.append(Line(name, labels, cells, best))
    return tuple(lines)


def further_axes(rows: Sequence[Row]) -> list[str]:
    """Return the labels, beside benchmark and start, in which rows differ."""
    labels = {key: None for row in rows for key, value in row.items() if isinstance(value, str)}
    return [key for key in labels if key not in _LABELS and len({str(row.get(key)) for row in rows}) > 1]


def policy_table(results: Results) -> Table | None:
    """Return one line a pre-training, those of a sampler together; None where there were fewer than two."""
    several = policies(results)
    if several is None:
        return None
    labels, numbers, cells = several
    groups: dict[str, list[Line]] = {}
    for line in cells:
        own = Line(line[0], tuple(line[1 : len(labels)]), tuple(line[len(labels) :]), frozenset())
        groups.setdefault(line[0], []).append(own)
    return Table(tuple(labels), tuple(numbers), tuple(map(tuple, groups.values())), ())


def _tables(results: Results, beside: Sequence[str]) -> list[Table]:
    several = policy_table(results)
    rows = [table(results, beside)] if results["rows"] or several is None else []
    return [*rows, *([several] if several else [])]


def as_html(results: Results) -> str:
    """Return a `<table>` of the results, and one of the pre-trainings where there were several.

    To be pasted into a page: pure ASCII, no style.
    """
    return "\n".join(html_table(shown) for shown in _tables(results, ("chance", "clips")))


def html_table(shown: Table) -> str:
    """Return a `<table>` of its own."""
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in shown.labels)
    head += "".join(f'<th scope="col" class="n">{_text(name)}</th>' for name in shown.numbers)
    bodies = [_html_group(group, "") for group in shown.groups]
    if shown.means:
        bodies.append(_html_group(shown.means, ' class="mean"'))
    body = "\n".join(bodies)
    return f'<table class="results">\n<thead><tr>{head}</tr></thead>\n{body}\n</table>\n'


def _html_group(group: Sequence[Line], look: str) -> str:
    lines = []
    for place, line in enumerate(group):
        cells = (
            f'<th scope="rowgroup" rowspan="{len(group)}">{_text(line.benchmark)}</th>' if not place else ""
        )
        cells += "".join(f"<td>{_text(label)}</td>" for label in line.labels)
        for column, cell in enumerate(line.cells):
            words = f"<b>{_text(cell)}</b>" if column in line.best else _text(cell)
            cells += f'<td class="n">{words}</td>'
        lines.append(f"<tr>{cells}</tr>")
    body = "\n".join(lines)
    return f"<tbody{look}>\n{body}\n</tbody>"


def _text(words: str) -> str:
    # ASCII alone is right whatever character set the page around it has.
    return html.escape(words).encode("ascii", "xmlcharrefreplace").decode()


def as_latex(results: Results) -> str:
    r"""Return a floating table for a paper; it needs `\usepackage{booktabs}` and nothing else.

    How many clips were tested, and chance, are told in the caption: the columns have to fit on a page. The
    pre-trainings have a table of their own where there were several.
    """
    name = str(results["pipeline"])
    captions = {
        "benchmark": f"Results of {escaped(name)}, in percent; 95\\%: Wilson interval of top-1. "
        f"The best of each benchmark is bold.{_tested(results['rows'])}",
        "sampler": f"Pre-trainings of {escaped(name)}: motion lift (random: of blind drawing), entropy of "
        "the policy as a share of $\\log N$, probes of the frozen encoder in percent, time and memory.",
    }
    label = "".join(letter if letter.isalnum() else "-" for letter in name)
    shown = _tables(results, beside=())
    return "% needs \\usepackage{booktabs}\n" + "\n".join(
        _latex_table(one, captions[one.labels[0]], label if not place else f"{label}-pre-trainings")
        for place, one in enumerate(shown)
    )


def _latex_table(shown: Table, caption: str, label: str) -> str:
    form = "l" * len(shown.labels) + "r" * len(shown.numbers)
    titles = (*shown.labels, *shown.numbers)
    head = " & ".join(escaped(name.capitalize() if name.islower() else name) for name in titles)
    bodies = [_latex_group(group) for group in (*shown.groups, *([shown.means] if shown.means else []))]
    body = "\n    \\midrule\n".join(bodies)
    return (
        "\\begin{table}[t]\n"
        "  \\centering\n"
        f"  \\caption{{{caption}}}\n"
        f"  \\label{{tab:{label}}}\n"
        "  \\small\n"
        "  \\setlength{\\tabcolsep}{4pt}\n"
        f"  \\begin{{tabular}}{{{form}}}\n"
        "    \\toprule\n"
        f"    {head} \\\\\n"
        "    \\midrule\n"
        f"{body}\n"
        "    \\bottomrule\n"
        "  \\end{tabular}\n"
        "\\end{table}\n"
    )


def _tested(rows: Sequence[Row]) -> str:
    told: dict[str, str] = {}
    for row in rows:
        if row.get("clips") is not None:
            chance = "" if row.get("chance") is None else f" (chance {row['chance']:.1f})"
            told.setdefault(escaped(str(row["benchmark"])), f"{row['clips']}{chance}")
    return f" Test clips: {', '.join(f'{name} {clips}' for name, clips in told.items())}." if told else ""


def _latex_group(group: Sequence[Line]) -> str:
    lines = []
    for place, line in enumerate(group):
        cells = [escaped(line.benchmark) if not place else "", *(escaped(label) for label in line.labels)]
        for column, cell in enumerate(line.cells):
            words = escaped(cell)
            cells.append(f"\\textbf{{{words}}}" if column in line.best else words)
        lines.append("    " + " & ".join(cells) + " \\\\")
    return "\n".join(lines)


_LATEX: Final = str.maketrans(
    {
        "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
        "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
        "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''",
        "–": "--", "\n": " ",
    }
)  # fmt: skip


def escaped(words: str) -> str:
    """Return text in which LaTeX sees no command."""
    return words.translate(_LATEX)


def _cell(row: Row, key: str, empty: str) -> str:
    shown = interval(row) if key == "interval" else number(row.get(key), digits=0 if key == "clips" else 1)
    return empty if shown == DASH else shown


def _is_best(row: Row, rivals: Sequence[Row], key: str) -> bool:
    # As shown: of two numbers that are printed alike, neither is better.
    found: list[Any] = [round(one[key], 1) for one in rivals if one.get(key) is not None]
    if row.get(key) is None or len(found) < 2:
        return False
    return bool(round(row[key], 1) == (min(found) if key in _LOWER_IS_BETTER else max(found)))

"""The table as a paper prints it: LaTeX (booktabs) and HTML. The best of each benchmark is in bold.

`results` as in `tats_core.report.tables`. A line is one benchmark, one start, and one value of each further
axis that the pipeline has (a sampler, a seed); columns of which nothing was measured are left out.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from tats_core.report.tables import DASH, METRICS, Results, Row, interval, mean_of_benchmarks, number

STARTS: Final = {"pretrained": "pre-trained", "scratch": "from scratch"}
"""What a start is called."""

_LOWER_IS_BETTER: Final = frozenset({"ece"})
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


def table(results: Results) -> Table:
    """Return what both forms show."""
    rows: Sequence[Row] = results["rows"]
    axes = further_axes(rows)
    measured = {key: title for key, title in METRICS.items() if any(row.get(key) is not None for row in rows)}
    columns = [
        (key, title)
        for name, name_title in measured.items()
        for key, title in _with_interval(name, name_title, rows)
    ]
    columns += [(key, key) for key in ("chance", "clips") if any(row.get(key) is not None for row in rows)]
    keys = [key for key, _ in columns]
    grouped: dict[str, list[Row]] = {}
    for row in rows:
        grouped.setdefault(str(row["benchmark"]), []).append(row)
    groups = []
    for name, members in grouped.items():
        members.sort(
            key=lambda row: list(STARTS).index(row["init"]) if row["init"] in STARTS else len(STARTS)
        )
        groups.append(
            tuple(
                Line(
                    name,
                    (_start(row["init"]), *(str(row.get(axis, DASH)) for axis in axes)),
                    tuple(_cell(row, key) for key in keys),
                    _best(row, members, keys),
                )
                for row in members
            )
        )
    # With a further axis, a mean over benchmarks would mix its values.
    means = {} if axes else mean_of_benchmarks(rows)
    averaged = [{"init": init, **values} for init, values in means.items()]
    mean_lines = tuple(
        Line(
            "mean", (_start(row["init"]),), tuple(_mean(row, key) for key in keys), _best(row, averaged, keys)
        )
        for row in averaged
    )
    return Table(
        ("benchmark", "start", *axes), tuple(title for _, title in columns), tuple(groups), mean_lines
    )


def further_axes(rows: Sequence[Row]) -> list[str]:
    """Return the labels, beside benchmark and start, in which rows differ."""
    labels = {key: None for row in rows for key, value in row.items() if isinstance(value, str)}
    return [key for key in labels if key not in _LABELS and len({str(row.get(key)) for row in rows}) > 1]


def as_html(results: Results) -> str:
    """Return a `<table>` of its own, to be pasted into a page: pure ASCII, no style."""
    shown = table(results)
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
    r"""Return a floating table for a paper; it needs `\usepackage{booktabs}` and nothing else."""
    shown = table(results)
    form = "l" * len(shown.labels) + "r" * len(shown.numbers)
    head = " & ".join(escaped(name[:1].upper() + name[1:]) for name in (*shown.labels, *shown.numbers))
    bodies = [_latex_group(group) for group in (*shown.groups, *([shown.means] if shown.means else []))]
    name = str(results["pipeline"])
    caption = (
        f"Results of {escaped(name)}, in percent of the test clips; 95\\%: Wilson interval of top-1. "
        "The best of each benchmark is bold."
    )
    body = "\n    \\midrule\n".join(bodies)
    return (
        "% needs \\usepackage{booktabs}\n"
        "\\begin{table}[t]\n"
        "  \\centering\n"
        f"  \\caption{{{caption}}}\n"
        f"  \\label{{tab:{''.join(letter if letter.isalnum() else '-' for letter in name)}}}\n"
        f"  \\begin{{tabular}}{{{form}}}\n"
        "    \\toprule\n"
        f"    {head} \\\\\n"
        "    \\midrule\n"
        f"{body}\n"
        "    \\bottomrule\n"
        "  \\end{tabular}\n"
        "\\end{table}\n"
    )


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
        "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
        "–": "--", "\n": " ",
    }
)  # fmt: skip


def escaped(words: str) -> str:
    """Return text in which LaTeX sees no command."""
    return words.translate(_LATEX)


def _with_interval(key: str, title: str, rows: Sequence[Row]) -> list[tuple[str, str]]:
    columns = [(key, title)]
    if key == "top1" and any(row.get("low") is not None for row in rows):
        columns.append(("interval", "95%"))
    return columns


def _start(init: str) -> str:
    return STARTS.get(init, init)


def _cell(row: Row, key: str) -> str:
    return interval(row) if key == "interval" else number(row.get(key), digits=0 if key == "clips" else 1)


def _mean(row: Row, key: str) -> str:
    return number(row[key]) if key in METRICS and key in row else ""


def _best(row: Row, rivals: Sequence[Row], keys: Sequence[str]) -> frozenset[int]:
    return frozenset(place for place, key in enumerate(keys) if key in METRICS and _is_best(row, rivals, key))


def _is_best(row: Row, rivals: Sequence[Row], key: str) -> bool:
    # As shown: of two numbers that are printed alike, neither is better.
    found: list[Any] = [round(one[key], 1) for one in rivals if one.get(key) is not None]
    if row.get(key) is None or len(found) < 2:
        return False
    return bool(round(row[key], 1) == (min(found) if key in _LOWER_IS_BETTER else max(found)))

"""One table, written as text, Markdown, CSV, LaTeX and HTML."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any, Final

from markupsafe import Markup, escape

from tats_core.report.units import DASH

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Table:
    """A data frame whose cells are written as they are, `None` as a dash; columns are named by headings."""

    frame: pd.DataFrame
    labels: int = 1
    """How many columns, from the left, hold words; the others are numbers."""
    grouped: bool = False
    """Rows that follow one another with the same first cell belong together (all but Markdown and CSV)."""
    bold: frozenset[tuple[int, int]] = frozenset()
    """Positions (row, column) of cells in bold (LaTeX, HTML)."""
    means: int = 0
    """How many rows at the end are means over the rows above (HTML)."""

    @classmethod
    def of(cls, headings: Sequence[str], rows: Iterable[Sequence[object]], **options: Any) -> Table:
        """Return the table with these headings and rows; `options` are the class's other fields."""
        import pandas as pd  # here: a plan does without it, and it takes 1 s to import

        return cls(pd.DataFrame(list(rows), columns=list(headings), dtype=object), **options)

    @property
    def headings(self) -> list[str]:
        """The columns' names."""
        return [str(name) for name in self.frame.columns]

    @property
    def rows(self) -> list[Sequence[object]]:
        """The cells, row by row."""
        return [[DASH if cell is None else cell for cell in row] for row in self.frame.to_numpy().tolist()]

    def text(self, *, right: bool = True) -> str:
        """Return the table for a terminal; with `right`, numbers are aligned at their right end."""
        lines = [self.headings, *chain.from_iterable(self._groups())]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        lines.insert(1, ["─" * width for width in widths])
        sides = ["<" if index < self.labels or not right else ">" for index in range(len(widths))]
        return "\n".join(
            "  ".join(
                f"{cell:{side}{width}}" for cell, side, width in zip(line, sides, widths, strict=True)
            ).rstrip()
            for line in lines
        )

    def markdown(self, text: Callable[[str], str] | None = None) -> str:
        """Return the table as GitHub Markdown; `text` makes Markdown of a cell, by default of plain words."""
        text = text or markdown_text
        rule = "|" + "---|" * self.labels + "---:|" * (len(self.headings) - self.labels)
        head, *body = (
            "| " + " | ".join(text(str(cell)) for cell in row) + " |" for row in (self.headings, *self.rows)
        )
        return "\n".join([head, rule, *body]) + "\n"

    def csv(self) -> str:
        """Return the table as CSV; what was not measured is an empty field."""
        return self.frame.replace(DASH, "").to_csv(index=False, lineterminator="\n")

    def latex(self, caption: str, name: str, setup: Sequence[str] = ("\\small",)) -> str:
        r"""Return a floating table for a paper; it needs `\usepackage{booktabs}` and nothing else.

        Args:
            caption: LaTeX already.
            name: the label, in which what is neither letter nor digit becomes a dash.
        """
        form = "l" * self.labels + "r" * (len(self.headings) - self.labels)
        label = "".join(letter if letter.isalnum() else "-" for letter in name)
        groups = self._groups(lambda cell: latex_text(str(cell)), "\\textbf{{{}}}")
        body = "\n    \\midrule\n".join(
            "\n".join(f"    {' & '.join(cells)} \\\\" for cells in group) for group in groups
        )
        lines = [
            "\\begin{table}[t]",
            "  \\centering",
            f"  \\caption{{{caption}}}",
            f"  \\label{{tab:{label}}}",
            *(f"  {command}" for command in setup),
            f"  \\begin{{tabular}}{{{form}}}",
            "    \\toprule",
            f"    {' & '.join(map(latex_text, self.headings))} \\\\",
            "    \\midrule",
            body,
            "    \\bottomrule",
            "  \\end{tabular}",
            "\\end{table}",
        ]
        return "\n".join(lines) + "\n"

    def html(self) -> Markup:
        """Return a `<table>`."""
        align = ["" if index < self.labels else ' class="n"' for index in range(len(self.headings))]
        head = "".join(
            f'<th scope="col"{side}>{escape(title)}</th>'
            for side, title in zip(align, self.headings, strict=True)
        )
        bodies, written = [], 0
        for group in self._groups(escape, "<b>{}</b>"):
            rows = []
            for position, (first, *cells) in enumerate(group):
                scope = f'scope="rowgroup" rowspan="{len(group)}"' if self.grouped else 'scope="row"'
                label = "" if self.grouped and position else f"<th {scope}>{first}</th>"
                body = "".join(f"<td{side}>{cell}</td>" for side, cell in zip(align[1:], cells, strict=True))
                rows.append(f"<tr>{label}{body}</tr>")
            means = ' class="mean"' if written >= len(self.frame) - self.means else ""
            written += len(group)
            bodies.append("\n".join([f"<tbody{means}>", *rows, "</tbody>"]))
        style = ' class="results"' if self.grouped else ""
        body = "\n".join(bodies)
        return Markup(f"<table{style}>\n<thead><tr>{head}</tr></thead>\n{body}\n</table>\n")

    def _groups(self, text: Callable[[object], str] = str, bold: str = "{}") -> list[list[list[str]]]:
        """Return groups of rows of cells as `text`, `bold` being the form of those in bold.

        The first cell of a group is written once.
        """
        rows = self.rows
        lines = [
            [bold.format(text(cell)) if (i, j) in self.bold else text(cell) for j, cell in enumerate(row)]
            for i, row in enumerate(rows)
        ]
        if not self.grouped:
            return [lines] if lines else []
        groups = groupby(zip(rows, lines, strict=True), key=lambda pair: pair[0][0])
        return [
            [cells if position == 0 else ["", *cells[1:]] for position, (_, cells) in enumerate(group)]
            for _, group in groups
        ]


_LATEX: Final = str.maketrans(
    {
        "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
        "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
        "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''",
        "–": "--", "±": r"$\pm$", "−": "$-$", "\n": " ",
    }
)  # fmt: skip


def latex_text(words: str) -> str:
    """Return text in which LaTeX sees no command, no ligature, and no argument of the command before it."""
    # At the end of a row, a command asks whether `[` or `*` follows: here the next row's first cell.
    parts = re.split(r"(?<=-)(?=-)|(?<=[?!])(?=`)", words)
    text = "{}".join(part.translate(_LATEX) for part in parts)
    return re.sub(r"^(\s*)([*[])", r"\1{\2}", text)


def markdown_text(words: str) -> str:
    """Return text of one line in which Markdown sees no markup, formula, link or tag."""
    text = re.sub(r"[\\|<*`~$&[\]]|(?<!\w)_|_(?!\w)", r"\\\g<0>", words)
    return " ".join(text.splitlines())

"""One table in every form."""

from __future__ import annotations

from markupsafe import Markup

from tats_core.report.table import Table

TABLE = Table.of(
    ("name", "n"),
    [["a|b", "1.0"], ["a|b", None], ["<c>", "30.0"]],
    grouped=True,
    bold=frozenset({(2, 1)}),
    means=1,
)


def test_text_has_words_on_the_left_numbers_on_the_right_and_a_groups_name_once() -> None:
    assert TABLE.text().splitlines() == ["name     n", "────  ────", "a|b    1.0", "         –", "<c>   30.0"]
    assert TABLE.text(right=False).splitlines()[2] == "a|b   1.0"


def test_markdown_takes_no_name_for_a_column() -> None:
    lines = ["| name | n |", "|---|---:|", r"| a\|b | 1.0 |", r"| a\|b | – |", r"| \<c> | 30.0 |"]
    assert TABLE.markdown().splitlines() == lines


def test_markdown_and_latex_show_every_text_as_it_is() -> None:
    # A value of a sweep may be a list: `\\` and `\midrule` would take its bracket for their argument.
    table = Table.of(("key", "*"), [["[0.9, 0.95]", 1], ["*a--b", 2], ["a\\|<i>$x$\n_b_ c_d", 3]])
    assert table.markdown().splitlines()[2:] == [
        r"| \[0.9, 0.95\] | 1 |",
        r"| \*a--b | 2 |",
        r"| a\\\|\<i>\$x\$ \_b\_ c_d | 3 |",
    ]
    assert table.latex("", "x").splitlines()[7:12] == [
        r"    key & {*} \\",
        r"    \midrule",
        r"    {[}0.9, 0.95] & 1 \\",
        r"    {*}a-{}-b & 2 \\",
        r"    a\textbackslash{}\textbar{}\textless{}i\textgreater{}\$x\$ \_b\_ c\_d & 3 \\",
    ]


def test_csv_has_an_empty_field_for_a_dash() -> None:
    assert TABLE.csv() == "name,n\na|b,1.0\na|b,\n<c>,30.0\n"
    assert Table.of(("a", "b"), [[0.1 + 0.2, "–"], [3, None]]).csv() == "a,b\n0.30000000000000004,\n3,\n"


def test_latex_has_a_rule_between_groups() -> None:
    assert TABLE.latex("It's 50\\%.", "my table").splitlines()[6:13] == [
        r"    \toprule",
        r"    name & n \\",
        r"    \midrule",
        r"    a\textbar{}b & 1.0 \\",
        r"     & -- \\",
        r"    \midrule",
        r"    \textless{}c\textgreater{} & \textbf{30.0} \\",
    ]


def test_html_spans_groups_and_escapes_all_but_markup() -> None:
    text = TABLE.html()
    assert '<th scope="rowgroup" rowspan="2">a|b</th><td class="n">1.0</td></tr>' in text
    assert '<tr><td class="n">–</td></tr>' in text
    assert '<tbody class="mean">\n<tr><th scope="rowgroup" rowspan="1">&lt;c&gt;</th>' in text
    assert '<td class="n"><b>30.0</b></td>' in text
    assert '<th scope="row"><i>x</i></th>' in Table.of(["a"], [[Markup("<i>x</i>")]]).html()

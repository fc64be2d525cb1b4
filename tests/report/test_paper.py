"""The paper's table, on rows whose every number is known."""

from __future__ import annotations

from typing import Any

from tats_core.report import paper


def row(benchmark: str, init: str, top1: float, **more: Any) -> dict[str, Any]:
    """Return a row with an interval of ±5 points."""
    return {
        "benchmark": benchmark, "init": init, "top1": top1, "low": top1 - 5, "high": top1 + 5,
        "top5": 90.0, "chance": 12.5, "clips": 96, **more,
    }  # fmt: skip


ROWS = [
    row("ssv2", "scratch", 30.0, linear_top1=20.0, ece=7.5),
    row("ssv2", "pretrained", 50.0, linear_top1=40.0, knn_top1=25.0, mean_class_accuracy=48.0),
    row("ucf101", "pretrained", 60.0, linear_top1=42.0),
    row("ucf101", "scratch", 20.0, linear_top1=30.0),
]
RESULTS = {"pipeline": "my_demo", "rows": ROWS, "policy": {}}


def test_the_latex_table_is_exactly_this() -> None:
    lines = paper.as_latex(RESULTS).splitlines()
    assert lines == [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}[t]",
        r"  \centering",
        r"  \caption{Results of my\_demo, in percent; 95\%: Wilson interval of top-1."
        r" The best of each benchmark is bold. Test clips: ssv2 96 (chance 12.5), ucf101 96 (chance 12.5).}",
        r"  \label{tab:my-demo}",
        r"  \small",
        r"  \setlength{\tabcolsep}{4pt}",
        r"  \begin{tabular}{llrrrrrrr}",
        r"    \toprule",
        r"    Benchmark & Start & Top-1 & 95\% & Top-5 & Class & ECE & Linear & kNN \\",
        r"    \midrule",
        r"    ssv2 & pre-trained & \textbf{50.0} & 45.0--55.0 & \textbf{90.0}"
        r" & 48.0 & -- & \textbf{40.0} & 25.0 \\",
        r"     & from scratch & 30.0 & 25.0--35.0 & \textbf{90.0} & -- & 7.5 & 20.0 & -- \\",
        r"    \midrule",
        r"    ucf101 & pre-trained & \textbf{60.0} & 55.0--65.0 & \textbf{90.0}"
        r" & -- & -- & \textbf{42.0} & -- \\",
        r"     & from scratch & 20.0 & 15.0--25.0 & \textbf{90.0} & -- & -- & 30.0 & -- \\",
        r"    \midrule",
        r"    mean & pre-trained & \textbf{55.0} &  & \textbf{90.0} &  &  & \textbf{41.0} &  \\",
        r"     & from scratch & 25.0 &  & \textbf{90.0} &  &  & 25.0 &  \\",
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]


def test_latex_sees_no_command_in_a_name() -> None:
    assert paper.escaped(r"a\b&c%d$e#f_g{h}i~j^k<l>m|n") == (
        r"a\textbackslash{}b\&c\%d\$e\#f\_g\{h\}i\textasciitilde{}j\textasciicircum{}k\textless{}l\textgreater{}m"
        r"\textbar{}n"
    )


def test_a_lower_calibration_error_is_the_better_one() -> None:
    rows = [row("ssv2", "pretrained", 50.0, ece=3.0), row("ssv2", "scratch", 30.0, ece=7.5)]
    text = paper.as_latex({"pipeline": "demo", "rows": rows})
    assert r"\textbf{3.0}" in text
    assert r"\textbf{7.5}" not in text


def test_a_number_without_a_rival_is_not_bold_and_equals_both_are() -> None:
    one = paper.table({"pipeline": "demo", "rows": [row("ssv2", "pretrained", 50.0)]})
    assert one.groups[0][0].best == frozenset()
    both = paper.table(
        {"pipeline": "demo", "rows": [row("a", "pretrained", 50.01), row("a", "scratch", 50.04)]}
    )
    assert [line.best for line in both.groups[0]] == [frozenset({0, 2})] * 2


def test_a_further_axis_has_a_column_and_no_mean_over_it() -> None:
    rows = [
        row(one, "pretrained", 50.0, sampler=sampler) for one in ("a", "b") for sampler in ("tats", "random")
    ]
    found = paper.table({"pipeline": "demo", "rows": rows})
    assert found.labels == ("benchmark", "start", "sampler")
    assert [[line.labels for line in group] for group in found.groups] == [
        [("pre-trained", "tats"), ("pre-trained", "random")]
    ] * 2
    assert found.means == ()


def test_the_html_table_escapes_names_and_is_pure_ascii() -> None:
    rows: list[dict[str, Any]] = [row("<b>ü</b>", "pretrained", 50.0)]
    text = paper.as_html({"pipeline": "demo", "rows": rows})
    assert "&lt;b&gt;&#252;&lt;/b&gt;" in text
    assert '<td class="n">45.0&#8211;55.0</td>' in text
    assert text.isascii()


def test_a_pipeline_without_rows_leaves_tables_without_lines() -> None:
    empty = {"pipeline": "demo", "rows": []}
    assert "<tbody" not in paper.as_html(empty)
    assert paper.as_latex(empty).count("&") == 1


def test_several_pre_trainings_have_a_table_of_their_own_in_latex_and_in_html() -> None:
    one = {"sampler": "tats", "mask_ratio": 0.9, "motion_lift": 4.2}
    several = [{**one, "seed": "0"}, {**one, "seed": "1", "motion_lift": None}]
    latex = paper.as_latex({**RESULTS, "policies": several})
    assert latex.count(r"\begin{tabular}") == 2
    assert latex.endswith(
        r"""  \label{tab:my-demo-pre-trainings}
  \small
  \setlength{\tabcolsep}{4pt}
  \begin{tabular}{llrr}
    \toprule
    Sampler & Seed & Mask ratio & Motion lift \\
    \midrule
    tats & 0 & 0.90 & 4.20 \\
     & 1 & 0.90 & -- \\
    \bottomrule
  \end{tabular}
\end{table}
"""
    )
    alone = paper.as_html({"pipeline": "p", "rows": [], "policies": several})
    assert alone.count("<table") == 1
    assert '<th scope="rowgroup" rowspan="2">tats</th><td>0</td><td class="n">0.90</td>' in alone

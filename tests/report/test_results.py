"""The tables of results, on rows whose every number is known."""

from __future__ import annotations

import csv
import io
from typing import Any

from tats_core.report import metrics, results
from tats_core.report.table import latex_text
from tats_core.report.units import number


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
POLICY = {
    "sampler": "bandit", "motion_lift": 2.756, "random_lift": 1.0, "entropy_share": 0.41, "mask_ratio": 0.9,
}  # fmt: skip
RESULTS = {"pipeline": "demo", "rows": ROWS, "policy": POLICY}


def test_the_terminal_table_is_exactly_this() -> None:
    assert results.text(RESULTS) == "\n".join(
        [
            "Fine-tuned",
            "benchmark  start         top-1        95%  top-5  class  ECE  chance  clips",
            "─────────  ────────────  ─────  ─────────  ─────  ─────  ───  ──────  ─────",
            "ssv2       pre-trained    50.0  45.0–55.0   90.0   48.0    –    12.5     96",
            "           from scratch   30.0  25.0–35.0   90.0      –  7.5    12.5     96",
            "ucf101     pre-trained    60.0  55.0–65.0   90.0      –    –    12.5     96",
            "           from scratch   20.0  15.0–25.0   90.0      –    –    12.5     96",
            "mean       pre-trained    55.0              90.0",
            "           from scratch   25.0              90.0",
            "",
            "Frozen encoder",
            "benchmark  start         linear   kNN",
            "─────────  ────────────  ──────  ────",
            "ssv2       pre-trained     40.0  25.0",
            "           from scratch    20.0     –",
            "ucf101     pre-trained     42.0     –",
            "           from scratch    30.0     –",
            "mean       pre-trained     41.0",
            "           from scratch    25.0",
            "",
            "Sampler 'bandit': motion lift 2.76 (random sampling 1.00),",
            "entropy 0.41 of log N, at mask ratio 0.90",
        ]
    )


def test_markdown_has_the_same_table_with_the_probes_beside() -> None:
    lines = results.markdown(RESULTS).splitlines()
    assert lines[0] == "## demo"
    assert "| ssv2 | pre-trained | 50.0 | 45.0–55.0 | 90.0 | 48.0 | – | 40.0 | 25.0 | 12.5 | 96 |" in lines
    assert "| mean | from scratch | 25.0 |  | 90.0 |  |  | 25.0 |  |  |  |" in lines
    table = [line for line in lines if line.startswith("|")]
    assert {line.count("|") for line in table} == {12}


def test_csv_has_a_line_for_each_row_and_an_empty_field_for_what_was_not_measured() -> None:
    read = list(csv.DictReader(io.StringIO(results.csv(RESULTS))))
    assert [(row["benchmark"], row["init"], row["top1"], row["knn_top1"]) for row in read] == [
        ("ssv2", "pretrained", "50.0", "25.0"),
        ("ssv2", "scratch", "30.0", ""),
        ("ucf101", "pretrained", "60.0", ""),
        ("ucf101", "scratch", "20.0", ""),
    ]
    assert tuple(read[0]) == metrics.EXPORTED


def test_a_mean_is_taken_only_over_benchmarks_that_every_start_was_measured_on() -> None:
    rows = [*ROWS, row("hmdb51", "pretrained", 99.0)]
    means = results.mean_of_benchmarks(rows)
    assert means["pretrained"]["top1"] == (50.0 + 60.0) / 2
    assert means["scratch"]["top1"] == (30.0 + 20.0) / 2


def test_a_benchmark_measured_twice_keeps_both_rows() -> None:
    rows = [row("ssv2", "pretrained", 50.0, seed=0), row("ssv2", "pretrained", 52.0, seed=1)]
    assert {name: pair["pretrained"]["top1"] for name, pair in results.by_benchmark(rows).items()} == {
        "ssv2": 50.0,
        "ssv2 #2": 52.0,
    }


def test_one_benchmark_has_no_mean() -> None:
    assert results.mean_of_benchmarks(ROWS[:2]) == {}
    assert "mean" not in results.text({**RESULTS, "rows": ROWS[:2]})


def test_a_zero_is_a_number_and_not_a_dash() -> None:
    assert number(0.0) == "0.0"
    assert number(None) == "–"


def test_without_a_policy_nothing_is_said_about_one() -> None:
    assert "policy" not in results.text({**RESULTS, "policy": {}})
    assert results.text({**RESULTS, "policy": None}) == results.text({**RESULTS, "policy": {}})


def test_a_column_or_a_table_of_which_nothing_was_measured_is_left_out() -> None:
    probed = {"pipeline": "p", "rows": [{"benchmark": "ssv2", "init": "scratch", "attentive_top1": 31.0}]}
    assert results.text(probed).splitlines() == [
        "Frozen encoder",
        "benchmark  start         attentive",
        "─────────  ────────────  ─────────",
        "ssv2       from scratch       31.0",
    ]
    assert "| benchmark | start | attentive |" in results.markdown(probed)


def test_the_widest_table_fits_a_terminal() -> None:
    widest = [
        row(name, init, 95.0, top5=100.0, mean_class_accuracy=100.0, ece=55.5, clips=24777)
        for name in ("kinetics400", "ucf101")
        for init in results.STARTS
    ]
    assert max(map(len, results.text({**RESULTS, "rows": widest}).splitlines())) <= 79


def test_every_column_of_the_table_is_explained_within_79_characters_a_line() -> None:
    legend = results.legend(RESULTS)
    for word in (
        *("top-1", "95%", "top-5", "class", "ECE", "chance", "clips"),
        *("linear", "kNN", "attentive", "motion lift", "entropy"),
    ):
        assert f"  {word} " in legend
    assert max(map(len, legend.splitlines())) <= 79
    assert max(map(len, results.text(RESULTS).splitlines())) <= 79


def pre_training(sampler: str, seed: str, lift: float) -> dict[str, object]:
    """Return what a pre-training of a pipeline with a matrix leaves behind, its axes included."""
    axes = {"sampler.kind": sampler, "sampler.mask_ratio": "0.9", "seed": seed}
    return {**axes, "sampler": sampler, "mask_ratio": 0.9, "motion_lift": lift, "entropy_share": 0.7}


SEVERAL = [pre_training("tats", "0", 4.2), pre_training("tats", "1", 4.0), pre_training("adaptive", "0", 3.7)]
ONLY_POLICIES = {"pipeline": "demo", "rows": [], "policy": SEVERAL[0], "policies": SEVERAL}


def test_several_pre_trainings_have_a_line_each_with_the_axes_in_which_they_differ() -> None:
    assert results.text(ONLY_POLICIES).splitlines() == [
        "Pre-trainings",
        "sampler   seed  mask ratio  motion lift  entropy",
        "────────  ────  ──────────  ───────────  ───────",
        "tats      0           0.90         4.20     0.70",
        "tats      1           0.90         4.00     0.70",
        "adaptive  0           0.90         3.70     0.70",
    ]


def test_without_rows_the_files_hold_the_pre_trainings() -> None:
    assert results.csv(ONLY_POLICIES).splitlines()[:2] == [
        "sampler,seed,mask ratio,motion lift,entropy",
        "tats,0,0.90,4.20,0.70",
    ]
    assert results.markdown(ONLY_POLICIES).splitlines()[:5] == [
        "## demo",
        "",
        "| sampler | seed | mask ratio | motion lift | entropy |",
        "|---|---|---:|---:|---:|",
        "| tats | 0 | 0.90 | 4.20 | 0.70 |",
    ]


def test_one_pre_training_has_no_table() -> None:
    assert results.pre_trainings({**ONLY_POLICIES, "policies": SEVERAL[:1]}) is None


# --- as a paper prints it ---------------------------------------------------------------------------------

PAPER = {"pipeline": "my_demo", "rows": ROWS, "policy": {}}


def test_the_latex_table_is_exactly_this() -> None:
    lines = results.latex(PAPER).splitlines()
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
    assert latex_text(r"a\b&c%d$e#f_g{h}i~j^k<l>m|n") == (
        r"a\textbackslash{}b\&c\%d\$e\#f\_g\{h\}i\textasciitilde{}j\textasciicircum{}k\textless{}l\textgreater{}m"
        r"\textbar{}n"
    )


def test_a_lower_calibration_error_is_the_better_one() -> None:
    rows = [row("ssv2", "pretrained", 50.0, ece=3.0), row("ssv2", "scratch", 30.0, ece=7.5)]
    text = results.latex({"pipeline": "demo", "rows": rows})
    assert r"\textbf{3.0}" in text
    assert r"\textbf{7.5}" not in text


def test_a_number_without_a_rival_is_not_bold_and_equals_both_are() -> None:
    alone = results.table({"pipeline": "demo", "rows": [row("ssv2", "pretrained", 50.0)]})
    assert alone.bold == frozenset()
    both = results.table(
        {"pipeline": "demo", "rows": [row("a", "pretrained", 50.01), row("a", "scratch", 50.04)]}
    )
    titles = {both.headings[column] for _, column in both.bold}
    assert titles == {"top-1", "top-5"}
    assert len(both.bold) == 4


def test_a_further_axis_has_a_column_and_no_mean_over_it() -> None:
    rows = [
        row(name, "pretrained", 50.0, sampler=sampler)
        for name in ("a", "b")
        for sampler in ("tats", "random")
    ]
    table = results.table({"pipeline": "demo", "rows": rows})
    assert table.headings[: table.labels] == ["benchmark", "start", "sampler"]
    assert [row[:3] for row in table.rows] == [
        [benchmark, "pre-trained", sampler] for benchmark in ("a", "b") for sampler in ("tats", "random")
    ]
    assert table.means == 0


def test_the_html_table_escapes_names_and_is_pure_ascii() -> None:
    rows: list[dict[str, Any]] = [row("<b>ü</b>", "pretrained", 50.0)]
    text = results.html({"pipeline": "demo", "rows": rows})
    assert "&lt;b&gt;&#252;&lt;/b&gt;" in text
    assert '<td class="n">45.0&#8211;55.0</td>' in text
    assert text.isascii()


def test_a_pipeline_without_rows_leaves_tables_without_lines() -> None:
    empty = {"pipeline": "demo", "rows": []}
    assert "<tbody" not in results.html(empty)
    assert results.latex(empty).count("&") == 1


def test_several_pre_trainings_have_a_table_of_their_own_in_latex_and_in_html() -> None:
    policy = {"sampler": "tats", "mask_ratio": 0.9, "motion_lift": 4.2}
    several = [{**policy, "seed": "0"}, {**policy, "seed": "1", "motion_lift": None}]
    latex = results.latex({**PAPER, "policies": several})
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
    alone = results.html({"pipeline": "p", "rows": [], "policies": several})
    assert alone.count("<table") == 1
    assert '<th scope="rowgroup" rowspan="2">tats</th><td>0</td><td class="n">0.90</td>' in alone


def test_every_form_marks_a_benchmark_whose_copy_was_partial() -> None:
    partial = row("ssv2", "pretrained", 50.0, absent_train=1200, absent_test=1)
    rows = [partial, {**partial, "init": "scratch"}, ROWS[2]]
    table = {"pipeline": "demo", "rows": rows, "policy": {**POLICY, "absent_train": 7}}
    sentences = [
        "* ssv2: a partial copy, without 1,200 of the listed training videos and 1 of the listed test videos",
        "* pre-training: a partial copy, without 7 of the listed training videos",
    ]
    assert results.footnotes(table) == sentences
    text = results.text(table)
    assert "\nssv2*      pre-trained    50.0" in text
    assert text.endswith("\n".join(sentences))
    assert r"| ssv2\* |" in results.markdown(table)
    assert "\\* ssv2: a partial copy" in results.markdown(table)
    for form in (results.latex, results.html):
        assert "ssv2*" in form(table)
        assert "1,200 of the listed training videos" in form(table)
    first, _, third = csv.DictReader(io.StringIO(results.csv(table)))
    assert (first["benchmark"], first["absent_train"], first["absent_test"]) == ("ssv2", "1200", "1")
    assert third["absent_train"] == ""
    for form in (results.text, results.markdown, results.latex, results.html, results.csv):
        assert "absent" not in form(RESULTS)
        assert "partial" not in form(RESULTS)


def test_three_splits_end_in_their_mean_with_its_interval():
    rows = [
        {"benchmark": "hmdb51", "init": "pretrained", "fold": str(fold), "top1": top1}
        for fold, top1 in ((1, 60.0), (2, 62.0), (3, 64.0))
    ]
    rows.append({"benchmark": "ssv2", "init": "pretrained", "top1": 70.0})
    shown = results.table({"pipeline": "mine", "rows": rows}).rows
    # Deviation 2, three splits, Student's t with two degrees of freedom: 4.303 x 2 / sqrt(3) = 4.97.
    assert [row[2:] for row in shown] == [
        ["1", "60.0"], ["2", "62.0"], ["3", "64.0"], ["mean of 3", "62.0 ± 5.0"], ["–", "70.0"],
    ]  # fmt: skip


def test_the_tables_of_a_rehearsal_say_that_their_numbers_mean_nothing():
    rows = [{"benchmark": "ssv2", "init": "pretrained", "top1": 70.0}]
    rehearsed, real = ({"pipeline": name, "rows": rows} for name in ("mine-rehearsal", "mine"))
    for form in (results.text, results.markdown, results.html, results.latex):
        assert "numbers mean nothing" in form(rehearsed)
        assert "numbers mean nothing" not in form(real)
    assert results.csv(rehearsed).splitlines()[0].endswith(",rehearsal")
    assert results.csv(rehearsed).splitlines()[1].endswith(",True")
    assert "rehearsal" not in results.csv(real)


DECLARED = metrics.Metric(
    "gflops", "GFLOPs", 2, "GFLOPs", "less", meaning="multiplications of one clip, in billions."
)


def test_a_number_that_a_stage_declares_has_a_column_in_every_table_and_a_line_in_every_legend() -> None:
    rows = [row("ssv2", "scratch", 30.0, gflops=3.141), row("ssv2", "pretrained", 50.0, gflops=2.718)]
    declared = {**RESULTS, "rows": rows, "metrics": metrics.described([DECLARED, metrics.METRICS["top1"]])}
    assert len(declared["metrics"]) == 1, "every table knows top-1"
    text = results.text(declared).splitlines()
    own = text.index("Further measurements")
    assert text[own + 1].split() == ["benchmark", "start", "GFLOPs"]
    assert text[own + 3].split() == ["ssv2", "pre-trained", "2.72"]
    markdown = results.markdown(declared)
    assert "- **GFLOPs**: multiplications of one clip, in billions." in markdown
    assert next(csv.DictReader(io.StringIO(results.csv(declared))))["gflops"] == "2.718"
    assert "<b>2.72</b>" in results.html(declared), "the smaller one is the better"
    assert "GFLOPs" in results.latex(declared)
    assert "  GFLOPs " in results.legend(declared)
    assert "GFLOPs" not in results.legend(RESULTS)

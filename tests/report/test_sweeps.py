from __future__ import annotations

from dataclasses import replace

import pytest

from tats_core.report import sweeps
from tats_core.report.metrics import Metric
from tats_core.report.units import short_keys

TOP1 = Metric("acc", "top-1", 1, better="more")


def trial(value, seed=0, status="finished", **point):
    return {"point": point, "seed": seed, "status": status, "metrics": {"acc": value}}


def test_the_interval_is_students() -> None:
    # mean 2, s = 1, t(2) = 4.30265: 4.30265 / sqrt(3)
    estimate = sweeps.Estimate.of([1.0, 2.0, 3.0])
    assert estimate.mean == 2
    assert estimate.half == pytest.approx(2.48414, abs=1e-5)
    assert sweeps.Estimate.of([5.0]) == sweeps.Estimate(5.0, None, 1)


def test_differences_are_paired_by_seed_with_the_point_that_has_the_baselines_values() -> None:
    trials = [
        trial(10, 0, kind="random", ratio=0.9), trial(20, 1, kind="random", ratio=0.9),
        trial(13, 0, kind="tats", ratio=0.9), trial(24, 1, kind="tats", ratio=0.9),
        trial(99, 0, kind="random", ratio=0.5),
    ]  # fmt: skip
    random_row, tats_row, other = sweeps.rows(trials, ["acc"], {"kind": "random"})
    assert tats_row.gains["acc"].mean == 3.5
    assert tats_row.gains["acc"].seeds == 2
    assert random_row.gains == other.gains == {}


def test_a_point_with_keys_that_the_baseline_lacks_is_still_compared() -> None:
    trials = [trial(10, kind="random"), trial(15, kind="tats", clip=0.2)]
    assert sweeps.rows(trials, ["acc"], {"kind": "random"})[1].gains["acc"].mean == 5


def test_only_finished_trials_count() -> None:
    (row,) = sweeps.rows([trial(1, 0, kind="a"), trial(9, 1, "stopped early", kind="a")], ["acc"], {})
    assert row.values["acc"] == sweeps.Estimate(1, None, 1)


def test_the_best_is_by_mean_and_mode() -> None:
    table = sweeps.rows([trial(1, kind="a"), trial(2, kind="b")], ["acc"], {})
    assert [row.point for row in sweeps.best(table, TOP1)] == [{"kind": "b"}]
    assert [row.point for row in sweeps.best(table, replace(TOP1, better="less"))] == [{"kind": "a"}]


def test_points_that_are_printed_alike_tie_and_the_best_unrounded_is_the_first() -> None:
    table = sweeps.rows([trial(1.96, kind="a"), trial(1, kind="b"), trial(2.04, kind="c")], ["acc"], {})
    assert [row.point["kind"] for row in sweeps.best(table, TOP1)] == ["c", "a"]
    assert [row.point["kind"] for row in sweeps.best(table, replace(TOP1, digits=2))] == ["c"]


def test_the_table_names_keys_by_as_few_words_as_tell_them_apart() -> None:
    assert short_keys(["a.sampler.kind", "a.b.lr", "a.c.lr"]) == {
        "a.sampler.kind": "kind", "a.b.lr": "b.lr", "a.c.lr": "c.lr",
    }  # fmt: skip
    table = sweeps.rows([trial(1.26, 0, **{"s.kind": "tats"})], ["acc"], {})
    assert sweeps.table(table, [TOP1], TOP1).text(right=False).splitlines()[2].split() == ["tats", "1", "1.3"]


TWO = [
    trial(10, 0, **{"s.kind": "random"}), trial(12, 1, **{"s.kind": "random"}),
    trial(13, 0, **{"s.kind": "a_b"}), trial(15, 1, **{"s.kind": "a_b"}),
]  # fmt: skip


def test_the_table_in_markdown() -> None:
    # Two seeds that are 2 apart: half the interval is 12.706; the gain is 3 with both.
    rows = sweeps.rows(TWO, ["acc"], {"s.kind": "random"})
    assert sweeps.table(rows, [TOP1], TOP1).markdown().splitlines() == [
        "| kind | seeds | top-1 | top-1 − baseline |",
        "|---|---:|---:|---:|",
        "| random | 2 | 11.0 ± 12.7 | – |",
        "| a_b | 2 | 14.0 ± 12.7 | +3.0 ± 0.0 |",
    ]


def test_the_table_in_csv_is_unrounded_and_empty_where_nothing_was_measured() -> None:
    text = sweeps.csv(sweeps.rows(TWO[:3], ["acc"], {"s.kind": "random"}), [TOP1])
    head, random, other = text.splitlines()
    assert head == "s.kind,seeds,acc,acc.half,acc.gain,acc.gain_half"
    assert random.startswith("random,2,11.0,12.7")
    assert random.endswith(",,")
    assert other == "a_b,1,13,,3,"


def test_the_table_in_latex_has_no_command_from_a_name() -> None:
    text = sweeps.latex(sweeps.rows(TWO, ["acc"], {}), [TOP1], TOP1, name="my_sweep", caption="50% of it.")
    assert r"a\_b & 2 & 14.0 $\pm$ 12.7 \\" in text
    assert r"\caption{50\% of it. " in text
    assert r"\label{tab:my-sweep}" in text

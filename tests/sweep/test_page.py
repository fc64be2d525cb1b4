"""What a sweep leaves: its table, charts and page, made of its folder alone."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from tats_core.cli.app import main
from tats_core.errors import StoreError
from tats_core.report.metrics import Metric
from tats_core.sweep import page, plots, spec
from tats_core.sweep.summary import Summary, results
from tats_core.sweep.trial import TrialResult

RATIO, KIND = "pretrain.sampler.mask_ratio", "pretrain.sampler.kind"
TOP1 = "pretrain.linear_top1"


def summary(sweep: Any, folder: Path, busy: float | None = None) -> Summary:
    return Summary.of(sweep, results(folder), busy)


def charts(sweep: Any, folder: Path) -> tuple[list[plots.Plot], list[str]]:
    return plots.of(summary(sweep, folder), folder)


def test_what_was_run_is_read_from_its_folder_with_its_overrides(swept):
    sweep, folder = swept.sweep("seeds.values=[3, 4]", f"space.{RATIO}=[0.95]", "pretrain.epochs=7")
    again = spec.as_run(folder)
    assert again.identity() == sweep.identity()
    assert again.title == sweep.title
    assert [metric.column for metric in again.metrics] == [metric.column for metric in sweep.metrics]
    assert spec.load(str(folder / "demo_ratio.yaml")).identity() == sweep.identity(), "it can be run again"


def test_a_run_without_the_file_of_its_sweep_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"demo_ratio\.yaml: does not exist"):
        spec.as_run(tmp_path / "demo_ratio-20260102-100000000-aaaa")


def test_epochs_are_counted_against_those_of_whole_trials(swept):
    stopped = {"status": "stopped early", "epochs": 2}
    sweep, folder = swept.sweep(changes=lambda trial: stopped if trial.point[KIND] == "random" else {})
    result = summary(sweep, folder, busy=0.876)
    assert result.epochs == (9 * 2 + 18 * 5, 27 * 5)
    assert "9 trials stopped early\n108 epochs of the 135 of complete trials (80%)\n" in result.text()
    assert result.text().endswith("88% of the time after Ray's start was spent in training steps")


def test_the_share_of_time_in_steps_is_printed_again(swept):
    sweep, folder = swept.sweep()
    summary(sweep, folder, busy=0.5).write(folder)
    assert page.read(folder).text() == (folder / "results.txt").read_text().rstrip("\n")


def test_a_grid_with_a_ratio_and_samplers_has_all_charts_but_a_front(swept):
    sweep, folder = swept.sweep()
    drawn, missing = charts(sweep, folder)
    assert [plot.name for plot in drawn] == ["metrics", "curves", "parallel", "importance"]
    assert missing == []
    plots.write(drawn, folder)
    assert sorted(path.name for path in (folder / "plots").iterdir()) == [
        "curves.png", "importance.png", "metrics.png", "parallel.png",
    ]  # fmt: skip
    with Image.open(folder / "plots" / "metrics.png") as picture:
        assert picture.width > 1000


def test_two_metrics_with_a_mode_have_a_front(swept):
    modes = "metrics=[{name: pretrain.linear_top1, mode: max}, {name: pretrain.step_seconds, mode: min}]"
    sweep, folder = swept.sweep(modes)
    assert charts(sweep, folder)[0][-1].name == "pareto"


def test_a_chart_that_cannot_be_drawn_is_replaced_by_a_reason(swept):
    one_point = (f"space.{RATIO}=[0.9]", f"space.{KIND}=[tats]", "seeds.values=[0]", "baseline={}")
    sweep, folder = swept.sweep(*one_point, losses=False)
    drawn, missing = charts(sweep, folder)
    assert drawn == []
    assert [words.partition(":")[0] for words in missing] == [
        "Metrics against a key", "Learning curves", "Parallel coordinates", "Importance of the keys",
    ]  # fmt: skip


def test_points_that_differ_in_more_than_two_keys_are_not_drawn_over_one_another(swept):
    sweep, folder = swept.sweep(
        "space.pretrain.batch_size=[32, 64]", f"space.{RATIO}=[0.9]", "space.pretrain.sampler_lr=[0.1, 0.2]"
    )
    assert charts(sweep, folder)[1][0] == (
        "Metrics against batch_size: points differ in more than batch_size and kind."
    )


def test_the_key_that_decides_is_the_important_one(swept):
    sweep, folder = swept.sweep()
    values = {key: sweep.space.values[key] for key in (RATIO, KIND)}
    metric = Metric(TOP1, "top-1", better="more")
    shares = plots.importance(values, results(folder), metric)
    assert shares[KIND] > 0.9
    assert sum(shares.values()) == pytest.approx(1)


def test_too_few_trials_say_nothing_of_importance(swept):
    sweep, folder = swept.sweep("seeds.values=[0]")
    assert charts(sweep, folder)[1] == [
        "Importance of the keys: 9 finished trials say too little about 2 keys (asked for here: 16)."
    ]


def test_the_page_tells_everything_and_asks_for_nothing(swept):
    evil = "<img src=x onerror=alert(1)>"
    broken = {"status": "failed", "metrics": {}, "error": f"pretrain: no memory {evil}"}
    sweep, folder = swept.sweep(
        "pretrain.epochs=7", changes=lambda trial: broken if trial.point[RATIO] == 0.85 else {}
    )
    result = summary(sweep, folder, busy=0.9)
    result.write(folder)
    page.write(result, folder)
    text = (folder / "report.html").read_text()
    assert "2 points share the best probe top-1, 31.0: mask_ratio=0.9 kind=tats; mask_ratio=0.95" in text
    assert "<b>31.0 ± 2.5</b>" in text
    assert "9 of 27 trials failed" in text
    assert "9 × pretrain: no memory &lt;img" in text
    assert text.count('class="status failed"') == 9
    assert "<dd>0.85, 0.9, 0.95</dd>" in text
    assert "set for all: pretrain.epochs" in text
    assert "name: best" in text
    assert "tats sweep demo_ratio --set pretrain.epochs=7" in text
    assert "<script" not in text
    assert not re.search(r'(src|srcset|href)="(?!data:|#)', text)
    assert text.count('<svg role="img"') == 4
    assert "<img" not in text


def test_the_best_point_stands_in_a_file_that_is_a_pipeline(swept):
    sweep, folder = swept.sweep()
    summary(sweep, folder).write(folder)
    best = yaml.safe_load((folder / "best.yaml").read_text())
    assert best["stages"]["pretrain"]["sampler"]["kind"] == "tats"


def test_a_tie_is_called_one_and_the_file_names_the_rule_that_chose(swept):
    alike = ("metrics=[{name: pretrain.linear_top1, mode: max, title: top-1}]", f"space.{RATIO}=[0.8, 0.9]")
    sweep, folder = swept.sweep(*alike, f"space.{KIND}=[random, tats]")
    result = summary(sweep, folder)
    assert result.best_text == (
        "2 points share the best top-1, 31.0: mask_ratio=0.8 kind=tats; mask_ratio=0.9 kind=tats"
    )
    result.write(folder)
    head = (folder / "best.yaml").read_text().split("name:")[0]
    assert "mask_ratio=0.8" in head
    assert "# 2 points have this top-1 as printed. This one has the best\n" in head
    page.write(result, folder)
    text = (folder / "report.html").read_text()
    assert text.count("<b>31.0 ± 2.5</b>") == 2
    assert "shared by 2 points" in text


def test_the_best_of_a_running_sweep_is_a_mean_over_all_seeds_of_a_point(swept):
    sweep, folder = swept.sweep(f"space.{RATIO}=[0.9]", f"space.{KIND}=[random, tats]")
    first, second = (sweep.trials_of(point) for point in sweep.points())
    ended = {trial.id: trial for trial in results(folder)}

    def best_of(*trials: Any) -> str:
        return Summary.of(sweep, [ended[trial.id] for trial in trials], None).best_value

    assert best_of(*first[:2], second[2]) == ""  # seeds 0 and 1 of random, seed 2 of tats
    assert best_of(*first, second[2]) == "best probe top-1 11.0"
    assert best_of(*first, *second) == "best probe top-1 31.0"


def test_a_point_with_a_seed_that_was_stopped_early_is_not_the_best(swept):
    def changes(trial: Any) -> dict[str, Any]:
        return {"status": "stopped early"} if trial.point[KIND] == "tats" and trial.seed == 0 else {}

    sweep, folder = swept.sweep(f"space.{RATIO}=[0.9]", changes=changes)
    assert (
        summary(sweep, folder).best_text == "best probe top-1: 21.0 ± 2.5 with mask_ratio=0.9 kind=adaptive"
    )


def test_trials_that_all_failed_make_a_page_without_a_best_one(swept):
    broken = {"status": "failed", "metrics": {}, "error": "no"}
    sweep, folder = swept.sweep(changes=lambda trial: broken, losses=False)
    result = summary(sweep, folder)
    result.write(folder)
    page.write(result, folder)
    assert not (folder / "best.yaml").exists()
    assert "27 of 27 trials failed" in (folder / "report.html").read_text()


# --- the commands ----------------------------------------------------------------------------------------


@pytest.fixture
def tats(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["tats", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        return str(capsys.readouterr().out)

    return call


def test_results_are_those_of_the_sweep_as_it_was_run_and_name_its_page(swept, tats):
    sweep, folder = swept.sweep(f"space.{RATIO}=[0.6]", "metrics=[{name: pretrain.knn_top1, mode: max}]")
    result = summary(sweep, folder)
    result.write(folder)
    page.write(result, folder)
    text = tats("results", "demo_ratio")
    assert text.split("\n")[2].split()[:5] == ["0.6", "random", "3", "11.0", "±"]
    assert "pretrain.knn_top1" in text.split("\n")[0]
    assert str(folder / "report.html") in text
    assert json.loads(tats("results", folder.name, "--json"))["sweep"] == "demo_ratio"


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("md", "| 0.9 | tats | 3 | 31.0 ± 2.5 |"),
        ("csv", "0.9,tats,3,31.0,"),
        ("latex", r"0.9 & tats & 3 & 31.0 $\pm$ 2.5"),
        ("html", "<title>demo_ratio</title>"),
        ("json", '"sweep": "demo_ratio"'),
    ],
)
def test_report_writes_a_sweep_in_every_form(swept, tats, form, expected):
    swept.sweep()
    assert expected in tats("report", "demo_ratio", "--format", form)


def test_the_record_of_a_trial_is_complete(tmp_path):
    trial = TrialResult("abc", "finished", {RATIO: 0.9}, 1, {TOP1: 2.0}, epochs=3, seconds=1.5)
    trial.save(tmp_path)
    assert TrialResult.load(tmp_path) == trial


def test_causes_that_differ_in_a_path_alone_are_one(swept):
    sweep, folder = swept.sweep(
        changes=lambda trial: {
            "status": "failed",
            "metrics": {},
            "error": f"pretrain: it died; see /home/{trial.id}/log" if trial.seed else "data: no disk",
        },
        losses=False,
    )
    first = summary(sweep, folder).trials[1].id
    assert summary(sweep, folder).causes == [
        (f"pretrain: it died; see /home/{first}/log", 18), ("data: no disk", 9),
    ]  # fmt: skip


def test_a_sweep_of_which_no_trial_has_ended_has_no_table(swept, monkeypatch, capsys, tmp_path):
    _, folder = swept.sweep(losses=False)
    for record in folder.glob("trials/*/trial.json"):
        record.unlink()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tats", "results", "demo_ratio"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert f"no trial of {folder.name} has ended yet" in capsys.readouterr().err

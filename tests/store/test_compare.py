"""What differs between runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tats_core.errors import SpecError
from tats_core.store import compare
from tats_core.store.compare import Difference
from tats_core.store.run import Run, StageRecord


def opened(records):
    return [Run(record) for record in records]


def test_runs_of_one_configuration_differ_in_nothing_but_the_commit(kept):
    pair = [kept.run(1), kept.run(2)]
    assert compare.configuration(opened(pair)) == []
    assert compare.data(opened(pair)) == []
    assert compare.code(opened(pair)) == [Difference("commit", (f"{1:040d}", f"{2:040d}"))]


def test_keys_code_and_data_that_differ_are_named(kept):
    runs = [kept.run(1), kept.run(2, epochs=5), kept.run(3, code="beef", seed=1)]
    assert compare.configuration(opened(runs)) == [
        Difference("data.seed", (0, 0, 1)),
        Difference("pretrain.epochs", (3, 5, 3)),
    ]
    assert [difference.name for difference in compare.data(opened(runs))] == ["data"]
    modules = [module for module in compare.code(opened(runs)) if module.name != "commit"]
    assert [module.name for module in modules] == ["data", "evaluate", "finetune", "pretrain", "report"]
    assert modules[0].values == ("c0de", "c0de", "beef")


def test_what_is_alike_in_all_instances_is_named_once_and_the_rest_by_instance(kept):
    pair = [kept.run(1), kept.run(2)]
    for record, epochs, rate in zip(pair, (2, 4), (1, 3), strict=True):
        configs = {}
        for index, name in enumerate(("tune[a]", "tune[b]")):
            config = {"epochs": epochs, "rate": rate if index else 7}
            configs[name] = {"all": config, "set": config}
            record.stages[name] = StageRecord(name, "tune", "finetune", {}, [])
        record.save_configs(configs)
    assert compare.configuration(opened(pair)) == [
        Difference("tune.epochs", (2, 4)),
        Difference("tune[b].rate", (1, 3)),
    ]


def test_a_stage_that_one_run_lacks_is_one_line(kept):
    pair = [kept.run(1), kept.run(2)]
    configs = Run(pair[1]).configs
    del configs["evaluate"]
    pair[1].save_configs(configs)
    assert compare.configuration(opened(pair)) == [Difference("evaluate", ("there", None))]


def test_a_difference_of_accuracies_has_newcombes_interval(kept):
    pair = [kept.run(1, top1=50.0), kept.run(2, top1=60.0)]
    (result,) = compare.results(opened(pair), "top1")
    first, second = result.runs
    assert result.name == "ssv2/pretrained/top1"
    assert first is not None
    assert second is not None
    assert (first.value, first.difference) == (50.0, None)
    assert second.difference == 10.0
    # Each interval reaches 10 down and 8 up: the difference's √(10² + 8²) both ways.
    assert second.difference_low == pytest.approx(10 - 164**0.5)
    assert second.difference_high == pytest.approx(10 + 164**0.5)


def test_newcombes_example_is_met():
    """56 of 70 against 48 of 80: his method 10 gives 0.0524 to 0.3339 (Statistics in Medicine 17, 1998)."""
    from tats_core.store.lineage import Number
    from tats_core.training.metrics import wilson_interval

    def number(hits: int, clips: int) -> Number:
        share = 100 * hits / clips
        return Number("n", share, "top1", "r", "f", "p", "s", "sf", *wilson_interval(share, clips), clips)

    moved, low, high = compare.difference(number(48, 80), number(56, 70))
    assert moved == pytest.approx(20.0)
    assert low == pytest.approx(5.24, abs=0.01)
    assert high == pytest.approx(33.39, abs=0.01)


def test_a_run_without_a_table_has_no_numbers_and_a_wrong_metric_is_an_error_with_the_nearest(kept):
    pair = [kept.run(1), kept.run(2)]
    pair[0].stages["report"].status = "failed"
    assert {
        result.name: [run is None for run in result.runs] for result in compare.results(opened(pair))
    } == {
        "ssv2/pretrained/top1": [True, False],
        "policy/motion_lift": [True, False],
    }
    with pytest.raises(SpecError, match="--metric tp1: the tables have no such number; did you mean 'top1'"):
        compare.results(opened(pair), "tp1")


def test_curves_are_read_from_the_events_and_a_replayed_step_counts_once(kept):
    pair = [kept.run(1), kept.run(2, epochs=5)]
    for record, loss in zip(pair, (1.0, 2.0), strict=True):
        with (Path(str(record.stages["pretrain"].folder)) / "events.jsonl").open("w") as file:
            for step, value in ((1, 9.0), (2, loss), (1, loss)):
                event = {"time": 0.0, "kind": "metrics", "step": step, "values": {"loss": value}}
                file.write(json.dumps(event) + "\n")
    assert compare.curves(opened(pair), "loss") == {"pretrain": [{1: 1.0, 2: 1.0}, {1: 2.0, 2: 2.0}]}
    with pytest.raises(SpecError, match=r"--metric los: no stage of these runs has such a curve.*'loss'"):
        compare.curves(opened(pair), "los")

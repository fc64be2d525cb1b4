"""From a number back to checkpoint, configuration, code and data."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from tats_core.errors import SpecError, StoreError
from tats_core.store import lineage
from tats_core.store.run import Run, StageRecord


def faults(record, *ends, whole=True):
    return {
        link.stage: link.faults for link in lineage.chain(Run(record), list(ends), whole=whole) if link.faults
    }


def test_a_number_has_its_interval_its_position_and_the_stage_that_measured_it(kept):
    record = kept.run(1)
    number = lineage.numbers(Run(record))["ssv2/pretrained/top1"]
    assert (number.value, number.low, number.high, number.clips) == (50.0, 40.0, 58.0, 90)
    assert number.place == "rows[0].top1"
    assert number.file == f"{record.stages['report'].folder}/results.json"
    assert (number.report, number.source) == ("report", "evaluate")
    assert number.source_file == f"{record.stages['evaluate'].folder}/result.json"
    assert number.faults == ()


def test_every_number_has_the_stage_that_measured_it(kept):
    numbers = lineage.numbers(Run(kept.run(1)))
    assert {name: number.source for name, number in numbers.items()} == {
        "ssv2/pretrained/seconds": "finetune",
        "ssv2/pretrained/top1": "evaluate",
        "ssv2/pretrained/clips": "evaluate",
        "ssv2/pretrained/low": "evaluate",
        "ssv2/pretrained/high": "evaluate",
        "policy/motion_lift": "pretrain",
        "policy/mask_ratio": "pretrain",
    }


def test_the_chain_goes_back_to_data_and_names_who_made_what(kept):
    first = kept.run(1)
    record = kept.run(2, reuse=first, epochs=4)
    links = {link.stage: link for link in lineage.chain(Run(record), ["evaluate"], whole=True)}
    assert list(links) == ["evaluate", "finetune", "pretrain", "data"]
    assert all(link.faults == [] for link in links.values())
    assert (links["data"].run, links["data"].commit) == (first.id, first.git_commit)
    assert (links["pretrain"].run, links["pretrain"].commit) == (record.id, record.git_commit)
    assert links["pretrain"].settings == {"benchmark": "ssv2", "epochs": 4, "sampler.mask_ratio": 0.9}
    weights = next(file for file in links["pretrain"].files if file.path.endswith("model.safetensors"))
    assert weights.sha256 == hashlib.sha256(b"weights 4").hexdigest()
    train = next(data_set for data_set in links["data"].data if data_set.split == "train")
    assert (train.benchmark, train.videos, train.classes, train.root) == ("ssv2", 2, 2, "/videos")


def test_weights_that_were_changed_are_a_fault_of_their_link_alone(kept):
    record = kept.run(1)
    (Path(str(record.stages["pretrain"].folder)) / "model.safetensors").write_text("weights X")
    assert faults(record, "report") == {"pretrain": ["model.safetensors has another content"]}


def test_large_weights_are_read_only_on_request(kept, monkeypatch):
    monkeypatch.setattr("tats_core.store.outputs.VERIFIED_BYTES", 4)
    record = kept.run(1)
    path = Path(str(record.stages["pretrain"].folder)) / "model.safetensors"
    path.write_text("weights X")
    assert faults(record, "report", whole=False) == {}
    assert faults(record, "report", whole=True) == {"pretrain": ["model.safetensors has another content"]}


def test_an_output_that_was_made_anew_and_differs_is_a_fault(kept):
    record = kept.run(1)
    record.stages["pretrain"].digest = "0" * 64
    broken = faults(record, "report")
    assert list(broken) == ["pretrain"]
    assert "made anew by mine-20260102-010000000-ab01" in broken["pretrain"][0]


def test_an_output_that_was_made_from_another_input_is_a_fault(kept):
    record, other = kept.run(1), kept.run(2, seed=1)
    record.stages["data"] = other.stages["data"]
    assert faults(record, "finetune")["pretrain"] == [
        "it was made from another output of data than the present one"
    ]


def test_an_output_that_is_gone_and_a_maker_whose_record_is_gone_are_faults(kept):
    first = kept.run(1)
    record = kept.run(2, reuse=first)
    shutil.rmtree(first.folder)
    shutil.rmtree(str(record.stages["evaluate"].folder))
    broken = faults(record, "evaluate")
    assert broken["evaluate"] == [f"its output is gone from {record.stages['evaluate'].folder}"]
    assert broken["data"] == [f"the record of {first.id}, which made it, is gone; its commit is not known"]


def test_a_table_that_differs_from_what_was_measured_is_a_fault(kept):
    record = kept.run(1)
    path = Path(str(record.stages["report"].folder)) / "results.json"
    table = json.loads(path.read_text())
    table["rows"][0]["top1"] = 99.0
    path.write_text(json.dumps(table))
    (fault,) = lineage.numbers(Run(record))["ssv2/pretrained/top1"].faults
    assert fault.endswith("result.json has 50.0, and the table 99.0")
    assert faults(record, "report")["report"] == ["results.json has another content"]


def test_a_wrong_name_is_an_error_with_the_nearest_and_a_stage_is_no_number(kept):
    record = kept.run(1)
    with pytest.raises(SpecError, match="named 'ssv2/pretrained/top'; did you mean 'ssv2/pretrained/top1'"):
        lineage.find_number(Run(record), "ssv2/pretrained/top")
    with pytest.raises(SpecError, match="named 'zzz'; a number is named like 'ssv2/pretrained/top1'"):
        lineage.find_number(Run(record), "zzz")
    assert lineage.find_number(Run(record), "pretrain") is None


def test_a_run_without_a_table_says_why(kept):
    record = kept.run(1)
    record.stages["report"].status = "waiting"
    with pytest.raises(StoreError, match="no table of results: its report stage is waiting"):
        lineage.numbers(Run(record))
    del record.stages["report"]
    with pytest.raises(StoreError, match="no table of results: it has no report stage"):
        lineage.numbers(Run(record))


def test_a_stage_that_has_no_output_yet_is_a_link_that_says_so(kept):
    record = kept.run(1)
    record.stages["evaluate"] = StageRecord("evaluate", "evaluate", "evaluate", {}, ["finetune"], "running")
    assert faults(record, "evaluate") == {"evaluate": ["it is running, there is no output yet"]}


def test_a_table_of_an_older_version_that_names_no_sources_is_an_error(kept):
    record = kept.run(1)
    path = Path(str(record.stages["report"].folder)) / "results.json"
    table = json.loads(path.read_text())
    del table["sources"], table["policy_sources"]
    path.write_text(json.dumps(table))
    with pytest.raises(StoreError, match=r"did not record where .* come from; run the pipeline mine again"):
        lineage.numbers(Run(record))

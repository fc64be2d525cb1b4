"""`tats explain`, and the pages of docs/reference that it writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tats_core.cli import explain
from tats_core.stages import KINDS

ROOT = Path(__file__).resolve().parents[2]


def test_the_pages_of_the_reference_are_what_make_docs_writes(monkeypatch):
    monkeypatch.chdir(ROOT)
    written = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs/reference").iterdir()}
    assert written == explain.pages(), "run: make docs"


def test_every_key_has_a_meaning():
    assert [key.name for topic in explain._topics() for key in topic.keys if not key.meaning] == []


def test_every_kind_of_stage_has_a_topic(tats):
    listed = tats("explain").out
    assert all(f"  tats explain stage {kind}\n" in listed for kind in KINDS)
    assert "  tats explain sampler tats\n" in listed


def test_a_key_is_explained_with_its_type_default_meaning_and_an_example(tats):
    assert tats("explain", "pretrain.optimizer.base_lr").out.splitlines() == [
        "optimizer.base_lr  number > 0 = 0.00015",
        "    peak learning rate at a global batch of 256",
        "",
        "Example",
        "  # pipelines/demo.yaml",
        "  stages:",
        "    pretrain:",
        "      optimizer: {base_lr: 0.008}",
    ]


def test_words_and_dots_name_the_same_key(tats):
    spelt = (["stage", "finetune", "ema"], ["stage", "finetune.ema"], ["finetune.ema"], ["finetune", "ema"])
    assert len({tats("explain", *words).out for words in spelt}) == 1


@pytest.mark.parametrize(
    ("topic", "lines"),
    [
        ("sweep.searcher", ["searcher.kind   grid | random | optuna | pbt = grid"]),
        ("sweep.searcher.every", ["    epochs of a generation (of pbt)"]),
        ("sweep.metrics.mode", ["metrics[].mode  max | min or null = null"]),
        ("finetune.ema", ["ema         keys or null = null"]),
        ("finetune.ema", ["      ema: {decay: 0.9999}"]),
        ("command", ["    command: {kind: command, run: …}"]),
        ("pipeline.notify", ["  - 'on': [finished, failed, stopped]", "    command: …"]),
        ("sampler.tats.mask_ratio", ["  # pipelines/demo.yaml", "      sampler: {mask_ratio: 0.9}"]),
        ("pretrain.schedule.epoch", ["      schedule:", "      - {epoch: …}"]),
        ("pretrain.clip.frames", ["clip.frames  integer ≥ 1 = 16", "    T, frames a clip"]),
    ],
)  # fmt: skip
def test_types_are_words_and_an_example_can_be_typed(tats, topic, lines):
    printed = tats("explain", topic).out.splitlines()
    assert [line for line in lines if line not in printed] == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["pretrian.epochs"], "nothing is called 'pretrian'; did you mean 'pretrain'?"),
        (["stage", "finetun"], "there is no stage 'finetun'; did you mean 'finetune'?"),
        (["sampler", "tatz"], "there is no sampler 'tatz'; did you mean 'tats'?"),
        (["stage"], "explain which stage? One of data, pretrain, finetune, probe, evaluate, report, command"),
        (["pretrain.optimzer"], "stage pretrain has no key 'optimzer'; did you mean 'optimizer'?"),
        (
            ["pretrain.optimizer.base_rl"],
            "stage pretrain: optimizer has no key 'base_rl'; did you mean 'base_lr'?",
        ),
    ],
)
def test_an_unknown_topic_or_key_names_the_nearest(tats, words, sentence):
    ended = tats("explain", *words)
    assert (ended.code, ended.out, ended.err) == (2, "", f"tats: {sentence}\n")


def test_the_defaults_of_a_sampler_are_its_own(tats):
    lines = tats("explain", "sampler", "adaptive").out.splitlines()
    assert "kind              adaptive = adaptive" in lines
    assert "objective_weight  number > 0 = 0.0001" in lines
    assert not [line for line in lines if line.startswith(("ppo", "network"))], "those are of tats"

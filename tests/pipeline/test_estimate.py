"""What a pipeline will cost, by numbers worked by hand."""

from __future__ import annotations

import pytest

from tats_core.pipeline import estimate, graph, spec
from tats_core.pipeline.estimate import GPUS
from tats_core.training import arithmetic


@pytest.fixture
def toy_kinds():
    """Leave the real stage kinds, which are estimated."""


def _costs(name: str, *sets: str, share: float = 0.5):
    built = graph.build(spec.load(name, sets))
    return {cost.name: cost for cost in estimate.of(built, GPUS["h100"], share)}


def test_steps_and_clips_follow_from_the_official_number_of_videos():
    costs = _costs("full_ssv2", "pretrain.epochs=800", "pretrain.batch_size=2048")
    assert costs["pretrain"].steps == 800 * (168_913 // 2048)
    assert costs["pretrain"].clips == costs["pretrain"].steps * 2048
    # Two augmented samples of each decoded video.
    ucf101 = costs["finetune_ucf101[1]"]
    assert ucf101.steps == 100 * (9_537 // 128)
    assert (ucf101.clips, ucf101.videos) == (ucf101.steps * 256, ucf101.steps * 128)
    # 24,777 videos, 2 clips x 3 crops.
    assert costs["evaluate_ssv2"].clips == 24_777 * 6


def test_hours_are_flops_over_the_share_of_the_peak():
    cost = _costs("full_ssv2", "pretrain.data.decode_workers=1000")["pretrain"]
    assert cost.hours == pytest.approx(cost.flops / (0.5 * 989e12 * 32) / 3600)


def test_where_decoding_is_slower_it_is_the_limit_and_the_key_to_change_is_named():
    costs = _costs("full_ssv2", "pretrain.data.decode_workers=2")
    cost = costs["pretrain"]
    assert cost.hours == pytest.approx(cost.videos / (25 * 32 * 2) / 3600)
    (note,) = estimate.notes([cost])
    assert note.startswith("decoding is the limit of pretrain (2 processes a worker, ")
    assert "raise data.decode_workers" in note


def test_generated_clips_are_counted_and_a_cpu_has_no_hours_without_a_measurement():
    costs = _costs("demo", "pretrain.epochs=40", "finetune.labels_per_class=4")
    assert costs["pretrain"].steps == 40 * (10 * 120 // 64)
    assert costs["finetune[hmdb51,scratch]"].steps == 60 * (8 * 4 // 32)
    assert {cost.hours for cost in costs.values()} == {None}


def test_a_checkpoint_holds_weights_and_two_moments():
    cost = _costs("full_ssv2")["pretrain"]
    parameters = cost.memory.weights // 4
    assert cost.checkpoints == parameters * (3 * 12 + 4)  # two are kept, one is being written
    built = graph.build(spec.load("full_ssv2")).instances["pretrain"].config
    sampler = arithmetic.sampler_parameters(built.model, built.sampler, built.clip)
    assert parameters == arithmetic.mae_parameters(built.model, built.mae, built.clip) + sampler


def test_the_table_has_a_row_for_each_stage_and_the_price_of_all():
    costs = list(_costs("full_ssv2").values())
    rows = estimate.table(costs, price=2.0).rows
    assert len(rows) == len(costs) + 1
    gpu_hours = sum(cost.hours * cost.workers for cost in costs)
    assert rows[-1][-1] == f"{2 * gpu_hours:,.0f}"

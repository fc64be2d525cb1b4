"""The registry of metrics: nothing is shown that is not declared, nothing is declared twice."""

from __future__ import annotations

from tats_core.report import metrics
from tats_core.report.metrics import METRICS


def test_every_metric_of_a_table_or_chart_is_declared_once() -> None:
    assert len(METRICS) == len(metrics._REGISTRY)
    used = {*metrics.TUNED, *metrics.FROZEN, *metrics.PRETRAINED, *metrics.SAMPLER, *metrics.CURVES}
    assert used | metrics.REFERENCES <= set(METRICS)
    assert set(metrics._MEANINGS) <= set(METRICS)


def test_a_metric_that_is_drawn_has_a_title_and_one_that_is_compared_a_better_side() -> None:
    assert [key for key in (*metrics.CURVES, *metrics.REFERENCES) if not METRICS[key].curve] == []
    assert [key for key in metrics.RESULTS if not METRICS[key].better] == []
    assert [key for key, metric in METRICS.items() if metric.better == "less"] == [
        "ece", "loss", "attentive_loss", "data_wait_share", "memory_mb", "seconds", "peak_memory_mb",
    ]  # fmt: skip

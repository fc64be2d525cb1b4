"""The registry of metrics: each is declared once, and every table, legend and chart reads it.

Those of the stages and probes that TATS came with are here. Another stage kind declares the numbers that it
wants in the table (`StageKind.tabled`); they travel with its output, in `metrics.json`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal


@dataclass(frozen=True)
class Metric:
    """A number that a stage measures, and how it is shown."""

    key: str
    title: str
    """Heading of its column."""
    digits: int = 1
    unit: str = ""
    better: Literal["more", "less", ""] = ""
    curve: str = ""
    """Title of its chart."""
    against: str = ""
    """The metric that its chart compares it with."""
    table: str = ""
    """Title of the table that shows it, where a terminal has several."""
    meaning: str = ""
    """A sentence for the legend; "" of metrics that are not in it."""


_MEANINGS: Final = {
    "top1": "share of test clips whose most likely class is the right one, after fine-tuning, in percent.",
    "interval": "the interval in which the true top-1 lies with 95% confidence (Wilson), given this many"
    " clips.",
    "top5": "share of test clips whose right class is among the five most likely.",
    "mean_class_accuracy": "mean over the classes of the share of their clips that are found: each class"
    " counts alike.",
    "ece": "expected calibration error: how far the model's confidence lies from how often it is right,"
    " in points; 0 is best.",
    "chance": "what guessing would reach: 100 / number of classes.",
    "clips": "how many test clips were scored.",
    "linear_top1": "top-1 of a linear classifier on frozen features: what the encoder knows before"
    " fine-tuning.",
    "knn_top1": "top-1 of a nearest-neighbour vote on the same frozen features: no training at all.",
    "attentive_top1": "top-1 of one trained attention layer over all frozen tokens, with a linear"
    " classifier.",
    "init": "pre-trained: from the joint pre-training; from scratch: from random weights, with the same"
    " labels and the same budget.",
    "motion_lift": "how much more motion the visible tokens hold than an average token; random sampling: 1.",
    "motion_share": "the sampler's gain in motion lift as a share of the gain of the best choice of tokens:"
    " 0 for random sampling, 1 for the best.",
    "flow_lift": "the motion lift with motion measured by optical flow, the camera's taken out.",
    "flow_share": "the sampler's gain in flow lift as a share of the gain of the best choice of tokens.",
    "motion_correlation": "rank correlation of the policy's scores with the tokens' motion; beside it those"
    " with flow, brightness and contrast: the largest says what the policy follows.",
    "entropy_share": "how open the policy still is: 1 picks evenly, 0 always picks the same tokens.",
    "mask_ratio": "share of tokens that the encoder does not see while it is pre-trained.",
}
_REGISTRY: Final = (
    Metric("top1", "top-1", 1, "%", "more"),
    Metric("interval", "95%", 1, "%"),
    Metric("top5", "top-5", 1, "%", "more"),
    Metric("mean_class_accuracy", "class", 1, "%", "more"),
    Metric("ece", "ECE", 1, "points", "less"),
    Metric("chance", "chance", 1, "%"),
    Metric("clips", "clips", 0),
    Metric("linear_top1", "linear", 1, "%", "more", "linear probe, top-1 %", "probe_chance"),
    Metric("knn_top1", "kNN", 1, "%", "more", "kNN probe, top-1 %", "probe_chance"),
    Metric("attentive_top1", "attentive", 1, "%", "more"),
    Metric("init", "start"),
    Metric("motion_lift", "motion lift", 2, "", "more", "motion lift", "random_lift"),
    Metric("motion_share", "motion share", 2, "", "more"),
    Metric("motion_oracle", "motion oracle", 2),
    Metric("pixel_motion_lift", "pixel lift", 2, "", "more"),
    Metric("pixel_motion_share", "pixel share", 2, "", "more"),
    Metric("pixel_motion_oracle", "pixel oracle", 2),
    Metric("flow_lift", "flow lift", 2, "", "more", "flow lift", "random_lift"),
    Metric("flow_share", "flow share", 2, "", "more"),
    Metric("flow_oracle", "flow oracle", 2),
    Metric("motion_correlation", "with motion", 2, "", "more"),
    Metric("flow_correlation", "with flow", 2, "", "more"),
    Metric("brightness_correlation", "with brightness", 2),
    Metric("contrast_correlation", "with contrast", 2),
    Metric("entropy_share", "entropy", 2, "", "", "entropy of the policy / log N"),
    Metric("mask_ratio", "mask ratio", 2),
    Metric("random_lift", "random", 2, "", "", "random sampling"),
    Metric("probe_chance", "chance", 1, "%", "", "chance"),
    Metric("coverage", "coverage", 2),
    Metric("effective_rank", "rank", 1, "", "more", "effective rank of the features"),
    Metric("loss", "loss", 3, "", "less", "loss"),
    Metric("attentive_loss", "loss", 3, "", "less", "loss of the attentive probe"),
    Metric("train_top1", "top-1", 1, "%", "more", "training top-1, %"),
    Metric("kl", "KL", 4, "", "", "KL to the old policy"),
    Metric("clip_fraction", "clipped", 3, "", "", "clipped share of the ratios"),
    Metric("explained_variance", "explained", 2, "", "more", "explained variance"),
    Metric("lr", "lr", 6, "", "", "learning rate"),
    Metric("clips_per_second", "clips/s", 1, "clips/s", "more", "clips per second"),
    Metric("data_wait_share", "waits", 2, "", "less", "share of an epoch spent waiting for data"),
    Metric("tflops", "TFLOP/s", 1, "TFLOP/s", "more", "TFLOP per second, all workers"),
    Metric("mfu", "MFU", 2, "", "more", "share of the GPUs' peak (MFU)"),
    Metric("memory_mb", "MiB", 0, "MiB", "less", "peak memory of a worker, MiB"),
    Metric("seconds", "s", 0, "s", "less"),
    Metric("peak_memory_mb", "MiB", 0, "MiB", "less"),
)
METRICS: Final = {metric.key: replace(metric, meaning=_MEANINGS.get(metric.key, "")) for metric in _REGISTRY}

TUNED: Final = ("top1", "interval", "top5", "mean_class_accuracy", "ece")
"""Of a fine-tuned model, as tables order them; `interval` is made of `low` and `high`."""
FROZEN: Final = ("linear_top1", "knn_top1", "attentive_top1")
"""Of the frozen encoder."""
RESULTS: Final = tuple(key for key in (*TUNED, *FROZEN) if key != "interval")

_POLICY: Final = ("mask_ratio", "motion_lift", "random_lift", "entropy_share")
_YARDSTICKS: Final = ("flow_lift", "flow_share", "motion_share")
_CORRELATIONS: Final = (
    "motion_correlation",
    "flow_correlation",
    "brightness_correlation",
    "contrast_correlation",
)
PRETRAINED: Final = (*_POLICY, *_YARDSTICKS, "linear_top1", "knn_top1", "seconds", "peak_memory_mb")
"""Of a pre-training, in tables of several."""
SAMPLER: Final = (
    *_POLICY,
    *_YARDSTICKS,
    *_CORRELATIONS,
    "coverage",
    "linear_top1",
    "knn_top1",
    "effective_rank",
    "loss",
)
"""Of a pre-training, on a page."""

CURVES: Final = (
    "loss",
    "attentive_loss",
    "train_top1",
    "motion_lift",
    "flow_lift",
    "entropy_share",
    "kl",
    "clip_fraction",
    "explained_variance",
    "linear_top1",
    "knn_top1",
    "effective_rank",
    "lr",
    "clips_per_second",
    "data_wait_share",
    "tflops",
    "mfu",
    "memory_mb",
)
"""Drawn first, in this order; all others after them by their names."""
REFERENCES: Final = frozenset(metric.against for metric in _REGISTRY if metric.against)

EXPORTED: Final = (
    *("benchmark", "init", "top1", "low", "high", "top5", "mean_class_accuracy", "ece", "chance", "clips"),
    *(*FROZEN, "parameters", "seconds", "peak_memory_mb"),
)
"""Columns of the results' CSV."""


def declared(results: Mapping[str, object]) -> dict[str, Metric]:
    """Return the metrics that a table shows beside `METRICS`, by key: those that its stages declared."""
    entries: Any = results.get("metrics", ())
    return {entry["key"]: Metric(**entry) for entry in entries}


def described(metrics: Iterable[Metric]) -> list[dict[str, Any]]:
    """Return plain values for `declared`, of those metrics that `METRICS` does not have."""
    return [asdict(metric) for metric in metrics if metric.key not in METRICS]

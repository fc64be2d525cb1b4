"""Probes of a frozen encoder, a file each. To add one, write its file and name it here.

A stage of kind `probe` has a key of each probe's name, and reports its `<name>_top1`.
"""

from __future__ import annotations

from typing import Final

from tats_core.registry import Registry
from tats_core.training.probes.base import Frozen, PooledProbe, ProbeConfig

PROBES: Final[Registry[type[ProbeConfig]]] = Registry(
    "probe",
    "tats.probes",
    ProbeConfig,
    {
        "linear": "tats_core.training.probes.linear:LinearConfig",
        "knn": "tats_core.training.probes.knn:KNNConfig",
        "nearest_centroid": "tats_core.training.probes.nearest_centroid:NearestCentroidConfig",
        "attentive": "tats_core.training.probes.attentive:AttentiveConfig",
    },
)

__all__ = ["PROBES", "Frozen", "PooledProbe", "ProbeConfig"]

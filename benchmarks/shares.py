"""Where the time of a step goes, ours beside Hugging Face's: shares by group of operators.

python benchmarks/shares.py [--model vit_base] [--steps 3]
"""

from __future__ import annotations

import argparse
from collections import Counter

import torch
from cases import CASES, PAPER, Scale
from measure import Step
from torch.profiler import ProfilerActivity, profile

from tats_core.machine import keep_freed_memory
from tats_core.models.vit import PRESETS

COLUMNS = (
    "hf_pretrain",
    "joint",
    "joint_half_decoder",
    "joint_bf16",
    "hf_finetune",
    "finetune",
    "attention_literal",
    "attention",
)

# An operator belongs to the first group with a word that its name contains.
GROUPS = {
    "attention": ("scaled_dot_product", "flash_attention"),
    "matrix products": ("mm", "linear", "matmul", "einsum", "conv"),
    "optimiser": ("adam", "foreach", "dot"),
    "layer norm": ("layer_norm",),
    "GELU": ("gelu",),
    "softmax and losses": ("softmax", "logsumexp", "loss", "cross_entropy"),
    "copies and gathers": (
        "copy",
        "clone",
        "cat",
        "gather",
        "scatter",
        "index",
        "fill",
        "zero",
        "contiguous",
    ),
}
REST = "other elementwise"


def group_of(name: str) -> str:
    """The group of an operator, by its name."""
    for group, words in GROUPS.items():
        if any(word in name for word in words):
            return group
    return REST


def shares(step: Step, steps: int) -> dict[str, float]:
    """Percent of a step's time on the CPU by group; what Python does between operators is not in it."""
    step()  # the first one takes its memory from the system
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(steps):
            step()
    taken: Counter[str] = Counter()
    for operator in profiled.key_averages():
        if operator.key.startswith("aten::"):
            taken[group_of(operator.key)] += operator.self_cpu_time_total
    total = sum(taken.values())
    return {group: 100 * taken[group] / total for group in (*GROUPS, REST)}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Shares of a step by group of operators.")
    parser.add_argument("--model", choices=PRESETS, default=PAPER.model)
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    torch.manual_seed(0)
    keep_freed_memory()
    percent = {name: shares(CASES[name](Scale(model=options.model)), options.steps) for name in COLUMNS}
    print("| % of the step | " + " | ".join(COLUMNS) + " |")
    print("|---|" + "---:|" * len(COLUMNS))
    for group in (*GROUPS, REST):
        print(f"| {group} | " + " | ".join(f"{percent[name][group]:.1f}" for name in COLUMNS) + " |")


if __name__ == "__main__":
    main()

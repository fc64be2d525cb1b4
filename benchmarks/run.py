"""`make bench`: speed and memory against public peers, as ratios measured in one run.

Steps are timed twice: with the default C allocator (`…_default_allocator`), and with freed memory kept for
reuse, as our workers do it, for the peers alike. Attention alone is timed both ways too; all peaks are
with the default.

python benchmarks/run.py                        all of it; writes benchmarks/results/
python benchmarks/run.py --json FILE            and where
python benchmarks/run.py --model vit_small      at another size
python benchmarks/run.py --skip-scale           without time and memory against N, model and mask ratio
python benchmarks/run.py --compare A B ...      time and memory of cases in turn, as ratios to the last one
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from cases import CASES, PAPER, Scale, recipe
from measure import matmul_rate, measure_peak, peak_mib, ratio, seconds_in_turn

from tats_core.machine import available_cpus, keep_freed_memory
from tats_core.models.vit import PRESETS
from tats_core.training import arithmetic

GOALS = {
    "joint_step_vs_hf": "<= 1.25",
    "joint_step_decoder_masking_vs_hf": "<= 1.0",
    "joint_memory_vs_hf": "<= 1.1",
    "joint_memory_decoder_masking_vs_hf": "<= 0.9",
    "bf16_vs_fp32": "<= 0.55",
    "trajectory_attention_speedup": ">= 2.5",
    "trajectory_attention_memory": "<= 0.5",
    "matmul_share_fp32": ">= 0.8",
    "matmul_share_bf16": ">= 0.5",
    "finetune_step_vs_hf": "<= 0.87",
}


def ratios(scale: Scale, rounds: int) -> tuple[dict[str, float], dict[str, Any]]:
    """The ratios of the table, and the measurements that they are made of."""
    device = torch.device(scale.device)
    rates = {"fp32": matmul_rate(torch.float32, device), "bf16": matmul_rate(torch.bfloat16, device)}
    names = ("hf_pretrain", "joint", "joint_half_decoder", "no_sampler", "adamae", "joint_bf16")
    alone = ("attention_literal", "attention")
    before = seconds_in_turn({name: CASES[name](scale) for name in alone}, rounds)
    before |= seconds_in_turn({name: CASES[name](scale) for name in names[:3]}, rounds)
    # For us and for the peers alike: without it, page faults are up to a fifth of a step on a CPU.
    keep_freed_memory()
    taken = seconds_in_turn({name: CASES[name](scale) for name in names}, rounds)
    taken |= seconds_in_turn({name: CASES[name](scale) for name in alone}, rounds)
    taken |= seconds_in_turn(
        {n: CASES[n](scale) for n in ("hf_finetune", "finetune")}, max(2, rounds // 2), 1
    )
    measured = (*names[:5], *alone, "hf_finetune", "finetune")
    peaks = {name: peak_mib(name, *scale.options()) for name in measured}
    config = recipe(scale)
    gflop = {
        "joint": arithmetic.joint_step(config),
        "hf_pretrain": arithmetic.mae(config.model, config.mae, scale.clip, scale.visible).training
        # It embeds all tokens, with gradients.
        + 4 * (scale.clip.tokens - scale.visible) * scale.clip.pixels * config.model.width,
        "finetune": arithmetic.finetune_step(config.model, scale.clip),
    }
    gflop = {name: scale.batch * flop / 1e9 for name, flop in gflop.items()}
    median = {name: statistics.median(seconds) for name, seconds in taken.items()}
    measured_ratios = {
        "joint_step_vs_hf": ratio(taken, "joint", "hf_pretrain"),
        "joint_step_decoder_masking_vs_hf": ratio(taken, "joint_half_decoder", "hf_pretrain"),
        "joint_memory_vs_hf": peaks["joint"] / peaks["hf_pretrain"],
        "joint_memory_decoder_masking_vs_hf": peaks["joint_half_decoder"] / peaks["hf_pretrain"],
        "bf16_vs_fp32": ratio(taken, "joint_bf16", "joint"),
        "trajectory_attention_speedup": ratio(before, "attention_literal", "attention"),
        "trajectory_attention_memory": peaks["attention"] / peaks["attention_literal"],
        "matmul_share_fp32": gflop["joint"] / median["joint"] / rates["fp32"],
        "matmul_share_bf16": gflop["joint"] / median["joint_bf16"] / rates["bf16"],
        "finetune_step_vs_hf": ratio(taken, "finetune", "hf_finetune"),
        # For comparison.
        "trajectory_attention_speedup_kept_memory": ratio(taken, "attention_literal", "attention"),
        "joint_step_vs_hf_default_allocator": ratio(before, "joint", "hf_pretrain"),
        "joint_step_decoder_masking_vs_hf_default_allocator": ratio(
            before, "joint_half_decoder", "hf_pretrain"
        ),
        "no_sampler_step_vs_hf": ratio(taken, "no_sampler", "hf_pretrain"),
        "adamae_step_vs_hf": ratio(taken, "adamae", "hf_pretrain"),
        "adamae_memory_vs_hf": peaks["adamae"] / peaks["hf_pretrain"],
        "finetune_memory_vs_hf": peaks["finetune"] / peaks["hf_finetune"],
        "hf_matmul_share_fp32": gflop["hf_pretrain"] / median["hf_pretrain"] / rates["fp32"],
        "finetune_matmul_share_fp32": gflop["finetune"] / median["finetune"] / rates["fp32"],
        "machine_bf16_matmul_vs_fp32": rates["fp32"] / rates["bf16"],
    }
    raw = {
        "seconds": taken,
        "seconds_default_allocator": before,
        "peak_mib": peaks,
        "gflop_per_step": gflop,
        "matmul_gflop_per_s": rates,
    }
    return measured_ratios, raw


def growth(scale: Scale, rounds: int) -> list[dict[str, Any]]:
    """Our joint step against tokens, model and mask ratio: seconds and peak memory a clip of batch 1."""
    single = replace(scale, batch=1)
    scales = [replace(single, frames=frames, size=224) for frames in (4, 8, 16, 32, 64)]
    scales += [replace(single, model=model) for model in ("vit_small", "vit_large")]
    scales += [replace(single, mask_ratio=mask_ratio) for mask_ratio in (0.85, 0.90)]
    rows = []
    for point in scales:
        taken = seconds_in_turn({"joint": CASES["joint"](point)}, rounds, 1)
        row = {"model": point.model, "tokens": point.clip.tokens, "mask_ratio": point.mask_ratio}
        row |= {"seconds": statistics.median(taken["joint"]), "peak_mib": peak_mib("joint", *point.options())}
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    return rows


def machine(scale: Scale) -> dict[str, Any]:
    """The machine that was measured."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    name = torch.cuda.get_device_name() if scale.device == "cuda" else model
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return {"device": name, "cpus": available_cpus(), "threads": torch.get_num_threads(), **versions}


def table(measured: dict[str, float]) -> str:
    """The ratios as text, with what they should reach."""
    lines = [f"{'ratio':<54}{'measured':>9}  goal"]
    lines += [f"{name:<54}{value:>9.2f}  {GOALS.get(name, '')}" for name, value in measured.items()]
    return "\n".join(line.rstrip() for line in lines)


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for field in fields(Scale):
        kind = type(getattr(PAPER, field.name))
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=kind,
            default=getattr(PAPER, field.name),
            choices=PRESETS if field.name == "model" else None,
        )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--skip-scale", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", choices=sorted(CASES), help="print the peak memory of one case, and end")
    parser.add_argument(
        "--compare", choices=sorted(CASES), nargs="+", metavar="CASE", help="time cases in turn, and end"
    )
    options = parser.parse_args()
    scale = Scale(**{field.name: getattr(options, field.name) for field in fields(Scale)})
    torch.set_num_threads(available_cpus())
    if options.peak:
        peak = measure_peak(lambda: CASES[options.peak](scale), torch.device(scale.device))
        print(json.dumps({"case": options.peak, "peak_mib": peak}))
        return
    if options.compare:
        keep_freed_memory()
        taken = seconds_in_turn({name: CASES[name](scale) for name in options.compare}, options.rounds)
        last = options.compare[-1]
        print(f"{scale.model}, batch {scale.batch}; ratios are to {last}")
        for name in options.compare:
            seconds, peak = statistics.median(taken[name]), peak_mib(name, *scale.options())
            print(f"{name}: {seconds:.3f} s ({ratio(taken, name, last):.2f}), {peak:.0f} MiB")
        return
    measured, raw = ratios(scale, options.rounds)
    print(table(measured))
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    report = {
        "date": day,
        "machine": machine(scale),
        "scale": vars(scale),
        "load": os.getloadavg(),
        **measured,
        "raw": raw,
    }
    if not options.skip_scale:
        report["growth"] = growth(scale, 3)
    path = options.json or Path(__file__).parent / "results" / f"{day}-{scale.device}.json"
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"written to {path}")


if __name__ == "__main__":
    main()

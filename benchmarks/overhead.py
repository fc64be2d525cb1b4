"""What the platform costs around the training, in milliseconds.

python benchmarks/overhead.py                  every case, one line each
python benchmarks/overhead.py plan_500         one of them

Each case runs in this process, several times. The first round has read no code and no configuration before;
the median is that of the rounds after it.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tats_core.pipeline import code, graph, runner, spec
from tats_core.pipeline.cache import KEY, MANIFEST, StageStore, stage_key
from tats_core.pipeline.spec import Pipeline

ROUNDS = 5

_SEEDS = ", ".join(map(str, range(71)))
# 1 + 71 × (1 + 3 + 3) + 1 + 1 stages.
_FIVE_HUNDRED = f"""
defaults: {{model: vit_micro}}
stages:
  data: {{kind: data, generate: {{preset: demo}}}}
  pretrain: {{kind: pretrain, needs: data, benchmark: ssv2, matrix: {{seed: [{_SEEDS}]}}}}
  finetune: {{kind: finetune, needs: pretrain, matrix: {{benchmark: [ssv2, ucf101, hmdb51]}}}}
  evaluate: {{kind: evaluate, needs: finetune}}
  report: {{kind: report, needs: evaluate}}
  publish: {{kind: command, needs: report, run: 'true'}}
"""


def _five_hundred(folder: Path, *sets: str) -> Pipeline:
    path = folder / "five_hundred.yaml"
    path.write_text(_FIVE_HUNDRED, encoding="utf-8")
    return spec.load(str(path), sets)


def _fill(home: Path, pipeline: Pipeline) -> None:
    """Leave outputs under `home` as if every stage had run, without running any."""
    store, digests = StageStore(home), dict[str, str]()
    instances = graph.build(pipeline).instances
    for one in instances.values():
        key = stage_key(one, [(instances[need], digests[need]) for need in one.needs], pipeline.name)
        folder = store.folder(one.kind.name, key)
        folder.mkdir(parents=True, exist_ok=True)
        origin = {"pipeline": pipeline.name, "stage": one.name, "run": "none", "time": time.time()}
        (folder / KEY).write_text(json.dumps({**origin, "components": key.components}, indent=2))
        (folder / MANIFEST).write_text(json.dumps({"digest": key.digest, "files": {}}))
        digests[one.name] = key.digest
    for known in (code.digests, code._parsed, code._file):
        known.cache_clear()


@contextmanager
def plan_500() -> Iterator[Callable[[], object]]:
    """A plan of 500 stages, all of which are there."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        _fill(home, _five_hundred(home))
        yield lambda: runner.plan(_five_hundred(home), home)


@contextmanager
def plan_500_changed() -> Iterator[Callable[[], object]]:
    """A plan of 500 stages after a change of all fine-tunings: each of them is compared with what it was."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        _fill(home, _five_hundred(home))
        yield lambda: runner.plan(_five_hundred(home, "finetune.epochs=3"), home)


CASES = {case.__name__: case for case in (plan_500, plan_500_changed)}


def measure(name: str) -> tuple[float, float]:
    """The first round of a case and the median of those after it, in milliseconds."""
    taken = []
    with CASES[name]() as work:
        for _ in range(ROUNDS):
            start = time.perf_counter()
            work()
            taken.append((time.perf_counter() - start) * 1000)
    return taken[0], statistics.median(taken[1:])


def main() -> None:
    """Measure the cases that are named, or all."""
    for name in sys.argv[1:] or CASES:
        first, median = measure(name)
        print(f"{name:<24} {median:8.0f} ms   first {first:.0f} ms")


if __name__ == "__main__":
    main()

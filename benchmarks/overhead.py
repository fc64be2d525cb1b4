"""What the platform costs around the training.

python benchmarks/overhead.py                  the short cases, one line each
python benchmarks/overhead.py plan_500         one of them
python benchmarks/overhead.py pretrain [N]     the demo's pre-training (N epochs), with and without
python benchmarks/overhead.py cached HOME      the demo again where it is finished already, in the folder HOME
python benchmarks/overhead.py sweep [N]        N trials of a command that does nothing, chosen by Optuna

Each short case runs several times. The first round has read no code and no configuration before; the median
is that of the rounds after it. The other cases print what they measure.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tats_core.pipeline import graph, runner, spec
from tats_core.pipeline.keys import stage_key
from tats_core.pipeline.spec import Pipeline
from tats_core.stages.base import Input, ParallelWork, StageContext
from tats_core.store import code
from tats_core.store.layout import KEY, MANIFEST
from tats_core.store.outputs import StageStore
from tats_core.training.events import EventLog

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
    for instance in instances.values():
        key = stage_key(
            instance, [(instances[need], digests[need]) for need in instance.needs], pipeline.name
        )
        folder = store.folder(instance.kind.name, key)
        folder.mkdir(parents=True, exist_ok=True)
        origin = {"pipeline": pipeline.name, "stage": instance.name, "run": "none", "time": time.time()}
        (folder / KEY).write_text(json.dumps({**origin, "components": key.components}, indent=2))
        (folder / MANIFEST).write_text(json.dumps({"digest": key.digest, "files": {}}))
        digests[instance.name] = key.digest
    for cached_function in (code.digests, code._parsed, code._file):
        cached_function.cache_clear()


@contextmanager
def plan_500(*changes: str) -> Iterator[Callable[[], object]]:
    """A plan of 500 stages, all of which have outputs, after `changes`."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        _fill(home, _five_hundred(home))
        yield lambda: runner.plan(_five_hundred(home, *changes), home)


CASES = {
    "plan_500": plan_500,
    # Each fine-tuning is compared with what it was.
    "plan_500_changed": partial(plan_500, "finetune.epochs=3"),
}


def pretrain(epochs: int = 60) -> None:
    """Compare the demo's pre-training as a stage, tracked, with the same on the same Ray workers alone."""
    from tats_core.launch import ray_train

    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        runner.run(spec.load("demo"), home, only=("data",))
        ray_train.connect()
        seconds = {"alone": 0.0, "stage": 0.0}
        for round_index in range(2):  # in turn, so that a machine that slows down slows both
            pipeline = spec.load("demo", (f"pretrain.epochs={epochs}", f"pretrain.seed={round_index}"))
            instance = graph.build(pipeline).instances["pretrain"]
            data = runner.run(pipeline, home, only=("data",)).outputs("data")[0]
            works: list[ParallelWork] = []
            out = home / f"alone-{round_index}"
            context = StageContext(
                "pretrain", "demo", "", out, (Input("data", "data", {}, data),),
                EventLog(None), works.append, threading.Event(),
            )  # fmt: skip
            instance.kind.run(instance.config, context)
            (work,) = works
            start = time.perf_counter()
            ray_train.fit(work, "fit-1", out.absolute(), threading.Event())
            seconds["alone"] += time.perf_counter() - start
            start = time.perf_counter()
            record = runner.run(pipeline, home, only=("pretrain",))
            seconds["stage"] += time.perf_counter() - start
            assert record.status == "finished", record.error
            assert record.tracking_error is None, record.tracking_error
        more = seconds["stage"] / seconds["alone"] - 1
        print(
            f"pretrain, {epochs} epochs, twice each in turn: on Ray's workers alone {seconds['alone']:.1f} s,"
        )
        print(f"as a stage with graph, cache and tracking {seconds['stage']:.1f} s: {100 * more:+.1f}%")


def cached(home: Path) -> None:
    """Time the demo where it is finished: from the shell, and without Python's start and imports."""
    command = [sys.executable, "-m", "tats_core", "run", "pipeline", "demo", "--home", str(home)]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    shell = time.perf_counter() - start
    runner.run(spec.load("demo"), home)  # imports what is imported when it is needed
    start = time.perf_counter()
    record = runner.run(spec.load("demo"), home)
    ours = time.perf_counter() - start
    assert all(stage.status == "cached" for stage in record.stages.values())
    print(f"cached demo: {shell:.1f} s from the shell, of which {ours:.1f} s without imports")


_STUB = """
stages:
  work: {kind: command, env: {X: '0', Y: '0'}, run: 'echo "{\\"score\\": $X$Y}" > $TATS_OUT/result.json'}
"""


def sweep(trials: int = 200) -> None:
    """Time a sweep's own work for each trial, from the first on, and watch the driver's memory."""
    import psutil
    import yaml

    from tats_core.sweep import engine
    from tats_core.sweep import spec as sweeps
    from tats_core.sweep.progress import Progress

    values = [str(number) for number in range(10, 60)]
    ended: list[tuple[float, float]] = []  # seconds, MiB

    class Watching:
        def started(self, sweep: sweeps.Sweep, progress: Progress) -> None:
            ended.append((time.perf_counter(), 0))

        def changed(self, progress: Progress) -> None:
            if len(progress.ended) == len(ended):
                ended.append((time.perf_counter(), psutil.Process().memory_info().rss / 2**20))

        def close(self) -> None:
            pass

    with tempfile.TemporaryDirectory() as name:
        pipeline, path = Path(name) / "stub.yaml", Path(name) / "stubs.yaml"
        pipeline.write_text(_STUB, encoding="utf-8")
        described = {
            "pipeline": str(pipeline),
            "space": {"work.env.X": values, "work.env.Y": values},
            "metrics": [{"name": "work.score", "mode": "max"}],
            "searcher": {"kind": "optuna"},
        }
        path.write_text(yaml.safe_dump(described), encoding="utf-8")
        loaded = sweeps.load(str(path), samples=trials, max_concurrent=1)
        outcome = engine.run(loaded, Path(name) / "home", resume=False, ui=Watching())
        assert all(trial.status == "finished" for trial in outcome.summary.trials)
    quarter = trials // 4
    for what, (first, last) in {"first": (1, quarter), "last": (trials - quarter, trials)}.items():
        taken = (ended[last][0] - ended[first][0]) / (last - first)
        memory = ended[last][1]
        print(f"sweep, {what} quarter of {trials} trials: {taken:.2f} s each, driver {memory:.0f} MiB")


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
    """Measure the cases that are named, or all short ones."""
    match sys.argv[1:]:
        case ["pretrain", *epochs]:
            pretrain(*map(int, epochs))
        case ["cached", home]:
            cached(Path(home))
        case ["sweep", *trials]:
            sweep(*map(int, trials))
        case names:
            for name in names or CASES:
                first, median = measure(name)
                print(f"{name:<24} {median:8.0f} ms   first {first:.0f} ms")


if __name__ == "__main__":
    main()

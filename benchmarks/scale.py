"""How the platform bears sizes that no run of ours has: simulated runs, workers, trials and curves.

python benchmarks/scale.py runs [N]         `tats runs`, and --all of it, where N (100,000) runs are recorded
python benchmarks/scale.py workers [N]      a look at N (1,000) stages that report, and at N runs that live
python benchmarks/scale.py sweep [N]        a grid of N (10,000) trials: planned, and read for a resume
python benchmarks/scale.py points [N]       N (1,000,000) points sent into an MLflow database, and read
python benchmarks/scale.py checkpoint [N]   N (3) checkpoints of ViT-B's pre-training, in turn and beside it

Each prints seconds, those of them that a CPU worked, and the largest memory of this process. Nothing is left
behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from tats_core.store.run import RunRecord, RunStatus, StageRecord


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print how long the block takes, also in CPU seconds, and the memory that this process had at most."""
    start, worked = time.perf_counter(), _cpu_seconds()
    yield
    taken, worked = time.perf_counter() - start, _cpu_seconds() - worked
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{what:<56} {taken:8.2f} s, CPU {worked:7.2f} s, {memory:5.0f} MiB", flush=True)


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def record(home: Path, number: int, status: RunStatus = "finished") -> RunRecord:
    """Return the record of a run of the demo's size; the later, the higher its number."""
    began = 1.7e9 + 60 * number
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(began)) + "000"
    stages = {
        name: StageRecord(name, "s", "command", {}, [], "finished", seconds=9.0)
        for name in (f"stage-{index}" for index in range(27))
    }
    return RunRecord(f"demo-{stamp}-abcd", "demo", "", "demo.yaml", str(home), status, began, stages)


def runs(home: Path, count: int) -> None:
    """List many runs."""
    text = json.dumps(asdict(record(home, 0)))
    for number in range(count):
        folder = record(home, number).folder
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(text.replace(record(home, 0).id, folder.name), encoding="utf-8")
    command = [sys.executable, "-m", "tats_core", "runs", "--home", str(home)]
    for words in ([], ["--all", "--json"]):
        with timed(f"tats runs {' '.join(words)} of {count:,} runs"):
            subprocess.run([*command, *words], check=True, stdout=subprocess.DEVNULL)


def workers(home: Path, count: int) -> None:
    """Read what many stages report at once, and see which of many runs live."""
    from tats_core.training.events import EventLog, read_events

    logs = [EventLog(home / f"{number}" / "events.jsonl") for number in range(count)]
    with timed(f"{count:,} workers report 20 metrics, a line each"):
        for log in logs:
            log.metrics(1, {f"metric-{index}": 1.0 for index in range(20)})
    with timed(f"one look at {count:,} event files with one new line"):
        for log in logs:
            assert log.path is not None
            assert len(list(read_events(log.path))) == 1
    with contextlib.ExitStack() as lives:
        living = [record(home, number, "running") for number in range(count)]
        with timed(f"{count:,} runs begin to show signs of life"):
            for run in living:
                lives.enter_context(run.alive())
        with timed(f"the states of {count:,} living runs"):
            assert {run.state for run in living} == {"waiting"}


def sweep(home: Path, count: int) -> None:
    """Plan a sweep of many trials, and read what is left of it after all but one have ended."""
    import yaml

    from tats_core.sweep import spec
    from tats_core.sweep.search import Points
    from tats_core.sweep.summary import Summary, results
    from tats_core.sweep.trial import TrialResult

    pipeline, path, folder = home / "stub.yaml", home / "stubs.yaml", home / "runs" / "stubs"
    pipeline.write_text("stages: {work: {kind: command, env: {X: '0'}, run: 'true'}}", encoding="utf-8")
    described = {
        "pipeline": str(pipeline),
        "space": {"work.env.X": [str(number) for number in range(count)]},
        "metrics": [{"name": "work.score", "mode": "max"}],
    }
    path.write_text(yaml.safe_dump(described), encoding="utf-8")
    with timed(f"a grid of {count:,} trials is planned"):
        loaded = spec.load(str(path))
        folder.mkdir(parents=True)
        trials = list(Points(loaded, folder).trials())
    assert len(trials) == count
    for trial in trials[1:]:
        metrics = {"work.score": float(trial.overrides["work.env.X"])}
        TrialResult.of(trial, "finished", metrics=metrics).save(folder / "trials" / trial.id)
    with timed(f"the results of {count:,} trials are read and ranked"):
        ended = results(folder)
        assert Summary.of(loaded, ended, None).best_value.endswith(f"{count - 1}.0")
    with timed("the trials that are left are found"):
        done_ids = {result.id for result in ended}
        assert [trial for trial in trials if trial.id not in done_ids] == trials[:1]


def points(home: Path, count: int) -> None:
    """Send long curves into a database as a run's sender does, and read their ends."""
    from mlflow.entities import Metric

    from tats_core.tracking import server, tracking_uri

    uri = tracking_uri(home)
    with timed("a new database"):
        client = server.connect(home, uri)
        run = client.create_run(server.experiment(client, home, uri, "scale")).info.run_id
    curves = [f"metric-{number}" for number in range(20)]
    with timed(f"{count:,} points of {len(curves)} curves, 1,000 a call"):
        for start in range(0, count // len(curves), 50):
            batch = [Metric(key, 1.0, 0, step) for step in range(start, start + 50) for key in curves]
            client.log_batch(run, metrics=batch)
    with timed("the last value of each curve"):
        assert len(client.get_run(run).data.metrics) == len(curves)
    with timed("one whole curve, as a resume asks for it"):
        assert len(client.get_metric_history(run, curves[0])) == count // len(curves)
    print(f"mlflow.db has {(home / 'mlflow.db').stat().st_size / 2**20:.0f} MiB")


def checkpoint(home: Path, count: int) -> None:
    """Write the state of ViT-B's pre-training; beside the steps, training waits only for a copy of it."""
    import torch

    from tats_core.training.checkpoint import CheckpointStore
    from tats_core.training.pretrain import JointTrainer, PretrainConfig
    from tats_core.training.world import World

    trainer = JointTrainer(PretrainConfig(batch_size=1), World())
    for guarded in (trainer.mae_step, trainer.learner.guarded):  # the moments that a first step makes
        for parameter in guarded.parameters:
            parameter.grad = torch.zeros_like(parameter)
        guarded.step()
        guarded.clear()
    for background in (False, True):
        store = CheckpointStore(home / f"{background}", background=background)
        for step in range(1, count + 1):
            begun = time.perf_counter()
            store.save(trainer.state_dict(), step=step, metrics={})
            waited = time.perf_counter() - begun
            store.wait()
            written = time.perf_counter() - begun
            size = sum(path.stat().st_size for path in store.folder.rglob("*.pt")) / min(step, 2) / 1e9
            how = "beside the steps" if background else "in turn"
            print(f"{size:.2f} GB {how}: training waits {waited:.2f} s, written after {written:.2f} s")


_CASES: dict[str, tuple[Callable[[Path, int], None], int]] = {
    "runs": (runs, 100_000),
    "workers": (workers, 1_000),
    "sweep": (sweep, 10_000),
    "points": (points, 1_000_000),
    "checkpoint": (checkpoint, 3),
}


def main() -> None:
    """Measure the case that is named, at its size or the one given."""
    if len(sys.argv) not in (2, 3) or sys.argv[1] not in _CASES:
        sys.exit(__doc__)
    case, count = _CASES[sys.argv[1]]
    # Each living run holds a file open.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    os.nice(5)
    with tempfile.TemporaryDirectory() as folder:
        case(Path(folder), int(sys.argv[2]) if len(sys.argv) > 2 else count)


if __name__ == "__main__":
    main()

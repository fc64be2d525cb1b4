"""Real (tiny) trainings in a sweep: a stop or a kill leaves nothing behind."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest
import ray

from tats_core.sweep import engine, spec
from tests.sweep.conftest import Silent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TINY = (
    "data.generate.clips_per_class=6",
    "data.generate.test_clips_per_class=4",
    "pretrain.epochs=6",
    "pretrain.batch_size=16",
    "pretrain.health_every=1",
    "pretrain.health_clips=16",
    "seeds.values=[0]",
    "space.pretrain.sampler.kind=[random]",
)


class Watching(Silent):
    """Looks at the cluster after the last trial, before it is gone."""

    def __init__(self) -> None:
        self.free = self.all = 0.0
        self.killed = False
        self.kill_one = False

    def changed(self, progress) -> None:
        if self.kill_one and not self.killed and any(row["epoch"] >= 2 for row in progress.rows.values()):
            self.killed = True
            for process in psutil.Process().children(recursive=True):
                if process.name().startswith("ray::Pipeline"):
                    process.kill()

    def close(self) -> None:
        self.all = ray.cluster_resources()["CPU"]
        # Ray counts what a process held as free a moment after its end.
        until = time.monotonic() + 20
        while self.free < self.all and time.monotonic() < until:
            self.free = ray.available_resources().get("CPU", 0.0)
            time.sleep(0.2)


@pytest.fixture
def home(tmp_path: Path, database: Path) -> Path:
    return tmp_path / "home"


def test_a_trial_that_is_stopped_early_gives_its_cpus_back(home):
    ui = Watching()
    # The rank rises with the mask ratio: trials that come later are worse, so halving always has one to stop.
    halving = "scheduler={kind: asha, metric: pretrain.effective_rank, mode: min, grace: 1, reduction: 2}"
    ratios = "space.pretrain.sampler.mask_ratio=[0.5, 0.7, 0.9, 0.95]"
    outcome = engine.run(spec.load("demo_ratio", [*TINY, halving, ratios]), home, resume=False, ui=ui)
    assert len(outcome.summary.trials) == 4
    stopped = [trial for trial in outcome.summary.trials if trial.status == "stopped early"]
    assert stopped
    assert all(trial.epochs < 6 for trial in stopped)
    assert ui.free == ui.all


@pytest.mark.faults
def test_a_killed_trial_resumes_and_ends_as_if_it_had_not_been_killed(home, tmp_path):
    ratios = "space.pretrain.sampler.mask_ratio=[0.9]"
    sweep = spec.load("demo_ratio", [*TINY, ratios, "pretrain.checkpoint={epochs: 1}"])
    killing = Watching()
    killing.kill_one = True
    (killed,) = engine.run(sweep, home, resume=False, ui=killing).summary.trials
    (whole,) = engine.run(sweep, tmp_path / "other", resume=False, ui=Watching()).summary.trials
    assert killing.killed
    assert killed.status == whole.status == "finished"
    same = ("pretrain.linear_top1", "pretrain.motion_lift", "pretrain.entropy_share")
    assert [killed.metrics[name] for name in same] == [whole.metrics[name] for name in same]
    assert killed.epochs == whole.epochs == 6

"""What a change of the real code runs again: the demo is planned on a copy of it with one line changed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

import tats_core
from tests.forks import Forks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

PACKAGE = Path(tats_core.__file__).parent

COMMIT_ALL = """
import sys
from pathlib import Path
from tats_core.pipeline import graph, spec
from tats_core.store.outputs import StageStore
from tats_core.pipeline.keys import stage_key

# An output for each stage, made up: a plan asks for keys and digests, not for what a model has learnt.
pipeline = spec.load("demo")
store, digests = StageStore(Path(sys.argv[1])), {}
instances = graph.build(pipeline).instances
for instance in instances.values():
    key = stage_key(instance, [(instances[need], digests[need]) for need in instance.needs], pipeline.name)
    folder = store.folder(instance.kind.name, key)
    partial = store.begin(folder, fresh=True)
    (partial / "output.txt").write_text(key.digest)
    store.commit(partial, folder, key, {"pipeline": pipeline.name, "stage": instance.name, "run": "none"}, {})
    digests[instance.name] = store.manifest(folder).digest
"""

PLAN = """
import json, sys
from pathlib import Path
from tats_core.pipeline import runner, spec

plan = runner.plan(spec.load("demo"), Path(sys.argv[1]))
print(json.dumps({item.name: [item.action, item.reason] for item in plan.items}))
"""


class Change(NamedTuple):
    """One line of `module`; `like` is a file that is copied to `another.py` beside it."""

    module: str
    old: str
    new: str
    like: str = ""


def added(registry: str, before: str, like: str, attribute: str) -> Change:
    """Register the member `another`, a copy of the file `like`, before the one that is named."""
    package = f"tats_core.{Path(like).parent}".replace("/", ".")
    return Change(registry, before, f'"another": "{package}.another:{attribute}", {before}', like)


class Copy:
    """A copy of the package with a store of its own."""

    def __init__(self, root: Path, forks: Forks) -> None:
        self.root, self.home, self.forks = root, root / "home", forks
        shutil.copytree(PACKAGE, root / "tats_core", ignore=shutil.ignore_patterns("__pycache__"))
        (root / "pipelines").symlink_to(PACKAGE.parent / "pipelines")
        self.python(COMMIT_ALL)

    def python(self, script: str) -> str:
        settings = {**os.environ, "PYTHONPATH": str(self.root)}
        code, out, err = self.forks.run(
            "-c", script, str(self.home), cwd=self.root, env=settings, log=self.root / "log"
        )
        assert code == 0, err
        return out

    def run_again(self, *changes: Change) -> dict[str, str]:
        """Return the stages that would run after these changes of the code, with the reasons."""
        before: dict[Path, str | None] = {}
        for change in changes:
            path = self.root / "tats_core" / change.module
            before[path] = path.read_text()
            assert before[path].count(change.old) == 1, f"{path} no longer has this line once: {change.old}"
            path.write_text(before[path].replace(change.old, change.new))
            if change.like:
                another = (self.root / "tats_core" / change.like).with_name("another.py")
                before[another] = None
                shutil.copy(self.root / "tats_core" / change.like, another)
        try:
            plan = json.loads(self.python(PLAN))
        finally:
            for path, text in before.items():
                path.unlink() if text is None else path.write_text(text)
        return {name: reason for name, (action, reason) in plan.items() if action == "run"}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Copy:
    return Copy(tmp_path_factory.mktemp("copy"), forks)


# A reason names the file that changed, so one plan shows which of several changes counts.


def test_what_cannot_change_an_output_reuses_every_stage(copy: Copy) -> None:
    ppo = "class PPO(Objective[PPOSamplerConfig]):"
    future = "from __future__ import annotations"
    changes = (
        Change("sampling/ppo.py", ppo, f"{ppo}  # a comment"),
        Change("models/vit.py", future, f"{future}\n\n\n# x"),
        Change("training/checkpoint.py", "_STOP_SECONDS = 0.5", "_STOP_SECONDS = 0.6"),
        Change("pipeline/runner.py", "_TICK = 0.25", "_TICK = 0.2"),
        Change("specs.py", 'return f"{dotted} is missing"', 'return f"{dotted} is not there"'),
    )
    assert copy.run_again(*changes) == {}


def test_a_member_that_is_added_reuses_every_stage(copy: Copy) -> None:
    changes = (
        added("training/optimizers/__init__.py", '"adamw": ', "training/optimizers/sgd.py", "SGDConfig"),
        added("training/schedules/__init__.py", '"cosine": ', "training/schedules/wsd.py", "WSDConfig"),
        added(
            "training/probes/__init__.py",
            '"linear": ',
            "training/probes/nearest_centroid.py",
            "NearestCentroidConfig",
        ),
        added("cli/app.py", '"jobs": ', "cli/gc.py", "gc"),
        Change("stages/__init__.py", '("data", ', '("another", "data", ', "stages/probe.py"),
    )
    assert copy.run_again(*changes) == {}


def test_a_change_of_a_member_that_is_not_used_reuses_every_stage(copy: Copy) -> None:
    changes = (
        Change("training/optimizers/lion.py", "5e-5", "6e-5"),
        Change("training/schedules/wsd.py", "0.2", "0.3"),
        Change("training/probes/attentive.py", "1e-3", "2e-3"),
    )
    assert copy.run_again(*changes) == {}


def test_a_change_of_a_probe_that_is_used_runs_what_uses_it_and_names_its_file(copy: Copy) -> None:
    again = copy.run_again(Change("training/probes/knn.py", "0.07)", "0.08)"))
    changed = "code changed: tats_core.training.probes.knn"
    uses = {name.split("[")[0] for name, reason in again.items() if reason == changed}
    assert uses == {"pretrain", "probe"}


def test_one_line_of_the_sampler_runs_the_pre_training_and_what_follows_from_it(copy: Copy) -> None:
    again = copy.run_again(Change("sampling/ppo.py", "_LOG_RATIO: Final = 2.0", "_LOG_RATIO: Final = 3.0"))
    assert again.pop("pretrain") == "code changed: tats_core.sampling.ppo"
    assert again.pop("report") == "", "only because of what comes before it"
    followers = {name.split("[")[0] for name in again}
    assert followers == {"finetune", "probe", "evaluate"}
    assert len(again) == 12
    assert all("pretrained" in name and not reason for name, reason in again.items())


def test_one_line_of_the_evaluation_runs_the_evaluation_and_the_report_alone(copy: Copy) -> None:
    again = copy.run_again(Change("stages/evaluate.py", '"chance": 100 / len(classes)', '"chance": 1.0'))
    assert again.pop("report") == "", "only because of what comes before it"
    assert {name.split("[")[0] for name in again} == {"evaluate"}
    assert len(again) == 8
    assert set(again.values()) == {"code changed: tats_core.stages.evaluate"}

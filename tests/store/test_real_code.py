"""What a change of the real code runs again: the demo is planned on a copy of it with one line changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tats_core

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


class Copy:
    """A copy of the package with a store of its own."""

    def __init__(self, root: Path) -> None:
        self.root, self.home = root, root / "home"
        shutil.copytree(PACKAGE, root / "tats_core", ignore=shutil.ignore_patterns("__pycache__"))
        (root / "pipelines").symlink_to(PACKAGE.parent / "pipelines")
        self.python(COMMIT_ALL)

    def python(self, script: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", script, str(self.home)],
            cwd=self.root,
            env={**os.environ, "PYTHONPATH": str(self.root)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def run_again(self, module: str, old: str, new: str, *, like: str = "") -> dict[str, str]:
        """Return the stages that would run after a change of one line of `module`, with the reasons.

        Args:
            like: a file that is copied to `another.py` beside it.
        """
        path = self.root / "tats_core" / module
        before = path.read_text()
        assert before.count(old) == 1, f"{module} no longer has this line once: {old}"
        path.write_text(before.replace(old, new))
        another = (self.root / "tats_core" / like).with_name("another.py")
        if like:
            shutil.copy(self.root / "tats_core" / like, another)
        try:
            plan = json.loads(self.python(PLAN))
        finally:
            path.write_text(before)
            another.unlink(missing_ok=True)
        return {name: reason for name, (action, reason) in plan.items() if action == "run"}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    return Copy(tmp_path_factory.mktemp("copy"))


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        (
            "sampling/ppo.py",
            "class PPO(Objective[PPOSamplerConfig]):",
            "class PPO(Objective[PPOSamplerConfig]):  # a comment",
        ),
        (
            "models/vit.py",
            "from __future__ import annotations",
            "from __future__ import annotations\n\n\n# x",
        ),
        ("training/checkpoint.py", "_STOP_SECONDS = 0.5", "_STOP_SECONDS = 0.6"),
        ("pipeline/runner.py", "_TICK = 0.25", "_TICK = 0.2"),
        ("specs.py", 'return f"{dotted} is missing"', 'return f"{dotted} is not there"'),
    ],
    ids=["a comment in the sampler", "a comment in the model", "the checkpoints", "the engine", "a message"],
)
def test_what_cannot_change_an_output_reuses_every_stage(copy: Copy, module: str, old: str, new: str) -> None:
    assert copy.run_again(module, old, new) == {}


@pytest.mark.parametrize(
    ("registry", "before", "like", "attribute"),
    [
        ("training/optimizers/__init__.py", '"adamw": ', "training/optimizers/sgd.py", "SGDConfig"),
        ("training/schedules/__init__.py", '"cosine": ', "training/schedules/wsd.py", "WSDConfig"),
        (
            "training/probes/__init__.py",
            '"linear": ',
            "training/probes/nearest_centroid.py",
            "NearestCentroidConfig",
        ),
        ("cli/app.py", '"jobs": ', "cli/gc.py", "gc"),
    ],
    ids=["an optimiser", "a schedule", "a probe", "a command"],
)
def test_a_member_that_is_added_reuses_every_stage(
    copy: Copy, registry: str, before: str, like: str, attribute: str
) -> None:
    package = f"tats_core.{Path(like).parent}".replace("/", ".")
    named = f'"another": "{package}.another:{attribute}", {before}'
    assert copy.run_again(registry, before, named, like=like) == {}


def test_a_stage_kind_that_is_added_reuses_every_stage(copy: Copy) -> None:
    assert (
        copy.run_again("stages/__init__.py", '("data", ', '("another", "data", ', like="stages/probe.py")
        == {}
    )


@pytest.mark.parametrize(
    ("module", "old", "new", "kinds"),
    [
        ("training/optimizers/lion.py", "5e-5", "6e-5", set()),
        ("training/schedules/wsd.py", "0.2", "0.3", set()),
        ("training/probes/attentive.py", "1e-3", "2e-3", set()),
        ("training/probes/knn.py", "0.07)", "0.08)", {"pretrain", "probe"}),
    ],
    ids=["an optimiser", "a schedule", "a probe", "a probe that is used"],
)
def test_a_change_of_a_member_runs_what_uses_it_and_names_its_file(
    copy: Copy, module: str, old: str, new: str, kinds: set[str]
) -> None:
    again = copy.run_again(module, old, new)
    changed = f"code changed: tats_core.{module.removesuffix('.py').replace('/', '.')}"
    assert {name.split("[")[0] for name, reason in again.items() if reason == changed} == kinds
    assert bool(again) == bool(kinds)


def test_one_line_of_the_sampler_runs_the_pre_training_and_what_follows_from_it(copy: Copy) -> None:
    again = copy.run_again("sampling/ppo.py", "_LOG_RATIO: Final = 2.0", "_LOG_RATIO: Final = 3.0")
    assert again.pop("pretrain") == "code changed: tats_core.sampling.ppo"
    assert again.pop("report") == "", "only because of what comes before it"
    followers = {name.split("[")[0] for name in again}
    assert followers == {"finetune", "probe", "evaluate"}
    assert len(again) == 12
    assert all("pretrained" in name and not reason for name, reason in again.items())


def test_one_line_of_the_evaluation_runs_the_evaluation_and_the_report_alone(copy: Copy) -> None:
    again = copy.run_again("stages/evaluate.py", '"chance": 100 / len(classes)', '"chance": 1.0')
    assert again.pop("report") == "", "only because of what comes before it"
    assert {name.split("[")[0] for name in again} == {"evaluate"}
    assert len(again) == 8
    assert set(again.values()) == {"code changed: tats_core.stages.evaluate"}

"""A sampler in a package of its own, the one that docs/extending.md writes out."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hatchling import build
from pydantic import create_model

from tats_core.cli import doctor, explain
from tats_core.cluster import preflight, submission
from tats_core.data.benchmarks import BENCHMARKS
from tats_core.data.readers import READERS
from tats_core.errors import SpecError
from tats_core.pipeline import graph, keys, spec
from tats_core.registry import plugins
from tats_core.sampling import SAMPLERS
from tats_core.specs import validate
from tats_core.stages import KINDS, probe
from tats_core.training.metrics import on_host
from tats_core.training.optimizers import OPTIMIZERS
from tats_core.training.pretrain import JointTrainer, PretrainConfig
from tats_core.training.probes import PROBES
from tats_core.training.schedules import SCHEDULES
from tats_core.training.world import World

PAGE = Path(__file__).resolve().parents[1] / "docs" / "extending.md"

PIPELINE: dict[str, Any] = {
    "name": "lab",
    "defaults": {
        "model": {"preset": "vit_micro", "width": 24, "depth": 1, "heads": 2},
        "clip": {"frames": 4, "size": 16, "tubelet": 2, "patch": 4},
        "benchmark": "ucf101",
    },
    "stages": {
        "data": {
            "kind": "data",
            "generate": {
                "benchmarks": ["ucf101"], "clips_per_class": 2, "test_clips_per_class": 1, "frames": 8,
            },
        },
        "pretrain": {
            "kind": "pretrain",
            "needs": "data",
            "epochs": 2,
            "batch_size": 4,
            "mae": {"decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2},
            "sampler": {"kind": "bandit", "mask_ratio": 0.75, "momentum": 0.5},
            "schedule": [{"epoch": 1, "sampler": {"momentum": 0.75}}],
            "health_clips": 4,
            "log_every": 1,
            "checkpoint": {"epochs": 1},
        },
    },
}  # fmt: skip


def _files_of_the_page() -> dict[str, str]:
    """Return the code blocks of the page that begin with the name of a file."""
    blocks = re.findall(r"```(?:python|toml)\n# (\S+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return dict(blocks)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the package of the page."""
    folder = tmp_path_factory.mktemp("lab-bandit")
    for name, text in _files_of_the_page().items():
        (folder / name).write_text(text)
    with contextlib.chdir(folder):
        return folder / build.build_wheel(str(folder))


@pytest.fixture
def installed(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Install the package for this test and for the processes that it starts; return the folder."""
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    monkeypatch.syspath_prepend(site)
    above = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), *filter(None, above)]))
    for cached in ("_plugins", "_members"):
        monkeypatch.setitem(vars(SAMPLERS), cached, {})
    del vars(SAMPLERS)["_plugins"]
    monkeypatch.delitem(sys.modules, "lab_bandit", raising=False)
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "lab.yaml").write_text(yaml.safe_dump(PIPELINE))
    monkeypatch.chdir(tmp_path)
    yield site
    sys.modules.pop("lab_bandit", None)


def _code(*sets: str) -> dict[str, str]:
    return keys.code_of(graph.build(spec.load("lab", sets)).instances["pretrain"])


def test_its_keys_are_checked_and_explained_like_those_of_this_package(installed: Path) -> None:
    assert "bandit" in SAMPLERS
    assert SAMPLERS["bandit"](momentum=0.5).kind == "bandit"
    misspelt = spec.load("lab", ["pretrain.sampler.momentun=0.5"])
    with pytest.raises(SpecError, match=r"of kind 'bandit' has no key 'momentun'; did you mean 'momentum'"):
        graph.build(misspelt)
    fixed = spec.load("lab", ["pretrain.schedule=[{epoch: 1, sampler: {mask_ratio: 0.5}}]"])
    with pytest.raises(SpecError, match=r"mask_ratio cannot change while .* trains; only momentum can"):
        graph.build(fixed)


def test_a_plugin_that_cannot_be_imported_breaks_nothing_else(installed: Path) -> None:
    (installed / "lab_bandit.py").write_text("import no_such_module\n")
    assert ("lab-bandit", "bandit") in [(package.name, point.name) for package, point in plugins()]
    assert "  tats explain sampler bandit\n" in explain._overview()
    assert explain._find(["sampler", "tats"])[0].keys
    graph.build(spec.load("demo"))
    broken = "the sampler 'bandit' of the package 'lab-bandit' cannot be imported .*no_such_module"
    with pytest.raises(SpecError, match=f"^{broken}"):
        _ = explain._find(["sampler", "bandit"])[0].keys
    with pytest.raises(SpecError, match=rf"^pipelines/lab\.yaml: pretrain\.sampler: {broken}"):
        graph.build(spec.load("lab"))
    (check,) = doctor._broken_plugins()
    assert check.text.startswith("lab-bandit: tats.samplers 'bandit' cannot be imported (")


def test_a_plugin_that_cannot_be_imported_hides_no_other_member(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in (SAMPLERS, OPTIMIZERS, SCHEDULES, PROBES, KINDS, BENCHMARKS, READERS):
        point = EntryPoint("broken", "no_such_module:Member", registry.group)
        monkeypatch.setitem(vars(registry), "_plugins", EntryPoints([point]))
    assert "  tats explain stage broken\n" in explain._overview()
    assert explain._find(["pretrain.optimizer"])[0].keys
    with pytest.raises(SpecError, match=r"the stage kind 'broken' .* cannot be imported .*no_such_module"):
        _ = explain._find(["stage", "broken"])[0].keys
    stage = create_model("Stage", __base__=probe._Probing, **{name: probe._key(name) for name in PROBES})
    assert validate(stage, {"benchmark": "ssv2"}, "p.yaml").probes.keys() == {"linear", "knn"}
    with pytest.raises(SpecError, match=r"^p\.yaml: broken: the probe 'broken' .* cannot be imported"):
        validate(stage, {"benchmark": "ssv2", "broken": {}}, "p.yaml")


def test_its_code_is_part_of_the_keys_of_the_stages_that_use_it(installed: Path) -> None:
    assert "lab_bandit" in _code()
    assert "lab_bandit" not in _code("pretrain.sampler.kind=random", "pretrain.schedule=[]")


def test_its_baseline_is_as_worked_by_hand(installed: Path) -> None:
    raw = {**PIPELINE["defaults"], **PIPELINE["stages"]["pretrain"]}
    recipe = {key: value for key, value in raw.items() if key in PretrainConfig.model_fields}
    trainer = JointTrainer(PretrainConfig.model_validate(recipe), World())
    video_BCTHW = torch.randn(4, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    first, second = (on_host(trainer.step(video_BCTHW, 1e-3)) for _ in range(2))
    assert first["baseline"] == pytest.approx(first["reward_mean"] / 2)
    assert second["baseline"] == pytest.approx(first["baseline"] / 2 + second["reward_mean"] / 2)
    assert trainer.objective is not None
    assert trainer.state_dict()["objective"]["baseline"].item() == pytest.approx(second["baseline"])


def test_a_cluster_must_have_it_too(installed: Path) -> None:
    submitted = submission.load("pipeline", "lab")
    assert submitted.packages == {"lab-bandit": "1.0"}
    assert submission.load("pipeline", "demo").packages == {}
    expected = preflight.versions(submitted.packages)
    assert preflight.differing(expected, preflight.versions(submitted.packages)) == []
    assert preflight.differing({"no-such-lab": "1.0"}, preflight.versions(["no-such-lab"])) == [
        "no-such-lab is absent there and 1.0 here; use the same image on both sides"
    ]


def _tats(*words: str) -> str:
    environment = {**os.environ, "TATS_HOME": str(Path.cwd() / "home"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tats_core", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_pipeline_trains_with_it(workers: int, installed: Path) -> None:
    if workers == 1:
        assert "lab-bandit 1.0  samplers: bandit" in _tats("list").splitlines()
        explained = _tats("explain", "sampler", "bandit").splitlines()
        assert "momentum    number ≥ 0, < 1 = 0.9" in explained
    _tats("run", "pipeline", "lab", "--set", f"pretrain.workers={workers}")
    results = [json.loads(path.read_text()) for path in Path("home").glob("stages/*/result.json")]
    assert [result["sampler"] for result in results if "motion_lift" in result] == ["bandit"]
    (weights,) = Path("home").glob("stages/*/sampler.safetensors")
    assert (weights.parent / "sampler.json").is_file()

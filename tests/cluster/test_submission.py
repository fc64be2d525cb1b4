"""A submission's identity, files and command."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from tats_core.cluster import submission
from tats_core.errors import SpecError

PIPELINE = "stages:\n  work: {kind: command, run: 'true', cpus: 1, env: {X: '1'}}\n"
SWEEP = "pipeline: mine\nspace: {work.env.X: ['1', '2']}\nmetrics: [{name: work.score, mode: max}]\n"


@pytest.fixture(autouse=True)
def menus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write()


def write(pipeline: str = PIPELINE, sweep: str = SWEEP) -> None:
    for menu, name, text in (("pipelines", "mine", pipeline), ("sweeps", "tries", sweep)):
        Path(menu).mkdir(exist_ok=True)
        Path(menu, f"{name}.yaml").write_text(text, encoding="utf-8")


def pipeline(sets: Sequence[str] = (), home: str | None = None) -> str:
    return submission.load("pipeline", "mine", sets).identity(home)


def sweep(sets: Sequence[str] = (), *, samples: int | None = None, at_a_time: int | None = None) -> str:
    return submission.load("sweep", "tries", sets, samples=samples, max_concurrent=at_a_time).identity()


def test_the_identity_depends_on_the_work_and_not_on_its_cpus():
    first = pipeline()
    assert re.fullmatch("mine-[0-9a-f]{12}", first)
    assert pipeline(["work.cpus=2"]) == first
    assert pipeline(["work.run=echo"]) != first
    assert pipeline(home="/elsewhere") != first, "work in one project folder is not done in another"
    write(PIPELINE.replace("work:", "other:"), SWEEP.replace("work.", "other."))
    assert pipeline() != first


def test_a_sweeps_identity_changes_with_its_values_and_its_pipeline():
    first = sweep()
    assert re.fullmatch("tries-[0-9a-f]{12}", first)
    assert sweep(at_a_time=1) == first
    assert sweep(["space.work.env.X=['1', '3']"]) != first
    assert sweep(samples=1) != first
    write(PIPELINE.replace("'true'", "'false'"))
    assert sweep() != first


def test_a_sweep_takes_its_file_its_pipelines_file_and_its_options_along():
    submitted = submission.load("sweep", "tries", ["work.cpus=2"], samples=1, max_concurrent=3)
    files = {name: path.read_text() for name, path in submitted.files.items()}
    assert files == {"sweeps/tries.yaml": SWEEP, "pipelines/mine.yaml": PIPELINE}
    options = ["--set", "work.cpus=2", "--samples", "1", "--max-concurrent", "3", "--home", "/srv/tats"]
    assert submitted.command("/srv/tats") == ["tats", "sweep", "tries", *options, "--continue"]


def test_a_sweeps_stages_are_those_of_all_its_points_each_once():
    settings = [stage.config.model_dump()["env"]["X"] for stage in submission.load("sweep", "tries").stages]
    assert settings == ["1", "2"]


def test_a_pipeline_that_lies_elsewhere_cannot_travel_with_its_sweep(tmp_path):
    (tmp_path / "other.yaml").write_text(PIPELINE)
    write(sweep=SWEEP.replace("mine", "other.yaml"))
    with pytest.raises(SpecError, match=r"other\.yaml cannot travel to a cluster; put it into pipelines/"):
        submission.load("sweep", "tries")


@pytest.mark.parametrize(
    ("option", "values"), [("--samples", {"samples": 1}), ("--max-concurrent", {"max_concurrent": 1})]
)
def test_an_option_of_sweeps_is_refused_beside_a_pipeline(option, values):
    with pytest.raises(SpecError, match=f"{option} belongs to a sweep; leave it out"):
        submission.load("pipeline", "mine", **values)


def test_a_rehearsal_is_a_submission_of_its_own_that_runs_the_same_file():
    real = submission.load("pipeline", "demo")
    rehearsed = submission.load("pipeline", "demo", rehearse=True)
    assert rehearsed.command() == ["tats", "run", "pipeline", "demo", "--rehearse"]
    assert rehearsed.identity().startswith("demo-rehearsal-")
    assert rehearsed.files == real.files
    assert [stage.name for stage in rehearsed.stages] == [stage.name for stage in real.stages]
    sweep = submission.load("sweep", "mask_ratio", rehearse=True)
    assert sweep.command() == ["tats", "sweep", "mask_ratio", "--rehearse", "--continue"]
    assert set(sweep.files) == {"sweeps/mask_ratio.yaml", "pipelines/full_ssv2.yaml"}

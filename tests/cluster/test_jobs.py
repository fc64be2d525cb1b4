"""Pipelines and sweeps on a real Ray cluster of two nodes, through the Jobs API, with a token."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tats_core.cluster import jobs
from tats_core.errors import ResourceError, SpecError

CHECKOUT = Path(__file__).resolve().parents[2]
TOKEN = "a-token-of-the-test-" + "0" * 44


@dataclass
class Site:
    """A working directory, and the cluster that it can reach."""

    folder: Path
    address: str

    @property
    def home(self) -> Path:
        return self.folder / "shared"

    def write(self, name: str, run: str, cpus: int = 1) -> None:
        menu = self.folder / "pipelines"
        menu.mkdir(exist_ok=True)
        (menu / f"{name}.yaml").write_text(
            f"stages:\n  work: {{kind: command, run: '{run}', cpus: {cpus}}}\n", encoding="utf-8"
        )

    def write_sweep(self, name: str, run: str, cpus: int = 1) -> None:
        """Write a sweep over X = 1, 2, 3 of a pipeline that `run`s and reports X as its score."""
        score = '; echo "{\\"score\\": $X}" > $TATS_OUT/result.json'
        stage = {"kind": "command", "run": run + score, "cpus": cpus, "env": {"X": "0"}}
        sweep = {"pipeline": f"of_{name}", "space": {"work.env.X": ["1", "2", "3"]}}
        sweep["metrics"] = [{"name": "work.score", "mode": "max"}]
        for menu, file, content in (
            ("pipelines", f"of_{name}", {"stages": {"work": stage}}),
            ("sweeps", name, sweep),
        ):
            (self.folder / menu).mkdir(exist_ok=True)
            (self.folder / menu / f"{file}.yaml").write_text(json.dumps(content), encoding="utf-8")

    def tats(self, *words: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tats_core", *words, "--address", self.address],
            cwd=self.folder, env=_environment(token), capture_output=True, text=True, check=False,
        )  # fmt: skip

    def submit(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        return self.tats("submit", "pipeline", name, "--home", str(self.home), *words)

    def submit_sweep(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        return self.tats("submit", "sweep", name, "--home", str(self.home), *words)


def _environment(token: str) -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    given = {"PATH": path, "PYTHONPATH": str(CHECKOUT), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    return {**os.environ, **given, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "processes" / "two_machines.py")],
        env=_environment(TOKEN), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    address = next((line.strip() for line in process.stdout if line.startswith("http://")), None)
    assert address, "the cluster did not start"
    yield Site(tmp_path_factory.mktemp("submit"), address)
    process.stdin.close()
    process.wait(60)
    process.stdout.close()


def started(done: subprocess.CompletedProcess[str]) -> tuple[str, str]:
    """Return the job and its outcome, as the first line gives them."""
    match = re.match(r"(\S+) (started|runs already|succeeded already) on http", done.stdout)
    assert match, done.stdout + done.stderr
    return match[1], match[2]


def wait_for(holds: Callable[[], bool], site: Site, job: str) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline, site.tats("logs", job).stdout
        time.sleep(0.2)


@pytest.mark.slow
def test_a_pipeline_runs_on_the_cluster_and_submitting_it_again_does_nothing(site):
    site.write("once", "echo done >> $TATS_OUT/output; echo x >> ../../../count")
    first = site.submit("once")
    assert first.returncode == 0, first.stdout + first.stderr
    job, outcome = started(first)
    assert re.fullmatch(r"once-[0-9a-f]{12}-a1", job)
    assert outcome == "started"
    assert [path.read_text() for path in site.home.glob("stages/command-*/output/output")] == ["done\n"]

    again = site.submit("once")
    assert again.returncode == 0
    assert started(again) == (job, "succeeded already")
    assert len(list((site.home / "runs").iterdir())) == 1

    listed = site.tats("jobs")
    assert re.search(rf"{job}\s+succeeded", listed.stdout), listed.stdout
    assert "check-" not in listed.stdout, "a preflight is not listed"
    assert not list(site.home.glob(".preflight-*"))
    assert "work" in site.tats("logs", "once").stdout


@pytest.mark.slow
def test_a_failed_job_gets_its_next_attempt(site):
    site.write("second", f"test -e {site.folder}/fixed && touch $TATS_OUT/output")
    first = site.submit("second", "--no-check")
    assert first.returncode == 1
    assert "failed; finished work is saved, submit it again to resume" in first.stderr
    (site.folder / "fixed").touch()
    second = site.submit("second", "--no-check")
    assert second.returncode == 0, second.stdout + second.stderr
    assert started(second)[0] == started(first)[0].removesuffix("1") + "2"


@pytest.mark.slow
def test_a_running_job_is_attached_to_and_stops_on_request(site):
    site.write("long", f"touch {site.folder}/began; sleep 600")
    job, outcome = started(site.submit("long", "--no-check", "--no-follow"))
    assert outcome == "started"
    assert started(site.submit("long", "--no-follow")) == (job, "runs already")
    wait_for((site.folder / "began").exists, site, job)
    stopped = site.tats("stop", "long")
    assert f"{job} has stopped; submit it again to resume" in stopped.stdout, stopped.stdout + stopped.stderr
    assert '"status": "stopped"' in max(site.home.glob("runs/long-*/run.json")).read_text()


@pytest.mark.slow
def test_more_than_the_cluster_has_is_refused_before_anything_starts(site):
    site.write("large", "true", cpus=3)
    refused = site.submit("large")
    assert refused.returncode == 2
    assert refused.stderr == "tats: work needs 3 CPUs and the cluster has 2; add machines to it\n"
    assert refused.stderr.count("\n") == 1
    assert not list(site.home.glob("runs/large-*"))


@pytest.mark.slow
@pytest.mark.faults
def test_a_stopped_sweep_resumes_with_its_remaining_trials(site):
    site.write_sweep("tries", f"test $X != 3 || test -e {site.folder}/go || sleep 600")
    job, outcome = started(site.submit_sweep("tries", "--no-follow"))
    assert re.fullmatch(r"tries-[0-9a-f]{12}-a1", job)
    assert outcome == "started"
    wait_for(lambda: len(list(site.home.glob("runs/tries-*/trials/*/trial.json"))) == 2, site, job)
    assert started(site.submit_sweep("tries", "--no-follow")) == (job, "runs already")

    stopped = site.tats("stop", "tries")
    assert f"{job} has stopped; submit it again to resume" in stopped.stdout, stopped.stdout + stopped.stderr
    assert "Stopped; finished work is saved" in site.tats("logs", job).stdout

    (site.folder / "go").touch()
    second = site.submit_sweep("tries")
    assert second.returncode == 0, second.stdout + second.stderr
    assert started(second) == (job.removesuffix("1") + "2", "started")
    assert "2 of them had ended before" in second.stdout
    (folder,) = site.home.glob("runs/tries-*")
    scores = [json.loads(path.read_text())["metrics"] for path in folder.glob("trials/*/trial.json")]
    assert sorted(metrics["work.score"] for metrics in scores) == [1, 2, 3]
    assert started(site.submit_sweep("tries"))[1] == "succeeded already"


@pytest.mark.slow
def test_a_trial_larger_than_the_cluster_is_refused_before_anything_starts(site):
    site.write_sweep("large_tries", "true", cpus=3)
    refused = site.submit_sweep("large_tries")
    assert refused.returncode == 2
    assert refused.stderr == "tats: work needs 3 CPUs and the cluster has 2; add machines to it\n"
    assert not list(site.home.glob("runs/large_tries-*"))


@pytest.mark.slow
def test_a_wrong_token_is_one_sentence(site):
    refused = site.tats("jobs", token="wrong-" + "1" * 58)
    assert refused.returncode == 2
    assert "refuses the token" in refused.stderr
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize("address", ["head:8265", "ray://head:10001", "http://head:8265/jobs", "http:// "])
def test_an_address_that_is_no_dashboard_is_refused(address):
    with pytest.raises(SpecError, match="must look like http://head:8265"):
        jobs.Cluster(address)


def test_an_address_in_the_environment_that_ray_would_prefer_is_refused(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://elsewhere:8265")
    with pytest.raises(SpecError, match="RAY_ADDRESS is set to http://elsewhere:8265"):
        jobs.Cluster("http://head:8265")


def test_an_address_that_does_not_answer_is_one_sentence():
    with pytest.raises(ResourceError, match="no Ray dashboard answers there"):
        jobs.Cluster("http://127.0.0.1:1")

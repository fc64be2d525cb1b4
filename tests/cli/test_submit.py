"""`tats submit` as far as it needs no cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml


@pytest.fixture
def menu(tmp_path: Path) -> None:
    for folder, name, text in (
        ("pipelines", "mine", "stages: {work: {kind: command, run: 'true', env: {X: '1'}}}"),
        (
            "sweeps",
            "tries",
            "{pipeline: mine, space: {work.env.X: ['1', '2']}, metrics: [{name: work.a, mode: max}]}",
        ),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.yaml").write_text(text)


@pytest.mark.parametrize("words", [("pipeline", "mine"), ("sweep", "tries")])
def test_a_manifest_is_written_to_the_given_file(tats, menu, tmp_path, words):
    done = tats("submit", *words, "--render", "kuberay", "--image", "lab/tats:1.0", "--out", "job.yaml")
    assert (done.code, done.err) == (0, "")
    kinds = [manifest["kind"] for manifest in yaml.safe_load_all((tmp_path / "job.yaml").read_text())]
    assert kinds == ["ConfigMap", "RayJob"]
    printed = tats("submit", *words, "--render", "kuberay", "--image", "lab/tats:1.0")
    assert printed.out == (tmp_path / "job.yaml").read_text()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "say where: either --address URL of a cluster, or --render kuberay for a manifest"),
        (("--render", "kuberay", "--address", "http://head:8265"), "say where: either --address URL"),
        (("--render", "kuberay"), "--render needs --image NAME:TAG"),
        (("--render", "kuberay", "--image", "lab/tats"), "name a tag other than 'latest'"),
        (("--address", "http://head:8265", "--image", "lab/tats:1"), "--image belongs to --render"),
    ],
)
def test_options_that_exclude_each_other_are_refused(tats, menu, words, sentence):
    done = tats("submit", "pipeline", "mine", *words)
    assert done.code == 2
    assert sentence in done.err
    assert done.err.count("\n") == 1

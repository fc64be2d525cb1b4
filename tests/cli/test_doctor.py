"""`tats doctor` on a machine that lacks something."""

from __future__ import annotations

import pytest

from tats_core.cli import doctor
from tats_core.launch import ray_train


def test_a_complete_machine_passes_with_a_line_for_each_check(tats):
    ended = tats("doctor")
    assert ended.code == 0, ended.out
    names = [line.split()[1] for line in ended.out.splitlines() if line.startswith("ok ")]
    assert names == ["Python", "torch", "device", "readers", "Ray", "MLflow", "store", "data"]


def test_a_project_folder_that_cannot_be_created_fails_the_command(tats, tmp_path):
    (tmp_path / "file").write_text("")
    ended = tats("doctor", "--home", str(tmp_path / "file" / "home"))
    assert ended.code == 1
    assert "MISSING  store" in ended.out
    assert "--home or TATS_HOME" in ended.out
    assert ended.err == "tats: 1 requirement is missing\n"


def test_nothing_is_left_behind_in_the_project_folder(tmp_path):
    assert doctor.store(tmp_path).ok
    assert doctor.store(tmp_path / "not" / "there" / "yet").ok
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_does_not_load_is_missing_with_the_reason(monkeypatch):
    def check_torch() -> doctor.Check:
        raise OSError("libtorch.so: cannot open shared object file")

    check = doctor._guarded("torch", check_torch)
    assert not check.ok
    assert "libtorch.so" in check.text
    assert "pip install" in check.advice


def test_the_damaged_record_of_a_run_is_listed(tmp_path):
    run = tmp_path / "runs" / "toy-20260102-010000000-ab01"
    run.mkdir(parents=True)
    (run / "run.json").write_text("{")
    (check,) = doctor.damaged_runs(tmp_path)
    assert check.ok is None, "other runs do without it"
    assert check.text.startswith(f"{run}/run.json: is not the record of a run (")


def test_configured_data_sets_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TATS_DATA_UCF101", str(tmp_path))
    assert doctor._data_sets().text == f"ucf101 in {tmp_path}"


@pytest.mark.parametrize("error", [ConnectionError("nobody there"), RuntimeError("versions differ")])
def test_a_cluster_that_does_not_answer_is_missing(monkeypatch, error):
    def init(**options: object) -> None:
        raise error

    monkeypatch.setenv("RAY_ADDRESS", "ray.example.org:6379")
    monkeypatch.setattr(ray_train.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_train.ray, "init", init)
    check = doctor._ray()
    assert not check.ok
    assert f"RAY_ADDRESS=ray.example.org:6379 cannot be joined ({error}); start it, or unset" in check.text

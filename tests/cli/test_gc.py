from __future__ import annotations

from pathlib import Path

import pytest

from tats_core.store.outputs import StageKey, StageStore


@pytest.fixture
def orphan(tmp_path: Path) -> Path:
    store = StageStore(tmp_path / ".tats")
    key = StageKey({"kind": "make/1", "config": {}, "code": {}, "inputs": [], "external": {}})
    folder = store.folder("make", key)
    partial = store.begin(folder, fresh=False)
    (partial / "large.bin").write_bytes(b"x" * 5000)
    store.commit(partial, folder, key, {"pipeline": "toy", "stage": "make", "run": "gone"}, {})
    return folder


def test_without_apply_it_lists_what_can_be_deleted_and_deletes_nothing(tats, orphan):
    listed = tats("gc")
    assert listed.code == 0
    assert f"stages/{orphan.name}" in listed.out
    assert "no run uses it" in listed.out
    assert "nothing was deleted; --apply does it" in listed.out
    assert all(len(line) <= 80 for line in listed.out.splitlines()[:-1])
    assert orphan.exists()


def test_with_apply_it_deletes_and_the_next_call_has_nothing_to_do(tats, orphan):
    assert "1 folder deleted" in tats("gc", "--apply").out
    assert not orphan.exists()
    assert tats("gc").out == "Nothing to delete; 0 runs and the 0 B they use stay.\n"


def test_without_a_tracking_server_it_deletes_nothing(tats, orphan, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    refused = tats("gc", "--apply")
    assert refused.code == 2
    assert refused.err.startswith("tats: the tracking server cannot be asked which models have an alias (")
    assert "--ignore-aliases" in refused.err
    assert len(refused.err.splitlines()) == 1
    assert orphan.exists()
    assert tats("gc", "--apply", "--ignore-aliases").code == 0
    assert not orphan.exists()


def test_a_number_that_is_none_is_refused_in_plain_words(tats):
    ended = tats("gc", "--keep", "x")
    assert ended.code == 2
    assert ended.err == "tats: gc: invalid value for '--keep': must be a valid integer; see tats gc --help\n"


def test_beside_the_newest_runs_a_damaged_one_stays_with_its_outputs(tats, kept):
    oldest, newest, damaged = (kept.run(hour, epochs=hour) for hour in (1, 2, 3))
    (damaged.folder / "run.json").write_text("{")
    ended = tats("gc", "--keep", "1", "--apply")
    assert ended.code == 0
    assert f"Damaged: {damaged.folder}/run.json" in ended.out
    assert [run.folder.exists() for run in (oldest, newest, damaged)] == [False, True, True]
    assert all(Path(stage.folder).exists() for stage in damaged.stages.values())


def test_a_missing_project_folder_is_reported(tats):
    refused = tats("gc")
    assert refused.code == 2
    assert "there is no project folder" in refused.err

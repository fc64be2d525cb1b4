"""A run on disk: its record, its state, and the reader of all that is in it."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tats_core.errors import StoreError
from tats_core.files import write_json
from tats_core.store import run as run_module
from tats_core.store.run import Run, RunRecord, StageRecord, WrittenFile

_HOLD = """
import sys, time
from pathlib import Path
from tats_core.store.run import RunRecord
with RunRecord.load(Path(sys.argv[1])).alive():
    print("alive", flush=True)
    time.sleep(60)
"""


def running(home: Path) -> RunRecord:
    record = RunRecord("toy-20260102-030405000-ab", "toy", "", "toy.yaml", str(home), "running", 0.0, {})
    record.save()
    return record


def test_a_run_is_alive_while_its_process_is_and_lost_once_it_was_killed(tmp_path):
    record = running(tmp_path)
    command = [sys.executable, "-c", _HOLD, str(record.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "alive\n"
        assert record.is_alive()
        assert record.state == "waiting", "it has no stage at work"
        os.kill(process.pid, signal.SIGKILL)
    assert not record.is_alive()
    assert record.state == "lost"
    assert record.status == "running", "what the record says stays as it was"


def test_to_look_does_not_keep_another_from_looking_or_the_run_from_living(tmp_path):
    record = running(tmp_path)
    with record.alive():
        assert [record.is_alive(), record.is_alive()] == [True, True]
    with record.alive():
        assert record.is_alive()
    assert not record.is_alive()


def test_a_run_that_ended_after_its_record_was_read_is_not_lost(tmp_path):
    read_before = running(tmp_path)
    ended = RunRecord.load(read_before.folder)
    ended.status = "finished"
    ended.save()
    assert read_before.state == "finished"


def test_a_record_without_a_lock_file_is_of_a_lost_run(tmp_path):
    assert running(tmp_path).state == "lost"


def test_a_run_shows_signs_of_life_and_is_lost_without_them_though_its_lock_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "_BEAT", 0.01)
    record = running(tmp_path)
    record.stages["a"] = StageRecord("a", "a", "make", {}, [], status="running")
    lock = record.folder / "alive.lock"
    with record.alive():
        os.utime(lock, (0, 0))
        while lock.stat().st_mtime == 0:
            time.sleep(0.01)
        assert record.state == "running"
        monkeypatch.setattr(run_module, "_SILENT", -1.0)
        assert record.state == "lost"
        assert record.is_alive(), "a process that stands still may wake up: nothing of it is removed"


@pytest.mark.parametrize(("seconds", "state"), [(0, "waiting"), (60, "lost")])
def test_of_a_run_on_another_machine_the_signs_of_life_count(tmp_path, seconds, state):
    record = running(tmp_path)
    lock = record.folder / "alive.lock"
    lock.write_text("another-machine")
    os.utime(lock, (time.time() - seconds,) * 2)
    assert record.state == state
    lock.write_text(platform.node())
    assert record.state == "lost", "here the lock alone decides"


def test_a_run_that_ends_leaves_no_sign_of_life(tmp_path):
    record = running(tmp_path)
    with record.alive():
        assert (record.folder / "alive.lock").stat().st_mtime > 0
    assert (record.folder / "alive.lock").stat().st_mtime == 0


def test_a_request_to_stop_at_once_outdoes_one_to_stop(tmp_path):
    record = running(tmp_path)
    assert record.asked_to_stop() is None
    record.ask_to_stop()
    assert record.asked_to_stop() == "stop"
    record.ask_to_stop(now=True)
    assert record.asked_to_stop() == "now"


def test_a_run_is_read_with_its_stages_results_curves_configurations_and_environment(kept):
    record = kept.run(1)
    pretrain = Path(str(record.stages["pretrain"].folder))
    with (pretrain / "events.jsonl").open("w") as file:
        for step, loss in ((1, 9.0), (2, 2.0), (1, 1.0)):
            file.write(
                json.dumps({"time": 1, "kind": "metrics", "step": step, "values": {"loss": loss}}) + "\n"
            )
        file.write(
            json.dumps({"time": 1, "kind": "file", "step": 2, "key": "masks/a", "path": "a.png"}) + "\n"
        )
    write_json(record.folder / "environment.json", {"torch": "2.14"})
    run = Run.open(record.folder)
    stage = run.stages["pretrain"]
    assert run.record == record
    assert stage.folder == pretrain
    assert stage.result == {"motion_lift": 2.5, "mask_ratio": 0.9, "sampler": "tats"}
    assert stage.curves == {"loss": {1: 1.0, 2: 2.0}}, "of a step that was done twice, the later value"
    assert stage.files == [WrittenFile(2, "masks/a", pretrain / "a.png")]
    assert (stage.origin.run, stage.digest) == (record.id, record.stages["pretrain"].digest)
    assert run.configs["pretrain"]["set"]["epochs"] == 3
    assert run.environment == {"torch": "2.14"}
    assert run.results["rows"][0]["top1"] == 50.0


def test_keys_of_later_versions_are_ignored_and_what_is_not_a_record_is_one_sentence(kept):
    record = kept.run(1)
    path = record.folder / "run.json"
    content = json.loads(path.read_text())
    content["stages"]["data"]["colour"] = content["weather"] = "green"
    write_json(path, content)
    assert RunRecord.load(record.folder) == record
    content["stages"]["data"]["status"] = "asleep"
    write_json(path, content)
    with pytest.raises(StoreError, match=r"run.json: is not the record of a run \(stages.data.status: "):
        Run.open(record.folder)


def test_what_a_run_does_not_have_is_none_or_empty(kept):
    record = kept.run(1)
    record.stages["report"].status = "waiting"
    record.stages["report"].key = None
    (record.folder / "config.json").unlink()
    run = Run(record)
    stage = run.stages["report"]
    assert (run.results, run.configs, run.environment) == (None, {}, {})
    assert (stage.folder, stage.result, stage.curves, stage.files) == (None, None, {}, [])
    (Path(str(record.stages["data"].folder)) / "result.json").write_text("[1]")
    with pytest.raises(StoreError, match=r"result.json: is not the result of a stage"):
        _ = run.stages["data"].result

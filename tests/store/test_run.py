"""Who is alive, who has died, and who was asked to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tats_core.store.run import RunRecord

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


def test_a_run_is_alive_while_its_process_is_and_died_once_it_was_killed(tmp_path):
    record = running(tmp_path)
    command = [sys.executable, "-c", _HOLD, str(record.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "alive\n"
        assert record.is_alive()
        assert record.state == "running"
        os.kill(process.pid, signal.SIGKILL)
    assert not record.is_alive()
    assert record.state == "died"
    assert record.status == "running", "what the record says stays as it was"


def test_to_look_does_not_keep_another_from_looking_or_the_run_from_living(tmp_path):
    record = running(tmp_path)
    with record.alive():
        assert [record.is_alive(), record.is_alive()] == [True, True]
    with record.alive():
        assert record.is_alive()
    assert not record.is_alive()


def test_a_run_that_ended_after_its_record_was_read_has_not_died(tmp_path):
    read_before = running(tmp_path)
    ended = RunRecord.load(read_before.folder)
    ended.status = "finished"
    ended.save()
    assert read_before.state == "finished"


def test_a_record_without_a_lock_file_is_of_a_run_that_died(tmp_path):
    assert running(tmp_path).state == "died"


def test_a_request_to_stop_at_once_outdoes_one_to_stop(tmp_path):
    record = running(tmp_path)
    assert record.asked_to_stop() is None
    record.ask_to_stop()
    assert record.asked_to_stop() == "stop"
    record.ask_to_stop(now=True)
    assert record.asked_to_stop() == "now"

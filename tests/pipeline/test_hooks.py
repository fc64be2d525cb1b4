from __future__ import annotations

import json
import os
import time
from pathlib import Path

import psutil
import pytest

from tats_core.errors import RunError, SpecError
from tats_core.pipeline import hooks, runner
from tats_core.pipeline.hooks import Notifier
from tats_core.pipeline.spec import Hook
from tats_core.store.run import RunRecord
from tests.toys import Grow

pytestmark = pytest.mark.usefixtures("no_tracker")

STAGES = "stages: {make: {kind: make}, grow: {kind: grow, needs: make}}"
EVENTS = "finished, failed, stopped, stage_failed"


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    return RunRecord("toy-1", "toy", "", "toy.yaml", str(tmp_path), "failed", 100.0, {}, finished=130.0)


def notified(hook: Hook, record: RunRecord, seconds: float = 30.0) -> list[str]:
    """Tell one hook that the run failed, and return the notes."""
    notes: list[str] = []
    notifier = Notifier([hook], record, notes.append)
    record.error = "grow: it broke"
    notifier.run_ended(record)
    notifier.close(seconds)
    return notes


def test_a_command_gets_the_event_in_its_environment_and_as_json(record, tmp_path):
    hook = Hook(command=f"cd {tmp_path}; cat > body; env | grep ^TATS_ | sort > env")
    assert notified(hook, record) == []
    body = json.loads((tmp_path / "body").read_text())
    assert body == {
        "schema": 1,
        "event": "failed",
        "run": "toy-1",
        "pipeline": "toy",
        "status": "failed",
        "stage": "",
        "error": "grow: it broke",
        "seconds": 30.0,
        "folder": str(tmp_path / "runs" / "toy-1"),
        "text": "toy failed: grow: it broke",
    }
    variables = {"EVENT": "failed", "RUN": "toy-1", "PIPELINE": "toy", "STATUS": "failed", "STAGE": ""}
    variables["ERROR"] = "grow: it broke"
    assert {f"TATS_{name}={value}" for name, value in variables.items()} <= set(
        (tmp_path / "env").read_text().splitlines()
    )


def test_an_error_that_no_variable_can_hold_is_in_the_json(record, tmp_path):
    error = "a\0b" + 200_000 * "c"
    command = f'echo "$TATS_ERROR" | cut -c1-4 > {tmp_path}/error; cat > {tmp_path}/json'
    hooks.call(command, hooks.message(record, "failed", "", error))
    assert (tmp_path / "error").read_text() == "a bc\n"
    assert json.loads((tmp_path / "json").read_text())["error"] == error


def test_a_file_name_that_is_no_text_is_escaped_in_the_json(record, tmp_path):
    error = "caf\udce9.mp4 cannot be read"  # Latin-1, as Python reads it from a folder
    hooks.call(f"cat > {tmp_path}/json", hooks.message(record, "failed", "", error))
    assert json.loads((tmp_path / "json").read_text())["error"] == error


def test_a_command_that_fails_is_a_note_with_its_last_line(record):
    (note,) = notified(Hook(command="echo no mail >&2; exit 3"), record)
    assert note.endswith("its command ended with code 3: no mail")


@pytest.mark.parametrize(
    ("command", "printed"),
    [
        ("cat https://chat.test/services/T0/hidden", "cat: '...': No such file or directory"),
        ("cat $CHAT", "cat: '...': No such file or directory"),
        ("true | cat < '/none/https://chat.test/hidden?a=b'", "cannot open ...: No such file"),
        ("KEY=hidden; cat /none/$KEY", "cat: /none/...: No such file or directory"),
        ("echo 'no route to /services/T0/hidden'; : https://chat.test/services/T0/hidden", "code 1"),
        (
            "sh -c 'echo no answer at /T0/hidden >&2; exit 1' http://chat.test/T0/hidden",
            "code 1: no ... at ...",
        ),
        ("cat '/none/a&hidden;hidden'", "cat: '...': No such file"),
        ("""cat '{"token": "/none/hidden"}' "/none/hidden" """, "cat: ...: No such file"),
        ("no-such-mailer https://chat.test/hidden", "no-such-mailer: not found"),
    ],
)
def test_a_note_repeats_no_word_of_the_command(record, monkeypatch, command, printed):
    monkeypatch.setenv("CHAT", "https://chat.test/services/T0/hidden")
    (note,) = notified(Hook(command=f"{command}; exit 1"), record)
    assert "hidden" not in note
    assert printed in note


def test_a_command_that_hangs_is_ended_with_all_that_it_started(record, monkeypatch):
    monkeypatch.setattr(hooks, "COMMAND_SECONDS", 0.5)
    lasts = f"600.{os.getpid()}"
    with pytest.raises(RunError, match="took longer than 0 s"):
        hooks.call(f"sleep {lasts} & sleep {lasts}", hooks.message(record, "failed", "", None))
    while any(lasts in (process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])):
        time.sleep(0.05)  # killed, and not gone yet


def test_the_end_waits_for_a_slow_hook_only_so_long(record):
    (note,) = notified(Hook(command="sleep 10"), record, seconds=0.1)
    assert note == "a notification was not delivered within 0 s and is given up"


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ("{on: finishd, command: x}", "notify.0.on.0: input should be 'finished', 'failed'"),
        ("{on: failed}", "notify.0.command is missing"),
        ("{command: a, webhook: 'http://b'}", "notify.0 has no key 'webhook'"),
        ("{comand: x}", "no key 'comand'; did you mean 'command'?"),
    ],
)
def test_a_wrong_hook_is_refused_before_anything_starts(load, entry, fault):
    with pytest.raises(SpecError, match=fault.replace("?", "\\?")):
        load(f"notify: [{entry}]\n{STAGES}")


def test_a_run_tells_how_it_ended_and_a_failed_stage_at_once(load, tmp_path):
    command = "echo $TATS_EVENT $TATS_STATUS $TATS_STAGE >> told"
    text = f"notify: [{{on: [{EVENTS}], command: '{command}'}}]\n{STAGES}"
    assert runner.run(load(text), tmp_path / "home").status == "finished"
    failing = load(text, "grow.fail=always", "grow.add=2")
    assert runner.run(failing, tmp_path / "home").status == "failed"
    calls = (tmp_path / "work" / "told").read_text().splitlines()
    assert calls == ["finished finished", "stage_failed running grow", "failed failed"]


def test_a_hook_tells_only_of_what_it_is_asked_for(load, tmp_path):
    text = f"notify: {{}}\n{STAGES}".replace("{}", "[{on: stage_failed, command: touch told}]", 1)
    runner.run(load(text), tmp_path / "home")
    assert not (tmp_path / "work" / "told").exists()


def test_a_hook_that_fails_is_a_note_and_the_run_is_as_finished_as_ever(load, tmp_path, ui):
    record = runner.run(load(f"notify: [{{command: exit 1}}]\n{STAGES}"), tmp_path / "home", ui=ui)
    assert record.status == "finished"
    assert ("", "a notification of 'finished' was not delivered: its command ended with code 1") in ui.of(
        "note"
    )


def test_hooks_are_no_part_of_a_key(load, tmp_path):
    runner.run(load(STAGES), tmp_path / "home")
    Grow.ran.clear()
    runner.run(load(f"notify: [{{command: 'true'}}]\n{STAGES}"), tmp_path / "home")
    assert Grow.ran == []

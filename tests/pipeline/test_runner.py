from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from tats_core.errors import ResourceError, SpecError, StageError, TatsError, VideoError
from tats_core.files import digest, write_json
from tats_core.launch import local, ray_train
from tats_core.pipeline import runner
from tats_core.stages.base import ParallelWork, StageContext
from tats_core.store import code, history
from tats_core.store.outputs import StageStore
from tats_core.store.run import Run, RunRecord
from tats_core.training.events import Events
from tests.toys import Grow, NoTracker, RecordingUI

pytestmark = pytest.mark.usefixtures("no_tracker")

TOY = """
stages:
  make: {kind: make, value: 3}
  grow: {kind: grow, needs: make, matrix: {benchmark: [a, b], init: [pretrained, scratch]}, add: 4}
  sum:  {kind: sum, needs: grow}
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def statuses(record: RunRecord) -> dict[str, str]:
    return {name: stage.status for name, stage in record.stages.items()}


def test_a_pipeline_runs_and_each_stage_reads_the_outputs_that_it_needs(load, home, ui):
    record = runner.run(load(TOY), home, ui=ui)
    assert record.status == "finished"
    assert set(statuses(record).values()) == {"finished"}
    values = json.loads((record.outputs("sum")[0] / "values.json").read_text())
    assert values == {
        "grow[a,pretrained]": 7,
        "grow[a,scratch]": 4,
        "grow[b,pretrained]": 7,
        "grow[b,scratch]": 4,
    }
    assert ui.calls[0][0] == "started"
    assert ui.of("finished") == [("", "finished")]
    assert [event["shown"] for _, event in ui.of("progress")] == [{"value": 3}]


def test_the_second_run_reuses_every_stage(load, home, ui):
    first = runner.run(load(TOY), home)
    Grow.ran.clear()
    record = runner.run(load(TOY), home, ui=ui)
    assert set(statuses(record).values()) == {"cached"}
    assert Grow.ran == []
    assert [cached for _, cached in ui.of("stage_finished")] == [True] * 6
    assert record.outputs("sum") == first.outputs("sum")


def test_stages_with_the_same_key_do_the_work_once(load, home):
    pipeline = load("""
stages:
  make: {kind: make}
  one:  {kind: grow, needs: make}
  two:  {kind: grow, needs: make}
""")
    record = runner.run(pipeline, home)
    assert len(Grow.ran) == 1
    assert sorted(statuses(record).values()) == ["cached", "finished", "finished"]
    assert len(set(record.outputs("grow"))) == 1


def test_a_change_runs_what_it_reaches_and_the_plan_says_why(load, home):
    runner.run(load(TOY), home)
    plan = runner.plan(load(TOY, "make.value=5"), home)
    items = {item.name: (item.action, item.reason, item.after) for item in plan.items}
    assert items["make"] == ("run", "value: 3 → 5", ())
    assert items["grow[a,pretrained]"] == ("run", "", ("make",))
    assert items["grow[a,scratch]"] == ("reuse", "unchanged", ())
    assert items["sum"] == ("run", "", ("grow[a,pretrained]", "grow[b,pretrained]"))
    Grow.ran.clear()
    runner.run(load(TOY, "make.value=5"), home)
    assert sorted(Grow.ran) == ["grow[a,pretrained]", "grow[b,pretrained]"]


def test_an_output_that_comes_out_the_same_stops_the_change_there(load, home):
    text = TOY.replace("value: 3", "value: 3, shape: {depth: 1}")
    runner.run(load(text), home)
    Grow.ran.clear()
    record = runner.run(load(text, "make.shape.depth=2"), home)
    assert statuses(record)["make"] == "finished"
    assert Grow.ran == []


def test_a_plan_changes_nothing_on_disk(load, home):
    plan = runner.plan(load(TOY), home)
    assert {item.reason for item in plan.items if item.name == "make"} == {"has no output yet"}
    assert not home.exists()
    assert json.loads(json.dumps(plan.to_json()))["stages"][0]["name"] == "make"


def test_a_damaged_output_is_made_again(load, home):
    record = runner.run(load(TOY), home)
    Path(record.stages["grow[a,scratch]"].folder or "", "value.txt").unlink()
    plan = {item.name: item for item in runner.plan(load(TOY), home).items}
    assert plan["grow[a,scratch]"].reason == "its output is corrupt: value.txt is gone"
    Grow.ran.clear()
    assert runner.run(load(TOY), home).status == "finished"
    assert Grow.ran == ["grow[a,scratch]"]


def test_a_flipped_byte_in_a_large_input_fails_its_reader_and_the_next_run_makes_it_again(load, home):
    text = "stages: {make: {kind: make}, grow: {kind: grow, needs: make}}"
    record = runner.run(load(text), home)
    shutil.rmtree(record.outputs("grow")[0])
    (folder,) = record.outputs("make")
    large = folder / "large.bin"
    large.write_bytes(b"x" * (1 << 21))
    manifest = json.loads((folder / "manifest.json").read_text())
    files = {**manifest["files"], "large.bin": {"size": 1 << 21, "sha256": digest(large)}}
    write_json(folder / "manifest.json", {"digest": manifest["digest"], "files": files})
    large.write_bytes(b"x" * ((1 << 21) - 1) + b"y")
    failed = runner.run(load(text), home)
    assert failed.stages["make"].status == "cached", "at a hit, only sizes of large files are compared"
    assert "large.bin has another content; run again" in (failed.error or "")
    again = runner.run(load(text), home)
    assert statuses(again) == {"make": "finished", "grow": "finished"}


@pytest.mark.parametrize("result", ["[1]", "1", "", "{"])
def test_a_result_that_is_no_object_fails_its_stage_each_time(load, home, monkeypatch, result):
    monkeypatch.setattr(Grow, "hook", staticmethod(lambda ctx: (ctx.out / "result.json").write_text(result)))
    for _ in range(2):
        record = runner.run(load("stages: {grow: {kind: grow, init: scratch}}"), home)
        assert statuses(record) == {"grow": "failed"}
        assert "result.json: is not the result of a stage" in (record.error or "")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"forced": 3}', "[" * 100_000])
def test_an_attempt_with_a_corrupt_mark_begins_anew(load, home, text):
    pipeline = "stages: {grow: {kind: grow, init: scratch, fail: always}}"
    runner.run(load(pipeline), home)
    (partial,) = home.glob("stages/grow-*.partial")
    (partial / "attempt.json").write_text(text)
    (item,) = runner.plan(load(pipeline), home).items
    assert item.reason == "its work folder is corrupt"
    (partial / "tried").touch()
    assert runner.run(load(pipeline), home).status == "failed", "the mark of the first try is gone"


def test_what_breaks_while_the_run_is_asked_to_stop_is_stopped_and_not_a_bug(load, home, monkeypatch):
    def broken(ctx: StageContext) -> None:
        ctx.stop.set()  # SIGTERM to the group: the stage's helpers are gone
        raise RuntimeError("DataLoader worker exited unexpectedly")

    monkeypatch.setattr(Grow, "hook", staticmethod(broken))
    record = runner.run(load("stages: {grow: {kind: grow, init: scratch}}"), home)
    assert (record.status, statuses(record)) == ("stopped", {"grow": "stopped"})


def test_from_a_stage_that_only_leaves_out_is_refused(load, home):
    runner.run(load(TOY), home)
    with pytest.raises(SpecError, match=r"--from make: --only leaves it out"):
        runner.plan(load(TOY), home, only=["grow"], from_stage="make")
    plan = runner.plan(load(TOY), home, only=["grow"], from_stage="grow[a,scratch]")
    assert [item.name for item in plan.items if item.action == "run"] == ["grow[a,scratch]"]


def test_from_an_empty_name_is_refused_as_any_unknown_stage(load, home):
    with pytest.raises(SpecError, match="--from : no stage named ''"):
        runner.plan(load(TOY), home, from_stage="")


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"id": 1}'])
def test_the_damaged_record_of_another_run_decides_nothing(load, home, text):
    (runner.run(load(TOY), home).folder / "run.json").write_text(text)
    assert runner.plan(load(TOY), home).count("reuse") == 6
    record = runner.run(load(TOY), home)
    assert set(statuses(record).values()) == {"cached"}
    assert history.find("latest", home).id == history.find_finished("toy", home).id == record.id


def test_a_record_with_keys_of_a_later_version_is_read(load, home):
    record = runner.run(load(TOY), home)
    content = json.loads((record.folder / "run.json").read_text())
    content["priority"] = content["stages"]["make"]["node"] = {"later": True}
    write_json(record.folder / "run.json", content)
    assert RunRecord.load(record.folder) == record


def test_force_runs_a_stage_again_and_from_also_what_follows(load, home):
    runner.run(load(TOY), home)
    forced = runner.plan(load(TOY), home, force=["grow[a,scratch]"])
    assert [item.name for item in forced.items if item.action == "run"] == ["grow[a,scratch]", "sum"]
    from_make = runner.plan(load(TOY), home, from_stage="make")
    assert [item.name for item in from_make.items if item.action == "reuse"] == [
        "grow[a,scratch]",
        "grow[b,scratch]",
    ]
    Grow.ran.clear()
    record = runner.run(load(TOY), home, force=["grow[a,scratch]"])
    assert Grow.ran == ["grow[a,scratch]"]
    assert statuses(record)["sum"] == "cached", "the forced stage gave the same output"


def test_a_forced_stage_that_was_interrupted_resumes_without_force(load, home, monkeypatch):
    runner.run(load(TOY), home)
    monkeypatch.setattr(Grow, "hook", staticmethod(_break))
    assert runner.run(load(TOY), home, force=["grow[a,scratch]"]).status == "failed"
    monkeypatch.setattr(Grow, "hook", staticmethod(lambda ctx: None))
    plan = {item.name: item for item in runner.plan(load(TOY), home).items}
    assert plan["grow[a,scratch]"].reason == "resumes where it stopped"


def test_a_forced_stage_does_not_log_the_events_of_the_output_that_it_replaces(load, home, monkeypatch):
    read: list[float] = []

    class Listening(NoTracker):
        def events(self, stage: str, events: Events) -> None:
            read.extend(event["values"]["value"] for event in events.all)

    monkeypatch.setattr(runner, "Tracking", Listening)
    begin = StageStore.begin

    def slowly(self: StageStore, folder: Path, *, fresh: bool) -> Path:
        time.sleep(0.6)  # meanwhile the main thread looks for events
        return begin(self, folder, fresh=fresh)

    monkeypatch.setattr(StageStore, "begin", slowly)
    for force, values in (((), (1.0, 2.0, 3.0)), (("grow",), (4.0,))):
        monkeypatch.setattr(
            Grow,
            "hook",
            staticmethod(
                lambda ctx, values=values: [ctx.events.metrics(1, {"value": value}) for value in values]
            ),
        )
        runner.run(load("stages: {grow: {kind: grow, init: scratch}}"), home, force=force)
    assert read == [1.0, 2.0, 3.0, 4.0]


def test_only_runs_one_stage_and_leaves_the_others_out(load, home):
    with pytest.raises(SpecError, match=r"--only grow: it needs the output of make, which has none yet"):
        runner.run(load(TOY), home, only=["grow"])
    record = runner.run(load(TOY), home, only=["make"])
    assert statuses(record)["make"] == "finished"
    assert statuses(record)["sum"] == "skipped"
    assert record.status == "finished"
    assert history.newest_finished(home, "toy") is None, "a part is not a whole run"
    assert statuses(runner.run(load(TOY), home, only=["grow"]))["grow[a,pretrained]"] == "finished"


def test_force_of_a_stage_that_only_leaves_out_is_refused(load, home):
    runner.run(load(TOY), home)
    with pytest.raises(SpecError, match=r"--force make: --only leaves it out"):
        runner.run(load(TOY), home, only=["grow"], force=["make"])
    again = runner.run(load(TOY), home, only=["grow"], force=["grow[a,pretrained]"])
    assert statuses(again)["grow[a,pretrained]"] == "finished"


def test_a_failure_stops_the_run_or_only_what_needs_it(load, home, ui):
    text = """
stages:
  make: {kind: make}
  bad:  {kind: grow, needs: make, fail: always, cpus: 2}
  next: {kind: sum, needs: bad}
  good: {kind: grow, needs: make, add: 7, cpus: 2}
"""
    record = runner.run(load(text), home, ui=ui)
    assert (record.status, record.error) == ("failed", "bad: it broke")
    assert statuses(record) == {"make": "finished", "bad": "failed", "next": "skipped", "good": "skipped"}
    assert ui.of("stage_failed") == [("bad", "it broke")]
    record = runner.run(load(text), home, on_error="continue")
    assert statuses(record) == {"make": "cached", "bad": "failed", "next": "skipped", "good": "finished"}
    assert (record.status, record.refused) == ("failed", False)


def test_a_run_that_fails_over_what_it_was_given_says_so(load, home, monkeypatch):
    def unreadable(ctx: StageContext) -> None:
        raise VideoError("a.avi: cannot be read")

    monkeypatch.setattr(Grow, "hook", staticmethod(unreadable))
    record = runner.run(load("stages: {make: {kind: make}, grow: {kind: grow, needs: make}}"), home)
    assert (record.status, record.refused) == ("failed", True)
    assert RunRecord.load(record.folder).refused


def test_a_retry_resumes_in_the_same_folder(load, home, ui):
    text = "stages: {make: {kind: make}, grow: {kind: grow, needs: make, fail: once, retries: 1}}"
    record = runner.run(load(text), home, ui=ui)
    assert record.status == "finished"
    assert record.stages["grow"].attempts == 2
    assert ("grow", "attempt 2, because it broke") in ui.of("note")
    assert (record.outputs("grow")[0] / "tried").exists()


def test_a_retry_follows_what_the_machine_lacked_at_first(load, home, ui, monkeypatch):
    def hook(ctx: StageContext) -> None:
        if len(Grow.ran) == 1:
            raise ResourceError("Ray did not start on this machine")

    monkeypatch.setattr(Grow, "hook", staticmethod(hook))
    text = "stages: {make: {kind: make}, grow: {kind: grow, needs: make, retries: 1}}"
    record = runner.run(load(text), home, ui=ui)
    assert (record.status, record.stages["grow"].attempts) == ("finished", 2)
    assert ("grow", "attempt 2, because Ray did not start on this machine") in ui.of("note")


def test_a_failed_stage_resumes_in_its_folder_in_the_next_run(load, home):
    text = "stages: {make: {kind: make}, grow: {kind: grow, needs: make, fail: once}}"
    assert runner.run(load(text), home).status == "failed"
    plan = runner.plan(load(text), home)
    assert plan.items[-1].reason == "resumes where it stopped"
    assert runner.run(load(text), home).status == "finished"


def test_the_error_of_a_library_is_kept_without_the_password_that_it_repeats(load, home, ui, monkeypatch):
    for kind, error in (("bug", KeyError), ("known", StageError)):

        def fail(self: Grow, config: object, ctx: StageContext, error: type[Exception] = error) -> None:
            raise error("no route to http://me:hunter2@host:1/a?token=hunter2")

        monkeypatch.setattr(Grow, "run", fail)
        record = runner.run(
            load(f"title: {kind}\nstages: {{make: {{kind: make}}, grow: {{kind: grow, needs: make}}}}"),
            home,
            ui=ui,
        )
        assert "no route to http://host:1/a?token=***" in (record.error or "")
    kept = [
        path.read_text() for path in home.rglob("*") if path.suffix in (".json", ".txt", ".jsonl", ".html")
    ]
    assert kept
    assert "hunter2" not in "".join(kept)
    assert "hunter2" not in str(ui.of("stage_failed"))


def test_a_bug_ends_its_stage_with_a_traceback_on_disk_and_is_not_tried_again(load, home):
    text = "stages: {make: {kind: make}, grow: {kind: grow, needs: make, fail: bug, retries: 3}}"
    record = runner.run(load(text), home)
    assert record.stages["grow"].attempts == 1
    assert "KeyError: 'a bug'" in (record.error or "")
    (traceback,) = home.glob("stages/grow-*.partial/log/traceback.txt")
    assert 'raise KeyError("a bug")' in traceback.read_text()


def test_code_that_is_edited_meanwhile_makes_no_output_under_the_key_of_the_old(load, home, monkeypatch):
    monkeypatch.setattr(code, "changed", lambda known: [name for name in known if name.endswith("toys")])
    record = runner.run(load("stages: {grow: {kind: grow, init: scratch, retries: 3}}"), home)
    assert record.error == (
        f"grow: the code of {Grow.__module__} was changed since this run began; start it again: "
        "what is done is kept"
    )
    assert (Grow.ran, record.stages["grow"].attempts) == ([], 1)


def test_a_bug_whose_traceback_cannot_be_written_ends_its_stage_all_the_same(load, home, monkeypatch):
    monkeypatch.setattr(Grow, "hook", staticmethod(lambda ctx: (ctx.out / "log").touch()))
    text = "stages: {make: {kind: make}, grow: {kind: grow, needs: make, fail: bug}}"
    record = runner.run(load(text), home)
    assert "KeyError: 'a bug' (a bug; its traceback cannot be written to " in (record.error or "")


def test_a_stage_that_calls_exit_fails_and_does_not_hold_up_the_run(load, home, monkeypatch):
    monkeypatch.setattr(Grow, "hook", staticmethod(lambda ctx: sys.exit(3)))
    record = runner.run(load("stages: {grow: {kind: grow, init: scratch}}"), home)
    assert (record.error or "").startswith("grow: SystemExit: 3 (a bug; the traceback is in ")


@pytest.mark.parametrize(("spare", "side_by_side"), [(0, 2), (1, 1), (9, 1)])
def test_stages_run_side_by_side_within_the_available_cpus(load, home, monkeypatch, spare, side_by_side):
    # One that can use more than it needs has all there are to itself.
    monkeypatch.setattr(Grow, "spare", lambda *_: spare)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    running, most = set(), []
    lock, together = threading.Lock(), threading.Barrier(side_by_side)

    def hook(ctx: StageContext) -> None:
        with lock:
            running.add(ctx.name)
            most.append(len(running))
        together.wait(60)  # as many as may do run at once
        time.sleep(0.1)  # and one more would be seen
        with lock:
            running.discard(ctx.name)

    monkeypatch.setattr(Grow, "hook", staticmethod(hook))
    text = "stages: {grow: {kind: grow, init: scratch, matrix: {add: [1, 2, 3, 4]}}}"
    assert runner.run(load(text), home).status == "finished"
    assert max(most) == side_by_side


def test_what_is_too_large_or_missing_is_reported_before_anything_starts(load, home, ui, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    base = "make: {kind: make}, grow: {kind: grow, needs: make, "
    with pytest.raises(
        ResourceError, match=r"grow needs 3 CPUs, but there are 2; ask for fewer \(--set grow.cpus=2\) or"
    ):
        runner.run(load(f"stages: {{{base} cpus: 3}}}}"), home, ui=ui)
    text = f"stages: {{{base} matrix: {{missing: [no data here, no data there]}}}}}}"
    with pytest.raises(TatsError) as error:
        runner.run(load(text), home, ui=ui)
    assert str(error.value) == "no data here\nno data there"
    assert ui.calls == []
    assert not home.exists()


def test_the_first_interrupt_stops_gracefully_and_the_next_run_resumes(load, home, ui, monkeypatch):
    def hook(ctx: StageContext) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        assert ctx.stop.wait(60)

    monkeypatch.setattr(Grow, "hook", staticmethod(hook))
    before = signal.getsignal(signal.SIGINT)
    text = "stages: {make: {kind: make}, grow: {kind: grow, needs: make}, sum: {kind: sum, needs: grow}}"
    record = runner.run(load(text), home, ui=ui)
    assert record.status == "stopped"
    assert statuses(record) == {"make": "finished", "grow": "stopped", "sum": "skipped"}
    assert ("", "stopping at the next checkpoints; Ctrl-C again stops at once") in ui.of("note")
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.setattr(Grow, "hook", staticmethod(lambda ctx: None))
    assert statuses(runner.run(load(text), home)) == {"make": "cached", "grow": "finished", "sum": "finished"}


def test_the_second_interrupt_stops_at_once(load, home, monkeypatch):
    raised, ended = threading.Event(), threading.Event()

    def hook(ctx: StageContext) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        ctx.stop.wait(60)
        os.kill(os.getpid(), signal.SIGINT)
        raised.wait(60)
        ended.set()

    monkeypatch.setattr(Grow, "hook", staticmethod(hook))
    with pytest.raises(KeyboardInterrupt):
        runner.run(load("stages: {grow: {kind: grow, init: scratch}}"), home)
    assert not ended.is_set()
    (folder,) = (home / "runs").iterdir()
    record = RunRecord.load(folder)
    assert record.status == "stopped"
    assert record.stages["grow"].seconds > 0, "what it took until then"
    raised.set()


def test_a_file_that_asks_to_stop_does_what_the_first_interrupt_does(load, home, ui, monkeypatch):
    def hook(ctx: StageContext) -> None:
        (folder,) = (home / "runs").iterdir()
        RunRecord.load(folder).ask_to_stop()
        assert ctx.stop.wait(60)

    monkeypatch.setattr(Grow, "hook", staticmethod(hook))
    record = runner.run(load("stages: {grow: {kind: grow, init: scratch}}"), home, ui=ui)
    assert record.status == record.state == "stopped"
    assert statuses(record) == {"grow": "stopped"}
    assert ui.of("note") == [("", "stopping at the next checkpoints; Ctrl-C again stops at once")]


def test_a_file_that_asks_to_stop_at_once_does_what_the_second_interrupt_does(load, home, monkeypatch):
    def hook(ctx: StageContext) -> None:
        (folder,) = (home / "runs").iterdir()
        RunRecord.load(folder).ask_to_stop(now=True)
        time.sleep(5)

    monkeypatch.setattr(Grow, "hook", staticmethod(hook))
    with pytest.raises(KeyboardInterrupt):
        runner.run(load("stages: {grow: {kind: grow, init: scratch}}"), home)
    (folder,) = (home / "runs").iterdir()
    record = RunRecord.load(folder)
    assert (record.status, record.error) == ("stopped", "KeyboardInterrupt")
    assert statuses(record) == {"grow": "stopped"}
    assert record.finished is not None


def test_a_run_is_alive_while_it_runs_and_keeps_the_configurations(load, home, monkeypatch):
    seen: list[str] = []

    def hook(ctx: StageContext) -> None:
        (folder,) = (home / "runs").iterdir()
        seen.append(RunRecord.load(folder).state)

    monkeypatch.setattr(Grow, "hook", staticmethod(hook))
    record = runner.run(load("stages: {grow: {kind: grow, init: scratch, add: 2}}"), home, only=["grow"])
    assert seen == ["running"]
    assert not record.is_alive()
    assert record.only == ["grow"]
    config = Run(record).configs["grow"]
    assert config["set"] == {"init": "scratch", "add": 2}
    assert config["all"] == {
        "benchmark": "none", "init": "scratch", "add": 2, "cpus": 1, "fail": "", "missing": ""
    }  # fmt: skip


def test_a_run_waits_for_another_that_makes_the_same_output_and_takes_it(load, home, ui, monkeypatch):
    started = threading.Event()

    def hook(ctx: StageContext) -> None:
        started.set()
        while not ui.of("note"):
            time.sleep(0.05)

    monkeypatch.setattr(Grow, "hook", staticmethod(hook))
    pipeline = load("stages: {grow: {kind: grow, init: scratch}}")
    other = threading.Thread(target=runner.run, args=(pipeline, home))
    other.start()
    assert started.wait(60)
    record = runner.run(pipeline, home, ui=ui)
    other.join()
    assert Grow.ran == ["grow"]
    assert statuses(record) == {"grow": "cached"}
    ((_, text),) = ui.of("note")
    assert text == f"waits for process {os.getpid()}, which is making the same output"


def test_the_newest_finished_run_is_found_among_those_of_other_pipelines(load, home):
    assert history.newest_finished(home, "toy") is None
    runner.run(load(TOY), home)
    second = runner.run(load(TOY), home)
    runner.run(load(TOY, name="toy-two"), home)
    failed = load(TOY.replace("add: 4", "add: 5, fail: always"))
    assert runner.run(failed, home).status == "failed"
    newest = history.newest_finished(home, "toy")
    assert newest is not None
    assert newest.id == second.id
    assert newest.folder == home / "runs" / second.id


def test_a_run_record_survives_a_round_trip(load, home):
    record = runner.run(load(TOY, "grow.add=1"), home)
    assert RunRecord.load(record.folder) == record
    assert record.overrides == ["grow.add=1"]


def test_runs_of_machines_in_different_time_zones_are_in_the_order_of_their_starts(load, home, monkeypatch):
    ids = []
    for zone in ("UTC-14", "UTC+11", "UTC"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        ids.append(runner.run(load("stages: {make: {kind: make}}"), home).id)
    monkeypatch.delenv("TZ")
    time.tzset()
    assert history.ids(home) == ids[::-1]


def test_the_events_of_an_earlier_attempt_are_not_displayed_again(load, home, ui):
    text = "stages: {make: {kind: make}, grow: {kind: grow, needs: make, fail: always}}"
    runner.run(load(text), home)
    (partial,) = home.glob("stages/grow-*.partial")
    (partial / "events.jsonl").write_text('{"time": 1.0, "kind": "note", "text": "old"}\n')
    runner.run(load(text), home, ui=ui)
    assert ("grow", "old") not in ui.of("note")


def test_the_plan_says_that_an_output_was_removed(load, home):
    record = runner.run(load(TOY), home)
    shutil.rmtree(record.outputs("make")[0])
    assert runner.plan(load(TOY), home).items[0].reason == "has no output yet"


def _break(ctx: StageContext) -> None:
    raise StageError("cut off")


def test_a_user_interface_that_fails_leaves_a_record_that_says_so(load, home):
    ui = RecordingUI()
    ui.on_progress = lambda: (_ for _ in ()).throw(ValueError("no terminal"))
    with pytest.raises(ValueError, match="no terminal"):
        runner.run(load(TOY), home, ui=ui)
    (folder,) = (home / "runs").iterdir()
    assert RunRecord.load(folder).status == "failed"


def test_a_reader_of_the_output_that_leaves_is_no_fault_of_the_storage(load, home):
    ui = RecordingUI()
    ui.on_progress = lambda: (_ for _ in ()).throw(BrokenPipeError(errno.EPIPE, "Broken pipe"))
    with pytest.raises(BrokenPipeError):
        runner.run(load(TOY), home, ui=ui)


def test_a_stage_that_waits_for_another_tells_its_own_changes_too(load, home):
    runner.run(load(TOY), home)
    plan = runner.plan(load(TOY, "make.value=5", "grow.add=6"), home)
    items = {item.name: (item.reason, item.after) for item in plan.items}
    assert items["grow[a,pretrained]"] == ("add: 4 → 6", ("make",))
    assert items["grow[a,scratch]"] == ("add: 4 → 6", ())


def test_a_plan_says_what_a_stage_took_in_the_newest_run_that_did_its_work(load, home):
    runner.run(load(TOY), home)
    record = runner.run(load(TOY, "grow.add=1"), home)
    record.stages["make"].seconds = 99  # reused: it says nothing
    record.stages["sum"].seconds = 12.5
    record.save()
    seconds = {item.name: item.seconds for item in runner.plan(load(TOY), home).items}
    assert seconds["sum"] == 12.5
    assert 0 < (seconds["make"] or 0) < 99


@pytest.mark.parametrize(
    ("workers", "gpu", "cluster", "launcher"),
    [(1, False, False, "local"), (2, False, False, "ray"), (1, True, False, "ray"), (1, False, True, "ray")],
)
def test_one_cpu_worker_of_this_machine_is_a_process_and_all_else_is_rays(
    tmp_path, monkeypatch, workers, gpu, cluster, launcher
):
    launched: list[str] = []
    monkeypatch.setattr(local, "fit", lambda *work: launched.append("local"))
    monkeypatch.setattr(ray_train, "fit", lambda *work: launched.append("ray"))
    if cluster:
        monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    work = ParallelWork("module:function", {}, workers, gpu=gpu)
    runner.launch(work, "fit-1", tmp_path, threading.Event())
    assert launched == [launcher]

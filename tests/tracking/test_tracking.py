from __future__ import annotations

import contextlib
import getpass
import json
import os
import shutil
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import PIL.Image
import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from tats_core import tracking
from tats_core.errors import SpecError, StoreError
from tats_core.files import write_json
from tats_core.pipeline import runner
from tats_core.specs import flatten
from tats_core.stages.base import StageContext
from tats_core.store import environment
from tats_core.store.journal import Spool, pending
from tats_core.store.run import RunRecord, StageRecord
from tats_core.tracking import sender, server, tracker
from tests.toys import Grow

# MLflow's own use of its libraries; nothing that we could call otherwise.
pytestmark = [
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow.*"),
]

TOY = """
stages:
  make: {kind: make, value: 3}
  grow: {kind: grow, needs: make, matrix: {init: [pretrained, scratch]}}
"""


def children(client: MlflowClient, record: RunRecord) -> dict[str, Run]:
    assert record.tracking_error is None
    experiment = client.get_experiment_by_name(record.pipeline)
    runs = client.search_runs(
        [experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{record.tracking_run}'"
    )
    return {run.info.run_name: run for run in runs}


def test_a_run_has_a_parent_and_a_child_for_each_stage(load, home, client):
    record = runner.run(load(TOY, "grow.add=2"), home)
    parent = client.get_run(record.tracking_run)
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["mlflow.source.name"] == "tats run pipeline toy --set grow.add=2"
    runs = children(client, record)
    assert set(runs) == {"make", "grow[pretrained]", "grow[scratch]"}
    grow = runs["grow[scratch]"]
    assert grow.info.status == "FINISHED"
    assert grow.data.params["add"] == "2"
    assert (grow.data.tags["kind"], grow.data.tags["axis.init"], grow.data.tags["cached"]) == (
        "grow",
        "scratch",
        "false",
    )
    assert "shape.depth" not in runs["make"].data.params, "a default is in the artifact alone"
    assert parent.data.params == {"grow.add": "2"}
    assert runs["make"].data.metrics == {"value": 3.0}
    assert record.stages["make"].tracking_run == runs["make"].info.run_id


def test_a_cached_stage_names_its_source_and_has_its_last_values(load, home, client):
    first = runner.run(load(TOY), home)
    second = runner.run(load(TOY), home)
    make = children(client, second)["make"]
    assert make.data.tags["cached"] == "true"
    assert make.data.tags["source_run"] == first.stages["make"].tracking_run
    assert make.data.metrics == {"value": 3.0}


def test_steps_that_come_again_after_a_resume_are_logged_once(load, home, client, monkeypatch):
    def hook(ctx: StageContext) -> None:
        for step in (
            1,
            2,
            3,
            2,
            3,
            4,
        ):  # a worker died after step 3; the newest checkpoint was that of step 1
            ctx.events.metrics(step, {"loss": 1 / step})

    monkeypatch.setattr(Grow, "hook", staticmethod(hook))
    record = runner.run(load("stages: {grow: {kind: grow, init: scratch}}"), home)
    history = client.get_metric_history(record.stages["grow"].tracking_run, "loss")
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25)]


def curve(ctx: StageContext) -> None:
    for step in (1, 2, 3):
        ctx.events.metrics(step, {"loss": 1 / step})


ALONE = "stages: {grow: {kind: grow, init: scratch}}"


def test_the_events_of_a_stage_are_written_once(load, home, client, monkeypatch):
    monkeypatch.setattr(Grow, "hook", staticmethod(curve))
    record = runner.run(load(ALONE), home)
    journal = (record.folder / "tracking" / "journal.jsonl").read_text()
    kinds = [json.loads(line)["kind"] for line in journal.splitlines()]
    assert [kind for kind in kinds if kind != "system"] == ["run", "stage", "events", "stage_end", "run_end"]
    assert "loss" not in journal
    assert Spool(home, record.id).sent().ended


def test_events_that_were_not_sent_outlive_a_forced_run_that_removes_their_files(
    load, home, client, monkeypatch
):
    monkeypatch.setattr(Grow, "hook", staticmethod(curve))
    with monkeypatch.context() as away:
        away.setattr(server, "connect", lambda home, uri: (_ for _ in ()).throw(OSError("away")))
        away.setattr(tracker, "_BUSY_SECONDS", 0.0)
        first = runner.run(load(ALONE), home)
        assert "entries could not be sent" in (first.tracking_error or "")
        monkeypatch.setattr(Grow, "hook", staticmethod(lambda ctx: ctx.events.metrics(9, {"loss": 9.0})))
        runner.run(load(ALONE), home, force=["grow"])
    assert tracking.sync(home) == []
    run = RunRecord.load(first.folder).stages["grow"].tracking_run
    assert [point.step for point in client.get_metric_history(run, "loss")] == [1, 2, 3]


def test_where_files_cannot_be_linked_events_are_copied(load, home, client, monkeypatch):
    monkeypatch.setattr(Grow, "hook", staticmethod(curve))
    monkeypatch.setattr(Spool, "link", lambda self, events, name: False)
    record = runner.run(load(ALONE), home)
    history = client.get_metric_history(record.stages["grow"].tracking_run, "loss")
    assert [point.step for point in history] == [1, 2, 3]


def test_a_resumed_stage_has_the_whole_curve_in_its_new_run(load, home, client, monkeypatch):
    def hook(ctx: StageContext) -> None:
        again = (ctx.out / "again").exists()
        (ctx.out / "again").touch()
        for step in (3, 4) if again else (1, 2):
            ctx.events.metrics(step, {"loss": step})
        if not again:
            raise RuntimeError("killed")

    monkeypatch.setattr(Grow, "hook", staticmethod(hook))
    pipeline = load("stages: {grow: {kind: grow, init: scratch}}")
    failed = runner.run(pipeline, home)
    assert children(client, failed)["grow"].info.status == "FAILED"
    record = runner.run(pipeline, home)
    history = client.get_metric_history(record.stages["grow"].tracking_run, "loss")
    assert [point.step for point in history] == [1, 2, 3, 4]


def test_pictures_params_results_and_checkpoints_are_logged(load, home, client, monkeypatch):
    def hook(ctx: StageContext) -> None:
        (ctx.out / "pictures").mkdir()
        for step in (10, 20):
            picture = PIL.Image.fromarray(np.full((8, 8, 3), step, np.uint8))
            picture.save(ctx.out / "pictures" / f"masks-{step}.png")
            ctx.events.file(step, "masks", f"pictures/masks-{step}.png")
        ctx.events.params({"global_batch": 64})
        (ctx.out / "weights.pt").write_bytes(b"weights")
        write_json(ctx.out / "result.json", {"top1": 50.0, "benchmark": "ssv2", "clips": 12})

    monkeypatch.setattr(Grow, "hook", staticmethod(hook))
    record = runner.run(load("stages: {grow: {kind: grow, init: scratch}}"), home)
    run = children(client, record)["grow"]
    assert run.data.params["effective.global_batch"] == "64"
    assert run.data.metrics == {"result/top1": 50.0, "result/clips": 12.0}
    weights = record.outputs("grow")[0] / "weights.pt"
    assert run.data.tags["checkpoint.weights.pt"] == weights.as_uri()
    assert len(run.data.tags["checkpoint.weights.pt.sha256"]) == 64
    grid = [artifact.path for artifact in client.list_artifacts(run.info.run_id, "images")]
    assert sum(path.endswith(".png") for path in grid) == 2
    assert {artifact.path for artifact in client.list_artifacts(run.info.run_id, "masks")} == {
        "masks/masks-10.png",
        "masks/masks-20.png",
    }
    assert "config.json" in {artifact.path for artifact in client.list_artifacts(run.info.run_id)}


def test_a_file_is_found_though_the_commit_moves_it_between_the_check_and_the_reading(tmp_path):
    work, committed = tmp_path / "grow.partial", tmp_path / "grow"
    work.mkdir()
    (work / "table.csv").write_text("a,b")
    seen = []

    def read(path: Path) -> str:
        seen.append(path.parent)
        if work.exists():
            work.rename(committed)
        return path.read_text()

    assert sender._use((work, committed), "table.csv", read) == "a,b"
    assert seen == [work, committed]
    with pytest.raises(FileNotFoundError, match="nothing is in none of"):
        sender._use((work, committed), "nothing", read)


def test_the_table_of_the_pipeline_is_on_the_parent(load, home, client, monkeypatch):
    row = {"benchmark": "ssv2", "init": "pretrained", "top1": 40.0, "clips": 8}

    def hook(ctx: StageContext) -> None:
        write_json(ctx.out / "results.json", {"rows": [row], "policy": {"motion_lift": 2.5}})
        (ctx.out / "results.md").write_text("| ssv2 |")

    monkeypatch.setattr(Grow, "hook", staticmethod(hook))
    record = runner.run(load("stages: {grow: {kind: grow, init: scratch}}"), home)
    parent = client.get_run(record.tracking_run)
    assert parent.data.metrics == {"policy/motion_lift": 2.5, "ssv2/pretrained/top1": 40.0}
    assert {artifact.path for artifact in client.list_artifacts(parent.info.run_id, "results")} == {
        "results/results.json",
        "results/results.md",
    }
    table = json.loads(Path(client.download_artifacts(parent.info.run_id, "results_table.json")).read_text())
    assert dict(zip(table["columns"], table["data"][0], strict=True)) == row


def test_a_run_whose_journal_another_process_sends_just_then_has_its_turn(load, home, client, monkeypatch):
    alone, calls = Spool.alone, []

    @contextmanager
    def taken_at_first(self: Spool) -> Iterator[bool]:
        calls.append(self.run)
        if len(calls) == 1:
            yield False
            return
        with alone(self) as mine:
            yield mine

    monkeypatch.setattr(Spool, "alone", taken_at_first)
    record = runner.run(load("stages: {make: {kind: make}}"), home)
    assert children(client, record).keys() == {"make"}


def test_values_of_axes_may_hold_quotes(load, home, client):
    values = ["it's", 'a"b', """it's "both\""""]
    text = json.dumps({"stages": {"make": {"kind": "make", "matrix": {"shape.preset": values}}}})
    record = runner.run(load(text), home)
    assert children(client, record).keys() == {f"make[{value}]" for value in values}
    identity = {"run": record.id, "stage_instance": f"make[{values[2]}]"}
    existing = server.run_with(client, client.get_experiment_by_name("toy").experiment_id, identity)
    assert existing.info.run_id == record.stages[f"make[{values[2]}]"].tracking_run


def test_what_the_server_refuses_does_not_hold_up_the_end_of_a_run(load, home, client, monkeypatch):
    monkeypatch.setattr(server, "quoted", lambda value: f"'{value}")
    start = time.monotonic()
    record = runner.run(load("stages: {make: {kind: make}}"), home)
    assert time.monotonic() - start < tracker._BUSY_SECONDS / 2
    assert "MLflow did not take one entry (run_end): " in (record.tracking_error or "")
    assert pending(home) == []


def test_a_database_of_a_later_mlflow_is_left_alone_with_advice_that_can_come_true(load, home):
    def migrate(revision: str) -> str:
        with closing(sqlite3.connect(home / "mlflow.db")) as database:
            ((before,),) = database.execute("SELECT version_num FROM alembic_version").fetchall()
            database.execute("UPDATE alembic_version SET version_num = ?", [revision])
            database.commit()
        return str(before)

    ours = migrate("feedc0ffee00")
    record = runner.run(load("stages: {make: {kind: make}}"), home)
    assert record.status == "finished"
    error = record.tracking_error or ""
    assert "was written by a later MLflow than" in error
    assert error.endswith("once that is mended, `tats sync` sends them, and so does the next run")
    (left,) = tracking.sync(home)
    assert isinstance(left, tracking.RefusedError)
    with pytest.raises(tracking.RefusedError, match="move the file away as a backup and a new one is made"):
        tracking.connect(home, tracking.tracking_uri(home))
    assert migrate(ours) == "feedc0ffee00"
    assert tracking.sync(home) == []
    assert RunRecord.load(record.folder).tracking_error is None


def test_a_refused_password_loses_no_entry_and_is_named(load, home, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            with contextlib.suppress(OSError):  # the listener is closed
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.recv(65536)
                        connection.sendall(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")

        threading.Thread(target=refuse, daemon=True).start()
        uri = f"http://127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        record = runner.run(load("stages: {make: {kind: make}}"), home)
        listener.shutdown(socket.SHUT_RDWR)
    advice = f"the tracking server {uri} answers 401; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASS"
    assert advice in (record.tracking_error or "")
    assert not (record.folder / "tracking" / "rejected.jsonl").exists()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    record.tracking_uri = None
    record.save()
    assert tracking.sync(home) == []


def test_a_file_that_is_no_database_is_a_sentence_at_once(tmp_path):
    (tmp_path / "mlflow.db").write_text("not a database, and long enough to be read as the head of one" * 9)
    with pytest.raises(tracking.RefusedError, match=r"mlflow\.db: cannot be opened as a database .*backup"):
        tracking.connect(tmp_path, tracking.tracking_uri(tmp_path))


@pytest.mark.parametrize("name", ["two words", "it's", 'a"b', "#1;&=+", "größe"])
def test_homes_with_odd_names_are_tracked(name, load, home, tmp_path, empty_database):
    odd = tmp_path / name
    home.rename(odd)
    record = runner.run(load("stages: {make: {kind: make}}"), odd)
    client = tracking.connect(odd, tracking.tracking_uri(odd))
    assert children(client, record).keys() == {"make"}
    artifacts = {artifact.path for artifact in client.list_artifacts(record.tracking_run)}
    assert "report.html" in artifacts
    assert (odd / "mlflow-artifacts").is_dir()


def test_a_user_without_a_name_has_a_number(load, home, client, monkeypatch):
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr(getpass, "getuser", nameless)
    record = runner.run(load("stages: {make: {kind: make}}"), home)
    assert children(client, record)["make"].data.tags["mlflow.user"] == str(os.getuid())


def test_a_short_run_waits_until_a_new_database_has_its_tables(load, home, client, monkeypatch):
    connect = server.connect

    def slowly(home: Path, uri: str) -> MlflowClient:
        time.sleep(1)
        return connect(home, uri)

    monkeypatch.setattr(server, "connect", slowly)
    monkeypatch.setattr(tracker, "_GRACE_SECONDS", 0.1)
    assert runner.run(load("stages: {make: {kind: make}}"), home).tracking_error is None


def test_system_metrics_end_quietly_where_the_project_folder_vanishes(tmp_path, monkeypatch):
    home = tmp_path / "home"
    record = RunRecord("toy-1", "toy", "", "toy.yaml", str(home), "finished", 0.0, {})
    follower = tracking.Tracker(home, record)
    monkeypatch.setattr(psutil, "cpu_percent", lambda: shutil.rmtree(home) if home.exists() else 0.0)
    monkeypatch.setattr(follower._closing, "wait", lambda seconds: False)
    follower._watch_system()
    assert not home.exists()


def test_no_system_metric_comes_after_the_end_of_a_run(tmp_path, monkeypatch):
    record = RunRecord("toy-1", "toy", "", "toy.yaml", str(tmp_path), "finished", 0.0, {})
    follower = tracking.Tracker(tmp_path, record)
    measured: list[float] = []

    def ends_meanwhile() -> float:
        if measured:
            follower.run_ended(record)
        measured.append(1.0)
        return 1.0

    monkeypatch.setattr(tracker, "_BUSY_SECONDS", 0.0)
    monkeypatch.setattr(psutil, "cpu_percent", ends_meanwhile)
    follower._watch_system()
    assert [operation["kind"] for _, operation in Spool(tmp_path, "toy-1").read()] == ["run_end"]


@pytest.mark.parametrize(
    ("given", "uri"),
    [
        ("", "sqlite:///{here}/home/mlflow.db"),
        ("sqlite:///runs.db", "sqlite:///{here}/runs.db"),
        ("sqlite:////srv/runs.db", "sqlite:////srv/runs.db"),
        ("http://mlflow:5000", "http://mlflow:5000"),
    ],
)
def test_the_place_of_a_database_does_not_depend_on_the_working_directory(given, uri, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    assert tracking.tracking_uri(Path("home")) == uri.format(here=tmp_path)


@pytest.mark.parametrize("name", ["why?", "a%20b"])
def test_a_folder_whose_name_would_change_the_databases_is_refused_at_once(name, load, tmp_path):
    with pytest.raises(StoreError, match="would change the path of the tracking database; take another"):
        runner.run(load("stages: {make: {kind: make}}"), tmp_path / name)


@pytest.mark.parametrize("uri", ["http://me:hidden@host:port", "http://", "http://host:5000\n# kind: Pod"])
def test_an_address_that_is_none_is_refused_before_a_run_starts(uri, load, home, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(
        SpecError, match=r"^MLFLOW_TRACKING_URI .*; it must look like http://host:5000$"
    ) as error:
        runner.run(load("stages: {make: {kind: make}}"), home)
    assert "hidden" not in str(error.value)


def test_a_password_in_the_address_is_in_no_file_and_no_message_of_a_run(load, home, monkeypatch, ui):
    password, quoted = "sword" + "fish", "sword%66ish"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{quoted}@127.0.0.1:1")
    monkeypatch.setattr(tracker, "_GRACE_SECONDS", 0.5)
    monkeypatch.setattr("sys.argv", ["tats", "run", "--notify", f"curl https://chat.test/{password}", "demo"])
    record = runner.run(load("stages: {make: {kind: make}}"), home, ui=ui)
    assert "could not be sent to http://127.0.0.1:1" in (record.tracking_error or "")
    while not (errors := tracking.sync(home)):
        time.sleep(0.1)  # the run's own thread still tries to send it
    texts = [note for _, note in ui.of("note")] + [str(error) for error in errors]
    files = [path for path in home.rglob("*") if path.is_file() and path.name != environment.PATCH]
    assert record.folder / "run.json" in files
    texts += [path.read_text(errors="replace") for path in files]
    assert not [text for text in texts if password in text or quoted in text]


def test_nested_settings_become_dotted_parameters():
    assert flatten({"a": {"b": {"c": 1}, "d": [2]}, "e": None}) == {"a.b.c": 1, "a.d": [2], "e": None}


def test_truth_values_and_texts_are_no_numbers():
    values = {"a": 1, "b": True, "c": "x", "d": 0.5, "e": None}
    assert sender.numbers(values, "r/") == {"r/a": 1.0, "r/d": 0.5}


@pytest.mark.slow
def test_the_trials_of_a_sweep_can_be_compared_and_its_charts_lie_with_their_parent(home, client):
    values = [{"pretrain.sampler.kind": kind, "pretrain.seed": 1} for kind in ("random", "tats")]
    stages = {name: StageRecord(name, f"kind={name} seed=1", "trial", {}, []) for name in ("random", "tats")}
    record = RunRecord(
        "s-1", "s", "A sweep", "", str(home), "running", 1.0, stages, overrides=["seeds.values=[1]"]
    )
    write_json(record.folder / "sweep.json", {})
    tracker = tracking.Tracker(home, record)
    tracker.begin({})
    for stage, settings in zip(stages.values(), values, strict=True):
        stage.status, stage.key = "running", stage.name
        tracker.configs[stage.name] = {"all": settings, "set": settings}
        tracker.stage_started(stage, ())
        for epoch in (1, 2):
            event = {"kind": "metrics", "step": epoch, "time": 1.0, "values": {"pretrain.loss": 1 / epoch}}
            tracker.event(stage.name, event)
        stage.status = "finished"
        tracker.stage_ended(stage)
    for name in ("report.html", "best.yaml", "plots/metrics.png"):
        (record.folder / name).parent.mkdir(exist_ok=True)
        (record.folder / name).write_text("x")
    record.status = "finished"
    tracker.run_ended(record)
    tracker.deliver()
    runs = children(client, record)
    assert {name: run.data.params for name, run in runs.items()} == {
        f"kind={kind} seed=1": {"pretrain.sampler.kind": kind, "pretrain.seed": "1"}
        for kind in ("random", "tats")
    }
    steps = [
        [point.step for point in client.get_metric_history(run.info.run_id, "pretrain.loss")]
        for run in runs.values()
    ]
    assert steps == [[1, 2], [1, 2]]
    parent = client.get_run(record.tracking_run)
    assert parent.data.tags["mlflow.source.name"] == "tats sweep s --set 'seeds.values=[1]'"
    artifacts = {artifact.path for artifact in client.list_artifacts(record.tracking_run)}
    assert artifacts >= {"report.html", "best.yaml", "plots"}


@pytest.mark.slow
def test_a_stage_that_fails_over_a_name_that_is_no_text_ends_in_mlflow_too(home, client):
    stage = StageRecord("data", "data", "data", {}, [])
    record = RunRecord("s-1", "s", "A run", "", str(home), "running", 1.0, {"data": stage})
    tracker = tracking.Tracker(home, record)
    tracker.begin({})
    stage.status, stage.key = "running", "data"
    tracker.configs["data"] = {"all": {}, "set": {}}
    tracker.stage_started(stage, ())
    stage.status, stage.error = "failed", "m\udce9.webm: is damaged"
    tracker.stage_ended(stage)
    record.status = "failed"
    tracker.run_ended(record)
    tracker.deliver()
    run = children(client, record)["data"]
    assert (run.info.status, run.data.tags["error"]) == ("FAILED", "m\\udce9.webm: is damaged")


def test_the_places_of_models_with_an_alias_are_found_in_the_registry(tmp_path: Path) -> None:
    assert tracking.aliased(tmp_path) == set(), "nothing was tracked"
    client = tracking.connect(tmp_path, tracking.tracking_uri(tmp_path))
    client.create_registered_model("toy")
    for name in ("first", "second"):
        location = (tmp_path / "stages" / f"pretrain {name}").as_uri()
        client.create_model_version("toy", location, tags={"output": location})
    client.set_registered_model_alias("toy", "champion", "2")
    assert tracking.aliased(tmp_path) == {tmp_path / "stages" / "pretrain second"}
    # A path that somebody noted is no address.
    client.set_model_version_tag("toy", "2", "by hand", "/srv/a%20b#1?/model")
    client.set_model_version_tag("toy", "2", "remark", "//[x")
    assert Path("/srv/a%20b#1?/model") in tracking.aliased(tmp_path)


def test_the_address_of_a_database_is_read_as_mlflow_reads_it(tmp_path: Path) -> None:
    tracking.connect(tmp_path / "home", f"sqlite:///{tmp_path}/a%20b/runs.db?timeout=5")
    files = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {tmp_path / "a b" / "runs.db", tmp_path / "home" / "mlflow.db.lock"}


def test_addresses_in_a_configuration_are_sent_without_passwords(tmp_path: Path) -> None:
    stage = StageRecord("push", "push", "command", {}, [])
    record = RunRecord("toy-1", "toy", "", "toy.yaml", str(tmp_path), "running", 1.0, {"push": stage})
    record.overrides = ["push.run=curl https://me:hidden@push.test"]
    follower = tracking.Tracker(tmp_path, record)
    config = {"run": ["curl", "https://me:hidden@push.test"], "env": {"URL": "http://a/?token=hidden"}}
    follower.configs["push"] = {"all": config, "set": config}
    follower.begin({"stages": {"push": config}})
    follower.stage_started(stage, ())
    follower.run_ended(record)
    follower.deliver()
    kept = json.dumps([operation for _, operation in Spool(tmp_path, "toy-1").read()])
    assert "https://push.test" in kept
    assert "hidden" not in kept


def test_the_end_of_a_run_waits_for_a_server_that_only_takes_long(load, home, monkeypatch):
    answer = threading.Event()

    class Slow:
        def __init__(self, *_: object) -> None:
            answer.wait()
            raise server.AwayError("it went away")

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setattr(tracker, "Sender", Slow)
    monkeypatch.setattr(tracker, "_GRACE_SECONDS", 0.1)
    threading.Timer(1.5, answer.set).start()
    began = time.monotonic()
    record = runner.run(load("stages: {make: {kind: make}}"), home)
    assert time.monotonic() - began > 1.4, "the grace is for a server that is away"
    assert "(it went away)" in (record.tracking_error or "")

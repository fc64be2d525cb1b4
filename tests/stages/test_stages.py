"""The stage kinds data, report and command, each run alone."""

from __future__ import annotations

import csv
import errno
import json
import os
import subprocess
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tats_core.data import benchmarks, index
from tats_core.data.generate import generate as generate_videos
from tats_core.data.index import Index
from tats_core.data.manifest import Manifest
from tats_core.data.pack import pack
from tats_core.errors import DataError, SpecError, StageError, Stopped, StoreError
from tats_core.files import write_json
from tats_core.pipeline import graph as graphs
from tats_core.pipeline import runner, spec
from tats_core.pipeline.keys import code_of
from tats_core.specs import identity, validate
from tats_core.stages import KINDS, base, command, data, evaluate, probe, report
from tats_core.stages.base import Input, Preflight, StageContext
from tats_core.stages.configs import Placed
from tats_core.stages.jobs import run_workers
from tats_core.training.checkpoint import CheckpointConfig
from tats_core.training.events import EventLog, read_events

Context = Callable[..., StageContext]


@pytest.fixture
def context(tmp_path: Path) -> Context:
    def made(*read: Input, **changed: Any) -> StageContext:
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        fields: dict[str, Any] = {
            "name": "stage",
            "pipeline": "toy",
            "key": "0" * 64,
            "out": out,
            "read": read,
            "events": EventLog(out / "events.jsonl"),
            "fit": None,
            "stop": threading.Event(),
        }
        return StageContext(**fields | changed)

    return made


def test_what_cannot_be_read_beside_a_data_set_stops_no_plan(tmp_path, monkeypatch):
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "gone.txt").symlink_to("nowhere")
    (tmp_path / "lost+found").mkdir()
    scandir = os.scandir

    def refused(folder: Path) -> Any:
        if str(folder).endswith("lost+found"):
            raise PermissionError(errno.EACCES, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refused)
    before = data._fingerprint(tmp_path)
    (tmp_path / "lists" / "new.txt").touch()
    assert data._fingerprint(tmp_path) != before


# --- command -----------------------------------------------------------------------------------------


def test_a_command_gets_its_folder_and_its_inputs(context, tmp_path):
    ctx = context(Input("grow[a]", "grow", {"benchmark": "a"}, tmp_path / "in"))
    config = command.CommandConfig(
        run='echo hello; echo "$TATS_INPUTS" > "$TATS_OUT/inputs"; echo $X', env={"X": "y"}
    )
    command.KIND.run(config, ctx)
    assert json.loads((ctx.out / "output" / "inputs").read_text()) == [
        {"name": "grow[a]", "kind": "grow", "axes": {"benchmark": "a"}, "path": str(tmp_path / "in")}
    ]
    assert (ctx.out / "log" / "command.log").read_text() == "hello\ny\n"


@pytest.mark.parametrize(
    "run",
    [
        "python my.py > $TATS_OUT/x",
        ["python", "my.py"],
        "echo it's; cat my.py",
        f"echo {'x' * 5000}; cat my.py",
    ],
)
def test_a_script_that_a_command_names_counts_with_its_content(tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    config = command.CommandConfig(run=run)
    assert command.KIND.external(config) == {}
    (tmp_path / "my.py").write_text("print(1)")
    before = command.KIND.external(config)
    assert before.keys() == {"my.py"}
    (tmp_path / "my.py").write_text("print(2)")
    assert command.KIND.external(config) != before


def test_a_command_that_fails_is_named_with_its_code_and_log(context):
    with pytest.raises(StageError, match=r"ended with code 3; what it printed is in .*command.log"):
        command.KIND.run(command.CommandConfig(run="exit 3"), context())
    with pytest.raises(
        StageError, match=r"'no-such-program' cannot be started \(No such file or directory\)"
    ):
        command.KIND.run(command.CommandConfig(run=["no-such-program"]), context())


def test_a_command_reads_what_the_program_of_another_wrote(context, tmp_path):
    ctx = context(Input("first", "command", {}, tmp_path / "in"))
    command.KIND.run(command.CommandConfig(run='echo "$TATS_INPUTS" > "$TATS_OUT/inputs"'), ctx)
    (read,) = json.loads((ctx.out / "output" / "inputs").read_text())
    assert read["path"] == str(tmp_path / "in" / "output")


@pytest.mark.parametrize("name", ["", "A=B"])
def test_a_name_that_no_variable_can_have_is_refused(name):
    with pytest.raises(SpecError, match=r"demo\.yaml: work\.env: '.*' cannot name a variable"):
        validate(command.CommandConfig, {"run": "true", "env": {name: "x"}}, "demo.yaml", "work")


def test_a_stop_ends_the_command_and_what_it_started(context, tmp_path):
    ctx = context()
    ctx.stop.set()
    with pytest.raises(Stopped):
        command.KIND.run(command.CommandConfig(run="sleep 60; touch done"), ctx)


# --- report ------------------------------------------------------------------------------------------


def result(folder: Path, kind: str, axes: dict[str, str], **values: Any) -> Input:
    path = folder / f"{kind}-{'-'.join(axes.values())}"
    path.mkdir()
    write_json(path / "result.json", values)
    return Input(f"{kind}[{','.join(axes.values())}]", kind, axes, path)


def test_what_a_killed_driver_left_running_is_ended_before_the_command_starts_again(context, tmp_path):
    ctx = context()
    with subprocess.Popen(["sleep", "600"], env={**os.environ, "TATS_OUT": str(ctx.out / "output")}) as left:
        command.KIND.run(command.CommandConfig(run=["true"]), ctx)
        assert not psutil.pid_exists(left.pid)


def test_what_a_command_leaves_running_is_ended_with_it(context):
    ctx = context()
    command.KIND.run(command.CommandConfig(run="sleep 600 & echo $! > $TATS_OUT/left"), ctx)
    assert not psutil.pid_exists(int((ctx.out / "output" / "left").read_text()))


def test_a_report_joins_the_results_of_each_benchmark_and_start(context, tmp_path):
    pretrained, scratch = ({"benchmark": "ssv2", "init": init} for init in ("pretrained", "scratch"))
    measured = {"top5": 80.0, "low": 10.0, "high": 50.0, "chance": 12.5, "clips": 96, "test_seconds": 7.0}
    ctx = context(
        result(tmp_path, "finetune", pretrained, **pretrained, seconds=4.0, peak_memory_mb=900.0),
        result(tmp_path, "pretrain", {}, motion_lift=2.5, random_lift=1.0, entropy_share=0.5, mask_ratio=0.9),
        result(tmp_path, "evaluate", pretrained, **pretrained, top1=40.0, **measured),
        result(tmp_path, "evaluate", scratch, **scratch, top1=20.0, **measured),
        result(tmp_path, "probe", pretrained, **pretrained, linear_top1=33.0, knn_top1=30.0, seconds=9.0),
    )
    report.KIND.run(report.ReportConfig(), ctx)
    results = json.loads((ctx.out / "results.json").read_text())
    assert results["pipeline"] == "toy"
    assert [(row["init"], row["top1"], row.get("linear_top1")) for row in results["rows"]] == [
        ("pretrained", 40.0, 33.0),
        ("scratch", 20.0, None),
    ]
    assert results["rows"][0]["seconds"] == 4.0, "the fine-tuned model's, not the probe's"
    assert results["policy"] == {
        "motion_lift": 2.5,
        "random_lift": 1.0,
        "entropy_share": 0.5,
        "mask_ratio": 0.9,
    }
    tuned, tested, probed = (
        {"stage": f"{kind}[ssv2,pretrained]", "file": "result.json"}
        for kind in ("finetune", "evaluate", "probe")
    )
    (sources, _), (policy_sources,) = results["sources"], results["policy_sources"]
    assert sources == {
        **dict.fromkeys(("seconds", "peak_memory_mb"), tuned),
        **dict.fromkeys(("top1", *measured), tested),
        **dict.fromkeys(("linear_top1", "knn_top1"), probed),
    }
    assert policy_sources == {
        key: {"stage": "pretrain[]", "file": "result.json"} for key in results["policy"]
    }
    with (ctx.out / "results.csv").open(newline="") as file:
        assert [row["top1"] for row in csv.DictReader(file)] == ["40.0", "20.0"]
    assert "40.0" in (ctx.out / "results.md").read_text()
    assert r"\textbf{40.0} & 10.0--50.0" in (ctx.out / "results.tex").read_text()
    assert '<td class="n"><b>40.0</b></td>' in (ctx.out / "results.html").read_text()
    assert (ctx.out / "results.png").read_bytes().startswith(b"\x89PNG")
    (event,) = [event for _, event in read_events(ctx.out / "events.jsonl")]
    assert (event["kind"], event["path"]) == ("file", "results.png")


def test_a_further_axis_gives_rows_of_its_own(tmp_path):
    inputs = [
        result(tmp_path, "evaluate", {"sampler": sampler}, benchmark="ssv2", init="pretrained", top1=top1)
        for sampler, top1 in (("tats", 40.0), ("random", 30.0))
    ]
    rows, sources = report.join(inputs)
    assert [(row["sampler"], row["top1"]) for row in rows] == [("tats", 40.0), ("random", 30.0)]
    assert [source["top1"]["stage"] for source in sources] == ["evaluate[tats]", "evaluate[random]"]


def test_a_stage_that_has_no_benchmark_is_part_of_all_rows_that_agree_with_what_it_has(tmp_path):
    rows, sources = report.join(
        [
            *(
                result(tmp_path, "evaluate", {"benchmark": name, "init": init}, top1=1.0)
                for name in ("ssv2", "ucf101")
                for init in ("pretrained", "scratch")
            ),
            result(tmp_path, "flops", {"init": "scratch"}, gflops=2.0, top1=9.0),
        ]
    )
    assert [(row["init"], row["top1"], row.get("gflops")) for row in rows] == [
        ("pretrained", 1.0, None),
        ("scratch", 1.0, 2.0),
    ] * 2
    assert [source.get("gflops", {}).get("stage") for source in sources] == [None, "flops[scratch]"] * 2


def test_a_stage_that_agrees_with_no_row_has_one_of_its_own(tmp_path):
    ((row,), (source,)) = report.join([result(tmp_path, "flops", {}, gflops=2.0)])
    assert row == {"benchmark": "all", "init": "", "gflops": 2.0}
    assert source["gflops"]["stage"] == "flops[]"


def test_a_stage_without_a_result_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"result.json: cannot be read"):
        base.read_result(tmp_path)


# --- data --------------------------------------------------------------------------------------------

SMALL = {
    "generate": {
        "benchmarks": ["ucf101"],
        "clips_per_class": 1,
        "test_clips_per_class": 1,
        "frames": 4,
    }
}


def test_generated_data_has_a_manifest_of_each_split_that_moves_with_the_folder(context, tmp_path):
    ctx = context()
    data.KIND.run(validate(data.DataConfig, SMALL, "toy.yaml"), ctx)
    ctx.out.rename(tmp_path / "committed")
    for split in ("train", "test"):
        manifest = Manifest.load(tmp_path / "committed" / f"ucf101.{split}.json")
        assert (manifest.benchmark, manifest.split) == ("ucf101", split)
        assert len(manifest) == len(manifest.classes)
        assert all(Path(video.path).exists() for video in manifest.videos)
    kinds = [event["kind"] for _, event in read_events(tmp_path / "committed" / "events.jsonl")]
    assert "progress" in kinds
    assert kinds.count("note") == 2


def test_data_that_is_elsewhere_is_read_in_place_and_has_the_same_identity(context, tmp_path, monkeypatch):
    data.KIND.run(validate(data.DataConfig, SMALL, "toy.yaml"), context())
    generated = data.KIND.identities(tmp_path / "out")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "ucf101").rename(tmp_path / "elsewhere" / "ucf101")
    (tmp_path / "real").mkdir()
    config = data.DataConfig(root=str(tmp_path / "elsewhere"), benchmarks=("ucf101",))
    data.KIND.run(config, context(out=tmp_path / "real"))
    assert data.KIND.identities(tmp_path / "real") == generated
    # A packed copy too, whose test videos are verified in their shards.
    pack("ucf101", Path(config.root) / "ucf101", tmp_path / "packed" / "ucf101", lambda *_: None, workers=1)
    (tmp_path / "stage").mkdir()
    packed = config.model_copy(update={"root": str(tmp_path / "packed")})
    data.KIND.run(packed, context(out=tmp_path / "stage"))
    assert data.KIND.identities(tmp_path / "stage") == generated
    assert data.KIND.external(packed) != data.KIND.external(config)


@pytest.fixture
def damaged_copy(context, tmp_path) -> data.DataConfig:
    """A data set elsewhere, of whose test videos the first two are cut off."""
    more = {"generate": {**SMALL["generate"], "frames": 30, "test_clips_per_class": 2}}
    data.KIND.run(validate(data.DataConfig, more, "toy.yaml"), context())
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "ucf101").rename(tmp_path / "elsewhere" / "ucf101")
    config = data.DataConfig(root=str(tmp_path / "elsewhere"), benchmarks=("ucf101",))
    videos = benchmarks.BENCHMARKS["ucf101"].read(tmp_path / "elsewhere" / "ucf101", "test").videos
    for video, share in zip(videos, (0.05, 0.6), strict=False):
        content = Path(video.path).read_bytes()
        Path(video.path).write_bytes(content[: int(share * len(content))])
    (tmp_path / "real").mkdir()
    return config


def test_damaged_test_videos_are_named_before_anything_is_trained(context, tmp_path, damaged_copy):
    with pytest.raises(DataError) as caught:
        data.KIND.run(damaged_copy, context(out=tmp_path / "real"))
    text = str(caught.value)
    assert text.startswith("ucf101 (test): 2 of 16 videos are damaged: ")
    assert "30 frames declared, " in text
    assert text.endswith("replace them, or set damaged: leave_out in the data stage, which marks every table")
    assert "\n" not in text
    assert not (tmp_path / "real" / "ucf101.test.json").exists()
    events = [event for _, event in read_events(tmp_path / "out" / "events.jsonl") if event["kind"] == "note"]
    assert (
        sum(": is damaged (" in event["text"] or ": cannot be read (" in event["text"] for event in events)
        == 2
    )


def test_damaged_test_videos_may_be_left_out_and_are_counted(context, tmp_path, damaged_copy):
    config = damaged_copy.model_copy(update={"damaged": "leave_out"})
    data.KIND.run(config, context(out=tmp_path / "real"))
    manifest = Manifest.load(tmp_path / "real" / "ucf101.test.json")
    assert (len(manifest), manifest.absent) == (14, 2)
    assert Manifest.load(tmp_path / "real" / "ucf101.train.json").absent == 0
    notes = [
        event["text"]
        for _, event in read_events(tmp_path / "out" / "events.jsonl")
        if event["kind"] == "note"
    ]
    assert sum(text.startswith("left out of the test: ") for text in notes) == 2


def test_what_is_indexed_is_not_decoded_again_and_a_replaced_video_is_another_data_set(
    context, tmp_path, damaged_copy, monkeypatch
):
    config = damaged_copy.model_copy(update={"damaged": "leave_out"})
    outs = [tmp_path / name for name in ("real", "again", "replaced")]
    for out in outs[1:]:
        out.mkdir()
    data.KIND.run(config, context(out=outs[0], home=tmp_path / "home"))
    (stored,) = (tmp_path / "home" / "indexes").iterdir()
    assert stored.name.startswith("ucf101-")
    decode = index._decoded
    monkeypatch.setattr(index, "_decoded", None)  # it would raise
    data.KIND.run(config, context(out=outs[1], home=tmp_path / "home"))
    assert data.KIND.identities(outs[1]) == data.KIND.identities(outs[0])
    complete = Index.load(stored).digest()
    first = config.model_copy(update={"first": 2, "damaged": "ignore"})
    data.KIND.run(first, context(out=tmp_path / "real", home=tmp_path / "home"))
    assert Index.load(stored).digest() == complete
    data.KIND.run(config, context(out=outs[0], home=tmp_path / "home"))
    monkeypatch.setattr(index, "_decoded", decode)
    train, test = (Manifest.load(outs[0] / f"ucf101.{split}.json") for split in ("train", "test"))
    Path(train.videos[0].path).write_bytes(Path(train.videos[1].path).read_bytes())
    data.KIND.run(config, context(out=outs[2], home=tmp_path / "home"))
    before, after = (data.KIND.identities(out) for out in (outs[0], outs[2]))
    assert before["ucf101.test.json"] == after["ucf101.test.json"] == test.digest()
    assert before["ucf101.train.json"] != after["ucf101.train.json"]


def test_damage_may_be_ignored(context, tmp_path, damaged_copy):
    config = damaged_copy.model_copy(update={"damaged": "ignore"})
    data.KIND.run(config, context(out=tmp_path / "real"))
    assert len(Manifest.load(tmp_path / "real" / "ucf101.test.json")) == 16


def test_each_missing_data_set_is_a_sentence_and_does_not_hinder_a_plan(tmp_path):
    config = data.DataConfig(root=str(tmp_path), benchmarks=("ssv2", "hmdb51"))
    sentences = data.KIND.preflight(config, Preflight("data", {}, tmp_path))
    assert len(sentences) == 2
    assert "ssv2" in sentences[0]
    assert "TATS_DATA_HMDB51" in sentences[1]
    assert data.KIND.external(config) == {"ssv2": "", "hmdb51": ""}


def test_a_data_stage_provides_the_data_sets_of_its_pipeline_and_the_plan_names_them(tmp_path, monkeypatch):
    (tmp_path / "one.yaml").write_text("""
stages:
  data:     {kind: data}
  finetune: {kind: finetune, needs: data, init: scratch, matrix: {benchmark: [ucf101, ssv2]}}
""")
    (tmp_path / "disk" / "ucf101").mkdir(parents=True)
    monkeypatch.setenv("TATS_DATA", str(tmp_path / "disk"))
    monkeypatch.setattr(graphs, "KINDS", KINDS)  # the real ones
    graph = graphs.build(spec.load(str(tmp_path / "one.yaml")))
    config = graph.instances["data"].config
    assert config.names == ("ssv2", "ucf101")
    assert data.KIND.summary(config) == "reads ssv2 (not found), ucf101"
    missing, empty = data.KIND.preflight(config, Preflight("data", {}, tmp_path))
    assert "'ssv2' (Something-Something v2) was not found" in missing
    assert "ucf101: no folder of videos" in empty
    plan = runner.plan(spec.load(str(tmp_path / "one.yaml")), tmp_path / "home")
    assert plan.items[0].reason == "has no output yet; reads ssv2 (not found), ucf101"
    assert config.splits == ("train",)  # nothing is tested here
    modules = code_of(graph.instances["data"]).keys()
    readers = {name.removeprefix("tats_core.data.benchmarks.") for name in modules if ".benchmarks." in name}
    # Of the readers those that are used, and those of the layouts that can be generated.
    assert readers == {"base", "ssv2", "kinetics400", "ucf101", "hmdb51"}
    jhmdb = data.KIND.narrowed(config, []).model_copy(update={"benchmarks": ("jhmdb",)})
    assert "tats_core.data.benchmarks.jhmdb" in code_of(replace(graph.instances["data"], config=jhmdb))
    # A choice stands, and so does a stage that nobody reads.
    chosen = data.DataConfig(benchmarks=("hmdb51",), splits=("test",))
    assert data.KIND.narrowed(chosen, [graph.instances["finetune[ssv2]"].config]) == chosen
    assert data.KIND.narrowed(data.DataConfig(), []).names == ("ssv2", "kinetics400", "ucf101", "hmdb51")


def test_each_stage_reads_the_data_stage_that_has_its_data_set(tmp_path, monkeypatch):
    monkeypatch.setattr(graphs, "KINDS", KINDS)
    text = """
stages:
  mine:     {kind: data, videos: clips}
  generated: {kind: data, generate: {benchmarks: [ucf101]}}
  finetune: {kind: finetune, needs: [mine, generated], init: scratch, matrix: {benchmark: [own, %s]}}
"""
    (tmp_path / "one.yaml").write_text(text % "ucf101")
    instances = graphs.build(spec.load(str(tmp_path / "one.yaml"))).instances
    assert instances["finetune[own]"].needs == ("mine",)
    assert instances["finetune[ucf101]"].needs == ("generated",)
    (tmp_path / "two.yaml").write_text(text % "hmdb51")
    with pytest.raises(
        SpecError, match="kind 'data', whose output it reads; 'mine' does not provide what it"
    ):
        graphs.build(spec.load(str(tmp_path / "two.yaml")))


def test_a_folder_of_videos_is_a_data_set_and_no_list_is_demanded_that_nobody_reads(context, tmp_path):
    config = data.DataConfig(videos=str(tmp_path / "clips"), splits=("train",), damaged="ignore")
    (sentence,) = data.KIND.preflight(config, Preflight("data", {}, tmp_path))
    assert sentence == f"'videos': {tmp_path / 'clips'} is not a folder"
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").touch()
    (tmp_path / "clips" / "train.txt").write_text("a.mp4\n")
    assert data.KIND.preflight(config, Preflight("data", {}, tmp_path)) == []
    ctx = context()
    data.KIND.run(config, ctx)
    assert {path.name for path in ctx.out.glob("own.*")} == {"own.train.json"}
    tested = config.model_copy(update={"splits": ("train", "test")})
    (sentence,) = data.KIND.preflight(tested, Preflight("data", {}, tmp_path))
    assert sentence.startswith("own: no test list in ")


def test_what_is_odd_about_a_copy_is_noted_and_what_it_lacks_is_refused_or_counted(context, tmp_path):
    generate = data.DataConfig.model_validate(SMALL).generate
    assert generate is not None
    root = generate_videos(tmp_path / "disk", generate, workers=1)["ucf101"]
    lists = root / "ucfTrainTestlist"
    first, second = (lists / "trainlist01.txt").read_text().splitlines()[:2]
    with (lists / "testlist01.txt").open("a") as listing:
        listing.write(first.split()[0] + "\n")
    (root / "UCF-101" / second.split()[0]).unlink()
    config = data.DataConfig(root=str(tmp_path / "disk"), benchmarks=("ucf101",))
    (sentence,) = data.KIND.preflight(config, Preflight("data", {}, tmp_path))
    with pytest.raises(DataError, match=r"1 of the .* set 'missing: allow' in the data stage") as caught:
        data.KIND.run(config, context())
    assert str(caught.value) == sentence
    ctx = context()
    data.KIND.run(config.model_copy(update={"missing": "allow"}), ctx)
    assert Manifest.load(ctx.out / "ucf101.train.json").absent == 1
    notes = [event["text"] for _, event in read_events(ctx.out / "events.jsonl") if event["kind"] == "note"]
    assert any(note.startswith("ucf101 (train, fold 1): 1 of the ") for note in notes)
    assert any("the training list has 1 of the " in note for note in notes)


def test_a_change_in_a_list_or_a_folder_of_a_data_set_is_seen(tmp_path):
    folder = tmp_path / "ucf101"
    (folder / "UCF-101" / "Biking").mkdir(parents=True)
    (folder / "ucfTrainTestlist").mkdir()
    listed = folder / "ucfTrainTestlist" / "classInd.txt"
    listed.write_text("1 Biking\n")
    config = data.DataConfig(root=str(tmp_path), benchmarks=("ucf101",))
    seen = [data.KIND.external(config)["ucf101"]]
    listed.write_text("1 Diving\n")
    seen.append(data.KIND.external(config)["ucf101"])
    (folder / "UCF-101" / "Biking" / "v.avi").touch()
    seen.append(data.KIND.external(config)["ucf101"])
    (folder / "UCF-101" / "Biking" / "v.avi").write_bytes(b"another video in its place")
    seen.append(data.KIND.external(config)["ucf101"])
    assert len(set(seen)) == 4
    assert data.KIND.external(config)["ucf101"] == seen[-1]


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"videos": "clips", "benchmarks": ["ssv2"]}, "'videos' is the folder of the data set 'own'"),
        ({"benchmarks": ["ssv3"]}, "no data set 'ssv3'; did you mean 'ssv2'?"),
        ({**SMALL, "root": "/data"}, "root is where 'benchmarks' are read"),
        ({**SMALL, "benchmarks": ["ucf101"]}, "ucf101 is both generated and read"),
        ({**SMALL, "decoded_size": 64}, "so it needs decoded: true"),
        ({"generate": {"clips": 4}}, "data.generate has no key 'clips'"),
    ],
)
def test_a_wrong_data_stage_is_refused(config, sentence):
    with pytest.raises(SpecError) as error:
        validate(data.DataConfig, config, "toy.yaml", prefix="data")
    assert sentence in str(error.value)


# --- probe -------------------------------------------------------------------------------------------


def test_how_an_attentive_probe_is_trained_is_part_of_the_probes_key_and_the_encoding_batch_is_not():
    def identity_of(**keys: Any) -> Any:
        stage = validate(probe.ProbeStage, {"benchmark": "ssv2", **keys}, "p.yaml")
        return identity(stage)

    base_key = identity_of(attentive={})
    assert identity_of() != base_key
    for changed in ({"epochs": 1}, {"batch": 8}, {"clips": 2}, {"lr": 0.1}, {"weight_decay": 0}):
        assert identity_of(attentive=changed) != base_key
    assert identity_of(attentive={}, batch_size=1, gpu=True) == base_key
    assert identity_of(attentive={}, precision="bf16") != base_key


@pytest.mark.parametrize(
    ("stage", "Config", "function"),
    [(probe, probe.ProbeStage, "probe_encoder"), (evaluate, evaluate.EvaluateStage, "score_videos")],
    ids=["probe", "test"],
)
def test_a_probe_or_a_test_takes_a_worker_with_a_gpu_where_it_is_given_one_and_none_otherwise(
    context, tmp_path, monkeypatch, stage, Config, function
):
    fitted, here = [], []
    ctx = context(
        Input("data", "data", {}, tmp_path / "data"),
        Input("finetune", "finetune", {}, tmp_path / "finetune"),
        fit=fitted.append,
    )
    entry = getattr(stage, function)
    for gpu in (True, False):
        config = Config(benchmark="ssv2", init="scratch", precision="bf16", gpu=gpu, max_failures=1)
        assert (stage.KIND.cpus(config), stage.KIND.gpus(config)) == (1, int(gpu))
        monkeypatch.setattr(stage, function, entry if gpu else lambda job, *_: here.append(job))
        stage.KIND.run(config, ctx)
    (work,) = fitted
    assert [alone["inputs"] for alone in here] == [work.job["inputs"]]
    assert work.job["config"] == here[0]["config"] | {"gpu": True}
    assert work.job["config"]["precision"] == "bf16"
    assert work.entry == f"tats_core.stages.{stage.KIND.name}:{function}"
    assert (work.workers, work.fewer, work.gpu, work.max_failures) == (1, (), True, 1)


def test_a_job_in_this_process_stops_after_a_checkpoint_if_asked_and_resumes(context):
    def save(job, world, events, store):
        assert store.begin(CheckpointConfig()) == expected
        store.save({"epoch": 1}, step=1, metrics={})

    expected = None
    ctx = context()
    ctx.stop.set()
    with pytest.raises(Stopped):
        run_workers(save, Placed(benchmark="ssv2"), {}, ctx, workers=0)
    ctx.stop.clear()
    expected = {"epoch": 1}
    run_workers(save, Placed(benchmark="ssv2"), {}, ctx, workers=0)


def test_every_registered_kind_can_be_imported_and_calls_itself_so():
    for name in KINDS:
        if (Path(base.__file__).parent / f"{name}.py").exists():
            assert KINDS[name].name == name

"""The page of a run: of a complete run, a failed run, and a run whose outputs are gone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tats_core.files import write_json
from tats_core.pipeline import runner
from tats_core.report import classes
from tats_core.store import run_page
from tats_core.store.run import RunRecord, StageRecord
from tats_core.training.events import EventLog

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    """A finished run: data, a pre-training with curves and pictures, two evaluations, a report."""
    stages = {
        "data": stage(tmp_path, "data", seconds=1.0),
        "pretrain": stage(tmp_path, "pretrain", "data", seconds=60.0),
        **{
            f"evaluate[ssv2,{init}]": stage(tmp_path, "evaluate", "pretrain", benchmark="ssv2", init=init)
            for init in ("pretrained", "scratch")
        },
    }  # fmt: skip
    stages["report"] = stage(tmp_path, "report", *stages)
    fill_pretraining(Path(stages["pretrain"].folder or ""))
    for record in stages.values():
        if record.kind == "evaluate":
            fill_evaluation(Path(record.folder or ""))
    rows = [
        {
            "benchmark": "ssv2",
            "init": "pretrained",
            "top1": 50.0,
            "low": 40.0,
            "high": 60.0,
            "linear_top1": 33.0,
        },
        {"benchmark": "ssv2", "init": "scratch", "top1": 30.0, "low": 22.0, "high": 40.0, "chance": 12.5},
    ]
    policy = {"motion_lift": 2.5, "random_lift": 1.0, "mask_ratio": 0.9, "visible": 14, "tokens": 144}
    write_json(
        Path(stages["report"].folder or "") / "results.json",
        {"pipeline": "toy", "rows": rows, "policy": policy},
    )
    return RunRecord(
        "toy-1", "toy", f"A {EVIL} run", "toy.yaml", str(tmp_path), "finished", 100.0, stages, finished=162.0,
        overrides=["pretrain.note=it's new"], git_commit="c0ffee",
        tracking_uri="https://me:secret@tracking.test/x",
    )  # fmt: skip


def stage(home: Path, kind: str, *needs: str, seconds: float = 0.5, **axes: str) -> StageRecord:
    name = kind + (f"[{','.join(axes.values())}]" if axes else "")
    folder = home / "stages" / f"{kind}-{'-'.join(axes.values()) or '0'}"
    folder.mkdir(parents=True)
    write_json(folder / "manifest.json", {"digest": "d1" * 32, "files": {}})
    components = {"kind": kind, "config": {}, "code": {}, "inputs": [], "external": {}}
    origin = {"run": "toy-0", "stage": name, "pipeline": "toy", "time": 0}
    write_json(folder / "key.json", {**origin, "components": components})
    return StageRecord(
        name, kind, kind, axes, list(needs), "finished", "has no output yet", "abc123" * 11, str(folder), 1,
        100.0, 100.0 + seconds, seconds,
    )  # fmt: skip


def fill_pretraining(folder: Path) -> None:
    events = EventLog(folder / "events.jsonl")
    for step in range(1, 301):
        events.metrics(step, {"loss": 1 / step, "lr": 1e-4, "odd_metric": float(step)})
    for step in range(0, 300, 30):
        events.metrics(step, {"motion_lift": 1 + step / 100, "random_lift": 1.0})
        for suffix in ("png", "gif"):
            path = folder / f"masks-{step:06d}.{suffix}"
            Image.new("RGB", (2000, 50), (step % 256, 0, 0)).save(path)
            events.file(step, "masks/clip0", path.name)


def fill_evaluation(folder: Path) -> None:
    import numpy as np

    counts = np.array([[3, 1], [0, 4]])
    (folder / "per_class.csv").write_text(classes.per_class(counts, ["up", EVIL]))
    (folder / "confusion.csv").write_text(classes.matrix(counts, ["up", EVIL]))


def test_a_page_has_every_section(record):
    text = run_page.build(record)
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", text) == [
        "Results",
        "What the sampler shows",
        "Curves",
        "Stages",
        "Lineage",
        "Configuration",
        "Environment",
    ]
    for text_part in (
        '<td class="n"><b>50.0</b></td>',
        "+20.0 points over scratch",
        "14 of 144",
        "What each number means",
        "Classes: ssv2, pre-trained",
        "loss: pretrain 1 at step 1, 0.00333 at step 300",
        "odd metric",
        "<code>abc123abc123</code>",
        "<code>d1d1d1d1d1d1</code>",
        "toy-0",
        "c0ffee",
        "tats run pipeline toy --set &#39;pretrain.note=it",
    ):
        assert text_part in text, text_part
    assert "partial copy" not in text


def test_a_page_marks_the_results_of_a_partial_copy(record):
    path = Path(record.stages["report"].folder or "") / "results.json"
    table = json.loads(path.read_text())
    table["rows"][0]["absent_test"] = 2
    write_json(path, table)
    text = run_page.build(record)
    assert '<p class="note">* ssv2: a partial copy, without 2 of the listed test videos</p>' in text
    assert "ssv2* · pre-trained" in text


def test_a_page_names_no_password_runs_no_script_and_fetches_nothing(record):
    record.overrides.append("push.run=curl https://me:secret@push.test")
    record.save_configs({"pretrain": {"all": {"run": ["curl", "https://me:secret@push.test"]}, "set": {}}})
    text = run_page.build(record)
    assert "secret" not in text
    assert "https://tracking.test/x" in text
    assert text.count("https://push.test") == 3  # the command, the overrides, the configuration
    assert "<script" not in text
    assert EVIL not in text
    assert re.findall(r'(?:src|href)="(?!data:image/|#)[^"]*"', text) == []
    assert "url(" not in text


def test_pictures_are_some_of_the_steps_newest_first_and_made_small(record):
    text = run_page.build(record)
    assert re.findall(r"<figcaption>step (\d+)</figcaption>", text) == ["270", "210", "150", "120", "60", "0"]
    assert set(re.findall(r'<img alt="[^"]+" width="(\d+)" height="(\d+)"', text)) == {
        ("1400", "35"),
        ("2000", "50"),
    }
    assert text.count("data:image/gif") == 1


def test_pictures_that_are_too_many_are_left_out(record, monkeypatch):
    monkeypatch.setattr(run_page, "_PICTURE_BYTES", 10)
    text = run_page.build(record)
    assert "data:image" not in text
    assert "Curves" in text


def test_what_the_pipeline_set_stands_apart_from_the_defaults(record):
    config = {"epochs": 12, "model": {"depth": 4, "heads": 3}, "cache": True}
    given = {"epochs": 12, "model": {"depth": 4}}
    record.save_configs({"pretrain": {"all": config, "set": given}})
    text = run_page.build(record)
    assert re.findall(r"<dt>([\w.]+)</dt><dd>(\w+)</dd>", text[text.index("Set by the pipeline") :])[:6] == [
        ("kind", "pretrain"),
        ("needs", "data"),
        ("epochs", "12"),
        ("model.depth", "4"),
        ("model.heads", "3"),
        ("cache", "true"),
    ]
    assert "2 defaults" in text


def test_a_failed_run_has_a_page_that_says_why_and_shows_how_far_it_came(record):
    pretrain = record.stages["pretrain"]
    partial = Path(record.home) / "stages" / f"pretrain-{(pretrain.key or '')[:12]}.partial"
    Path(pretrain.folder or "").rename(partial)
    pretrain.status, pretrain.folder, pretrain.error = "failed", None, "the disk is full"
    record.status, record.error = "failed", "pretrain: the disk is full"
    record.stages["report"].status = "skipped"
    text = run_page.build(record)
    assert '<p class="alert" role="note">pretrain: the disk is full</p>' in text
    assert "loss: pretrain 1 at step 1" in text
    assert "Results</h2>" not in text


def test_a_run_whose_outputs_are_gone_has_a_page(record):
    for failed in record.stages.values():
        failed.folder, failed.key, failed.started = None, None, None
    text = run_page.build(record)
    assert "No stage ran: all 5 were reused or left out." in text


def test_a_page_is_written_atomically(record):
    record.save()
    path = run_page.write(record)
    assert path == record.folder / "report.html"
    assert path.read_text(encoding="utf-8").endswith("</html>\n")
    assert [path.name for path in record.folder.iterdir() if path.suffix == ".tmp"] == []


TOY = "stages: {make: {kind: make, value: 3}, grow: {kind: grow, needs: make}}"


@pytest.mark.usefixtures("no_tracker")
def test_a_run_leaves_its_page(load, tmp_path):
    record = runner.run(load(TOY), tmp_path / "home")
    text = (record.folder / "report.html").read_text(encoding="utf-8")
    assert "<title>toy</title>" in text
    assert "<dt>value</dt><dd>3</dd>" in text


@pytest.mark.usefixtures("no_tracker")
def test_a_page_that_cannot_be_written_is_a_note_and_fails_nothing(load, tmp_path, ui, monkeypatch):
    def broken(record: RunRecord) -> Path:
        raise ValueError("no ink")

    monkeypatch.setattr(run_page, "write", broken)
    record = runner.run(load(TOY), tmp_path / "home", ui=ui)
    assert record.status == "finished"
    assert ("", "the run's page was not written: ValueError: no ink") in ui.of("note")


def test_five_hundred_stages_make_a_page_of_less_than_a_megabyte(tmp_path):
    stages: dict[str, Any] = {"data": StageRecord("data", "data", "data", {}, [], "cached")}
    for index in range(499):
        name = f"finetune[{index}]"
        stages[name] = StageRecord(
            name, "finetune", "finetune", {"seed": str(index)}, ["data"], "finished", "", "ab" * 32, None, 1,
            float(index), index + 2.0, 2.0,
        )  # fmt: skip
    record = RunRecord("big-1", "big", "", "big.yaml", str(tmp_path), "finished", 0.0, stages, finished=501.0)
    text = run_page.build(record)
    assert len(text) < 1_000_000
    assert "finetune × 499" in text
    assert json.dumps("All 500 stages")[1:-1] in text

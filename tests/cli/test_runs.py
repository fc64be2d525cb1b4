"""What `tats runs`, `logs` and `compare` print about finished runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tats_core.store.run import RunRecord


def test_of_ten_thousand_runs_only_the_listed_ones_are_opened(tats, kept, monkeypatch):
    newest = kept.run(23)
    for number in range(9_999):
        (kept.home / "runs" / f"mine-20250102-{number:09d}-ab").mkdir()
    older = kept.home / "runs" / "mine-20250102-000009998-ab"
    (older / "run.json").write_bytes((newest.folder / "run.json").read_bytes())
    opened: list[Path] = []
    load = RunRecord.load
    monkeypatch.setattr(RunRecord, "load", lambda folder: opened.append(folder) or load(folder))
    out = tats("runs", "--limit", "2").out
    assert opened == [newest.folder, older]
    assert "2 of 10000 runs; list more with --limit N or --all" in out


def test_an_unreadable_record_hides_no_other_run(tats, kept):
    readable, broken = kept.run(1), kept.run(2)
    (broken.folder / "run.json").write_text("{")
    ended = tats("runs")
    assert ended.code == 2
    assert readable.id in ended.out
    assert f"{broken.folder / 'run.json'}: is not the record of a run" in ended.err
    assert "list more with" not in ended.out


def test_the_log_of_a_lost_stage_ends_with_lost(tats, kept):
    record = kept.run(1)
    record.status = record.stages["report"].status = "running"
    record.save()
    assert tats("logs", "mine", "report").out.endswith("report  lost\n")


def test_a_comparison_of_five_runs_fits_into_120_columns(tats, kept):
    ids = [kept.run(hour, epochs=hour).id for hour in range(1, 6)]
    assert max(map(len, tats("compare", *ids).out.splitlines())) <= 120


def test_a_difference_stands_over_its_interval(tats, kept):
    first, second = kept.run(1), kept.run(2, top1=60.0)
    lines = tats("compare", first.id, second.id).out.splitlines()
    row = next(number for number, line in enumerate(lines) if line.startswith("ssv2/pretrained/top1"))
    assert lines[row].split() == ["ssv2/pretrained/top1", "50.0", "60.0", "+10.0"]
    assert lines[row + 1].split() == ["40.0–58.0", "50.0–68.0"]
    assert lines[row + 2].strip() == "-2.8 to +22.8"


@pytest.mark.parametrize("words", [("compare", "{a}", "{b}", "--plot"), ("report", "{a}", "--out")])
@pytest.mark.parametrize("path", ["folder.png", "nowhere/a.png"])
def test_a_path_that_cannot_be_written_is_reported_and_leaves_no_file(tats, kept, tmp_path, words, path):
    (tmp_path / "folder.png").mkdir()
    ids = {"a": kept.run(1).id, "b": kept.run(2).id}
    for name in ids.values():
        output = RunRecord.load(kept.home / "runs" / name).outputs("pretrain")[0]
        (output / "events.jsonl").write_text(
            '{"time": 1, "kind": "metrics", "step": 1, "values": {"loss": 1}}\n'
        )
    done = tats(*(word.format(**ids) for word in words), path)
    assert done.code == 2
    assert done.err.startswith(f"tats: {words[-1]} {tmp_path / path}: cannot be written (")
    assert list(tmp_path.glob("*.tmp")) == []


def test_watching_ends_where_nothing_runs_and_redraws_while_anything_does(tats, kept, monkeypatch):
    record = kept.run(1)
    assert tats("runs", "--watch").out.count(record.id) == 1
    states = iter(["running", "finished"])
    monkeypatch.setattr(RunRecord, "state", property(lambda self: next(states)))
    monkeypatch.setattr("tats_core.cli.runs._WATCH_SECONDS", 0.0)
    assert tats("runs", "--watch").out.count(record.id) == 2
    assert tats("runs", "--watch", "--json").code == 2

"""The page of one pipeline run: what came out, how it went, and what it was made of.

Everything is read from the run's record and the folders of its stages. What is missing (the run failed, an
output was removed) is left out of the page.
"""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from markupsafe import Markup

from tats_core import __version__
from tats_core.addresses import masked
from tats_core.errors import StoreError
from tats_core.files import write_text
from tats_core.report import charts, graph, page, results
from tats_core.report.charts import Curve
from tats_core.report.metrics import CURVES, METRICS, REFERENCES, SAMPLER
from tats_core.report.page import Mark, Track
from tats_core.report.results import STARTS, Row
from tats_core.report.table import Table
from tats_core.report.units import DASH, duration, moment, number
from tats_core.specs import flatten
from tats_core.store.run import Run, RunRecord, Stage, StageRecord

FILE: Final = "report.html"

_PICTURE_BYTES = 1_800_000  # in all, before they are written as text, which takes a third more
_GIF_BYTES = 600_000
_STEPS_SHOWN = 6
_GROUPS_SHOWN = 12  # of a stage's curves
_GROUPS_OPEN = 4
_TRACKS = 40
_CLASSES_SHOWN = 24
_CLASSES_COUNTED = 30

_BARS: Final = {"pretrain": "bar0", "finetune": "bar1", "evaluate": "bar2", "probe": "bar3", "data": "bar4"}
_MARKS: Final = {
    "dot0": f"top-1 {STARTS['pretrained']}, with its 95% interval",
    "dot1": f"top-1 {STARTS['scratch']}, with its 95% interval",
    "diamond": "linear probe, frozen",
    "tick": "chance",
}

Tile = tuple[str, str, str]
"""Name, value, remark."""


def write(record: RunRecord) -> Path:
    """Write the page into the run's folder, whole or not at all, and return its path."""
    path = record.folder / FILE
    write_text(path, build(record))
    return path


def build(record: RunRecord) -> str:
    """Return the page as one string."""
    run = Run(record)
    stages = list(run.stages.values())
    try:
        report: Mapping[str, Any] = run.results or {}
    except StoreError:
        report = {}  # the table is gone or corrupt
    instances = [
        graph.Instance(stage.name, stage.stage, stage.kind, tuple(stage.needs), stage.status, stage.seconds)
        for stage in record.stages.values()
    ]
    return page.render(
        "run.html.j2",
        title=record.pipeline,
        lead=record.title or f"One run of the pipeline {record.pipeline}",
        error=record.error,
        tiles=list(_tiles(report, record)),
        results=_results(report, stages) if report else None,
        pictures=_pictures(stages),
        curves=_curves(stages),
        graph=Markup(
            graph.svg(graph.fold(instances), title=f"stages of {record.pipeline} and what each needs")
        ),
        timeline=_timeline(record),
        errors=[f"{stage.name}: {stage.error}" for stage in record.stages.values() if stage.error],
        lineage=_lineage(stages),
        overrides="\n".join(masked(f"--set {override}") for override in record.overrides),
        configuration=_configuration(run),
        **surroundings(run, "run", "pipeline", record.pipeline, pipeline_file=record.source),
        foot=f"Run {record.id}. Written by tats {__version__} at {moment(time.time())}.",
    )


def _label(stage: StageRecord) -> str:
    """Return the stage's values on its axes, or its name where it has none."""
    axes = dict(stage.axes)
    if "init" in axes:
        axes["init"] = STARTS.get(axes["init"], axes["init"])
    return ", ".join(axes.values()) or stage.name


# --- head and results ------------------------------------------------------------------------------------


def _status(stage: StageRecord) -> str:
    return "reused" if stage.status == "cached" else stage.status


def _tiles(report: Mapping[str, Any], record: RunRecord) -> Iterator[Tile]:
    rows, policy = report.get("rows", []), report.get("policy") or {}
    means = results.mean_of_benchmarks(rows)
    top1 = {init: mean["top1"] for init, mean in means.items() if "top1" in mean}
    name = "mean top-1" if top1 else "top-1"
    top1 = top1 or {row["init"]: row["top1"] for row in rows if row.get("top1") is not None}
    # The mean over several samplers says nothing.
    if "pretrained" in top1 and not results.further_axes(rows):
        lead = f"{top1['pretrained'] - top1['scratch']:+.1f} points over scratch" if "scratch" in top1 else ""
        yield f"{name}, pre-trained", f"{top1['pretrained']:.1f}%", lead
    if policy.get("motion_lift") is not None:
        random = f"random sampling: {number(policy.get('random_lift'), 2)}"
        yield METRICS["motion_lift"].title, f"{policy['motion_lift']:.2f}", random
    if policy.get("visible") is not None:
        remark = f"mask ratio {number(policy.get('mask_ratio'), 2)}, sampler {policy.get('sampler', '?')}"
        yield "visible tokens", f"{policy['visible']} of {policy['tokens']}", remark
    took = duration((record.finished or time.time()) - record.started)
    yield "run", page.status(record.status), f"{took}, {moment(record.started)}"
    counts = Counter(map(_status, record.stages.values()))
    yield "stages", str(len(record.stages)), ", ".join(f"{count} {name}" for name, count in counts.items())


def _results(report: Mapping[str, Any], stages: Sequence[Stage]) -> dict[str, Any]:
    rows: Sequence[Row] = report["rows"]
    policies = report.get("policies") or ([report["policy"]] if report.get("policy") else [])
    axes = [key for key, value in policies[0].items() if isinstance(value, str)] if policies else []
    labels = ["sampler", *(axis for axis in axes if axis != "sampler")]
    policies = [{"sampler": "?", **policy} for policy in policies]
    tracks = [_track(row, results.further_axes(rows)) for row in rows if row.get("top1") is not None]
    styles = {mark.style for track in tracks for mark in track.marks}
    return {
        "table": results.table(report) if rows else None,
        "tracks": tracks,
        "marks": {style: words for style, words in _MARKS.items() if style in styles},
        "policies": results.policy_table(policies, labels, SAMPLER) if policies else None,
        "footnotes": results.footnotes(report),
        "meanings": results.meanings(report).items(),
        "classes": [
            _classes(_label(stage.record), stage.folder)
            for stage in stages
            if stage.folder is not None and (stage.folder / "per_class.csv").exists()
        ],
    }


def _track(row: Row, axes: Sequence[str]) -> Track:
    side = int(row["init"] == "scratch")
    marks = [Mark("tick", row["chance"])] if row.get("chance") is not None else []
    if row.get("low") is not None:
        marks.append(Mark(f"range{side}", row["low"], row["high"]))
    marks.append(Mark(f"dot{side}", row["top1"]))
    if row.get("linear_top1") is not None:
        marks.append(Mark("diamond", row["linear_top1"]))
    labels = [results.marked(row), STARTS.get(str(row["init"]), str(row["init"]))]
    label = " · ".join([*labels, *(str(row.get(axis, "")) for axis in axes)])
    return Track(label, marks, f"{row['top1']:.1f}%")


def _classes(label: str, folder: Path) -> dict[str, Any]:
    import pandas as pd

    frame = pd.read_csv(folder / "per_class.csv", dtype=str, keep_default_na=False)
    note = ""
    if len(frame) > _CLASSES_SHOWN:
        note = f"The {_CLASSES_SHOWN} of {len(frame)} classes with the lowest top-1."
        least = frame["top1"].map(lambda top1: float(top1 or "inf")).sort_values(kind="stable")
        frame = frame.loc[least.index[:_CLASSES_SHOWN]]
    titles = {
        "class": "class", "most_confused_with": "most confused with", "confused_clips": "such clips",
        "clips": "clips", "top1": "top-1, %",
    }  # fmt: skip
    counts = pd.read_csv(folder / "confusion.csv", index_col=0, keep_default_na=False)
    parts = {
        "label": label,
        "table": Table(frame[list(titles)].rename(columns=titles), 2),
        "note": note,
    }
    parts |= {"corner": counts.index.name, "names": list(counts.columns), "picture": None}
    if len(counts) > _CLASSES_COUNTED and (folder / "confusion.png").exists():
        alt = f"{label}: share of each true class that was predicted as each class"
        data, width, height = page.reduced(folder / "confusion.png")
        parts["picture"] = page.picture(data, alt, width, height)
    counted = counts if len(counts) <= _CLASSES_COUNTED else counts.iloc[:0]
    return {**parts, "counts": [(str(name), row.tolist()) for name, row in counted.iterrows()]}


# --- pictures --------------------------------------------------------------------------------------------


def _pictures(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """Return one clip's pictures by step, evenly spread, and its newest animation, of each stage."""
    left = _PICTURE_BYTES
    pictured = [stage for stage in stages if any(file.key.startswith("masks/") for file in stage.files)]
    parts = []
    for stage in pictured:
        label = _label(stage.record)
        clip = min(file.key for file in stage.files if file.key.startswith("masks/"))
        paths = {
            (file.path.suffix, file.step): file.path
            for file in stage.files
            if file.key == clip and file.path.exists()
        }
        steps = sorted(step for suffix, step in paths if suffix == ".png")
        grids, moving = [], None
        for step in reversed(_spread(steps, _STEPS_SHOWN if len(pictured) == 1 else 1)):
            data, width, height = page.reduced(paths[".png", step])
            if len(data) > left:
                break
            left -= len(data)
            rows = "video, visible tokens, policy, value, prediction and error by frame"
            alt = f"{label}, step {step}: {rows}"
            grids.append((step, page.picture(data, alt, width, height)))
        newest = max((step for suffix, step in paths if suffix == ".gif"), default=None)
        if newest is not None:
            data = paths[".gif", newest].read_bytes()
            if len(data) <= min(left, _GIF_BYTES):
                left -= len(data)
                width, height = (int.from_bytes(data[at : at + 2], "little") for at in (6, 8))
                alt = f"{label}, step {newest}: the same clip as an animation"
                moving = newest, page.picture(data, alt, width, height, "gif")
        if grids or moving:
            parts.append({"name": stage.record.name, "grids": grids, "moving": moving})
    return parts


def _spread(steps: Sequence[int], count: int) -> list[int]:
    """Return up to `count` steps, evenly spread and with the last."""
    if len(steps) <= count or count == 1:
        return list(steps[-count:])
    indices = sorted({round(i * (len(steps) - 1) / (count - 1)) for i in range(count)})
    return [steps[index] for index in indices]


# --- curves ----------------------------------------------------------------------------------------------


def _curves(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    by_stage: dict[str, list[Stage]] = {}
    for stage in stages:
        if any(len(points) > 1 for points in stage.curves.values()):
            by_stage.setdefault(stage.record.stage, []).append(stage)
    return [_stage_curves(name, members) for name, members in by_stage.items()]


def _stage_curves(name: str, members: Sequence[Stage]) -> dict[str, Any]:
    """Return a group of charts for each combination of axes; the starts share them."""
    starts = list(dict.fromkeys(stage.record.axes.get("init", "") for stage in members))
    groups: dict[str, list[Stage]] = {}
    for stage in sorted(members, key=lambda stage: starts.index(stage.record.axes.get("init", ""))):
        label = ", ".join(value for axis, value in stage.record.axes.items() if axis != "init")
        groups.setdefault(label, []).append(stage)
    legend = {}
    if len(starts) > 1:
        legend = {f"line{index}": STARTS.get(start, start) for index, start in enumerate(starts)}
    elif any(key in stage.curves for stage in members for key in REFERENCES):
        legend = {"line0": "measured", "lineref": "random sampling, or chance"}
    return {
        "name": name,
        "legend": legend,
        "groups": [{"label": label, **_charts(groups[label])} for label in list(groups)[:_GROUPS_SHOWN]],
        "opened": len(groups) <= _GROUPS_OPEN,
        "rest": max(0, len(groups) - _GROUPS_SHOWN),
    }


def _charts(group: Sequence[Stage]) -> dict[str, list[Markup]]:
    drawn = {key for stage in group for key, points in stage.curves.items() if len(points) > 1}
    others = sorted(drawn - {*CURVES, *REFERENCES, "epoch"})
    return {
        "main": [
            _chart(METRICS[key].curve, key, METRICS[key].against, group) for key in CURVES if key in drawn
        ],
        "more": [_chart(key.replace("_", " "), key, "", group) for key in others],
    }


def _chart(title: str, key: str, against: str, group: Sequence[Stage]) -> Markup:
    curves = [Curve.of(_label(stage.record), stage.curves.get(key, {})) for stage in group]
    reference = next((stage.curves[against] for stage in group if against in stage.curves), None)
    if reference:
        curves.insert(0, Curve.of(METRICS[against].curve, reference, reference=True))
    return charts.panel(title, curves)


# --- stages, configuration, environment ------------------------------------------------------------------


def _timeline(record: RunRecord) -> dict[str, Any]:
    ran = [stage for stage in record.stages.values() if stage.started is not None]
    start = min((stage.started or 0.0 for stage in ran), default=0.0)
    end = max((stage.finished or record.finished or time.time() for stage in ran), default=0.0)
    length = (end - start) or 1.0
    rows: dict[str, list[StageRecord]] = {}
    for stage in ran:
        rows.setdefault(stage.name if len(ran) <= _TRACKS else stage.stage, []).append(stage)
    tracks = []
    for name, members in rows.items():
        marks = []
        for stage in members:
            times = stage.started or 0.0, stage.finished or end
            left, right = (100 * (when - start) / length for when in times)
            style = "bar6" if stage.status in ("failed", "stopped") else _BARS.get(stage.kind, "bar5")
            marks.append(Mark(style, left, right, f"{stage.name}: {duration(stage.seconds)}"))
        retries = sum(stage.attempts - 1 for stage in members)
        words = [f"{len(members)} ×"] if len(members) > 1 else []
        words.append(duration(sum(stage.seconds for stage in members)))
        words += [f"{retries} retries" if retries > 1 else "1 retry"] if retries > 0 else []
        words += [s.status for s in members if s.status in ("failed", "stopped", "running")][:1]
        tracks.append(Track(name, marks, ", ".join(words)))
    ticks = [(at, duration(length * at / 100)) for at in (0, 50, 100)]
    return {"tracks": tracks, "ticks": ticks, "reused": len(record.stages) - len(ran)}


def _lineage(stages: Sequence[Stage]) -> Table:
    columns = ["stage", "status", "stage key", "output digest", "made by run", "time", "why it ran, or not"]
    rows = []
    for stage in stages:
        record = stage.record
        try:
            made_by = stage.origin.run if stage.origin else None
            digest = stage.manifest.digest[:12] if stage.manifest else DASH
        except StoreError:
            made_by, digest = None, DASH  # the output is corrupt, which `tats show` reports
        seconds = duration(record.seconds) if record.seconds else None
        key = page.code((record.key or DASH)[:12])
        rows.append([record.name, _status(record), key, page.code(digest), made_by, seconds, record.reason])
    return Table.of(columns, rows, labels=len(columns))


def _configuration(run: Run) -> list[dict[str, Any]]:
    """Return, of the first instance of each stage, what the pipeline set and the defaults."""
    record, configs = run.record, run.configs
    counts = Counter(stage.stage for stage in record.stages.values())
    parts = {}
    for stage in record.stages.values():
        if stage.stage in parts or stage.name not in configs:
            continue
        config, given = flatten(configs[stage.name]["all"]), flatten(configs[stage.name]["set"])
        several = f" (of {counts[stage.stage]}: {stage.name})" if counts[stage.stage] > 1 else ""
        head = {"kind": stage.kind, "needs": stage.needs}
        parts[stage.stage] = {
            "title": f"{stage.stage}{several}",
            "given": {key: _value(value) for key, value in (head | given).items()},
            "defaults": {key: _value(value) for key, value in config.items() if key not in given},
        }
    return list(parts.values())


def _value(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_value, value)) or "none"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else masked(str(value))


def surroundings(run: Run, *words: str, **sources: str) -> dict[str, Any]:
    """Return the command that started a run, and its place, times and environment, for its page.

    Args:
        words: the command, without overrides, where none was recorded.
        sources: further pairs, after the run's id.
    """
    record, environment = run.record, dict(run.environment)
    overrides = [part for override in record.overrides for part in ("--set", masked(override))]
    command = environment.pop("command", shlex.join(["tats", *words, *overrides]))
    pairs = {
        "run": record.id,
        **{name.replace("_", " "): value for name, value in sources.items()},
        "started": moment(record.started),
        "ended": moment(record.finished),
        "git commit": record.git_commit or "not run from a checkout",
        "MLflow": masked(record.tracking_uri or DASH),
        "MLflow run": record.tracking_run or DASH,
        **environment,
    }
    return {"command": command, "environment": pairs.items()}

"""The page of one pipeline run: what came out, how it went, and what it was made of.

Everything is read from the run's record and the folders of its stages; what is not
there (a run that failed, an output that was removed) has no place on the page, and never fails it.
"""

from __future__ import annotations

import csv
import io
import json
import shlex
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tats_core import __version__
from tats_core.addresses import without_password
from tats_core.report import graph, page, paper, tables
from tats_core.report.curves import Series, chart, short
from tats_core.report.page import Html, Mark, Section, Track
from tats_core.report.units import duration, moment
from tats_core.specs import flatten
from tats_core.store import environment, logs
from tats_core.store.layout import KEY, MANIFEST
from tats_core.store.run import RunRecord, StageRecord
from tats_core.training.events import read_events

FILE: Final = "report.html"

_PICTURE_BYTES = 1_800_000  # in all, before they are written as text, which takes a third more
_GIF_BYTES = 600_000
_STEPS_SHOWN = 6
_GROUPS_SHOWN = 12  # of a stage's curves
_GROUPS_OPEN = 4
_TRACKS = 40
_CLASSES_SHOWN = 24
_CLASSES_COUNTED = 30

_PANELS: Final = {
    # metric: title, what it is drawn against
    "loss": ("loss", ()),
    "attentive_loss": ("loss of the attentive probe", ()),
    "train_top1": ("training top-1, %", ()),
    "motion_lift": ("motion lift", ("random_lift",)),
    "entropy_share": ("entropy of the policy / log N", ()),
    "kl": ("KL to the old policy", ()),
    "clip_fraction": ("clipped share of the ratios", ()),
    "explained_variance": ("explained variance", ()),
    "linear_top1": ("linear probe, top-1 %", ("probe_chance",)),
    "knn_top1": ("kNN probe, top-1 %", ("probe_chance",)),
    "effective_rank": ("effective rank of the features", ()),
    "lr": ("learning rate", ()),
    "clips_per_second": ("clips per second", ()),
}  # fmt: skip
_REFERENCES: Final = {"random_lift": "random sampling", "probe_chance": "chance"}
_NOT_CURVES: Final = frozenset({"epoch", *_REFERENCES})

_BARS: Final = {
    "pretrain": "bar0", "finetune": "bar1", "evaluate": "bar2", "probe": "bar3", "data": "bar4",
}  # fmt: skip

Points = dict[int, float]


def write(record: RunRecord) -> Path:
    """Write the page into the run's folder, whole or not at all, and return its place."""
    path = record.folder / FILE
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(build(record), encoding="utf-8")
    beside.replace(path)
    return path


def build(record: RunRecord) -> str:
    """Return the page as one string."""
    stages = [_read(one, record) for one in record.stages.values()]
    results = _results(record)
    sections = [
        _results_section(results, stages),
        _pictures_section(stages),
        _curves_section(stages),
        _stages_section(record, stages),
        _lineage_section(stages),
        _configuration_section(record),
        _environment_section(record),
    ]
    head = [_tiles(record, results)]
    if record.error:
        head.insert(0, page.alert(record.error))
    return page.page(
        record.pipeline,
        [one for one in sections if one is not None],
        subtitle=record.title or f"One run of the pipeline {record.pipeline}",
        head=head,
        foot=f"Run {record.id}. Written by tats {__version__} at {moment(time.time())}.",
    )


# --- what is read ---------------------------------------------------------------------------------------


@dataclass
class _Stage:
    """One stage with what its folder holds; `curves` is metric → step → value."""

    record: StageRecord
    folder: Path | None
    curves: dict[str, Points] = field(default_factory=dict)
    files: list[tuple[int, str, Path]] = field(default_factory=list)
    """Step, key and place of each file that it told of."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""

    @property
    def label(self) -> str:
        """The stage's values on its axes, or its name where it has none."""
        axes = dict(self.record.axes)
        if "init" in axes:
            axes["init"] = paper.STARTS.get(axes["init"], axes["init"])
        return ", ".join(axes.values()) or self.record.name


def _read(stage: StageRecord, record: RunRecord) -> _Stage:
    folder = logs.folder(record, stage)
    if folder is None or not folder.is_dir():
        return _Stage(stage, None)
    read = _Stage(stage, folder)
    read.origin = _json(folder / KEY) or {}
    read.digest = (_json(folder / MANIFEST) or {}).get("digest", "")
    for _, event in read_events(folder / "events.jsonl"):
        if event["kind"] == "metrics":
            for key, value in event["values"].items():
                read.curves.setdefault(key, {})[event["step"]] = value
        elif event["kind"] == "file":
            read.files.append((event["step"], event["key"], folder / event["path"]))
    return read


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def _results(record: RunRecord) -> dict[str, Any] | None:
    folders = record.outputs("report")
    return _json(folders[-1] / "results.json") if folders else None


# --- head -----------------------------------------------------------------------------------------------


def _tiles(record: RunRecord, results: Mapping[str, Any] | None) -> Html:
    counts = Counter(stage.status for stage in record.stages.values())
    said = ", ".join(
        f"{count} {'reused' if status == 'cached' else status}" for status, count in counts.items()
    )
    took = duration((record.finished or time.time()) - record.started)
    status = Html(f'<span class="status {page.text(record.status)}">{page.text(record.status)}</span>')
    found: list[tuple[str, Any, str]] = [("run", status, f"{took}, {moment(record.started)}")]
    found.append(("stages", len(record.stages), said))
    if results:
        found[:0] = [*_top1_tile(results["rows"]), *_policy_tiles(results.get("policy") or {})]
    return page.tiles(found)


def _top1_tile(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Any, str]]:
    if paper.further_axes(rows):
        return  # the mean over several samplers says nothing
    means = {
        init: values["top1"] for init, values in tables.mean_of_benchmarks(rows).items() if "top1" in values
    }
    name = "mean top-1"
    if not means:
        name = "top-1"
        means = {row["init"]: row["top1"] for row in rows if row.get("top1") is not None}
    if "pretrained" in means:
        than = (
            f"{means['pretrained'] - means['scratch']:+.1f} points over scratch" if "scratch" in means else ""
        )
        yield f"{name}, pre-trained", f"{means['pretrained']:.1f}%", than


def _policy_tiles(policy: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    if policy.get("motion_lift") is not None:
        yield (
            "motion lift",
            f"{policy['motion_lift']:.2f}",
            f"random sampling: {tables.number(policy.get('random_lift'), 2)}",
        )
    if policy.get("visible") is not None:
        ratio, sampler = tables.number(policy.get("mask_ratio"), 2), policy.get("sampler", "tats")
        remark = f"mask ratio {ratio}, sampler {sampler}"
        yield "visible tokens", f"{policy['visible']} of {policy['tokens']}", remark


# --- results --------------------------------------------------------------------------------------------


def _results_section(results: Mapping[str, Any] | None, stages: Sequence[_Stage]) -> Section | None:
    if results is None:
        return None
    rows = results["rows"]
    parts: list[Html] = []
    if rows:
        parts.append(page.scroll(Html(paper.html_table(paper.table(results))), "results"))
        parts.append(_intervals(rows))
    policies = results.get("policies") or ([results["policy"]] if results.get("policy") else [])
    if policies:
        parts += [page.heading("What the sampler became"), _policies(policies)]
    meanings = page.key_values(tables.MEANINGS.items())
    parts.append(page.collapsible("What each number means", meanings))
    parts += [_classes(one) for one in stages if one.folder and (one.folder / "per_class.csv").exists()]
    return page.section("Results", *parts)


def _intervals(rows: Sequence[Mapping[str, Any]]) -> Html:
    axes = paper.further_axes(rows)
    drawn: list[Track] = []
    looks: dict[str, str] = {}
    for row in rows:
        if row.get("top1") is None:
            continue
        side = int(row["init"] == "scratch")
        start = paper.STARTS.get(row["init"], row["init"])
        marks = [Mark("tick", row["chance"])] if row.get("chance") is not None else []
        if row.get("low") is not None:
            marks.append(Mark(f"range{side}", row["low"], row["high"]))
        marks.append(Mark(f"dot{side}", row["top1"]))
        if row.get("linear_top1") is not None:
            marks.append(Mark("diamond", row["linear_top1"]))
        words = {
            f"dot{side}": f"top-1 {start}, with its 95% interval",
            "diamond": "linear probe, frozen",
            "tick": "chance",
        }
        looks |= {mark.look: words[mark.look] for mark in marks if mark.look in words}
        label = " · ".join([row["benchmark"], start, *(str(row.get(axis, "")) for axis in axes)])
        drawn.append(Track(label, marks, f"{row['top1']:.1f}%"))
    if not drawn:
        return Html("")
    ticks = [(float(at), f"{at}%") for at in (0, 25, 50, 75, 100)]
    shown = sorted(looks, key=["dot0", "dot1", "diamond", "tick"].index)
    return page.join(
        [
            page.legend({look: looks[look] for look in shown}),
            page.tracks(drawn, ticks, "top-1 by benchmark and start"),
        ]
    )


def _policies(policies: Sequence[Mapping[str, Any]]) -> Html:
    numbers = {
        "mask_ratio": "mask ratio", "motion_lift": "motion lift", "random_lift": "random lift",
        "entropy_share": "entropy / log N", "coverage": "coverage", "linear_top1": "linear",
        "knn_top1": "kNN", "effective_rank": "rank", "loss": "loss",
    }  # fmt: skip
    known = {key: title for key, title in numbers.items() if any(key in one for one in policies)}
    axes = [key for key in policies[0] if isinstance(policies[0][key], str) and key != "sampler"]
    lines = [
        [
            one.get("sampler", "tats"),
            *(one.get(axis, "") for axis in axes),
            *(short(one[key]) if one.get(key) is not None else tables.DASH for key in known),
        ]
        for one in policies
    ]
    return page.table(["sampler", *axes, *known.values()], lines, words=1 + len(axes))


def _classes(stage: _Stage) -> Html:
    assert stage.folder is not None
    with (stage.folder / "per_class.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    parts = []
    note = ""
    if len(lines) > _CLASSES_SHOWN:
        lines.sort(key=lambda line: float(line["top1"] or "inf"))
        note = f"The {_CLASSES_SHOWN} classes of {len(lines)} that are found least."
        lines = lines[:_CLASSES_SHOWN]
    titles = {
        "class": "class", "most_confused_with": "most confused with", "confused_clips": "such clips",
        "clips": "clips", "top1": "top-1, %",
    }  # fmt: skip
    cells = ([line[key] for key in titles] for line in lines)
    parts.append(page.table(list(titles.values()), cells, caption=note, words=2))
    with (stage.folder / "confusion.csv").open(encoding="utf-8", newline="") as file:
        (corner, *classes), *counts = csv.reader(file)
    if len(classes) <= _CLASSES_COUNTED:
        rows = [(name, [int(cell) for cell in cells]) for name, *cells in counts]
        caption = "Clips by true class (row) and predicted class (column); darker: a larger share of the row."
        parts.append(page.heat_table(classes, rows, corner=corner, caption=caption))
    elif (stage.folder / "confusion.png").exists():
        data, size = _small(stage.folder / "confusion.png")
        alt = f"{stage.label}: share of each true class that was predicted as each class"
        parts.append(page.figure(page.picture(data, alt, size)))
    return page.collapsible(f"Classes: {stage.label}", *parts)


# --- pictures -------------------------------------------------------------------------------------------


def _pictures_section(stages: Sequence[_Stage]) -> Section | None:
    left = _PICTURE_BYTES
    parts: list[Html] = []
    having = [one for one in stages if any(key.startswith("masks/") for _, key, _ in one.files)]
    for stage in having:
        shown, left = _pictures(stage, left, _STEPS_SHOWN if len(having) == 1 else 1)
        parts += shown
    if not parts:
        return None
    intro = page.paragraph(
        "A held-out clip: what the sampler shows of it, how it chose, and what the autoencoder makes of the"
        " rest. Newest first; scroll sideways to go back to the start."
    )
    return page.section("What the sampler shows", intro, *parts)


def _pictures(stage: _Stage, left: int, steps: int) -> tuple[list[Html], int]:
    """Return one clip's pictures by step, evenly spread, and its newest animation, within `left` bytes."""
    first = min(key for _, key, _ in stage.files if key.startswith("masks/"))
    there = {(step, path.suffix): path for step, key, path in stage.files if key == first and path.exists()}
    grids = sorted(step for step, suffix in there if suffix == ".png")
    moving = sorted(step for step, suffix in there if suffix == ".gif")
    figures, parts = [], []
    for step in reversed(_spread(grids, steps)):
        data, size = _small(there[step, ".png"])
        if len(data) > left:
            break
        left -= len(data)
        alt = (
            f"{stage.label}, step {step}: video, visible tokens, policy, value, prediction and error by frame"
        )
        figures.append(page.figure(page.picture(data, alt, size), f"step {step}"))
    if figures:
        parts = [
            page.heading(stage.record.name),
            page.strip(figures, f"pictures of {stage.record.name} by step"),
        ]
    if moving:
        data = there[moving[-1], ".gif"].read_bytes()
        if len(data) <= min(left, _GIF_BYTES):
            left -= len(data)
            alt = f"{stage.label}, step {moving[-1]}: the same clip as an animation"
            moves = page.picture(data, alt, _gif_size(data), "gif")
            parts.append(page.figure(moves, f"The same clip in motion, step {moving[-1]}"))
    return parts, left


def _spread(steps: Sequence[int], count: int) -> list[int]:
    """Return up to `count` of them, evenly spread, the last among them."""
    if len(steps) <= count:
        return list(steps)
    if count == 1:
        return [steps[-1]]
    places = {round(place * (len(steps) - 1) / (count - 1)) for place in range(count)}
    return [steps[place] for place in sorted(places)]


def _small(path: Path) -> tuple[bytes, tuple[int, int]]:
    """Return a picture as a PNG of 256 colours, a quarter of the size, at most 1,400 pixels wide."""
    from PIL import Image

    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((1400, 1400))
    out = io.BytesIO()
    picture.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(out, "PNG")
    return out.getvalue(), picture.size


def _gif_size(data: bytes) -> tuple[int, int]:
    return int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")


# --- curves ---------------------------------------------------------------------------------------------


def _curves_section(stages: Sequence[_Stage]) -> Section | None:
    parts: list[Html] = []
    names = dict.fromkeys(one.record.stage for one in stages if _has_curves(one))
    for name in names:
        members = [one for one in stages if one.record.stage == name and _has_curves(one)]
        parts += [page.heading(name), *_stage_curves(members)]
    if not parts:
        return None
    intro = page.paragraph("By optimiser step; the last value stands above each curve.")
    return page.section("Curves", intro, *parts)


def _has_curves(stage: _Stage) -> bool:
    return any(len(points) > 1 for points in stage.curves.values())


def _stage_curves(members: Sequence[_Stage]) -> list[Html]:
    """Return a group of charts for each combination of axes; the starts share them."""
    groups: dict[str, list[_Stage]] = {}
    for one in members:
        label = ", ".join(value for axis, value in one.record.axes.items() if axis != "init")
        groups.setdefault(label, []).append(one)
    starts = list(dict.fromkeys(one.record.axes.get("init", "") for one in members))
    parts = []
    if len(starts) > 1:
        looks = {f"line{place}": paper.STARTS.get(start, start) for place, start in enumerate(starts)}
        parts.append(page.legend(looks))
    elif any(name in one.curves for one in members for name in _REFERENCES):
        parts.append(page.legend({"line0": "measured", "lineref": "random sampling, or chance"}))
    for place, (label, group) in enumerate(groups.items()):
        if place == _GROUPS_SHOWN:
            parts.append(page.paragraph(f"And {len(groups) - place} more, which are in MLflow."))
            break
        charts = _charts(group, starts)
        if label:
            parts.append(page.collapsible(label, *charts, opened=len(groups) <= _GROUPS_OPEN))
        else:
            parts += charts
    return parts


def _charts(group: Sequence[_Stage], starts: Sequence[str]) -> list[Html]:
    ordered = sorted(group, key=lambda one: starts.index(one.record.axes.get("init", "")))
    drawn = {key for one in ordered for key, points in one.curves.items() if len(points) > 1} - _NOT_CURVES
    main = [
        _panel(title, key, references, ordered)
        for key, (title, references) in _PANELS.items()
        if key in drawn
    ]
    others = [_panel(key.replace("_", " "), key, (), ordered) for key in sorted(drawn - set(_PANELS))]
    more = (
        [page.collapsible(f"{len(others)} more curve{'s' if len(others) > 1 else ''}", page.grid(others))]
        if others
        else []
    )
    return [page.grid(main), *more]


def _panel(title: str, key: str, references: Sequence[str], ordered: Sequence[_Stage]) -> Html:
    series = []
    for name in references:
        points = next((one.curves[name] for one in ordered if name in one.curves), {})
        series.append(_series(_REFERENCES[name], points, reference=True))
    series += [_series(one.label, one.curves.get(key, {})) for one in ordered]
    return page.figure(Html(chart(title, series)))


def _series(name: str, points: Points, *, reference: bool = False) -> Series:
    steps = sorted(points)
    return Series(name, steps, [points[step] for step in steps], reference)


# --- stages ---------------------------------------------------------------------------------------------


def _stages_section(record: RunRecord, stages: Sequence[_Stage]) -> Section:
    instances = [
        graph.Instance(one.name, one.stage, one.kind, tuple(one.needs), one.status, one.seconds or None)
        for one in record.stages.values()
    ]
    drawing = graph.svg(graph.fold(instances), title=f"stages of {record.pipeline} and what each needs")
    parts = [page.scroll(page.figure(Html(drawing)), "stage graph"), page.heading("Timeline")]
    parts.append(_timeline(record))
    told = [one.record for one in stages if one.record.error]
    parts += [page.alert(f"{one.name}: {one.error}") for one in told]
    return page.section("Stages", *parts)


def _timeline(record: RunRecord) -> Html:
    ran = [one for one in record.stages.values() if one.started is not None]
    if not ran:
        return page.paragraph(f"Nothing ran: what the {len(record.stages)} stages leave was there already.")
    begun = min(one.started or 0.0 for one in ran)
    end = max(one.finished or record.finished or time.time() for one in ran)
    whole = (end - begun) or 1.0
    rows: dict[str, list[StageRecord]] = {}
    for one in ran:
        rows.setdefault(one.name if len(ran) <= _TRACKS else one.stage, []).append(one)
    drawn = []
    for name, members in rows.items():
        marks = []
        for one in members:
            start = 100 * ((one.started or 0.0) - begun) / whole
            stop = 100 * ((one.finished or end) - begun) / whole
            look = "bar6" if one.status in ("failed", "stopped") else _BARS.get(one.kind, "bar5")
            marks.append(Mark(look, start, stop, f"{one.name}: {duration(one.seconds)}"))
        tries = sum(one.attempts for one in members) - len(members)
        said = [f"{len(members)} ×"] if len(members) > 1 else []
        said += [duration(sum(one.seconds for one in members))]
        said += [f"{tries} retries" if tries > 1 else "1 retry"] if tries > 0 else []
        said += [one.status for one in members if one.status in ("failed", "stopped", "running")][:1]
        drawn.append(Track(name, marks, ", ".join(said)))
    ticks = [(float(at), duration(whole * at / 100)) for at in (0, 50, 100)]
    reused = len(record.stages) - len(ran)
    rest = [page.paragraph(f"{reused} stages did not run: reused, or left out.")] if reused else []
    return page.join([page.tracks(drawn, ticks, "when each stage ran"), *rest])


def _lineage_section(stages: Sequence[_Stage]) -> Section:
    lines = [
        [
            one.record.name,
            "reused" if one.record.status == "cached" else one.record.status,
            Html(f"<code>{page.text((one.record.key or tables.DASH)[:12])}</code>"),
            Html(f"<code>{page.text(one.digest[:12] or tables.DASH)}</code>"),
            one.origin.get("run", tables.DASH),
            duration(one.record.seconds) if one.record.seconds else tables.DASH,
            one.record.reason,
        ]
        for one in stages
    ]
    columns = ["stage", "status", "stage key", "output digest", "made by run", "time", "why it ran, or not"]
    intro = page.paragraph(
        "A stage's key holds its configuration, its code and the digests of what it read; its output stands"
        " under that key. The same key and digest are the same result."
    )
    listed = page.table(columns, lines, words=len(columns))
    long = len(lines) > 12
    return page.section(
        "Lineage", intro, page.collapsible(f"All {len(lines)} stages", listed) if long else listed
    )


# --- configuration and environment ----------------------------------------------------------------------


def _configuration_section(record: RunRecord) -> Section:
    parts: list[Html] = [
        page.heading("Changed for this run"),
        page.code("\n".join(f"--set {one}" for one in record.overrides))
        if record.overrides
        else page.paragraph("Nothing: no override was given."),
    ]
    first: dict[str, StageRecord] = {}
    for one in record.stages.values():
        first.setdefault(one.stage, one)
    counts = Counter(one.stage for one in record.stages.values())
    configs = record.configs() if record.has_configs else {}
    for stage, one in first.items():
        if one.name not in configs:
            continue
        config, given = flatten(configs[one.name]["all"]), flatten(configs[one.name]["set"])
        engine = {"kind": one.kind, "needs": one.needs}
        rest = {key: value for key, value in config.items() if key not in given}
        several = f" (of {counts[stage]}: {one.name})" if counts[stage] > 1 else ""
        body = [page.heading("Set by the pipeline"), _pairs({**engine, **given})]
        if rest:
            body.append(page.collapsible(f"{len(rest)} defaults", _pairs(rest)))
        parts.append(page.collapsible(f"{stage}{several}", *body))
    if not configs:
        parts.append(page.paragraph("The configuration of each stage was not kept beside this run."))
    return page.section("Configuration", *parts)


def _pairs(values: Mapping[str, Any]) -> Html:
    return page.key_values((key, _said(value)) for key, value in values.items())


def _said(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_said, value)) or "none"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _environment_section(record: RunRecord) -> Section:
    found = environment.load(record)
    words = ["tats", "run", "pipeline", record.pipeline]
    words += [part for one in record.overrides for part in ("--set", one)]
    command = found.pop("command", shlex.join(words))
    pairs: list[tuple[str, Any]] = [
        ("run", record.id),
        ("pipeline file", record.source),
        ("started", moment(record.started)),
        ("ended", moment(record.finished) if record.finished else tables.DASH),
        ("git commit", record.git_commit or "not run from a checkout"),
        ("MLflow", without_password(record.tracking_uri or tables.DASH)),
        ("MLflow run", record.tracking_run or tables.DASH),
    ]
    pairs += [(name, value) for name, value in found.items()]
    return page.section(
        "Environment",
        page.paragraph("The command that started this run:"),
        page.code(command),
        page.key_values(pairs),
    )

"""`tats runs`."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tats_core.cli.options import DEFAULT_HOME, Home, complete_pipeline
from tats_core.errors import StoreError

if TYPE_CHECKING:
    from tats_core.store.run import RunRecord

SCHEMA = 1


def runs(
    pipeline: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of this pipeline alone.", autocompletion=complete_pipeline),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many, the newest first.")] = 20,
    everything: Annotated[bool, typer.Option("--all", help="All there are.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """List the runs, the newest first: how far they are, and what came out.

    ETA is when the stages that run now will be done; best is the mean top-1 over the benchmarks of the better
    start, or the motion lift where no accuracy was measured.
    """
    from tats_core.store import history

    home = home.expanduser().absolute()
    wanted = None if pipeline is None else history.check_pipeline(pipeline, home)
    damaged: list[str] = []  # one record that cannot be read hides no other
    found = history.records(home, wanted, damaged)
    # In order of start, so that only those shown are opened.
    rows = [describe(record) for record in (found if everything else itertools.islice(found, limit))]
    total = len(history.ids(home, wanted))
    if as_json:
        typer.echo(json.dumps({"schema": SCHEMA, "home": str(home), "total": total, "runs": rows}, indent=2))
    elif rows or not damaged:
        _print(rows, total - len(damaged), wanted, home)
    if damaged:
        raise StoreError("\n".join(damaged))


def describe(record: RunRecord) -> dict[str, Any]:
    """Return one run as `--json` gives it. Times are seconds since the epoch, spans seconds."""
    state = record.state
    running = [_running(record, one.name) for one in record.stages.values() if one.status == "running"]
    left = [one["eta"] for one in running if one["eta"] is not None]
    ended = record.finished if state != "died" else _last_sign(record)
    return {
        "id": record.id,
        "pipeline": record.pipeline,
        "title": record.title,
        "state": state,
        "done": sum(one.done for one in record.stages.values()),
        "stages": len(record.stages),
        "running": running,
        "failed": [one.name for one in record.stages.values() if one.status == "failed"],
        "eta": max(left) if left and state == "running" else None,
        "started": record.started,
        "finished": record.finished,
        "seconds": (ended or time.time()) - record.started,
        "best": best(record),
        "error": record.error,
    }


def best(record: RunRecord) -> dict[str, Any] | None:
    """Return `{"metric", "value"}` of what the run's report holds, or None."""
    from tats_core.cli.results import read_results

    try:
        found = read_results(record)
    except StoreError:
        return None  # it was removed; `tats show` says so
    if found is None:
        return None
    by_start: dict[str, list[float]] = {}
    for row in found["rows"]:
        if row.get("top1") is not None:
            by_start.setdefault(row["init"], []).append(row["top1"])
    if by_start:
        return {"metric": "top1", "value": max(fmean(values) for values in by_start.values())}
    lift = (found.get("policy") or {}).get("motion_lift")
    return None if lift is None else {"metric": "motion_lift", "value": lift}


def _running(record: RunRecord, name: str) -> dict[str, Any]:
    from tats_core.cli.progress import Remaining
    from tats_core.store import logs

    remaining, left, newest = Remaining(), None, None
    for newest in logs.recent_progress(record, record.stages[name]):
        left = remaining.seconds(newest)
    place = {key: newest[key] for key in ("step", "steps")} if newest else {"step": None, "steps": None}
    if newest and left is not None:
        left = max(0.0, left - (time.time() - newest["time"]))
    return {"stage": name, **place, "eta": left}


def _last_sign(record: RunRecord) -> float:
    """Return when a run that died, or a stage of it, wrote something for the last time."""
    from tats_core.store import logs

    written = [record.folder / "run.json"]
    for stage in record.stages.values():
        place = logs.folder(record, stage) if stage.status == "running" else None
        if place is not None:
            written += [place / "events.jsonl", *place.glob("log/*")]
    return max(path.stat().st_mtime for path in written if path.exists())


def _print(rows: list[dict[str, Any]], total: int, pipeline: str | None, home: Path) -> None:
    from tats_core.cli import shown
    from tats_core.cli.options import command_line

    if not rows:
        again = command_line(["run", "pipeline", pipeline or "demo"], home)
        of = f" of '{pipeline}'" if pipeline else ""
        typer.echo(f"no run{of} in {home} yet; start one with: {again}")
        return
    now = time.time()
    columns = ("run", "state", "stages", "at", "ETA", "age", "took", "best")
    shown.table(
        columns, [_cells(one, now) for one in rows], right=("stages", "ETA", "age", "took"), fold=("at",)
    )
    if total > len(rows):
        typer.echo(f"\n{len(rows)} of {total} runs; more with --limit N or --all")


def _cells(one: dict[str, Any], now: float) -> list[str]:
    from tats_core.cli import shown
    from tats_core.cli.progress import duration

    at = [_place(stage) for stage in one["running"]] or one["failed"][:2]
    result = one["best"]
    return [
        shown.plain(one["id"]),
        shown.state(one["state"]),
        f"{one['done']}/{one['stages']}",
        shown.plain(", ".join(at) or shown.DASH),
        shown.DASH if one["eta"] is None else duration(one["eta"]),
        shown.age(now - one["started"]),
        shown.age(one["seconds"]),
        shown.DASH if result is None else _best(result),
    ]


def _place(stage: dict[str, Any]) -> str:
    if not stage["steps"]:
        return str(stage["stage"])
    return f"{stage['stage']} {100 * stage['step'] // stage['steps']}%"


def _best(result: dict[str, Any]) -> str:
    if result["metric"] == "top1":
        return f"{result['value']:.1f} top-1"
    return f"{result['value']:.2f} lift"

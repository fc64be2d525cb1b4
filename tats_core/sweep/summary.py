"""What a sweep comes to: its table, and the best point as a pipeline of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from tats_core import specs
from tats_core.files import write_json
from tats_core.report import sweeps as tables
from tats_core.sweep.spec import Sweep
from tats_core.sweep.trial import Ended


def in_order(sweep: Sweep, trials: Sequence[Ended]) -> list[Ended]:
    """Return the trials as the space orders them, however they were run."""
    place = {one.id: i for i, one in enumerate(t for point in sweep.points() for t in sweep.trials_of(point))}
    return sorted(trials, key=lambda one: place.get(one.id, len(place)))


def table(sweep: Sweep, trials: Sequence[Ended]) -> list[tables.Row]:
    """Return one row a point."""
    plain = [asdict(one) for one in in_order(sweep, trials)]
    return tables.rows(plain, [one.name for one in sweep.metrics], sweep.baseline)


def text(sweep: Sweep, trials: Sequence[Ended]) -> str:
    """Return the table for a terminal, and which point is the best."""
    found = table(sweep, trials)
    objective = sweep.objectives[0]
    columns = [(one.name, one.shown, one.digits) for one in sweep.metrics]
    lines = [tables.text(found, columns, objective.name)]
    top = tables.best(found, objective.name, objective.mode or "max")
    if top is not None:
        names = tables.short(list(sweep.space.values))
        values = " ".join(f"{names[key]}={value}" for key, value in top.point.items())
        lines += [
            "",
            f"best {objective.shown}: {top.values[objective.name].text(objective.digits)} with {values}",
        ]
    counts = {status: sum(one.status == status for one in trials) for status in ("stopped early", "failed")}
    lines += [f"{count} trials {status}" for status, count in counts.items() if count]
    return "\n".join(lines)


def values(sweep: Sweep, trials: Sequence[Ended]) -> dict[str, Any]:
    """Return the table and the trials as plain values."""
    rows = [asdict(one) for one in table(sweep, trials)]
    return {"sweep": sweep.name, "rows": rows, "trials": [asdict(one) for one in in_order(sweep, trials)]}


def write(sweep: Sweep, folder: Path, trials: Sequence[Ended]) -> dict[str, Any]:
    """Write `results.json`, `results.txt` and `best.yaml`; return what is in the first."""
    found = values(sweep, trials)
    write_json(folder / "results.json", found)
    (folder / "results.txt").write_text(text(sweep, trials) + "\n", encoding="utf-8")
    objective = sweep.objectives[0]
    top = tables.best(table(sweep, trials), objective.name, objective.mode or "max")
    if top is not None:
        (folder / "best.yaml").write_text(best_pipeline(sweep, dict(top.point)), encoding="utf-8")
    return found


def best_pipeline(sweep: Sweep, point: dict[str, Any]) -> str:
    """Return the whole base pipeline with the sweep's changes and a point's values, as a YAML file."""
    raw = specs.read(specs.find("pipelines", sweep.pipeline))
    for key, value in {**sweep.fixed, **point}.items():
        stage, *rest = key.split(".")
        raw = specs.override(
            raw, ["defaults", *rest] if stage == "defaults" else ["stages", stage, *rest], value
        )
    raw |= {"name": "best", "title": f"Best of the sweep {sweep.name}"}
    chosen = ", ".join(f"{key}={value}" for key, value in point.items())
    head = f"# The best point of the sweep {sweep.name}: {chosen}\n"
    return head + yaml.safe_dump(raw, sort_keys=False, allow_unicode=True, width=110)

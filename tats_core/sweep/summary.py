"""The summary of a sweep: its table, and the best point as a pipeline of its own."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import yaml
from typing_extensions import TypedDict

from tats_core import specs
from tats_core.errors import StoreError
from tats_core.files import read_json_if_there, write_json, write_text
from tats_core.pipeline import spec as pipelines
from tats_core.report import sweeps
from tats_core.report.metrics import Metric
from tats_core.report.table import Table, markdown_text
from tats_core.stages import KINDS
from tats_core.sweep.spec import Sweep, plain
from tats_core.sweep.trial import STUDY, TrialResult

BEST: Final = "best.yaml"
ROWS: Final = 60
"""How many points a terminal and the page list; files hold all."""

_RESULTS: Final = "results.json"
_TIED = 3  # points that a tie names


class _Busy(TypedDict):
    busy: float | None


@dataclass(frozen=True)
class Summary:
    """The trials that have ended, in the order of the space, and the table of their points.

    `busy` is the share of the slots' time that was spent inside training steps, None where none ended.
    """

    sweep: Sweep
    trials: list[TrialResult]
    busy: float | None

    @classmethod
    def of(cls, sweep: Sweep, trials: Sequence[TrialResult], busy: float | None) -> Summary:
        """Put the trials in the order of the space."""
        planned = (trial for point in sweep.points() for trial in sweep.trials_of(point))
        order = {trial.id: index for index, trial in enumerate(planned)}
        return cls(sweep, sorted(trials, key=lambda trial: order.get(trial.id, len(order))), busy)

    @cached_property
    def rows(self) -> list[sweeps.Row]:
        """The table, one row a point: of a grid in its order, otherwise the best first."""
        trials = [vars(trial) for trial in self._compared]
        rows = sweeps.rows(trials, [metric.key for metric in self.metrics], self.sweep.baseline)
        return rows if self.sweep.searcher.kind == "grid" else sweeps.ranked(rows, self.objective)

    @property
    def _compared(self) -> list[TrialResult]:
        """The trials that are compared: of a population, the newest generation of which any finished."""
        if self.sweep.searcher.kind != "pbt":
            return self.trials
        until = f"{self.sweep.population.stage}.until"
        newest = max((trial.point[until] for trial in self.trials if trial.status == "finished"), default=0)
        return [trial for trial in self.trials if trial.point[until] == newest]

    @property
    def metrics(self) -> list[Metric]:
        """The metrics in the table."""
        return [metric.column for metric in self.sweep.metrics]

    @property
    def objective(self) -> Metric:
        """The metric that decides which point is best."""
        return self.sweep.objective.column

    @cached_property
    def best(self) -> list[sweeps.Row]:
        """The point with the best mean of the first objective; all that are printed alike where it is a tie.

        Only points whose seeds have all ended count, none of them early, as for Optuna: a mean without a bad
        seed would favour its point.
        """
        early = [trial.point for trial in self.trials if trial.status == "stopped early"]
        seeds = len(self.sweep.all_seeds)
        rows = [row for row in self.rows if row.trials >= seeds and row.point not in early]
        return sweeps.best(rows, self.objective)

    @property
    def best_value(self) -> str:
        """The best value, as in `best top-1 42.0`; "" where there is none yet."""
        metric = self.objective
        mean = f"{self.best[0].values[metric.key].mean:.{metric.digits}f}" if self.best else ""
        return mean and f"best {metric.title} {mean}"

    @property
    def best_text(self) -> str:
        """The best point in a sentence, or those that are equally good; "" where there is none."""
        if not self.best:
            return ""
        metric, points = self.objective, [self.sweep.label(row.point) for row in self.best]
        best = self.best[0].values[metric.key]
        if len(points) == 1:
            return f"best {metric.title}: {best.text(metric.digits)} with {points[0]}"
        more = [f"and {len(points) - _TIED} more"] if len(points) > _TIED else []
        listed = "; ".join([*points[:_TIED], *more])
        mean = f"{best.mean:.{metric.digits}f}"
        return f"{len(points)} points share the best {metric.title}, {mean}: {listed}"

    @property
    def is_rehearsal(self) -> bool:
        """Whether the numbers mean nothing."""
        return self.sweep.name.endswith(specs.REHEARSAL)

    @property
    def epochs(self) -> tuple[int, int] | None:
        """Epochs of the trials, and of as many complete trials; None where no trial is complete."""
        complete = [trial.epochs for trial in self.trials if trial.status == "finished" and trial.epochs]
        if not complete:
            return None
        return sum(trial.epochs for trial in self.trials), max(complete) * len(self.trials)

    @property
    def causes(self) -> list[tuple[str, int]]:
        """Why trials failed, the most frequent cause first; causes that differ only in a path are merged."""
        errors = [trial.error or "unknown" for trial in self.trials if trial.status == "failed"]
        alike: dict[str, list[str]] = {}
        for error in errors:
            alike.setdefault(re.sub(r"/\S+", "/", error), []).append(error)
        counted = ((same[0], len(same)) for same in alike.values())
        return sorted(counted, key=lambda cause: cause[1], reverse=True)

    def _table(self, rows: Sequence[sweeps.Row]) -> Table:
        return sweeps.table(rows, self.metrics, self.objective)

    def text(self) -> str:
        """Return the table for a terminal, which point is the best, and what the search took."""
        lines = [self._table(self.rows[:ROWS]).text(right=False), ""]
        if len(self.rows) > ROWS:
            lines.insert(1, f"and {len(self.rows) - ROWS} more points")
        counts = Counter(trial.status for trial in self.trials)
        lines += [self.best_text] if self.best_text else []
        lines += [
            f"{counts[status]} trials {status}" for status in ("stopped early", "failed") if counts[status]
        ]
        if self.epochs and self.epochs[0] < self.epochs[1]:
            used, complete = self.epochs
            lines.append(f"{used} epochs of the {complete} of complete trials ({100 * used / complete:.0f}%)")
        if self.is_rehearsal:
            lines.append(specs.NO_RESULT)
        if self.busy:  # nothing trains where all outputs are reused
            lines.append(f"{100 * self.busy:.0f}% of the time after Ray's start was spent in training steps")
        return "\n".join(lines).rstrip()

    def values(self) -> dict[str, Any]:
        """Return the table and the trials as plain values."""
        used, complete = self.epochs or (None, None)
        return {
            "sweep": self.sweep.name,
            "rows": [asdict(row) for row in self.rows],
            "trials": [asdict(trial) for trial in self.trials],
            "busy": self.busy,
            "epochs": used,
            "epochs_of_whole_trials": complete,
        }

    def markdown(self) -> str:
        """Return the table as GitHub Markdown, with the best point."""
        table = self._table(self.rows).markdown()
        return f"## {markdown_text(self.sweep.name)}\n\n{table}\n{markdown_text(self.best_text)}\n"

    def csv(self) -> str:
        """Return the table as CSV, unrounded."""
        return sweeps.csv(self.rows, self.metrics, {"rehearsal": True} if self.is_rehearsal else None)

    def latex(self) -> str:
        """Return the table as LaTeX."""
        title = (self.sweep.title or self.sweep.name).rstrip(".") + "."
        return sweeps.latex(self.rows, self.metrics, self.objective, name=self.sweep.name, caption=title)

    def write(self, folder: Path) -> None:
        """Write `results.json`, `results.txt`, `results.csv` and `best.yaml`."""
        write_json(folder / _RESULTS, self.values())
        write_text(folder / "results.txt", self.text() + "\n")
        write_text(folder / "results.csv", self.csv())
        for top in self.best[:1]:
            settings = next(trial.settings for trial in self.trials if trial.point == top.point)
            unseeded = {key: value for key, value in settings.items() if key not in self.sweep.seeds.keys}
            write_text(folder / BEST, best_pipeline(self.sweep, unseeded, tied=len(self.best)))


def results(folder: Path) -> list[TrialResult]:
    """Return the trials that have ended; those of a study are in the order of its points.

    Raises:
        StoreError: a record of them cannot be read.
    """
    loaded = (TrialResult.load(path) for path in sorted((folder / "trials").glob("*")))
    trials = [result for result in loaded if result is not None]
    if not (folder / STUDY).exists():
        return trials
    from tats_core.sweep.search import read_points  # here: Optuna is slow to import

    order = {sweeps.name_of(plain(point)): number for number, point in enumerate(read_points(folder))}
    return sorted(trials, key=lambda trial: order.get(sweeps.name_of(trial.point), len(order)))


def busy_of(folder: Path) -> float | None:
    """Return the share of time in training steps that `Summary.write` wrote, None where it wrote none.

    Raises:
        StoreError: the file cannot be read.
    """
    try:
        written = read_json_if_there(folder / _RESULTS, _Busy, "the results of a sweep")
    except StoreError as error:
        raise StoreError(f"{error}; remove it") from error
    return None if written is None else written["busy"]


def best_pipeline(sweep: Sweep, point: dict[str, Any], tied: int = 1) -> str:
    """Return the base pipeline with the sweep's changes and the values of `point`, as YAML.

    Args:
        tied: how many points are as good as this one, itself included.
    """
    raw = pipelines.read(specs.find("pipelines", sweep.pipeline))
    for key, value in sweep.values(point).items():
        stage, *rest = key.split(".")
        raw = specs.override(
            raw, ["defaults", *rest] if stage == "defaults" else ["stages", stage, *rest], value
        )
    defaults = raw.get("defaults", {})
    for name, entry in raw["stages"].items():
        config = KINDS[entry["kind"]].Config
        raw["stages"] = raw["stages"] | {name: specs.settled(config, entry)}
        defaults = specs.settled(config, defaults)
    raw |= {"defaults": defaults} if defaults else {}
    raw |= {"name": "best", "title": f"Best of the sweep {sweep.name}"}
    chosen = ", ".join(f"{key}={value}" for key, value in plain(point).items())
    head = f"# The best point of the sweep {sweep.name}{chosen and f': {chosen}'}\n"
    if tied > 1:
        head += (
            f"# {tied} points have this {sweep.objective.column.title} as printed. This one has the best\n"
            "# unrounded mean, and of equals it is the first in the table.\n"
        )
    return head + yaml.safe_dump(raw, sort_keys=False, allow_unicode=True, width=110)

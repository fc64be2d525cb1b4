"""Which run a person means, and which runs there are. Of thousands of runs only those wanted are opened.

A run's folder is called `<pipeline>-<time of its start, UTC>-<4 digits>`, so names alone tell pipeline and
order.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from tats_core import specs
from tats_core.errors import SpecError, StoreError, did_you_mean
from tats_core.store.run import RunRecord

LATEST = "latest"

_COMPARED = 1000  # names that a misspelt one is compared with, the newest first

_ID = re.compile(r"(?P<pipeline>.+)-(?P<time>\d{8}-\d{6,9})-[0-9a-f]+")


def ids(home: Path, pipeline: str | None = None) -> list[str]:
    """Return the ids of all runs (of `pipeline`), the newest first; opens none."""
    try:
        with os.scandir(home / "runs") as entries:
            found = [match for entry in entries if (match := _ID.fullmatch(entry.name))]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"{home / 'runs'}: cannot be read ({error.strerror})") from error
    wanted = [one for one in found if pipeline in (None, one["pipeline"])]
    return [one[0] for one in sorted(wanted, key=lambda one: (one["time"], one[0]), reverse=True)]


def pipelines(home: Path) -> list[str]:
    """Return the names of the pipelines that were run here, the one that ran last first."""
    return list(dict.fromkeys(one.rsplit("-", 3)[0] for one in ids(home)))


def records(home: Path, pipeline: str | None = None, damaged: list[str] | None = None) -> Iterator[RunRecord]:
    """Yield the records of all runs (of `pipeline`), the newest first; each is read when it is asked for.

    Args:
        damaged: gets a sentence about each record that cannot be read, which is then passed over.

    Raises:
        StoreError: a record cannot be read, and nobody takes the sentence.
    """
    for one in ids(home, pipeline):
        folder = home.absolute() / "runs" / one
        if not (folder / "run.json").exists():  # a run that starts just now has none yet
            continue
        try:
            yield RunRecord.load(folder)
        except StoreError as error:
            if damaged is None:
                raise
            damaged.append(str(error))


def newest_finished(home: Path, pipeline_name: str) -> RunRecord | None:
    """Return the record of the newest run of this pipeline that finished with all its stages, or None."""
    for record in records(home, pipeline_name):
        if record.status == "finished" and all(stage.done for stage in record.stages.values()):
            return record
    return None


def find(run: str, home: Path) -> RunRecord:
    """Return the record that `run` names.

    Args:
        run: a run's id or its beginning, a pipeline (its newest run), or `latest`.

    Raises:
        SpecError: nothing, or more than one run, is called so; names the nearest.
        StoreError: there is no run yet.
    """
    there = ids(home)
    if run in there:
        return RunRecord.load(home.absolute() / "runs" / run)
    name = Path(run).stem if run.endswith((".yaml", ".yml")) else run
    newest = next(records(home, None if run == LATEST else name), None)
    if newest is not None:
        return newest
    menu = specs.names("pipelines")
    if run == LATEST:
        raise StoreError(f"no run in {home}; start one with: tats run pipeline NAME")
    if name in menu:
        raise StoreError(f"no run of '{name}' in {home}; start one with: tats run pipeline {name}")
    begun = [one for one in there if one.startswith(run)]
    if len(begun) == 1:
        return RunRecord.load(home.absolute() / "runs" / begun[0])
    if begun:
        shown = ", ".join(begun[:3]) + (f" and {len(begun) - 3} more" if len(begun) > 3 else "")
        raise SpecError(f"'{run}' begins the names of {len(begun)} runs ({shown}); give more of it")
    near = _near(run, there) or did_you_mean(run, {*pipelines(home), *menu, LATEST})
    raise SpecError(f"'{run}' is no run in {home} and no pipeline{near}")


def find_finished(run: str, home: Path) -> RunRecord:
    """Return the record of a run: of a pipeline the newest finished one, in a folder, or as `find`.

    Raises:
        SpecError: nothing, or more than one run, is called `run`.
        StoreError: the pipeline has not finished a run in `home`.
    """
    folder = Path(run).expanduser()
    if (folder / "run.json").is_file():
        return RunRecord.load(folder)
    name = Path(run).stem if run.endswith((".yaml", ".yml")) else run
    record = newest_finished(home, name)
    if record is not None:
        return record
    if ids(home, name):
        raise StoreError(
            f"no finished run of '{name}' in {home}; how to go on with one says: tats show {name}"
        )
    if name in specs.names("pipelines"):
        raise StoreError(f"no finished run of '{name}' in {home}; make one with: tats run pipeline {name}")
    return find(run, home)


def check_pipeline(name: str, home: Path) -> str:
    """Return `name` without `.yaml`.

    Raises:
        SpecError: no pipeline is called so, neither in the menu nor among the runs; names the nearest.
    """
    name = Path(name).stem if name.endswith((".yaml", ".yml")) else name
    known = {*specs.names("pipelines"), *pipelines(home)}
    if name not in known:
        raise SpecError(f"no pipeline named '{name}'{did_you_mean(name, known)}")
    return name


def _near(run: str, there: list[str]) -> str:
    """Return a hint at the run whose id begins nearly as `run`, or "" where `run` looks like no id."""
    if not re.search(r"-\d", run):
        return ""
    begun = {one[: len(run)]: one for one in reversed(there[:_COMPARED])}  # of several, the newest
    close = difflib.get_close_matches(run, begun, n=1, cutoff=0.7)
    return f"; did you mean '{begun[close[0]]}'?" if close else ""

"""The runs of a project folder, and the run that a name stands for.

A run's folder is named `<pipeline>-<time of its start, UTC>-<4 digits>`, so names alone give pipeline and
order: of thousands of runs only those asked for are opened.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

from tats_core import specs
from tats_core.errors import SpecError, StoreError, did_you_mean
from tats_core.store.layout import RUN
from tats_core.store.run import RunRecord

LATEST = "latest"

_COMPARED = 1000  # ids, the newest first, that a misspelt id is compared with
_ID = re.compile(r"(?P<pipeline>.+)-(?P<time>\d{8}-\d{6,9})-[0-9a-f]+")


def ids(home: Path, pipeline: str | None = None) -> list[str]:
    """Return the ids of all runs (of `pipeline`), the newest first; opens none."""
    try:
        with os.scandir(home / "runs") as entries:
            matches = [match for entry in entries if (match := _ID.fullmatch(entry.name))]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StoreError(f"{home / 'runs'}: cannot be read ({error.strerror})") from error
    wanted = [match for match in matches if pipeline in (None, match["pipeline"])]
    return [match[0] for match in sorted(wanted, key=lambda match: (match["time"], match[0]), reverse=True)]


def pipelines(home: Path) -> list[str]:
    """Return the names of the pipelines that have runs here, the one that ran last first."""
    return list(dict.fromkeys(run.rsplit("-", 3)[0] for run in ids(home)))


def records(home: Path, pipeline: str | None = None, corrupt: list[str] | None = None) -> Iterator[RunRecord]:
    """Yield the records of all runs (of `pipeline`), the newest first; each is read when it is asked for.

    A record that cannot be read is passed over: a run does not depend on the records of others.

    Args:
        corrupt: receives a sentence about each such record.
    """
    for run in ids(home, pipeline):
        folder = home.absolute() / "runs" / run
        if not (folder / RUN).exists():  # the run has just started
            continue
        try:
            yield RunRecord.load(folder)
        except StoreError as error:
            if corrupt is not None:
                corrupt.append(str(error))


def newest_finished(home: Path, pipeline: str) -> RunRecord | None:
    """Return the record of the newest run of this pipeline that finished with all its stages, or None."""
    return _newest(home, pipeline, complete=True)


def _newest(home: Path, pipeline: str | None, *, complete: bool) -> RunRecord | None:
    """Return the newest record, `complete` or any; warn of damaged ones that are newer."""
    corrupt: list[str] = []
    matching = (record for record in records(home, pipeline, corrupt) if record.complete or not complete)
    newest = next(matching, None)
    for sentence in corrupt:
        logging.getLogger(__name__).warning("tats: warning: a damaged run is passed over: %s", sentence)
    return newest


def find(run: str, home: Path) -> RunRecord:
    """Return the record that `run` names.

    Args:
        run: a run's id or its beginning, a pipeline (its newest run), or `latest`.

    Raises:
        SpecError: nothing, or more than one run, has this name; names the nearest.
        StoreError: there is no run yet.
    """
    known = ids(home)
    if run in known:
        return RunRecord.load(home.absolute() / "runs" / run)
    name = _stem(run)
    if newest := _newest(home, None if run == LATEST else name, complete=False):
        return newest
    menu = specs.names("pipelines")
    if run == LATEST:
        raise StoreError(f"no run in {home}; start one with: tats run pipeline NAME")
    if name in menu:
        raise StoreError(f"no run of '{name}' in {home}; start one with: tats run pipeline {name}")
    matching = [run_id for run_id in known if run_id.startswith(run)]
    if len(matching) == 1:
        return RunRecord.load(home.absolute() / "runs" / matching[0])
    if matching:
        more = f" and {len(matching) - 3} more" if len(matching) > 3 else ""
        listed = ", ".join(matching[:3]) + more
        raise SpecError(f"the ids of {len(matching)} runs begin with '{run}' ({listed}); give more of the id")
    near = _nearest_id(run, known) or did_you_mean(run, {*pipelines(home), *menu, LATEST})
    raise SpecError(f"'{run}' is no run in {home} and no pipeline{near}")


def find_finished(run: str, home: Path) -> RunRecord:
    """Return the record of a run: of a pipeline the newest finished one, in a folder, or as `find`.

    Raises:
        SpecError: nothing, or more than one run, has the name `run`.
        StoreError: the pipeline has not finished a run in `home`.
    """
    folder = Path(run).expanduser()
    if (folder / RUN).is_file():
        return RunRecord.load(folder)
    name = _stem(run)
    if record := newest_finished(home, name):
        return record
    if ids(home, name):
        raise StoreError(f"no finished run of '{name}' in {home}; to see how to resume one: tats show {name}")
    if name in specs.names("pipelines"):
        raise StoreError(f"no finished run of '{name}' in {home}; start one with: tats run pipeline {name}")
    return find(run, home)


def check_pipeline(name: str, home: Path) -> str:
    """Return `name` without `.yaml`.

    Raises:
        SpecError: no pipeline has this name, neither in the menu nor among the runs; names the nearest.
    """
    name = _stem(name)
    known = {*specs.names("pipelines"), *pipelines(home)}
    if name not in known:
        raise SpecError(f"no pipeline named '{name}'{did_you_mean(name, known)}")
    return name


def _stem(name: str) -> str:
    return Path(name).stem if name.endswith((".yaml", ".yml")) else name


def _nearest_id(run: str, known: list[str]) -> str:
    """Return a hint at the run whose id begins nearly as `run`; "" where `run` is not like an id."""
    if not re.search(r"-\d", run):
        return ""
    starts = {run_id[: len(run)]: run_id for run_id in reversed(known[:_COMPARED])}  # the newest wins
    close = difflib.get_close_matches(run, starts, n=1, cutoff=0.7)
    return f"; did you mean '{starts[close[0]]}'?" if close else ""

"""The tracking server: its address, a client that is ready to use, and what its errors mean."""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote, urlsplit

from tats_core import addresses
from tats_core.addresses import masked
from tats_core.errors import StoreError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.store.entities import PagedList

Item = TypeVar("Item")
Result = TypeVar("Result")

_DATABASE = "sqlite:///"
_ADVICE = {
    401: "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
    403: "add the name to the server's --allowed-hosts, or give the user access",
    404: "it is no MLflow server, or has another path; correct MLFLOW_TRACKING_URI",
}
# Part of MLflow's error → what it means; MLflow calls both internal errors, as if they would pass.
_MENDED_BY_HAND = {
    "out-of-date database schema": (
        "has a database of another MLflow; make a backup, then upgrade the database (mlflow db upgrade) or "
        "the MLflow here"
    ),
    "CERTIFICATE_VERIFY_FAILED": (
        "has a certificate that is not trusted here; name its authority in REQUESTS_CA_BUNDLE"
    ),
}


class AwayError(Exception):
    """The server does not answer, or cannot do its work now; the same call may succeed later.

    `broken`: it did answer, with an internal error, so the call may never succeed.
    """

    def __init__(self, reason: str, *, broken: bool = False) -> None:
        super().__init__(reason)
        self.broken = broken


class RefusedError(StoreError):
    """The server or database takes nothing until somebody repairs what the sentence names."""


def tracking_uri(home: Path) -> str:
    """Return where runs are tracked: MLFLOW_TRACKING_URI, or the database in the project folder.

    A database's path is absolute: `tats sync` may run in another working directory.

    Raises:
        SpecError: MLFLOW_TRACKING_URI cannot be an address.
        StoreError: the project folder's path cannot stand in the address of a database.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri and not uri.startswith(_DATABASE):
        return addresses.check(uri, "MLFLOW_TRACKING_URI") if "://" in uri else uri
    path = Path(uri.removeprefix(_DATABASE)) if uri else home / "mlflow.db"
    path = path.absolute()
    if not uri and ("?" in str(path) or unquote(str(path)) != str(path)):
        raise StoreError(
            f"{path.parent}: a '?', or a '%' before two hexadecimal digits, would change the path of the "
            "tracking database; take another folder"
        )
    return f"{_DATABASE}{path}"


def connect(home: Path, uri: str) -> MlflowClient:
    """Return a client whose store is ready; our own database is created or migrated if need be.

    Processes that open a new database at the same time would both create its tables, so they take turns.

    Raises:
        RefusedError: the database is damaged, of a later MLflow, or cannot be opened.
    """
    # MLflow would report each run to its developers; set the variable to false to allow that.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # MLflow would retry a call to a dead server for minutes; the callers retry by themselves.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    # MLflow would print an address at the end of a run, into `--json` output too.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # MLflow sets up its loggers when it is imported, and reports every table that it creates.
    from mlflow import MlflowClient

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    if not uri.startswith(_DATABASE):
        return MlflowClient(uri, registry_uri=uri)
    path = _database(uri)
    home.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with (home / "mlflow.db.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _check_file(path)
        return _opened(uri, path)


def _database(uri: str) -> Path:
    # As SQLAlchemy reads the address: `%20` is a space, and options follow a '?'.
    return Path(unquote(uri.removeprefix(_DATABASE).partition("?")[0]))


def _check_file(path: Path) -> None:
    # MLflow would try for minutes to open what cannot be opened.
    try:
        with closing(sqlite3.connect(path)) as database:
            database.execute("SELECT name FROM sqlite_master LIMIT 1").fetchall()
    except sqlite3.DatabaseError as error:
        if "locked" in str(error):
            return  # somebody writes; MLflow waits
        raise RefusedError(
            f"{path}: cannot be opened as a database ({error}); restore a backup, or move the file away and "
            "a new one is made"
        ) from error


def _opened(uri: str, path: Path) -> MlflowClient:
    import mlflow
    from alembic.util import CommandError
    from mlflow.exceptions import MlflowException
    from mlflow.store.db import utils

    def opened() -> MlflowClient:
        client = mlflow.MlflowClient(uri, registry_uri=uri)
        client.search_experiments(max_results=1)  # the store opens its database at the first call
        return client

    try:
        return opened()
    except MlflowException as error:
        if "out-of-date database schema" not in str(error):
            raise
    try:  # as `mlflow db upgrade` does
        utils._upgrade_db(utils.create_sqlalchemy_engine_with_retry(uri))  # type: ignore[no-untyped-call]
    except CommandError as error:
        raise RefusedError(
            f"{path}: was written by a later MLflow than {mlflow.__version__}, which is installed here "
            f"({error}); install that one (pip install --upgrade mlflow), or move the file away as a backup "
            "and a new one is made"
        ) from error
    return opened()


def asked(call: Callable[[], Result], uri: str) -> Result:
    """Return what `call` returns, which asks the server at `uri`.

    Raises:
        AwayError: it failed for a temporary reason.
        RefusedError: the server refuses this user, or its database is of another MLflow.
        Exception: the server refuses this one call, or a file is gone.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import OperationalError

    try:
        return call()
    except (FileNotFoundError, StoreError):
        raise
    except (OSError, OperationalError) as error:
        raise AwayError(first_line(error)) from error  # a connection (`requests`), or a locked database
    except MlflowException as error:
        status = error.get_http_status_code()  # type: ignore[no-untyped-call]
        if status == 401:
            raise RefusedError(f"the tracking server {masked(uri)} answers 401; {_ADVICE[401]}") from error
        for text, advice in _MENDED_BY_HAND.items():
            if text in str(error):
                raise RefusedError(f"the tracking server {masked(uri)} {advice}") from error
        if status < 500 and status not in (408, 429):
            raise
        raise AwayError(first_line(error), broken=status == 500) from error


def check(client: MlflowClient, uri: str) -> None:
    """Ask the server for one thing that every user may see; `/health` answers even where it refuses a host.

    Raises:
        AwayError: it does not answer.
        RefusedError: it refuses this user, this host name, or everything.
    """
    from mlflow.exceptions import MlflowException

    try:
        asked(lambda: client.search_experiments(max_results=1), uri)
    except MlflowException as error:
        status = error.get_http_status_code()  # type: ignore[no-untyped-call]
        advice = _ADVICE.get(status, f"see the server's log ({first_line(error)})")
        raise RefusedError(f"the tracking server {masked(uri)} answers {status}; {advice}") from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error, short and without secrets."""
    text = masked(f"{type(error).__name__}: {error}").splitlines()[0]
    return text if len(text) <= 200 else text[:197] + "..."


def aliased(home: Path) -> set[Path]:
    """Return every local path that a registered model with an alias names.

    Raises:
        StoreError: the tracking server cannot be asked.
    """
    uri = tracking_uri(home)
    if uri == f"{_DATABASE}{home.absolute() / 'mlflow.db'}" and not (home / "mlflow.db").exists():
        return set()  # nothing was ever tracked
    try:
        return set(_aliased(connect(home, uri)))
    except Exception as error:  # any error: which models have an alias is unknown
        raise StoreError(
            f"the tracking server cannot be asked which models have an alias ({first_line(error)})"
        ) from error


def _aliased(client: MlflowClient) -> Iterator[Path]:
    for model in _pages(lambda token: client.search_registered_models(page_token=token)):
        for number in model.aliases.values():
            version = client.get_model_version(model.name, number)
            for text in (version.source, *version.tags.values()):
                # A plain path is no address: it may hold '#', '?' and '%20'.
                if text and text.startswith("/"):
                    yield Path(text)
                elif text and text.startswith("file:"):
                    yield Path(unquote(urlsplit(text).path))


def _pages(search: Callable[[str | None], PagedList[Item]]) -> Iterator[Item]:
    """Yield the results of all pages of a search, which takes a page's token."""
    token = None
    while True:
        page = search(token)
        yield from page
        token = page.token
        if not token:
            return


def experiment(client: MlflowClient, home: Path, uri: str, name: str) -> str:
    """Return the id of the experiment called `name`, which is created if need be."""
    from mlflow.exceptions import MlflowException

    existing = client.get_experiment_by_name(name)
    if existing is not None:
        return str(existing.experiment_id)
    local = uri.startswith(_DATABASE)
    artifacts = (home.absolute() / "mlflow-artifacts").as_uri() if local else None
    # Without it MLflow's page opens with a view for language-model applications.
    tags = {"mlflow.experimentKind": "custom_model_development"}
    try:
        return str(client.create_experiment(name, artifact_location=artifacts, tags=tags))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return experiment(client, home, uri, name)  # another process was faster


def run_with(client: MlflowClient, experiment: str, tags: Mapping[str, str]) -> Run | None:
    """Return the run that has these tags."""
    # MLflow's filters know two quotes and no escape: a value that has both cannot stand in one.
    filters = [f"tags.`{key}` = {quoted(value)}" for key, value in tags.items() if not {*"'\""} <= {*value}]
    search = partial(client.search_runs, [experiment], " and ".join(filters))
    runs = _pages(lambda token: search(page_token=token))
    return next((run for run in runs if tags.items() <= run.data.tags.items()), None)


def quoted(value: str) -> str:
    """Return a text for MLflow's filters, without one of the two kinds of quotes that they know."""
    return f'"{value}"' if "'" in value else f"'{value}'"

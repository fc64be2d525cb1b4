"""The tracking server: its address, and a client that is ready to use."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from tats_core.errors import StoreError

if TYPE_CHECKING:
    from mlflow import MlflowClient

_DATABASE = "sqlite:///"


def tracking_uri(home: Path) -> str:
    """Return where runs are tracked: MLFLOW_TRACKING_URI, or the database in the project folder.

    A database's path is absolute: `tats sync` may run in another working directory.

    Raises:
        StoreError: the project folder's path cannot stand in the address of a database.
    """
    if "?" in str(home.absolute()):
        raise StoreError(f"{home.absolute()}: a '?' would cut off the database's path; take another folder")
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{_DATABASE}{home.absolute() / 'mlflow.db'}"
    return f"{_DATABASE}{Path(uri.removeprefix(_DATABASE)).absolute()}" if uri.startswith(_DATABASE) else uri


def connect(home: Path, uri: str) -> MlflowClient:
    """Return a client whose store is ready; our own database is created or migrated if need be.

    Processes that open a new database at the same time would both create its tables, so they take turns.
    """
    # MLflow would report each run to its developers; set the variable to false to allow that.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # MLflow would retry a call to a dead server for minutes; the callers retry by themselves.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    # MLflow would print an address at the end of a run, into `--json` output too.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # MLflow sets up its loggers when it is imported, and reports every table that it creates.
    import mlflow.exceptions
    from mlflow import MlflowClient

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    if not uri.startswith(_DATABASE):
        return MlflowClient(uri, registry_uri=uri)
    home.mkdir(parents=True, exist_ok=True)
    with (home / "mlflow.db.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            return _opened(MlflowClient(uri, registry_uri=uri))
        except mlflow.exceptions.MlflowException as error:
            if "out-of-date database schema" not in str(error):
                raise
            _upgrade(uri)
            return _opened(MlflowClient(uri, registry_uri=uri))


def aliased(home: Path) -> dict[Path, str]:
    """Return local path → model@alias, for every path that a registered model with an alias names.

    Raises:
        StoreError: the tracking server cannot be asked.
    """
    uri = tracking_uri(home)
    if uri == f"{_DATABASE}{home.absolute() / 'mlflow.db'}" and not (home / "mlflow.db").exists():
        return {}  # nothing was ever tracked
    try:
        return dict(_aliased(connect(home, uri)))
    except Exception as error:  # any error: which models have an alias is unknown
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise StoreError(
            f"the tracking server cannot be asked which models have an alias ({reason})"
        ) from error


def _aliased(client: MlflowClient) -> Iterator[tuple[Path, str]]:
    token = None
    while True:
        models = client.search_registered_models(page_token=token)
        for model in models:
            for alias, number in model.aliases.items():
                version = client.get_model_version(model.name, number)
                for text in (version.source, *version.tags.values()):
                    parts = urlsplit(text or "")
                    if parts.scheme == "file" or (text or "").startswith("/"):
                        yield Path(unquote(parts.path)), f"{model.name}@{alias}"
        token = models.token
        if not token:
            return


def _opened(client: MlflowClient) -> MlflowClient:
    client.search_experiments(max_results=1)  # the store opens its database at the first call
    return client


def _upgrade(uri: str) -> None:
    # As `mlflow db upgrade` does.
    from mlflow.store.db import utils

    utils._upgrade_db(utils.create_sqlalchemy_engine_with_retry(uri))  # type: ignore[no-untyped-call]


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


def quoted(value: str) -> str:
    """Return a text for MLflow's filters, which know two quotes and no escape."""
    return f'"{value}"' if "'" in value else f"'{value}'"

"""What MLflow is told about a run: a parent run for the pipeline, a child run for each stage.

Only the driver writes, from one thread: the stages leave events on disk, and a slow server slows nothing.
If the server fails, tracking ends with a sentence and the pipeline goes on; the events stay on disk.

A cached stage has a child run too, with the final values of the run that it came from, so that two runs
of a pipeline can be compared whole.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import logging
import os
import queue
import shlex
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

from tats_core.errors import StoreError
from tats_core.pipeline.cache import KEY, MANIFEST
from tats_core.pipeline.records import RunRecord, StageRecord
from tats_core.report import tables
from tats_core.training.events import read_events

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric
    from PIL.Image import Image

Result = TypeVar("Result")

PARAM_LENGTH = 6000  # MLflow's limits, per value and per call
PARAMS_A_CALL = 100
METRICS_A_CALL = 1000
FLUSH_SECONDS = 2.0

_CHECKPOINTS = (".pt", ".safetensors")
_PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def tracking_uri(home: Path) -> str:
    """Return where runs are tracked: MLFLOW_TRACKING_URI, or the database in the project folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home.absolute() / 'mlflow.db'}"


@dataclass
class _Child:
    """What the thread knows about one stage's run."""

    run_id: str
    folders: tuple[Path, ...]
    last_step: dict[str, int] = field(default_factory=dict)
    waiting: list[Metric] = field(default_factory=list)


class Tracker:
    """Sends what happens to MLflow, in order, from a thread of its own; no method waits, save `close`."""

    def __init__(self, home: Path, record: RunRecord) -> None:
        self._home = home
        self._record = record
        self._uri = tracking_uri(home)
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._children: dict[str, _Child] = {}
        self._flushed = 0.0
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        record.tracking_uri = self._uri
        self._thread.start()

    def run_started(self, resolved: Mapping[str, Any]) -> None:
        """Create the parent run; `resolved` is the pipeline with all its stages' configurations."""
        self._calls.put(lambda: self._start_parent(resolved))

    def stage_started(
        self,
        stage: StageRecord,
        config: Mapping[str, Any],
        settings: Mapping[str, Any],
        folders: tuple[Path, ...],
        data: Iterable[Path],
    ) -> None:
        """Create a stage's run, or go on with it after a retry.

        Args:
            config: the resolved configuration, an artifact.
            settings: what of it the pipeline sets, the run's parameters.
            folders: where the stage's files are: its work folder, and its place once committed.
            data: manifests of the videos that the stage reads.
        """
        data = tuple(data)
        self._calls.put(lambda: self._start_child(stage, config, settings, folders, data))

    def event(self, name: str, event: Mapping[str, Any]) -> None:
        """Pass on one event of a stage."""
        self._calls.put(lambda: self._take(name, event))

    def stage_ended(self, stage: StageRecord, source_run: str | None = None) -> None:
        """End a stage's run; `source_run` is the run that made the output of a cached stage."""
        self._calls.put(lambda: self._end_child(stage, source_run))

    def close(self) -> None:
        """Send what is left, end the parent run and wait until it is done."""
        self._calls.put(self._end_parent)
        self._calls.put(None)
        self._thread.join()

    # --- the thread ----------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            self._client = connect(self._home, self._uri)
            while True:
                try:
                    call = self._calls.get(timeout=FLUSH_SECONDS)
                except queue.Empty:
                    self._flush()
                    continue
                if call is None:
                    return
                call()
                if time.monotonic() - self._flushed > FLUSH_SECONDS:
                    self._flush()
        except Exception as error:  # whatever it was, hours of training must not end for it
            self._record.tracking_error = f"{type(error).__name__}: {error}".splitlines()[0]
            logging.getLogger(__name__).debug("tracking ended", exc_info=True)

    def _start_parent(self, resolved: Mapping[str, Any]) -> None:
        record = self._record
        experiment = _experiment(self._client, self._home, self._uri, record.pipeline)
        tags = {
            "pipeline": record.pipeline,
            "run": record.id,
            "mlflow.user": getpass.getuser(),
            "mlflow.source.type": "LOCAL",
            "mlflow.source.name": shlex.join(
                ["tats", "run", "pipeline", record.pipeline]
                + [part for one in record.overrides for part in ("--set", one)]
            ),
            "mlflow.note.content": record.title,
        }
        if record.git_commit:
            tags |= {"git_commit": record.git_commit, "mlflow.source.git.commit": record.git_commit}
        run = self._client.create_run(experiment, run_name=record.id, tags=tags)
        record.tracking_run = run.info.run_id
        # What was changed for this run, so that two runs of a pipeline can be told apart at a glance.
        self._log_params(run.info.run_id, dict(text.split("=", 1) for text in record.overrides))
        self._client.log_dict(run.info.run_id, dict(resolved), "pipeline.json")

    def _start_child(
        self,
        stage: StageRecord,
        config: Mapping[str, Any],
        settings: Mapping[str, Any],
        folders: tuple[Path, ...],
        data: tuple[Path, ...],
    ) -> None:
        from mlflow.entities import RunTag

        if stage.name in self._children:
            tag = RunTag("attempt", str(stage.attempts))
            self._client.log_batch(self._children[stage.name].run_id, tags=[tag])
            return
        parent = self._record.tracking_run
        assert parent is not None
        assert stage.key is not None
        tags = {
            "mlflow.parentRunId": parent,
            "mlflow.user": getpass.getuser(),
            "pipeline": self._record.pipeline,
            "stage": stage.stage,
            "kind": stage.kind,
            "key": stage.key[:12],
            "attempt": str(stage.attempts),
            "cached": "false",
            **{f"axis.{axis}": value for axis, value in stage.axes.items()},
        }
        if self._record.git_commit:
            tags["git_commit"] = self._record.git_commit
        experiment = self._client.get_run(parent).info.experiment_id
        run = self._client.create_run(experiment, run_name=stage.name, tags=tags)
        stage.tracking_run = run.info.run_id
        self._children[stage.name] = _Child(run.info.run_id, folders)
        # What the pipeline sets; the rest, which would bury it on MLflow's page, is in config.json.
        self._log_params(run.info.run_id, flat(settings))
        self._client.log_dict(run.info.run_id, dict(config), "config.json")
        self._log_datasets(run.info.run_id, data)

    def _log_params(self, run_id: str, values: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(key, str(value)[:PARAM_LENGTH]) for key, value in values.items()]
        for start in range(0, len(params), PARAMS_A_CALL):
            self._client.log_batch(run_id, params=params[start : start + PARAMS_A_CALL])

    def _log_datasets(self, run_id: str, manifests: tuple[Path, ...]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = []
        for path in manifests:
            stored = json.loads(path.read_text(encoding="utf-8"))
            digest = json.loads((path.parent / MANIFEST).read_text(encoding="utf-8"))["files"][path.name]
            profile = {"videos": len(stored["videos"]), "classes": len(stored["classes"])}
            dataset = Dataset(
                name=stored["benchmark"],
                digest=digest["sha256"][:32],
                source_type="local",
                source=json.dumps({"uri": path.as_uri()}),
                profile=json.dumps(profile),
            )
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", stored["split"])]))
        if inputs:
            self._client.log_inputs(run_id, inputs)

    def _take(self, name: str, event: Mapping[str, Any]) -> None:
        child = self._children[name]
        if event["kind"] == "metrics":
            self._take_metrics(child, event["values"], event["step"], event["time"])
        elif event["kind"] == "params":
            self._log_params(child.run_id, flat({"effective": event["values"]}))
        elif event["kind"] == "file":
            self._log_file(child, event)

    def _take_metrics(self, child: _Child, values: Mapping[str, float], step: int, when: float) -> None:
        from mlflow.entities import Metric

        for key, value in values.items():
            # After a resume the steps since the newest checkpoint come again; MLflow would keep both.
            if step > child.last_step.get(key, -1):
                child.last_step[key] = step
                child.waiting.append(Metric(key, value, int(when * 1000), step))
        if len(child.waiting) >= METRICS_A_CALL:
            self._flush()

    def _flush(self) -> None:
        for child in self._children.values():
            for start in range(0, len(child.waiting), METRICS_A_CALL):
                self._client.log_batch(child.run_id, metrics=child.waiting[start : start + METRICS_A_CALL])
            child.waiting.clear()
        self._flushed = time.monotonic()

    def _log_file(self, child: _Child, event: Mapping[str, Any]) -> None:
        key, name = event["key"], event["path"]
        if name.endswith(_PICTURES):
            picture = _use(child.folders, name, _picture)
            self._client.log_image(child.run_id, picture, key=key, step=event["step"])
        _use(
            child.folders,
            name,
            lambda path: self._client.log_artifact(child.run_id, str(path), artifact_path=key),
        )

    def _end_child(self, stage: StageRecord, source_run: str | None) -> None:
        from mlflow.entities import RunTag

        child = self._children[stage.name]
        if stage.status == "cached":
            tags = {"cached": "true"} | ({"source_run": source_run} if source_run else {})
            self._client.log_batch(child.run_id, tags=[RunTag(key, value) for key, value in tags.items()])
            self._log_last_values(child)
        if stage.done and stage.folder:
            self._log_output(child, Path(stage.folder))
        if stage.error:
            self._client.set_tag(child.run_id, "error", stage.error)
        self._flush()
        self._client.set_terminated(child.run_id, _status(stage.status))

    def _log_last_values(self, child: _Child) -> None:
        last: dict[str, tuple[int, float, float]] = {}
        for _, event in read_events(_first_existing(child.folders, KEY).parent / "events.jsonl"):
            if event["kind"] == "metrics":
                last |= {key: (event["step"], value, event["time"]) for key, value in event["values"].items()}
        for key, (step, value, when) in last.items():
            self._take_metrics(child, {key: value}, step, when)

    def _log_output(self, child: _Child, folder: Path) -> None:
        from mlflow.entities import RunTag

        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        tags = {"output": folder.as_uri(), "output.sha256": manifest["digest"]}
        for name, entry in manifest["files"].items():
            # Gigabytes stay where they are; the digest says whether they are still the same.
            if name.endswith(_CHECKPOINTS):
                tags |= {f"checkpoint.{name}": (folder / name).as_uri()}
                tags |= {f"checkpoint.{name}.sha256": entry["sha256"]}
        self._client.log_batch(child.run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        if (folder / "result.json").exists():
            result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
            self._take_metrics(child, numbers(result, "result/"), 0, time.time())
            self._client.log_artifact(child.run_id, str(folder / "result.json"))
        if (folder / "results.json").exists():
            self._log_results(child, folder)

    def _log_results(self, child: _Child, folder: Path) -> None:
        """The table of the whole pipeline: with the stage that made it, and on the parent."""
        from mlflow.entities import Metric

        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        parent = self._record.tracking_run
        assert parent is not None
        for run_id in (child.run_id, parent):
            for path in sorted(folder.iterdir()):
                if path.is_file() and (path.stem == "results" or path.suffix in _PICTURES):
                    self._client.log_artifact(run_id, str(path), artifact_path="results")
        rows = results["rows"]
        if rows:
            known = [key for key in tables.COLUMNS if any(key in row for row in rows)]
            order = [*known, *(key for key in rows[0] if key not in known)]
            columns = {key: [row.get(key) for row in rows] for key in order}
            self._client.log_table(parent, columns, "results_table.json")
        values = numbers(results.get("policy", {}), "policy/")
        for row in rows:
            kept = {key: row.get(key) for key in tables.METRICS}
            values |= numbers(kept, f"{row['benchmark']}/{row['init']}/")
        now = int(time.time() * 1000)
        self._client.log_batch(parent, metrics=[Metric(key, value, now, 0) for key, value in values.items()])

    def _end_parent(self) -> None:
        self._flush()
        if self._record.tracking_run:
            self._client.set_terminated(self._record.tracking_run, _status(self._record.status))


def connect(home: Path, uri: str) -> MlflowClient:
    """Return a client whose store is ready; our own database is created or migrated if need be.

    Processes that open a new database at the same time would both create its tables, so they take turns.
    """
    # It would report each run to its makers; who wants that sets the variable to false.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # MLflow sets up its loggers when it is imported, and reports every table that it creates.
    import mlflow.exceptions
    from mlflow import MlflowClient

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    if not uri.startswith("sqlite:///"):
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
    """Return where models with an alias in the registry lie (every local path that one names) → model@alias.

    Raises:
        StoreError: the tracking server cannot be asked.
    """
    uri = tracking_uri(home)
    if uri == f"sqlite:///{home.absolute() / 'mlflow.db'}" and not (home / "mlflow.db").exists():
        return {}  # nothing was ever tracked
    # It would try for minutes, and somebody waits.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    try:
        return dict(_aliased(connect(home, uri)))
    except Exception as error:  # whatever it was, what has an alias is not known
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        text = f"the tracking server cannot be asked which models have an alias ({reason})"
        raise StoreError(text) from error


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
    # What `mlflow db upgrade` does.
    from mlflow.store.db import utils

    utils._upgrade_db(utils.create_sqlalchemy_engine_with_retry(uri))  # type: ignore[no-untyped-call]


def _experiment(client: MlflowClient, home: Path, uri: str, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    local = uri.startswith("sqlite:")
    place = (home.absolute() / "mlflow-artifacts").as_uri() if local else None
    # Else MLflow's page opens with what is meant for language-model applications.
    tags = {"mlflow.experimentKind": "custom_model_development"}
    return str(client.create_experiment(name, artifact_location=place, tags=tags))


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with dotted keys."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value
    return result


def numbers(values: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """Return the numbers among `values` (a truth value is none), with `prefix` before their names."""
    return {
        prefix + key: float(value)
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _picture(path: Path) -> Image:
    import PIL.Image

    with PIL.Image.open(path) as picture:
        return picture.convert("RGB")


def _use(folders: tuple[Path, ...], name: str, use: Callable[[Path], Result]) -> Result:
    """Call `use` with the place of the file `name`, again where the file moved away under its hands."""
    try:
        return use(_first_existing(folders, name))
    except FileNotFoundError:
        # A stage's last files are told of right before its commit renames the folder, which happens once.
        return use(_first_existing(folders, name))


def _first_existing(folders: tuple[Path, ...], name: str) -> Path:
    # A commit renames the work folder while events about its files may still wait here.
    for folder in folders:
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(f"{name} is in none of {', '.join(map(str, folders))}")


def _status(status: str) -> str:
    return {"finished": "FINISHED", "cached": "FINISHED", "failed": "FAILED"}.get(status, "KILLED")

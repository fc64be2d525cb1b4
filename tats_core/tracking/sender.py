"""Tells a run's journal to MLflow: in order, once, however often it is begun again.

What was told is known by the cursor (`Sent`), and around its last position by asking MLflow itself: a kill,
or a lost answer, leaves it open whether the last operations arrived. So a run is looked for before it is
created, a curve goes on after its last step there, and a picture that is there is not told again.
"""

from __future__ import annotations

import getpass
import json
import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tats_core.errors import StoreError
from tats_core.report import metrics
from tats_core.specs import flatten
from tats_core.store import environment
from tats_core.store.journal import Spool
from tats_core.store.layout import KEY, MANIFEST
from tats_core.store.run import RunRecord
from tats_core.tracking import server
from tats_core.training.events import read_events

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Metric
    from PIL.Image import Image

Result = TypeVar("Result")

PARAM_LENGTH = 6000  # MLflow's limits, per value and per call
PARAMS_A_CALL = 100
METRICS_A_CALL = 1000
FLUSH_SECONDS = 2.0

_PARENT = ""
_STUBBORN = 5  # failures after which an operation is passed over
_CHECKPOINTS = (".pt", ".safetensors")
_PICTURES = (".png", ".jpg", ".jpeg", ".webp")
# The page of a run; and what a sweep comes to.
_OF_A_RUN = ("report.html", "results.json", "results.txt", "results.csv", "best.yaml", "plots")


class AwayError(Exception):
    """The server does not answer, or cannot do its work now: the same will do later.

    `broken` where it did answer, with an error of its own: then it may never do.
    """

    def __init__(self, reason: str, *, broken: bool = False) -> None:
        super().__init__(reason)
        self.broken = broken


@dataclass
class _Told:
    """What MLflow has of one of its runs."""

    id: str
    created: bool
    """By this sender: then it has nothing that we did not tell."""
    steps: dict[str, int] = field(default_factory=dict)
    """Metric → last step."""
    params: set[str] | None = None
    files: set[tuple[str, int]] | None = None


class Sender:
    """Tells one spool."""

    def __init__(self, spool: Spool, uri: str, note: Callable[[str], None]) -> None:
        """Connect.

        Args:
            note: gets a sentence about what the server will never take.

        Raises:
            AwayError: the server does not answer.
        """
        self.spool = spool
        self.uri = uri
        self.note = note
        self.sent = spool.sent()
        self.operations: dict[str, Callable[[dict[str, Any]], None]] = {
            "run": self._start_run,
            "stage": self._start_stage,
            "event": self._take_event,
            "system": self._take_system,
            "stage_end": self._end_stage,
            "run_end": self._end_run,
        }
        self._told: dict[str, _Told] = {}
        self._waiting: dict[str, list[Metric]] = {}
        self._stages: dict[str, dict[str, Any]] = {}
        self._inputs: dict[Path, DatasetInput] = {}
        self._flushed = self.last_answer = time.monotonic()
        self._read = self.sent.offset
        self.client = _asked(lambda: server.connect(spool.home, uri))
        _asked(lambda: self.client.search_experiments(max_results=1))
        for _, operation in spool.read(0):
            if operation["kind"] == "stage":
                self._stages[operation["stage"]["name"]] = operation

    def send(self) -> bool:
        """Tell what is in the journal and was not told; True where there was something.

        Raises:
            AwayError: the server went away; what was not told comes again.
        """
        before = self._read
        for offset, operation in self.spool.read(self._read):
            if operation["kind"] == "stage":
                self._stages[operation["stage"]["name"]] = operation
            if operation["kind"] not in ("event", "system"):
                self.flush()
            self._do(operation)
            self._read = offset
            waiting = sum(len(points) for points in self._waiting.values())
            if not waiting:
                self._advance()
            elif waiting >= METRICS_A_CALL:
                self.flush()
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()
        return self._read > before

    def flush(self) -> None:
        """Tell the points that wait for company."""
        for stage, points in self._waiting.items():
            run = self._run(stage)
            for start in range(0, len(points), METRICS_A_CALL):
                self._log_points(run, points[start : start + METRICS_A_CALL])
        self._waiting.clear()
        self._flushed = time.monotonic()
        self._advance()

    def _log_points(self, run: _Told, points: list[Metric]) -> None:
        try:
            _asked(lambda: self.client.log_batch(run.id, metrics=points))
        except AwayError:
            raise
        except Exception as error:  # noqa: BLE001 (refused for good: only what is refused stays behind)
            keys = sorted({point.key for point in points})
            if len(keys) == 1:
                steps = [point.step for point in points]
                self._pass_over({"kind": f"curve {keys[0]}", "run": run.id, "steps": steps}, _brief(error))
                return
            for key in keys:
                self._log_points(run, [point for point in points if point.key == key])
        self.last_answer = time.monotonic()

    def end_killed(self) -> None:
        """End what a driver left behind that was killed: nobody will write the rest of this journal."""
        self.flush()
        for run_id in reversed(self.sent.runs.values()):
            if _asked(lambda run_id=run_id: self.client.get_run(run_id)).info.status == "RUNNING":  # type: ignore[misc]
                _asked(lambda run_id=run_id: self.client.set_terminated(run_id, "KILLED"))  # type: ignore[misc]
        self.sent.ended = True
        self.spool.save(self.sent)

    def _advance(self) -> None:
        if self._read != self.sent.offset:
            self.sent.offset, self.sent.failures = self._read, 0
            self.spool.save(self.sent)

    def _do(self, operation: dict[str, Any]) -> None:
        try:
            _asked(lambda: self.operations[operation["kind"]](operation))
            self.last_answer = time.monotonic()
        except AwayError as error:
            if not error.broken:
                raise
            # A server that answers, yet breaks at this each time, would hold up all that follows for ever.
            _asked(lambda: self.client.search_experiments(max_results=1))
            self.sent.failures += 1
            self.spool.save(self.sent)
            if self.sent.failures < _STUBBORN:
                raise
            self._pass_over(operation, str(error))
        except Exception as error:  # noqa: BLE001 (the server refuses it for good, or a file is gone: the next one)
            self._pass_over(operation, _brief(error))

    def _pass_over(self, operation: Mapping[str, Any], reason: str) -> None:
        self.spool.reject(operation, reason)
        if operation["kind"] == "run_end":
            self.sent.ended = True  # all the same: nothing comes after it
        self.note(f"MLflow was not told of one thing ({operation['kind']}): {reason}")

    def _run(self, stage: str) -> _Told:
        if stage not in self._told:
            if stage not in self.sent.runs:
                raise LookupError(f"it has no run of {stage or 'the pipeline'}")
            self._told[stage] = _Told(self.sent.runs[stage], created=False)
        return self._told[stage]

    def _create(self, stage: str, name: str, tags: dict[str, str]) -> _Told:
        """Create the MLflow run of a stage ("": of the pipeline), or find the one that was created."""
        experiment = server.experiment(self.client, self.spool.home, self.uri, tags["pipeline"])
        kept = {"run": self.spool.run, "stage_instance": stage or "(pipeline)"}
        query = " and ".join(f"tags.`{key}` = {_quoted(value)}" for key, value in kept.items())
        found = self.client.search_runs([experiment], query, max_results=1)
        if found:
            told = _Told(found[0].info.run_id, created=False)
            self.client.update_run(told.id, "RUNNING")  # a sweep that is gone on with had ended
        else:
            run = self.client.create_run(experiment, run_name=name, tags={**tags, **kept})
            told = _Told(run.info.run_id, created=True)
        self._told[stage] = told
        self.sent.runs[stage] = told.id
        return told

    # --- operations ----------------------------------------------------------------------------------

    def _start_run(self, operation: dict[str, Any]) -> None:
        sweep = (self.spool.folder.parent / "sweep.json").exists()
        words = ["tats", *(["sweep"] if sweep else ["run", "pipeline"]), operation["pipeline"]]
        words += [part for one in operation["overrides"] for part in ("--set", one)]
        tags = {
            "pipeline": operation["pipeline"],
            "mlflow.user": _user(),
            "mlflow.source.type": "LOCAL",
            "mlflow.source.name": shlex.join(words),
            "mlflow.note.content": operation["title"],
            **_commit_tags(operation["git_commit"]),
            "git_dirty": str((self.spool.folder.parent / environment.PATCH).exists()).lower(),
        }
        run = self._create(_PARENT, self.spool.run, tags)
        # What was changed for this run, so that two runs of a pipeline can be told apart at a glance.
        self._log_params(run, dict(text.split("=", 1) for text in operation["overrides"]))
        self.client.log_dict(run.id, operation["resolved"], "pipeline.json")
        folder = self.spool.folder.parent
        for name, place in ((environment.FILE, None), (environment.PATCH, "git")):
            if (folder / name).exists():
                self.client.log_artifact(run.id, str(folder / name), artifact_path=place)

    def _start_stage(self, operation: dict[str, Any]) -> None:
        stage = operation["stage"]
        tags = {
            "mlflow.parentRunId": self._run(_PARENT).id,
            "mlflow.user": _user(),
            "pipeline": operation["pipeline"],
            "stage": stage["stage"],
            "kind": stage["kind"],
            "key": stage["key"][:12],
            "attempt": str(stage["attempts"]),
            "cached": "false",
            **{f"axis.{axis}": value for axis, value in stage["axes"].items()},
            **{f"input.{name}": digest for name, digest in operation["inputs"].items()},
            **_commit_tags(operation["git_commit"]),
        }
        if stage["name"] in self.sent.runs:
            self.client.set_tag(self._run(stage["name"]).id, "attempt", tags["attempt"])
            return
        # A trial's name is a digest; what it is called by its values, people can read.
        run = self._create(stage["name"], stage["stage" if stage["kind"] == "trial" else "name"], tags)
        # What the pipeline sets; the rest, which would bury it on MLflow's page, is in config.json.
        self._log_params(run, flatten(operation["settings"]))
        self.client.log_dict(run.id, operation["config"], "config.json")
        self._log_datasets(run, [Path(path) for path in operation["data"]])

    def _take_event(self, operation: dict[str, Any]) -> None:
        stage, event = operation["stage"], operation["event"]
        if event["kind"] == "metrics":
            self._take_metrics(stage, event["values"], event["step"], event["time"])
        elif event["kind"] == "params":
            self._log_params(self._run(stage), flatten({"effective": event["values"]}))
        elif event["kind"] == "file":
            self.flush()
            self._log_file(stage, event)

    def _take_system(self, operation: dict[str, Any]) -> None:
        self._take_metrics(_PARENT, operation["values"], operation["step"], operation["time"])

    def _take_metrics(self, stage: str, values: Mapping[str, float], step: int, when: float) -> None:
        from mlflow.entities import Metric

        run = self._run(stage)
        for key, value in values.items():
            # After a resume the steps since the newest checkpoint come again; MLflow would keep both.
            if step > self._last_step(run, key):
                run.steps[key] = step
                self._waiting.setdefault(stage, []).append(Metric(key, value, int(when * 1000), step))

    def _last_step(self, run: _Told, key: str) -> int:
        if key not in run.steps:
            known = [] if run.created else self.client.get_metric_history(run.id, key)
            run.steps[key] = max((point.step for point in known), default=-1)
        return run.steps[key]

    def _log_params(self, run: _Told, values: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        if run.params is None:
            run.params = set() if run.created else set(self.client.get_run(run.id).data.params)
        # MLflow refuses another value for a name: what the first attempt said stays.
        new = [
            Param(key, str(value)[:PARAM_LENGTH]) for key, value in values.items() if key not in run.params
        ]
        for start in range(0, len(new), PARAMS_A_CALL):
            self.client.log_batch(run.id, params=new[start : start + PARAMS_A_CALL])
        run.params |= {param.key for param in new}

    def _log_datasets(self, run: _Told, manifests: Sequence[Path]) -> None:
        for path in manifests:
            if path not in self._inputs:  # most stages of a run read the same
                self._inputs[path] = _dataset(path)
        if manifests:
            self.client.log_inputs(run.id, [self._inputs[path] for path in manifests])

    def _log_file(self, stage: str, event: Mapping[str, Any]) -> None:
        run, folders = self._run(stage), self._folders(stage)
        key, name, step = event["key"], event["path"], event["step"]
        if name.endswith(_PICTURES):
            if run.files is None:
                run.files = set() if run.created else self._pictures(run)
            if (key, step) not in run.files:
                picture = _use(folders, name, _picture)
                self.client.log_image(run.id, picture, key=key, step=step, synchronous=True)
                run.files.add((key, step))
        _use(folders, name, lambda path: self.client.log_artifact(run.id, str(path), artifact_path=key))

    def _pictures(self, run: _Told) -> set[tuple[str, int]]:
        # images/<key>+step+<n>+timestamp+…, twice for each picture.
        names = [one.path.removeprefix("images/") for one in self.client.list_artifacts(run.id, "images")]
        parts = [name.split("+") for name in names if "+step+" in name and "+compressed" not in name]
        return {(part[0].replace("~", "/"), int(part[2])) for part in parts}

    def _folders(self, stage: str) -> tuple[Path, ...]:
        return tuple(Path(folder) for folder in self._stages[stage]["folders"])

    def _end_stage(self, operation: dict[str, Any]) -> None:
        name, status = operation["stage"], operation["status"]
        run = self._run(name)
        if status == "cached":
            source = self._source_run(operation["source"])
            tags = {"cached": "true"} | ({"source_run": source} if source else {})
            self._set_tags(run, tags)
            self._log_last_values(name)
        if status in ("finished", "cached") and operation["folder"]:
            self._log_output(name, Path(operation["folder"]), made_here=status == "finished")
        if operation["error"]:
            self.client.set_tag(run.id, "error", operation["error"])
        self.flush()
        self.client.set_terminated(run.id, _status(status))

    def _set_tags(self, run: _Told, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self.client.log_batch(run.id, tags=[RunTag(key, value) for key, value in tags.items()])

    def _source_run(self, source: Sequence[str] | None) -> str | None:
        """Return the MLflow run of the stage that made an output."""
        if source is None:
            return None  # its record was removed; the output is as good
        return Spool(self.spool.home, source[0]).sent().runs.get(source[1])

    def _log_last_values(self, stage: str) -> None:
        last: dict[str, tuple[int, float, float]] = {}
        place = _first_existing(self._folders(stage), KEY).parent / "events.jsonl"
        for _, event in read_events(place):
            if event["kind"] == "metrics":
                last |= {key: (event["step"], value, event["time"]) for key, value in event["values"].items()}
        for key, (step, value, when) in last.items():
            self._take_metrics(stage, {key: value}, step, when)

    def _log_output(self, stage: str, folder: Path, *, made_here: bool) -> None:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        tags = {"output": folder.as_uri(), "output.sha256": manifest["digest"]}
        for name, entry in manifest["files"].items():
            # Gigabytes stay where they are; the digest says whether they are still the same.
            if name.endswith(_CHECKPOINTS):
                tags |= {f"checkpoint.{name}": (folder / name).as_uri()}
                tags |= {f"checkpoint.{name}.sha256": entry["sha256"]}
        run = self._run(stage)
        self._set_tags(run, tags)
        result = {}
        if (folder / "result.json").exists():
            result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
            self._take_metrics(stage, numbers(result, "result/"), 0, time.time())
            self.client.log_artifact(run.id, str(folder / "result.json"))
        if (folder / "results.json").exists():
            self._log_results(run, folder)
        kind = self._stages[stage]["stage"]["kind"]
        if made_here and kind in ("pretrain", "finetune") and "model.safetensors" in manifest["files"]:
            self._register(stage, folder, manifest, result)
        if kind == "evaluate" and "top1" in result:
            self._score(stage, float(result["top1"]))

    def _log_results(self, run: _Told, folder: Path) -> None:
        """The table of the whole pipeline: with the stage that made it, and on the parent."""
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        parent = self._run(_PARENT)
        for one in (run, parent):
            for path in sorted(folder.iterdir()):
                if path.is_file() and (path.stem == "results" or path.suffix in _PICTURES):
                    self.client.log_artifact(one.id, str(path), artifact_path="results")
        rows = results["rows"]
        if rows:
            known = [key for key in metrics.EXPORTED if any(key in row for row in rows)]
            order = [*known, *(key for key in rows[0] if key not in known)]
            columns = {key: [row.get(key) for row in rows] for key in order}
            # As `log_table` writes it, which would add to a table that is there already.
            table = {"columns": order, "data": [list(row) for row in zip(*columns.values(), strict=True)]}
            self.client.log_dict(parent.id, table, "results_table.json")
            entry = json.dumps([{"path": "results_table.json", "type": "table"}])
            self.client.set_tag(parent.id, "mlflow.loggedArtifacts", entry)
        values = numbers(results.get("policy", {}), "policy/")
        for row in rows:
            kept = {key: row.get(key) for key in metrics.RESULTS}
            values |= numbers(kept, f"{row['benchmark']}/{row['init']}/")
        self._take_metrics(_PARENT, values, 0, time.time())

    # --- models --------------------------------------------------------------------------------------

    def _register(
        self, stage: str, folder: Path, manifest: Mapping[str, Any], result: Mapping[str, Any]
    ) -> None:
        """Register a trained model by its place and digest, as the newest of its name.

        A name is a pipeline and what the model is for: its benchmark, or pre-training. The `champion` of a
        name is the best by top-1 of the evaluation; of pre-trained ones, by their last linear probe.
        """
        operation, run = self._stages[stage], self._run(stage)
        name = self._model_name(stage)
        if not self.client.search_registered_models(f"name = {_quoted(name)}"):
            self.client.create_registered_model(
                name, description=f"Models of the pipeline {operation['pipeline']}"
            )
        version = self._version(name, manifest["digest"])
        if version is None:
            experiment = self.client.get_run(run.id).info.experiment_id
            tags = {"output": folder.as_uri(), "output.sha256": manifest["digest"], "stage": stage}
            model = self.client.create_logged_model(
                experiment, name=name, source_run_id=run.id, tags=tags, model_type=operation["stage"]["kind"]
            )
            self.client.finalize_logged_model(model.model_id, "READY")
            # By its place: MLflow would look `models:/…` up at its default server, whoever asks.
            made = self.client.create_model_version(
                name, model.artifact_location, run_id=run.id, tags=tags, model_id=model.model_id
            )
            version = str(made.version)
        self.client.set_registered_model_alias(name, "newest", version)
        if operation["stage"]["kind"] == "pretrain" and "linear_top1" in result:
            self._crown(name, version, "linear_top1", float(result["linear_top1"]))

    def _score(self, stage: str, top1: float) -> None:
        for need, digest in self._stages[stage]["inputs"].items():
            if self._stages.get(need, {}).get("stage", {}).get("kind") == "finetune":
                name = self._model_name(need)
                version = self._version(name, digest)
                if version is not None:
                    self._crown(name, version, "top1", top1)

    def _crown(self, name: str, version: str, key: str, figure: float) -> None:
        """Note `figure` on a version; the best one carries the alias `champion`."""
        self.client.set_model_version_tag(name, version, key, f"{figure:.4f}")
        champion = self.client.get_registered_model(name).aliases.get("champion")
        if champion is not None:
            best = self.client.get_model_version(name, str(champion)).tags.get(key)
            if best is not None and float(best) >= figure:
                return
        self.client.set_registered_model_alias(name, "champion", version)

    def _model_name(self, stage: str) -> str:
        operation = self._stages[stage]
        use = "pretrain" if operation["stage"]["kind"] == "pretrain" else operation["config"]["benchmark"]
        return f"{operation['pipeline']}-{use}"

    def _version(self, name: str, digest: str) -> str | None:
        for one in self.client.search_model_versions(f"name = {_quoted(name)}"):
            if one.tags.get("output.sha256") == digest:
                return str(one.version)
        return None

    # --- the end -------------------------------------------------------------------------------------

    def _end_run(self, operation: dict[str, Any]) -> None:
        run = self._run(_PARENT)
        for place in (self.spool.folder.parent / name for name in _OF_A_RUN):
            if place.is_dir():
                self.client.log_artifacts(run.id, str(place), place.name)
            elif place.exists():
                self.client.log_artifact(run.id, str(place))
        self.client.set_terminated(run.id, _status(operation["status"]))
        self.sent.ended = True


def _dataset(manifest: Path) -> DatasetInput:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    stored = json.loads(manifest.read_text(encoding="utf-8"))
    entry = json.loads((manifest.parent / MANIFEST).read_text(encoding="utf-8"))["files"][manifest.name]
    profile = {"videos": len(stored["videos"]), "classes": len(stored["classes"])}
    dataset = Dataset(
        name=stored["benchmark"],
        digest=entry["sha256"][:32],
        source_type="local",
        source=json.dumps({"uri": manifest.as_uri()}),
        profile=json.dumps(profile),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", stored["split"])])


def _asked(call: Callable[[], Result]) -> Result:
    """Return what `call` returns.

    Raises:
        AwayError: it failed for a reason that may pass.
        Exception: the server refuses it, or a file is gone; it would fail again.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import OperationalError

    try:
        return call()
    except (FileNotFoundError, StoreError):
        raise
    except (
        OSError,
        OperationalError,
    ) as error:  # a connection (`requests` raises OSErrors), or a locked database
        raise AwayError(_brief(error)) from error
    except MlflowException as error:
        status = error.get_http_status_code()  # type: ignore[no-untyped-call]
        if status < 500 and status not in (408, 429):
            raise
        raise AwayError(_brief(error), broken=status == 500) from error


def _brief(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    return text if len(text) <= 200 else text[:197] + "..."


def remember(record: RunRecord, runs: Mapping[str, str]) -> None:
    """Write MLflow's ids into a run's record."""
    record.tracking_run = runs.get(_PARENT, record.tracking_run)
    for name, stage in record.stages.items():
        stage.tracking_run = runs.get(name, stage.tracking_run)


def numbers(values: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """Return the numbers among `values` (a truth value is none), with `prefix` before their names."""
    return {
        prefix + key: float(value)
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _quoted(value: str) -> str:
    """Return a text for MLflow's filters, which know two quotes and no escape."""
    return f'"{value}"' if "'" in value else f"'{value}'"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())  # in a container that runs as a number which no file there names


def _commit_tags(commit: str | None) -> dict[str, str]:
    return {"git_commit": commit, "mlflow.source.git.commit": commit} if commit else {}


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

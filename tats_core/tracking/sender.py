"""Sends a run's journal to MLflow: in order and once, however often the sender restarts.

The cursor (`Sent`) is the position up to which all was sent. After a kill or a lost answer, MLflow may have
more than that. So a run is searched before it is created, a curve resumes after its last step there, and a
picture that MLflow has is not sent again.
"""

from __future__ import annotations

import getpass
import json
import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tats_core.addresses import masked
from tats_core.report import metrics
from tats_core.report.units import is_number
from tats_core.specs import flatten
from tats_core.store import environment
from tats_core.store.journal import Operation, Spool
from tats_core.store.layout import ENVIRONMENT, EVENTS, KEY, MANIFEST, RESULT, RESULTS
from tats_core.store.run import RunRecord
from tats_core.tracking import registry, server
from tats_core.tracking.server import AwayError, RefusedError, first_line
from tats_core.training.events import Event, read_events

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Metric
    from PIL.Image import Image

Result = TypeVar("Result")
Json = dict[str, Any]

PARAM_LENGTH = 6000  # MLflow's limits, per value and per call
PARAMS_A_CALL = 100
METRICS_A_CALL = 1000
FLUSH_SECONDS = 2.0

_PARENT = ""
_STATUS = {"finished": "FINISHED", "cached": "FINISHED", "failed": "FAILED"}
_STUBBORN = 5  # failures after which an operation is skipped
_CHECKPOINTS = (".pt", ".safetensors")
_PICTURES = (".png", ".jpg", ".jpeg", ".webp")
# In a run's folder: its page; of a sweep, its results too.
_OF_A_RUN = ("report.html", "results.json", "results.txt", "results.csv", "best.yaml", "plots")


@dataclass
class _Logged:
    """What MLflow has of a run; None if not asked yet."""

    id: str
    created: bool
    """By this sender, so MLflow has nothing else of it."""
    steps: dict[str, int] = field(default_factory=dict)
    """Metric → last step."""
    params: set[str] | None = None
    pictures: set[tuple[str, int]] | None = None


class Sender:
    """Sends one spool."""

    def __init__(self, spool: Spool, uri: str, note: Callable[[str], None]) -> None:
        """Connect.

        Args:
            note: takes a sentence about an entry that the server refuses for good.

        Raises:
            AwayError: the server does not answer.
            RefusedError: it takes nothing from this user, or at all.
        """
        self.spool, self.uri, self.note = spool, uri, note
        self.sent = spool.sent()
        self._operations: dict[str, Callable[[Operation], None]] = {
            "run": self._start_run,
            "stage": self._start_stage,
            "event": self._take_event,
            "note": lambda operation: self.note(operation["text"]),
            "system": lambda operation: self._take_metrics(_PARENT, operation["values"], operation),
            "stage_end": self._end_stage,
            "run_end": self._end_run,
        }
        self._runs: dict[str, _Logged] = {}
        self._waiting: dict[str, list[Metric]] = {}
        self._stages = spool.stages()
        self._inputs: dict[Path, DatasetInput] = {}
        self._flushed = self.last_answer = time.monotonic()
        self._read = self.sent.cursor
        self.client = server.asked(lambda: server.connect(spool.home, uri), uri)
        server.check(self.client, uri)

    def send(self) -> bool:
        """Send what is new in the journal; return whether there was anything.

        Raises:
            AwayError: the server went away; what did not arrive is sent again later.
        """
        before = self._read
        for cursor, operation in self.spool.read(self._read):
            if operation["kind"] == "stage":
                self._stages[operation["stage"]["name"]] = operation
            if operation["kind"] not in ("event", "system"):
                self.flush()
            self._do(operation)
            self._read = cursor
            waiting = sum(len(points) for points in self._waiting.values())
            if not waiting:
                self._advance()
            elif waiting >= METRICS_A_CALL:
                self.flush()
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()
        return self._read > before

    def flush(self) -> None:
        """Send the points that wait to share a call."""
        for stage, points in self._waiting.items():
            for start in range(0, len(points), METRICS_A_CALL):
                self._log_points(self._run(stage), points[start : start + METRICS_A_CALL])
        self._waiting.clear()
        self._flushed = time.monotonic()
        self._advance()

    def end_killed(self) -> None:
        """End the MLflow runs of a killed driver, whose journal stays incomplete."""
        self.flush()
        for run_id in reversed(self.sent.runs.values()):
            if server.asked(partial(self.client.get_run, run_id), self.uri).info.status == "RUNNING":
                server.asked(partial(self.client.set_terminated, run_id, "KILLED"), self.uri)
        self.sent.ended = True
        self.spool.save(self.sent)

    def _log_points(self, run: _Logged, points: list[Metric]) -> None:
        try:
            server.asked(lambda: self.client.log_batch(run.id, metrics=points), self.uri)
        except (AwayError, RefusedError):
            raise
        except Exception as error:  # noqa: BLE001 (refused for good: find the curve that is refused)
            keys = sorted({point.key for point in points})
            if len(keys) == 1:
                steps = [point.step for point in points]
                self._reject({"kind": f"curve {keys[0]}", "run": run.id, "steps": steps}, first_line(error))
                return
            for key in keys:
                self._log_points(run, [point for point in points if point.key == key])
        self.last_answer = time.monotonic()

    def _advance(self) -> None:
        if self._read != self.sent.cursor:
            (self.sent.offset, self.sent.events), self.sent.failures = self._read, 0
            self.spool.save(self.sent)

    def _do(self, operation: Operation) -> None:
        try:
            server.asked(lambda: self._operations[operation["kind"]](operation), self.uri)
            self.last_answer = time.monotonic()
        except AwayError as error:
            if not error.broken:
                raise
            # A server that answers but fails at this operation each time would block the journal for ever.
            server.check(self.client, self.uri)
            self.sent.failures += 1
            self.spool.save(self.sent)
            if self.sent.failures < _STUBBORN:
                raise
            self._reject(operation, str(error))
        except RefusedError:
            raise
        except Exception as error:  # noqa: BLE001 (the server refuses it for good, or a file is gone)
            server.check(self.client, self.uri)
            self._reject(operation, first_line(error))

    def _reject(self, operation: Operation, reason: str) -> None:
        self.spool.reject(operation, reason)
        if operation["kind"] == "run_end":
            self.sent.ended = True  # nothing comes after it
        self.note(f"MLflow did not take one entry ({operation['kind']}): {reason}")

    def _run(self, stage: str) -> _Logged:
        if stage not in self._runs:
            if stage not in self.sent.runs:
                raise LookupError(f"it has no run of {stage or 'the pipeline'}")
            self._runs[stage] = _Logged(self.sent.runs[stage], created=False)
        return self._runs[stage]

    def _create(self, stage: str, name: str, tags: dict[str, str]) -> _Logged:
        """Create the MLflow run of a stage ("": of the pipeline), or find the existing run."""
        experiment = server.experiment(self.client, self.spool.home, self.uri, tags["pipeline"])
        identity = {"run": self.spool.run, "stage_instance": stage or "(pipeline)"}
        existing = server.run_with(self.client, experiment, identity)
        if existing:
            run = _Logged(existing.info.run_id, created=False)
            self.client.update_run(run.id, "RUNNING")  # a resumed sweep had ended
        else:
            new = self.client.create_run(experiment, run_name=name, tags={**tags, **identity})
            run = _Logged(new.info.run_id, created=True)
        self._runs[stage] = run
        self.sent.runs[stage] = run.id
        return run

    # --- operations ----------------------------------------------------------------------------------

    def _start_run(self, operation: Operation) -> None:
        folder = self.spool.folder.parent
        overrides: list[str] = operation["overrides"]
        words = ["tats", *(["sweep"] if (folder / "sweep.json").exists() else ["run", "pipeline"])]
        words += [operation["pipeline"], *(word for text in overrides for word in ("--set", text))]
        tags = {
            "pipeline": operation["pipeline"],
            "mlflow.user": _user(),
            "mlflow.source.type": "LOCAL",
            "mlflow.source.name": shlex.join(words),
            "mlflow.note.content": operation["title"],
            **_commit_tags(operation["git_commit"]),
            "git_dirty": str((folder / environment.PATCH).exists()).lower(),
            "reused": "false",
        }
        run = self._create(_PARENT, self.spool.run, tags)
        # The overrides of this run distinguish two runs of a pipeline at a glance.
        self._log_params(
            run, {**_sampling(operation["resolved"]), **dict(text.split("=", 1) for text in overrides)}
        )
        self.client.log_dict(run.id, operation["resolved"], "pipeline.json")
        for name, below in ((ENVIRONMENT, None), (environment.PATCH, "git")):
            if (folder / name).exists():
                self.client.log_artifact(run.id, str(folder / name), artifact_path=below)

    def _start_stage(self, operation: Operation) -> None:
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
        # A trial's name is a digest; its label has its values.
        run = self._create(stage["name"], stage["stage" if stage["kind"] == "trial" else "name"], tags)
        # Only what the pipeline sets; all other values are in config.json.
        self._log_params(run, flatten(operation["settings"]))
        self.client.log_dict(run.id, operation["config"], "config.json")
        manifests = [Path(path) for path in operation["data"]]
        for path in manifests:
            if path not in self._inputs:  # most stages of a run read the same manifests
                self._inputs[path] = _dataset(path)
        if manifests:
            self.client.log_inputs(run.id, [self._inputs[path] for path in manifests])

    def _take_event(self, operation: Operation) -> None:
        stage, event = operation["stage"], operation["event"]
        if event["kind"] == "metrics":
            self._take_metrics(stage, event["values"], event)
        elif event["kind"] == "params":
            self._log_params(self._run(stage), flatten({"effective": event["values"]}))
        elif event["kind"] == "file":
            self.flush()
            self._log_file(stage, event["key"], event["path"], event["step"])

    def _take_metrics(self, stage: str, values: Mapping[str, float], when: Event) -> None:
        """Queue points for the next call; `when` has their step and time."""
        from mlflow.entities import Metric

        run, step, milliseconds = self._run(stage), when["step"], int(when["time"] * 1000)
        for key, value in values.items():
            if key not in run.steps:
                points = [] if run.created else self.client.get_metric_history(run.id, key)
                run.steps[key] = max((point.step for point in points), default=-1)
            # A resume repeats the steps since the newest checkpoint; MLflow would have both points.
            if step > run.steps[key]:
                run.steps[key] = step
                self._waiting.setdefault(stage, []).append(Metric(key, value, milliseconds, step))

    def _log_params(self, run: _Logged, values: Mapping[str, object]) -> None:
        from mlflow.entities import Param

        if run.params is None:
            run.params = set() if run.created else set(self.client.get_run(run.id).data.params)
        # MLflow refuses to change a parameter: the value of the first attempt stays.
        new = [
            Param(key, str(value)[:PARAM_LENGTH]) for key, value in values.items() if key not in run.params
        ]
        for start in range(0, len(new), PARAMS_A_CALL):
            self.client.log_batch(run.id, params=new[start : start + PARAMS_A_CALL])
        run.params |= {param.key for param in new}

    def _log_file(self, stage: str, key: str, name: str, step: int) -> None:
        run, folders = self._run(stage), self._folders(stage)
        if name.endswith(_PICTURES):
            if run.pictures is None:
                run.pictures = set() if run.created else self._pictures(run)
            if (key, step) not in run.pictures:
                picture = _use(folders, name, _picture)
                self.client.log_image(run.id, picture, key=key, step=step, synchronous=True)
                run.pictures.add((key, step))
        _use(folders, name, lambda path: self.client.log_artifact(run.id, str(path), artifact_path=key))

    def _pictures(self, run: _Logged) -> set[tuple[str, int]]:
        # images/<key>+step+<n>+timestamp+…, twice for each picture.
        paths = [entry.path for entry in self.client.list_artifacts(run.id, "images")]
        names = [path.removeprefix("images/") for path in paths]
        parts = [name.split("+") for name in names if "+step+" in name and "+compressed" not in name]
        return {(part[0].replace("~", "/"), int(part[2])) for part in parts}

    def _folders(self, stage: str) -> list[Path]:
        return [Path(folder) for folder in self._stages[stage]["folders"]]

    def _end_stage(self, operation: Operation) -> None:
        name, status = operation["stage"], operation["status"]
        run = self._run(name)
        if status == "cached":
            tags = {"cached": "true"}
            if operation["source"]:  # the run and the stage that made the output
                source_run, source_stage = operation["source"]
                if source := Spool(self.spool.home, source_run).sent().runs.get(source_stage):
                    tags["source_run"] = source
            self._set_tags(run, tags)
            self._log_last_values(name)
        try:
            if status in ("finished", "cached") and operation["folder"]:
                self._log_output(name, Path(operation["folder"]), made_here=status == "finished")
            if operation["error"]:
                # A file's name may hold bytes that are no text, which no server takes.
                error = masked(operation["error"]).encode(errors="backslashreplace").decode()
                self.client.set_tag(run.id, "error", error)
            self.flush()
        finally:  # the output may be gone by now
            self.client.set_terminated(run.id, _STATUS.get(status, "KILLED"))

    def _set_tags(self, run: _Logged, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self.client.log_batch(run.id, tags=[RunTag(key, value) for key, value in tags.items()])

    def _log_last_values(self, stage: str) -> None:
        last: dict[str, tuple[float, Event]] = {}
        for _, event in read_events(_first_existing(self._folders(stage), KEY).parent / EVENTS):
            if event["kind"] == "metrics":
                last |= {key: (value, event) for key, value in event["values"].items()}
        for key, (value, event) in last.items():
            self._take_metrics(stage, {key: value}, event)

    def _log_output(self, stage: str, folder: Path, *, made_here: bool) -> None:
        manifest = _json(folder / MANIFEST)
        tags = {"output": folder.as_uri(), "output.sha256": manifest["digest"]}
        for name, entry in manifest["files"].items():
            # Not copied: checkpoints may have gigabytes. The digest shows whether they have changed.
            if name.endswith(_CHECKPOINTS):
                tags |= {f"checkpoint.{name}": (folder / name).as_uri()}
                tags |= {f"checkpoint.{name}.sha256": entry["sha256"]}
        run = self._run(stage)
        self._set_tags(run, tags)
        result: Json = {}
        if (folder / RESULT).exists():
            result = _json(folder / RESULT)
            self._take_metrics(stage, numbers(result, "result/"), _now())
            self.client.log_artifact(run.id, str(folder / RESULT))
        if (folder / RESULTS).exists():
            self._log_results(run, folder)
        kind = self._stages[stage]["stage"]["kind"]
        if made_here and kind in ("pretrain", "finetune") and "model.safetensors" in manifest["files"]:
            registry.register(self.client, self._stages[stage], run.id, folder, manifest["digest"], result)
        if kind == "evaluate" and "top1" in result:
            for need, digest in self._stages[stage]["inputs"].items():
                if need in self._stages:
                    registry.score(self.client, self._stages[need], digest, float(result["top1"]))

    def _log_results(self, run: _Logged, folder: Path) -> None:
        """Log the table of the pipeline with the stage that made it and with the parent."""
        results = _json(folder / RESULTS)
        parent = self._run(_PARENT)
        for path in sorted(folder.iterdir()):
            if path.is_file() and (path.stem == "results" or path.suffix in _PICTURES):
                for run_id in (run.id, parent.id):
                    self.client.log_artifact(run_id, str(path), artifact_path="results")
        rows = results["rows"]
        if rows:
            exported = (*metrics.EXPORTED, *metrics.declared(results))
            known = [key for key in exported if any(key in row for row in rows)]
            order = [*known, *(key for key in rows[0] if key not in known)]
            # Not by `log_table`, which would append to a table that MLflow has already.
            table = {"columns": order, "data": [[row.get(key) for key in order] for row in rows]}
            self.client.log_dict(parent.id, table, "results_table.json")
            entry = json.dumps([{"path": "results_table.json", "type": "table"}])
            self.client.set_tag(parent.id, "mlflow.loggedArtifacts", entry)
        values = numbers(results.get("policy", {}), "policy/")
        for row in rows:
            measured = {key: row.get(key) for key in (*metrics.RESULTS, *metrics.declared(results))}
            values |= numbers(measured, f"{row['benchmark']}/{row['init']}/")
        self._take_metrics(_PARENT, values, _now())

    def _end_run(self, operation: Operation) -> None:
        run = self._run(_PARENT)
        for path in (self.spool.folder.parent / name for name in _OF_A_RUN):
            if path.is_dir():
                self.client.log_artifacts(run.id, str(path), path.name)
            elif path.exists():
                self.client.log_artifact(run.id, str(path))
        if operation.get("reused"):
            self.client.set_tag(run.id, "reused", "true")
        self.client.set_terminated(run.id, _STATUS.get(operation["status"], "KILLED"))
        self.sent.ended = True


def remember(record: RunRecord, runs: Mapping[str, str]) -> None:
    """Write MLflow's ids into a run's record."""
    record.tracking_run = runs.get(_PARENT, record.tracking_run)
    for name, stage in record.stages.items():
        stage.tracking_run = runs.get(name, stage.tracking_run)


def numbers(values: Mapping[str, object], prefix: str) -> dict[str, float]:
    """Return the numbers (not booleans) among `values`, with `prefix` before their names."""
    return {prefix + key: float(value) for key, value in values.items() if is_number(value)}


def _dataset(manifest: Path) -> DatasetInput:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    stored = _json(manifest)
    entry = _json(manifest.parent / MANIFEST)["files"][manifest.name]
    dataset = Dataset(
        name=stored["benchmark"],
        digest=entry["sha256"][:32],
        source_type="local",
        source=json.dumps({"uri": manifest.as_uri()}),
        profile=json.dumps({"videos": len(stored["videos"]), "classes": len(stored["classes"])}),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", stored["split"])])


def _json(path: Path) -> Json:
    content: Json = json.loads(path.read_text(encoding="utf-8"))
    return content


def _now() -> Event:
    return {"step": 0, "time": time.time()}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())  # in a container whose user has no name


def _commit_tags(commit: str | None) -> dict[str, str]:
    return {"git_commit": commit, "mlflow.source.git.commit": commit} if commit else {}


def _sampling(resolved: Json) -> dict[str, str]:
    """Return how the stages of a pipeline sample, for the table of its runs."""
    samplers = [stage["sampler"] for stage in resolved.get("stages", {}).values() if stage.get("sampler")]
    columns = {"sampler": "kind", "mask_ratio": "mask_ratio"}
    values = {
        name: dict.fromkeys(str(sampler[key]) for sampler in samplers if key in sampler)
        for name, key in columns.items()
    }
    return {name: ", ".join(several) for name, several in values.items() if several}


def _picture(path: Path) -> Image:
    import PIL.Image

    with PIL.Image.open(path) as picture:
        return picture.convert("RGB")


def _use(folders: Sequence[Path], name: str, use: Callable[[Path], Result]) -> Result:
    """Call `use` with the path of the file `name`, again if a commit moved the file meanwhile."""
    try:
        return use(_first_existing(folders, name))
    except FileNotFoundError:
        # A stage logs its last files right before its commit renames the folder, which happens once.
        return use(_first_existing(folders, name))


def _first_existing(folders: Sequence[Path], name: str) -> Path:
    for path in (folder / name for folder in folders):
        if path.exists():
            return path
    raise FileNotFoundError(f"{name} is in none of {', '.join(map(str, folders))}")

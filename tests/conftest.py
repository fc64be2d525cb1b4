"""What every test stands on: no setting of the machine reaches a test."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tats_core import tracking
from tats_core.store.outputs import StageKey, StageStore
from tats_core.store.run import RunRecord, StageRecord
from tests.forks import Forks

# The models here are so small that a second thread costs more than it does; on a busy machine, ten times
# more. Before anything imports torch, and for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# An example may take as long as the machine takes.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

_PREFIXES = ("TATS_", "MLFLOW_", "RAY_")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(_PREFIXES):
            monkeypatch.delenv(name)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that hold slow tests: the last file to end shall not be a long one."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Return what starts Python without waiting for its libraries."""
    started = Forks()
    yield started
    started.close()


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return MLflow's database before the first run: to create it takes longer than most tests."""
    home = tmp_path_factory.mktemp("empty")
    database = home / "mlflow.db"
    tracking.connect(home, f"sqlite:///{database}")
    return database


class Kept:
    """A project folder with runs whose stages were never run: their outputs are a few numbers."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.store = StageStore(home)

    def run(
        self, hour: int, *, name: str = "mine", reuse: RunRecord | None = None, **changed: Any
    ) -> RunRecord:
        """Keep a finished run data → pretrain → finetune → evaluate → report, begun at `hour` of a day.

        Args:
            reuse: take the data of this run.
            changed: epochs of the pre-training, top1 of the evaluation, code (its digest), seed of the data.
        """
        given = {"epochs": 3, "top1": 50.0, "code": "c0de", "seed": 0} | changed
        record = RunRecord(
            f"{name}-20260102-{hour:02d}0000000-ab{hour:02d}", name, "A title", f"{name}.yaml",
            str(self.home),
            "finished", 1000.0 * hour, {}, finished=1000.0 * hour + 90, git_commit=f"{hour:040d}",
        )  # fmt: skip
        manifest = {
            "format": 1, "benchmark": "ssv2", "root": "/videos", "absent": 0, "classes": ["a", "b"],
            "videos": [["1", f"{given['seed']}.mp4", 0], ["2", "b.mp4", 1]],
        }  # fmt: skip
        data = {f"ssv2.{split}.json": json.dumps(manifest | {"split": split}) for split in ("train", "test")}
        policy = {"motion_lift": 2.5, "mask_ratio": 0.9, "sampler": "tats"}
        test = {
            "benchmark": "ssv2", "init": "pretrained", "top1": given["top1"], "clips": 90,
            "low": given["top1"] - 10, "high": given["top1"] + 8,
        }  # fmt: skip
        tuned = {"benchmark": "ssv2", "init": "pretrained", "seconds": 7.0}
        sources = {
            metric: {"stage": stage, "file": "result.json"}
            for stage, values in (("evaluate", test), ("finetune", tuned))
            for metric, value in values.items()
            if not isinstance(value, str)
        }
        lift = {"stage": "pretrain", "file": "result.json"}
        table = {
            "pipeline": name, "rows": [{**tuned, **test}], "policy": policy, "sources": [sources],
            "policy_sources": [{"motion_lift": lift, "mask_ratio": lift}],
        }  # fmt: skip
        weights = {"model.safetensors": f"weights {given['epochs']}"}
        self._stage(record, "data", [], {"seed": given["seed"]}, data, given["code"], reuse)
        config = {"benchmark": "ssv2", "epochs": given["epochs"], "sampler": {"mask_ratio": 0.9}}
        files = weights | {"result.json": json.dumps(policy)}
        self._stage(record, "pretrain", ["data"], config, files, given["code"])
        files = weights | {"result.json": json.dumps(tuned)}
        self._stage(record, "finetune", ["data", "pretrain"], {"epochs": 2}, files, given["code"])
        files = {"result.json": json.dumps(test)}
        self._stage(record, "evaluate", ["data", "finetune"], {"clips": 2}, files, given["code"])
        files = {"results.json": json.dumps(table)}
        self._stage(record, "report", ["pretrain", "finetune", "evaluate"], {}, files, given["code"])
        record.save_configs(self._configs)
        record.save()
        return record

    def _stage(
        self,
        record: RunRecord,
        kind: str,
        needs: list[str],
        config: dict[str, Any],
        files: dict[str, str],
        code: str,
        reuse: RunRecord | None = None,
    ) -> None:
        self._configs = (self._configs if record.stages else {}) | {kind: {"all": config, "set": config}}
        inputs = [{"kind": need, "digest": record.stages[need].digest} for need in needs]
        key = StageKey(
            {"kind": kind, "config": config, "code": {kind: code}, "inputs": inputs, "external": files}
        )
        folder = self.store.folder(kind, key)
        if reuse is None:
            partial = self.store.begin(folder, fresh=True)
            for name, text in files.items():
                (partial / name).write_text(text)
            origin = {"pipeline": record.pipeline, "stage": kind, "run": record.id}
            self.store.commit(partial, folder, key, origin, {})
        record.stages[kind] = StageRecord(
            kind, kind, kind, {}, needs, "cached" if reuse else "finished", "unchanged" if reuse else "new",
            key.digest, str(folder), digest=self.store.manifest(folder).digest,
        )  # fmt: skip


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kept:
    """An empty project folder that runs can be put into."""
    monkeypatch.chdir(tmp_path)
    return Kept(tmp_path / ".tats")

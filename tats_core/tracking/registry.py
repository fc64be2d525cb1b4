"""Trained models in MLflow's registry: versions of a name, and which of them is the newest and the best.

A name is a pipeline and what the model is for: its benchmark, or pre-training. A version is known by the
digest of its output. The alias `champion` is on the best version by top-1 of the evaluation; of pre-trained
models, by their last linear probe. A `stage` is the journal's operation that began the stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tats_core.store.journal import Operation
from tats_core.tracking import server

if TYPE_CHECKING:
    from mlflow import MlflowClient


def register(
    client: MlflowClient, stage: Operation, run: str, folder: Path, digest: str, result: Mapping[str, Any]
) -> None:
    """Register the model in a stage's `folder` as the newest of its name; again, it stays one version."""
    name, kind = _model_name(stage), stage["stage"]["kind"]
    if not client.search_registered_models(f"name = {server.quoted(name)}"):
        client.create_registered_model(name, description=f"Models of the pipeline {stage['pipeline']}")
    version = _version(client, name, digest)
    if version is None:
        experiment = client.get_run(run).info.experiment_id
        tags = {"output": folder.as_uri(), "output.sha256": digest, "stage": stage["stage"]["name"]}
        model = client.create_logged_model(
            experiment, name=name, source_run_id=run, tags=tags, model_type=kind
        )
        client.finalize_logged_model(model.model_id, "READY")
        # By its location: MLflow would resolve `models:/…` at its default server, whoever asks.
        created = client.create_model_version(
            name, model.artifact_location, run_id=run, tags=tags, model_id=model.model_id
        )
        version = str(created.version)
    client.set_registered_model_alias(name, "newest", version)
    if kind == "pretrain" and "linear_top1" in result:
        _crown(client, name, version, "linear_top1", float(result["linear_top1"]))


def score(client: MlflowClient, stage: Operation, digest: str, top1: float) -> None:
    """Note the top-1 of an evaluation on the version that `stage`, if it is a fine-tuning, left."""
    if stage["stage"]["kind"] == "finetune":
        name = _model_name(stage)
        version = _version(client, name, digest)
        if version is not None:
            _crown(client, name, version, "top1", top1)


def _crown(client: MlflowClient, name: str, version: str, key: str, value: float) -> None:
    client.set_model_version_tag(name, version, key, f"{value:.4f}")
    champion = client.get_registered_model(name).aliases.get("champion")
    if champion is not None:
        best = client.get_model_version(name, str(champion)).tags.get(key)
        if best is not None and float(best) >= value:
            return
    client.set_registered_model_alias(name, "champion", version)


def _version(client: MlflowClient, name: str, digest: str) -> str | None:
    versions = client.search_model_versions(f"name = {server.quoted(name)}")
    same = (str(version.version) for version in versions if version.tags.get("output.sha256") == digest)
    return next(same, None)


def _model_name(stage: Operation) -> str:
    pretrained = stage["stage"]["kind"] == "pretrain"
    return f"{stage['pipeline']}-{'pretrain' if pretrained else stage['config']['benchmark']}"
